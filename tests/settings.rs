//! Settings from flags and from the environment, and how problems with them are reported.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    process::Command,
};

use crate::common::service::{Service, binary, run_to_exit};

/// The variables of this role's flags.
fn variables(role: &str) -> Vec<String> {
    let (help, _, code) = run_to_exit(binary().args([role, "--help"]));
    assert_eq!(code, 0);
    help.split("[env: ").skip(1).map(|rest| rest.split(']').next().unwrap().to_owned()).collect()
}

#[test]
fn every_problem_is_one_line_that_names_its_setting() {
    let mut command = binary();
    command.args(["serve", "--max-queued", "many", "--bind", "127.0.0.1:0"]);
    let wrong = [
        ("CC_EXECUTOR_MAX_QUEUED", "overruled by the flag"),
        ("CC_EXECUTOR_MAX_SESSIONS", "0"),
        ("CC_EXECUTOR_INSECURE_NO_AUTH", "maybe"),
        ("CC_EXECUTOR_CONTAINMENT", "fence"),
        ("CC_EXECUTOR_EXECUTORS", "[]"),
        ("CC_EXECUTOR_TOKEN", "two words"),
        ("LOG_FORMAT", "xml"),
    ];
    let (stdout, stderr, code) = run_to_exit(command.envs(wrong));
    assert_eq!((code, stdout.as_str(), stderr.lines().count()), (64, "", 7), "{stderr}");
    assert!(stderr.lines().all(|line| line.starts_with("cc-executor: ")), "{stderr}");
    assert!(
        stderr.contains("cc-executor: --max-queued must be a whole number from 0 to 100000, not \"many\"\n"),
        "{stderr}"
    );
    for (name, _) in &wrong[1..] {
        assert_eq!(stderr.matches(&format!("cc-executor: {name} ")).count(), 1, "{name}: {stderr}");
    }
}

#[test]
fn empty_or_non_utf8_variable_is_unset() {
    let names = [variables("serve"), vec!["LOG_FORMAT".into(), "CC_EXECUTOR_TOKEN".into()]].concat();
    assert_eq!(names.len(), 48);
    for value in [OsString::new(), OsStr::from_bytes(b"\xff").to_owned()] {
        let mut command = binary();
        command.args(["serve", "--max-sessions", ""]).envs(names.iter().map(|name| (name, &value)));
        // Not the default port, which another process may use.
        let service = Service::spawn({
            command.env("CC_EXECUTOR_BIND", "127.0.0.1:0");
            command
        });
        assert_eq!(service.run(&["--", "echo hi"]).stdout, b"hi\n");
    }
}

#[test]
fn variables_are_validated_like_their_flags() {
    for (name, flag) in variables("backend").iter().map(|name| {
        let long = name.trim_start_matches("CC_EXECUTOR_").to_lowercase().replace('_', "-");
        (name, format!("--{long}=?"))
    }) {
        if name.contains("CLAUDE_MODELS")
            || ["TOOLS", "MODES", "DIRECTORIES", "HOSTS", "ORIGINS", "PASS_ENV"].iter().any(|end| name.ends_with(end))
            || name.ends_with("NO_AUTH")
            || name.ends_with("SHORT_TOKEN")
            || name.ends_with("STATE_DIR")
        {
            // Any text is a valid list or path, and a switch has no value.
            continue;
        }
        let of_flag = run_to_exit(binary().args(["backend", &flag]));
        let of_variable = run_to_exit(binary().arg("backend").env(name, "?"));
        assert_eq!((of_flag.2, of_variable.2), (64, 64), "{name}");
        let spelled = flag.trim_end_matches("=?");
        assert_eq!(of_flag.1.replace(spelled, name), of_variable.1, "{name}");
    }
}

#[test]
fn wrong_usage_exits_with_64_and_help_with_0() {
    let id = "00000000-0000-4000-8000-000000000000";
    for arguments in [
        [].as_slice(),
        &["nope"],
        &["backend", "--max-sessions", "7"],
        &["run"],
        &["run", "--timeout", "soon", "x"],
        &["run", "-i", "--reconnect", "x"],
        &["run", "--url", "ftp://x", "x"],
        &["attach", "x/y"],
        &["attach", id, "--reconnect=soon"],
        &["cancel"],
    ] {
        let (_, stderr, code) = run_to_exit(binary().args(arguments));
        assert_eq!(code, 64, "{arguments:?}: {stderr}");
    }
    assert_eq!(run_to_exit(binary().arg("--help")).2, 0);
}

#[test]
fn backend_settings_with_a_remote_backend_are_refused() {
    let mut command = binary();
    command.args(["serve", "--claude-api-url", "http://127.0.0.1:1", "--ring-bytes", "65536"]);
    let (_, stderr, code) = run_to_exit(command.env("CC_EXECUTOR_MAX_QUEUED", "3").env("CC_EXECUTOR_PASS_ENV", ""));
    assert_eq!((code, stderr.lines().count()), (64, 2), "{stderr}");
    assert!(stderr.contains("--ring-bytes belongs") && stderr.contains("CC_EXECUTOR_MAX_QUEUED belongs"), "{stderr}");
}

#[test]
fn service_url_comes_from_flag_or_variable() {
    let service = Service::start();
    let ps =
        |arguments: &[&str], url: &str| run_to_exit(binary().arg("ps").args(arguments).env("CC_EXECUTOR_URL", url));
    assert_eq!(ps(&[], &service.url()).2, 0);
    assert_eq!(ps(&["--url", &service.url()], "ws://127.0.0.1:1").2, 0, "the flag overrides the variable");
    let (_, stderr, code) = ps(&[], "ftp://nowhere");
    let wrong = "CC_EXECUTOR_URL must be a URL such as wss://HOST/PATH, https://HOST, ws://HOST:PORT or HOST:PORT";
    assert_eq!((code, stderr), (64, format!("cc-executor: {wrong}, not \"ftp://nowhere\"\n")));
    assert_eq!(ps(&["--url", ""], &service.url()).2, 64, "an empty flag is an error");
}

#[test]
fn each_form_of_a_url_suits_every_command() {
    let service = Service::start();
    let address = service.address.to_string();
    let localhost = format!("localhost:{}", service.address.port());
    for url in [
        address.clone(),
        localhost,
        format!("http://{address}"),
        format!("http://{address}/"),
        format!("ws://{address}/ws/mcp"),
        format!("ws://{address}/ws"),
        format!("http://{address}/ready"),
        format!("http://{address}/healthz"),
    ] {
        for words in [["run", "--", "true"].as_slice(), &["ps"], &["healthcheck"], &["check", "--only", "basic"]] {
            let (stdout, stderr, code) = run_to_exit(binary().args(words).env("CC_EXECUTOR_URL", &url));
            assert_eq!(code, 0, "{words:?} {url}: {stdout}{stderr}");
        }
    }
    // A prefix that leads nowhere is a part of each URL.
    for words in [["run", "--", "true"].as_slice(), &["ps"], &["healthcheck"]] {
        let (_, stderr, code) = run_to_exit(binary().args(words).env("CC_EXECUTOR_URL", format!("{address}/tools")));
        assert!(code != 0 && stderr.contains(&format!("{address}/tools/")), "{words:?} {stderr}");
    }
}

#[test]
fn the_url_of_the_backend_has_two_names_which_must_agree() {
    let backend = Service::backend();
    let variables = |url: &str, earlier: &str| {
        let mut command = binary();
        command.args(["serve", "--bind", "127.0.0.1:0"]);
        command.env("CC_EXECUTOR_BACKEND_URL", url).env("CLAUDE_API_URL", earlier);
        command
    };
    let (_, stderr, code) = run_to_exit(&mut variables("http://127.0.0.1:1", "http://127.0.0.1:2"));
    let differ = "CC_EXECUTOR_BACKEND_URL and CLAUDE_API_URL are both set, and differ; unset one of them";
    assert_eq!((stderr, code), (format!("cc-executor: {differ}\n"), 64));
    let mut by_flag = variables("http://127.0.0.1:1", "http://127.0.0.1:2");
    by_flag.args(["--claude-api-url", &backend.url()]);
    for command in [
        variables(&backend.url(), &format!("{}/", backend.url())),
        variables(&backend.url(), ""),
        variables("", &backend.url()),
        by_flag,
    ] {
        let gateway = Service::spawn(command);
        gateway.wait_for_event("backend.up", 1);
        assert_eq!(gateway.run(&["--", "echo ok"]).stdout, b"ok\n");
    }
}

#[test]
fn help_shows_variable_names_and_never_values() {
    for command in ["serve", "backend", "run", "attach", "output", "ps", "cancel", "check"] {
        let secrets = ["CC_EXECUTOR_TOKEN", "CC_EXECUTOR_BACKEND_TOKEN", "CC_EXECUTOR_EXECUTORS", "CC_EXECUTOR_URL"];
        let (help, _, code) = run_to_exit(binary().args([command, "--help"]).envs(secrets.map(|name| (name, "hush"))));
        assert_eq!(code, 0);
        assert!(!help.contains("hush") && help.contains("  CC_EXECUTOR_TOKEN "), "{help}");
        assert_eq!(help.contains("[env: CC_EXECUTOR_URL]"), !matches!(command, "serve" | "backend"), "{command}");
    }
}

#[test]
fn completions_work_in_bash() {
    let (script, _, code) = run_to_exit(binary().args(["completions", "bash"]));
    assert_eq!(code, 0);
    let check = "COMP_WORDS=(cc-executor serve --max-sess); COMP_CWORD=2; _clap_complete_cc_executor cc-executor --max-sess serve; \
        echo \"${COMPREPLY[@]}\"";
    let completed = Command::new("bash").args(["-c", &format!("{script}\n{check}")]).output().unwrap();
    let words = String::from_utf8_lossy(&completed.stdout).into_owned();
    assert_eq!(words, "--max-sessions --max-sessions-per-address\n", "{completed:?}");
    assert_eq!(run_to_exit(binary().args(["completions", "cmd"])).2, 64);
    assert_eq!(
        run_to_exit(binary().arg("--version")),
        (format!("cc-executor {}\n", env!("CARGO_PKG_VERSION")), String::new(), 0)
    );
}

#[test]
fn an_address_of_another_machine_is_told_from_a_taken_one() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    // 192.0.2.0/24 is for documentation (RFC 5737), so no machine has such an address.
    for (address, advice) in [("192.0.2.1:8003", "choose an address of this machine"), (&taken, "or choose another")] {
        let (_, stderr, code) = run_to_exit(binary().args(["serve", "--insecure-no-auth", "--bind", address]));
        assert!(code == 1 && stderr.contains(&format!("cannot listen on {address}: ")), "{stderr}");
        assert!(stderr.contains(advice), "{stderr}");
    }
}
