//! What is required of tokens: their length, the permissions of their files, and processes whose memory nobody reads.

use std::{fs, os::unix::fs::symlink, process::Stdio};

use crate::common::{
    PATIENCE,
    containment::{NOBODY, reachable_binary},
    service::{Service, binary, run_to_exit},
    temp::{self, TempPath},
    users::{bash_of_user, can_switch_user, of_user},
    wait_until,
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// The problem of a role that does not start.
fn problem(role: &str, env: &[(&str, &str)]) -> String {
    let mut command = binary();
    command.args([role, "--bind", "127.0.0.1:0"]).envs(env.iter().copied());
    let (_, stderr, code) = run_to_exit(&mut command);
    assert_eq!((code, stderr.lines().count()), (64, 1), "{env:?}: {stderr}");
    stderr
}

/// The messages of `service.insecure`.
fn warnings(service: &Service) -> Vec<String> {
    let log = service.events("service.insecure");
    log.iter().map(|line| line["message"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn short_tokens_are_refused() {
    for (role, name) in
        [("serve", "CC_EXECUTOR_TOKEN"), ("backend", "CC_EXECUTOR_TOKEN"), ("backend", "CC_EXECUTOR_BACKEND_TOKEN")]
    {
        let short = &TOKEN[1..];
        for token in [short, "x"] {
            let problem = problem(role, &[(name, token)]);
            assert!(problem.contains(name) && problem.contains("--insecure-short-token"), "{problem}");
            assert!(!problem.contains(short), "{problem}");
        }
        let env = [(name, short), ("CC_EXECUTOR_INSECURE_SHORT_TOKEN", "true")];
        let warned = warnings(&Service::with(&[role], &env));
        assert!(warned.len() == 1 && warned[0].contains("31 characters"), "{warned:?}");
        assert!(warnings(&Service::with(&[role], &[(name, TOKEN)])).is_empty());
    }
}

#[test]
fn token_files_that_other_users_read_are_refused() {
    let file = TempPath::with_content("token", format!("{TOKEN}\n"));
    let remote = ("CLAUDE_API_URL", "http://127.0.0.1:1");
    for (role, name, more) in [
        ("serve", "CC_EXECUTOR_TOKEN_FILE", None),
        ("serve", "CC_EXECUTOR_BACKEND_TOKEN_FILE", Some(remote)),
        ("backend", "CC_EXECUTOR_BACKEND_TOKEN_FILE", None),
    ] {
        let env: Vec<_> = [(name, file.as_str())].into_iter().chain(more).collect();
        for (mode, part) in [
            (0o644, "read by every user (mode 0644)"),
            (0o666, "written by every user (mode 0666)"),
            (0o602, "written by every user"),
        ] {
            file.set_mode(mode);
            let problem = problem(role, &env);
            assert!(problem.contains(name) && problem.contains(part), "{problem}");
        }
        file.set_mode(0o640);
        let warned = warnings(&Service::with(&[role], &env));
        assert!(warned.len() == 1 && warned[0].contains("group") && warned[0].contains(name), "{warned:?}");
        file.set_mode(0o600);
        assert!(warnings(&Service::with(&[role], &env)).is_empty());
    }
}

#[test]
fn credentials_of_a_unit_may_be_readable() {
    let directory = temp::directory("credentials");
    let file = directory.join("token");
    fs::write(&file, TOKEN).unwrap();
    let path = file.to_str().unwrap();
    assert!(problem("serve", &[("CC_EXECUTOR_TOKEN_FILE", path)]).contains("read by every user"));
    let env = [("CC_EXECUTOR_TOKEN_FILE", path), ("CREDENTIALS_DIRECTORY", directory.to_str().unwrap())];
    assert!(warnings(&Service::with(&["serve"], &env)).is_empty());
    // The directory of the file counts, not that of a symbolic link to it.
    let elsewhere = TempPath::with_content("token", TOKEN);
    elsewhere.set_mode(0o644);
    let (to_elsewhere, from_elsewhere) = (directory.join("link"), TempPath::new("link"));
    symlink(&*elsewhere, &to_elsewhere).unwrap();
    symlink(&file, &*from_elsewhere).unwrap();
    let [_, credentials] = env;
    let unsafe_file = ("CC_EXECUTOR_TOKEN_FILE", to_elsewhere.to_str().unwrap());
    assert!(problem("serve", &[unsafe_file, credentials]).contains("read by every user"));
    let safe_file = ("CC_EXECUTOR_TOKEN_FILE", from_elsewhere.as_str());
    assert!(warnings(&Service::with(&["serve"], &[safe_file, credentials])).is_empty());
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn digests_may_be_read_and_not_written_by_others() {
    let file = TempPath::with_content("tokens", format!("a {TOKEN}{TOKEN}\n"));
    let env = [("CC_EXECUTOR_TOKENS_FILE", file.as_str())];
    for mode in [0o666, 0o602] {
        file.set_mode(mode);
        assert!(problem("serve", &env).contains("written by every user"));
    }
    for mode in [0o664, 0o620] {
        file.set_mode(mode);
        let warned = warnings(&Service::with(&["serve"], &env));
        let part = format!("written by the users of its group (mode {mode:04o})");
        assert!(warned.len() == 1 && warned[0].contains(&part), "{warned:?}");
    }
    file.set_mode(0o644);
    let service = Service::with(&["serve"], &env);
    assert!(warnings(&service).is_empty());
    file.set_mode(0o646);
    service.wait_for_event("tokens.rejected", 1);
}

#[test]
fn service_warns_if_commands_run_as_root() {
    let is_root = usize::from(rustix::process::geteuid().is_root());
    for role in ["serve", "backend"] {
        let service = Service::with(&[role], &[("CC_EXECUTOR_TOKEN", TOKEN)]);
        assert_eq!(service.count("service.root"), is_root, "{role}");
    }
    let gateway = Service::gateway_without_backend("http://127.0.0.1:1");
    assert_eq!(gateway.count("service.root"), 0, "no command runs in this process");
    if can_switch_user("a service that is not root's") {
        let mut command = reachable_binary();
        of_user(command.args(["serve", "--bind", "127.0.0.1:0"]), NOBODY);
        assert_eq!(Service::spawn(command).count("service.root"), 0);
    }
}

#[test]
fn token_of_a_client_cannot_be_read_from_proc() {
    if !can_switch_user("reading the memory of a client") {
        return;
    }
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_TOKEN", TOKEN)]);
    let mut run = reachable_binary();
    run.args(["run", "--url", &service.url(), "--", "sleep 1000"]).env("CC_EXECUTOR_TOKEN", TOKEN);
    let mut run = of_user(&mut run, NOBODY).stdin(Stdio::null()).spawn().unwrap();
    service.wait_for_event("execution.started", 1);
    let read = |file: &str| bash_of_user(NOBODY, &format!("cat /proc/{}/{file}", run.id())).output().unwrap();
    for file in ["environ", "maps"] {
        let output = read(file);
        assert!(!output.status.success() && output.stdout.is_empty(), "{file}: {output:?}");
    }
    assert!(read("stat").status.success(), "the process is there");
    run.kill().unwrap();
    run.wait().unwrap();
    wait_until("the command is gone", PATIENCE, || service.count("process.finished") == 1);
}
