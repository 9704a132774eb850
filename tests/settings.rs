//! Settings from flags and from the environment, and how problems with them are reported.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    process::Command,
};

use crate::common::service::{Service, binary};

/// Exit code and both outputs of a command that ends by itself.
fn outcome(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The variables that have a flag of this role.
fn variables(role: &str) -> Vec<String> {
    let (code, help, _) = outcome(binary().args([role, "--help"]));
    assert_eq!(code, Some(0));
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
    let (code, out, err) = outcome(command.envs(wrong));
    assert_eq!((code, out.as_str(), err.lines().count()), (Some(64), "", 7), "{err}");
    assert!(err.lines().all(|line| line.starts_with("cc-executor: ")), "{err}");
    assert!(err.contains("cc-executor: --max-queued must be a whole number from 0 to 100000, not \"many\"\n"), "{err}");
    for (name, _) in &wrong[1..] {
        assert_eq!(err.matches(&format!("cc-executor: {name} ")).count(), 1, "{name}: {err}");
    }
}

#[test]
fn empty_or_non_utf8_variable_is_unset() {
    let names = [variables("serve"), vec!["LOG_FORMAT".into(), "CC_EXECUTOR_TOKEN".into()]].concat();
    assert_eq!(names.len(), 32);
    for value in [OsString::new(), OsStr::from_bytes(b"\xff").to_owned()] {
        let mut command = binary();
        command.args(["serve", "--max-sessions", ""]).envs(names.iter().map(|name| (name, &value)));
        // Not the default port, which may be taken.
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
        {
            // Any text is a list, and a switch has no value.
            continue;
        }
        let of_flag = outcome(binary().args(["backend", &flag]));
        let of_variable = outcome(binary().arg("backend").env(name, "?"));
        assert_eq!((of_flag.0, of_variable.0), (Some(64), Some(64)), "{name}");
        let spelled = flag.trim_end_matches("=?");
        assert_eq!(of_flag.2.replace(spelled, name), of_variable.2, "{name}");
    }
}

#[test]
fn wrong_usage_exits_with_64_and_help_with_0() {
    let id = "00000000-0000-4000-8000-000000000000";
    for words in [
        [].as_slice(),
        &["nope"],
        &["backend", "--max-sessions", "7"],
        &["run"],
        &["run", "--timeout", "soon", "x"],
        &["run", "-i", "--reconnect", "x"],
        &["run", "--url", "ftp://x", "x"],
        &["attach", "7"],
        &["attach", id, "--reconnect=soon"],
        &["cancel"],
    ] {
        let (code, _, err) = outcome(binary().args(words));
        assert_eq!(code, Some(64), "{words:?}: {err}");
    }
    assert_eq!(outcome(binary().arg("--help")).0, Some(0));
}

#[test]
fn backend_settings_with_a_remote_backend_are_refused() {
    let mut command = binary();
    command.args(["serve", "--claude-api-url", "http://127.0.0.1:1", "--ring-bytes", "65536"]);
    let (code, _, err) = outcome(command.env("CC_EXECUTOR_MAX_QUEUED", "3").env("CC_EXECUTOR_PASS_ENV", ""));
    assert_eq!((code, err.lines().count()), (Some(64), 2), "{err}");
    assert!(err.contains("CC_EXECUTOR_RING_BYTES belongs") && err.contains("CC_EXECUTOR_MAX_QUEUED belongs"), "{err}");
}

#[test]
fn service_url_comes_from_flag_or_variable() {
    let service = Service::start();
    let with = |arguments: &[&str], url: &str| outcome(binary().arg("ps").args(arguments).env("CC_EXECUTOR_URL", url));
    assert_eq!(with(&[], &service.url()).0, Some(0));
    assert_eq!(with(&["--url", &service.url()], "ws://127.0.0.1:1").0, Some(0), "the flag comes first");
    let (code, _, err) = with(&[], "nowhere");
    assert_eq!(
        (code, err.as_str()),
        (Some(64), "cc-executor: CC_EXECUTOR_URL must be like ws://host:8003, not \"nowhere\"\n")
    );
    assert_eq!(with(&["--url", ""], &service.url()).0, Some(64), "an empty flag is a mistake");
}

#[test]
fn help_shows_variable_names_and_never_values() {
    for command in ["serve", "backend", "run", "attach", "ps", "cancel", "check"] {
        let secrets = ["CC_EXECUTOR_TOKEN", "CC_EXECUTOR_BACKEND_TOKEN", "CC_EXECUTOR_EXECUTORS", "CC_EXECUTOR_URL"];
        let (code, help, _) = outcome(binary().args([command, "--help"]).envs(secrets.map(|name| (name, "hush"))));
        assert_eq!(code, Some(0));
        assert!(!help.contains("hush") && help.contains("  CC_EXECUTOR_TOKEN "), "{help}");
        assert_eq!(help.contains("[env: CC_EXECUTOR_URL]"), !matches!(command, "serve" | "backend"), "{command}");
    }
}

#[test]
fn completions_work_in_bash() {
    let (code, script, _) = outcome(binary().args(["completions", "bash"]));
    assert_eq!(code, Some(0));
    let check = "COMP_WORDS=(cc-executor serve --max-sess); COMP_CWORD=2; _cc__executor cc-executor --max-sess serve; \
        echo \"${COMPREPLY[@]}\"";
    let completed = Command::new("bash").args(["-c", &format!("{script}\n{check}")]).output().unwrap();
    let words = String::from_utf8_lossy(&completed.stdout).into_owned();
    assert_eq!(words, "--max-sessions --max-sessions-per-address\n", "{completed:?}");
    assert_eq!(outcome(binary().args(["completions", "cmd"])).0, Some(64));
    assert_eq!(
        outcome(binary().arg("--version")),
        (Some(0), format!("cc-executor {}\n", env!("CARGO_PKG_VERSION")), String::new())
    );
}
