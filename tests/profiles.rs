//! Profiles: stored by `login`, used by every command, and with a token that goes nowhere else.

mod login;

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use crate::common::{
    service::{Service, binary, run_to_exit},
    stub::{Stub, respond},
    temp::{self, TempPath},
};

const TOKEN: &str = "the-token-of-a-profile-has-36-chars-";

/// A user with a directory of settings.
struct ProfileUser {
    directory: PathBuf,
}

impl ProfileUser {
    fn new() -> ProfileUser {
        ProfileUser { directory: temp::directory("profiles") }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = binary();
        command.args(words).env("XDG_CONFIG_HOME", &self.directory);
        command
    }

    fn call(&self, words: &[&str]) -> (String, String, i32) {
        run_to_exit(&mut self.command(words))
    }

    /// The file of profiles.
    fn file(&self) -> PathBuf {
        self.directory.join("cc-executor/config.toml")
    }

    /// Stores a profile without asking any service.
    fn write(&self, text: &str) {
        fs::create_dir_all(self.file().parent().unwrap()).unwrap();
        fs::write(self.file(), text).unwrap();
        fs::set_permissions(self.file(), fs::Permissions::from_mode(0o600)).unwrap();
    }
}

impl Drop for ProfileUser {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn token_file() -> TempPath {
    let file = TempPath::with_content("token", format!("{TOKEN}\n"));
    file.set_mode(0o600);
    file
}

#[test]
fn profiles_are_stored_used_listed_and_removed() {
    let user = ProfileUser::new();
    let (file, open) = (token_file(), Service::start());
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_TOKEN", TOKEN)]);
    let login = |words: &[&str]| user.call(&[&["login"], words].concat());
    let (stdout, stderr, code) = login(&["--name", "work", "--token-file", file.as_str(), &service.url()]);
    assert_eq!((stderr.as_str(), code), ("", 0));
    let url = format!("ws://{}/ws/mcp", service.address);
    assert!(stdout.starts_with(&format!("stored profile work: {url} (cc-executor ")), "{stdout}");
    assert!(stdout.ends_with("with its token; it is the default\n"), "{stdout}");
    // A service without tokens asks for none.
    let (stdout, _, code) = login(&["--name", "home", &open.address.to_string()]);
    assert!(code == 0 && stdout.ends_with("which needs no token; use it with --profile home\n"), "{stdout}");
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&user.file()), mode(user.file().parent().unwrap())), (0o600, 0o700));

    let (list, stderr, code) = user.call(&["profile", "ls"]);
    assert_eq!((stderr.as_str(), code, list.lines().count()), ("", 0, 3), "{list}");
    assert!(
        list.contains("* work") && list.contains("  home") && list.contains(&url) && !list.contains(TOKEN),
        "{list}"
    );

    let runs = |words: &[&str], env: &[(&str, &str)]| {
        let mut command = user.command(&["run"]);
        run_to_exit(command.args(words).args(["--", "echo ok"]).envs(env.iter().copied()))
    };
    let works = ("ok\n".to_owned(), String::new(), 0);
    assert_eq!(runs(&[], &[]), works, "the default profile");
    for words in [["ps"].as_slice(), &["healthcheck"], &["check", "--only", "basic"]] {
        assert_eq!(user.call(words).2, 0, "{words:?}");
    }
    assert_eq!(runs(&["--profile", "home"], &[]), works);
    assert_eq!(runs(&[], &[("CC_EXECUTOR_PROFILE", "home")]), works);
    assert_eq!(runs(&[], &[("CC_EXECUTOR_TOKEN", "other")]), works, "a token of the environment is not mixed in");
    assert_eq!(runs(&["--url", &open.url()], &[("CC_EXECUTOR_PROFILE", "none")]), works, "the flag overrides");
    assert_eq!(runs(&["--profile", "work"], &[("CC_EXECUTOR_URL", "ws://127.0.0.1:1")]), works, "the flag overrides");
    assert_eq!(runs(&[], &[("CC_EXECUTOR_URL", &open.url()), ("CC_EXECUTOR_PROFILE", "none")]), works);
    for (words, part) in [
        (["--profile", "none"].as_slice(), "there is no profile none (home, work); store one with `cc-executor login"),
        (&["--profile", "work", "--url", "h"], "--url and --profile both name a service; give one of them"),
        (&["--profile", ".x"], "--profile must be 1 to 64 letters"),
    ] {
        let (_, stderr, code) = runs(words, &[]);
        assert!(code == 64 && stderr.contains(part), "{stderr}");
    }

    assert_eq!(user.call(&["profile", "use", "home"]), (String::new(), String::new(), 0));
    let list = user.call(&["profile", "ls"]).0;
    assert!(list.contains("* home") && list.contains("  work"), "{list}");
    assert_eq!(user.call(&["profile", "use", "none"]).2, 64);
    assert_eq!(user.call(&["profile", "rm", "work"]), (String::new(), String::new(), 0));
    assert_eq!(user.call(&["profile", "rm", "work"]).2, 64);
    assert!(!fs::read_to_string(user.file()).unwrap().contains(TOKEN), "the token is gone");
    let others: Vec<_> = fs::read_dir(user.file().parent().unwrap()).unwrap().flatten().collect();
    assert_eq!(others.len(), 1, "no copy is left");
}

#[test]
fn a_file_that_others_can_read_is_refused() {
    let user = ProfileUser::new();
    user.write("default = \"work\"\n[profiles.work]\nurl = \"127.0.0.1:1\"\ntoken = \"hush\"\n");
    fs::set_permissions(user.file(), fs::Permissions::from_mode(0o644)).unwrap();
    for words in [["ps"].as_slice(), &["ps", "--profile", "work"], &["profile", "ls"], &["profile", "rm", "work"]] {
        let (_, stderr, code) = user.call(words);
        let fix = format!("(mode 0644); make it private with `chmod 600 {}`", user.file().display());
        assert!(code == 64 && stderr.contains(&fix) && !stderr.contains("hush"), "{words:?} {stderr}");
    }
    let (_, stderr, code) = user.call(&["ps", "--url", "ws://127.0.0.1:1"]);
    assert!(code == 69 && !stderr.contains("chmod"), "a URL needs no profile: {stderr}");
}

#[test]
fn the_token_of_a_profile_goes_to_its_service_only() {
    let user = ProfileUser::new();
    let elsewhere = Stub::start(|_, stream| respond(stream, 404, "{}"));
    let target = elsewhere.url();
    let redirecting = Stub::start(move |_, stream| {
        use std::io::Write;
        let head = format!("HTTP/1.1 302 Found\r\nLocation: {target}/executions\r\nContent-Length: 0\r\n\r\n");
        let _ = stream.write_all(head.as_bytes());
    });
    user.write(&format!("default = \"work\"\n[profiles.work]\nurl = \"{}\"\ntoken = \"{TOKEN}\"\n", redirecting.url()));
    // Another URL gets no token of the profile, whether by flag or by variable.
    assert_eq!(user.call(&["ps", "--url", &elsewhere.url()]).2, 69);
    assert_eq!(run_to_exit(user.command(&["ps"]).env("CC_EXECUTOR_URL", elsewhere.url())).2, 69);
    assert_eq!(elsewhere.requests().len(), 2);
    assert!(elsewhere.requests().iter().all(|request| !request.headers.contains_key("authorization")));
    // The service of the profile gets it, and where it redirects to gets nothing.
    for words in [["ps"].as_slice(), &["run", "--", "true"], &["output", "00000000-0000-4000-8000-000000000000"]] {
        let (_, stderr, code) = user.call(words);
        assert!(code == 69 && stderr.contains("(profile work) answers 302 Found, a redirect"), "{stderr}");
        assert!(!stderr.contains(TOKEN));
    }
    let bearer = format!("Bearer {TOKEN}");
    assert!(redirecting.requests().iter().all(|request| request.headers.get("authorization") == Some(&bearer)));
    assert_eq!(elsewhere.requests().len(), 2, "a redirect is not followed");
}

#[test]
fn errors_name_the_profile() {
    let user = ProfileUser::new();
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_TOKEN", TOKEN)]);
    let text = |token: &str| format!("[profiles.work]\nurl = \"{}\"\n{token}", service.url());
    for token in ["", "token = \"wrong\"\n"] {
        user.write(&text(token));
        let mut command = user.command(&["ps", "--profile", "work"]);
        let (_, stderr, code) = run_to_exit(command.env("CC_EXECUTOR_TOKEN", TOKEN));
        assert!(code == 77 && stderr.contains("profile work"), "{stderr}");
        assert!(
            stderr.contains("CC_EXECUTOR_TOKEN goes with --url and CC_EXECUTOR_URL only, and was not sent"),
            "{stderr}"
        );
    }
    user.write("default = \"work\"\n[profiles.work]\nurl = \"127.0.0.1:1\"\n");
    let (_, stderr, code) = user.call(&["run", "--", "true"]);
    let reason = "cannot reach ws://127.0.0.1:1/ws/mcp (profile work): 127.0.0.1:1: Connection refused";
    assert!(code == 69 && stderr.contains(reason) && stderr.contains("and the URL of profile work"), "{stderr}");
}

#[test]
fn a_mistyped_variable_is_a_warning() {
    let service = Service::start();
    let run = |name: &str| run_to_exit(service.run_command(&["--", "echo ok"]).env(name, "x"));
    let warning = "cc-executor: warning: CC_EXECUTOR_TOKN is no setting of cc-executor and has no effect; the nearest one is CC_EXECUTOR_TOKEN\n";
    assert_eq!(run("CC_EXECUTOR_TOKN"), ("ok\n".to_owned(), warning.to_owned(), 0));
    for known in ["CC_EXECUTOR_PUBLISH", "CC_EXECUTOR_PORT", "CC_EXECUTOR_MAX_SESSIONS"] {
        assert_eq!(run(known), ("ok\n".to_owned(), String::new(), 0), "{known}");
    }
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_MAX_SESION", "7"), ("CC_EXECUTOR_CLAUDE_HOME", "/x")]);
    let warnings = service.wait_for_event("settings.unknown", 1);
    assert!(warnings[0].to_string().contains("the nearest one is CC_EXECUTOR_MAX_SESSIONS"), "{warnings:?}");
}
