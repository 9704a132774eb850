//! `login`: what it asks, what it checks, and that it stores nothing that a service refuses.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use rustix::{
    fs::{Mode, OFlags, open},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, tcgetattr},
};

use super::{ProfileUser, TOKEN, token_file};
use crate::common::{
    PATIENCE,
    service::{BINARY, Service, binary_under, run_to_exit, wait_for_exit},
    temp::TempPath,
    wait_until,
};

/// `login` in a terminal of its own.
struct LoginTerminal {
    child: Child,
    keys: File,
    /// Keeps the settings of the terminal readable after the child's end.
    terminal: OwnedFd,
    shown: Arc<Mutex<String>>,
}

impl LoginTerminal {
    fn start(user: &ProfileUser, words: &[&str]) -> LoginTerminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let terminal = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let stdio = || Stdio::from(terminal.try_clone().unwrap());
        // setsid makes the terminal the controlling one.
        let mut command = binary_under("setsid");
        command.args(["--ctty", "--wait", BINARY, "login"]).args(words).env("XDG_CONFIG_HOME", &user.directory);
        let child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        let (shown, mut reader) = (Arc::new(Mutex::new(String::new())), File::from(master.try_clone().unwrap()));
        let so_far = Arc::clone(&shown);
        thread::spawn(move || {
            let mut bytes = [0; 1_024];
            while let Ok(n @ 1..) = reader.read(&mut bytes) {
                *so_far.lock().unwrap() += &String::from_utf8_lossy(&bytes[..n]);
            }
        });
        LoginTerminal { child, keys: File::from(master), terminal, shown }
    }

    fn wait_for(&self, part: &str) {
        wait_until(part, PATIENCE, || self.shown.lock().unwrap().contains(part));
    }

    fn has_echo(&self) -> bool {
        tcgetattr(&self.terminal)
            .unwrap()
            .local_modes
            .contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for the exit, and returns the code and everything that was shown.
    fn finish(mut self) -> (i32, String) {
        let code = wait_for_exit(&mut self.child, PATIENCE).code().unwrap();
        assert!(self.has_echo(), "the terminal is restored");
        let shown = self.shown.lock().unwrap().clone();
        (code, shown)
    }
}

#[test]
fn the_token_is_asked_for_without_echo() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_TOKEN", TOKEN)]);
    let user = ProfileUser::new();
    let mut login = LoginTerminal::start(&user, &[&service.url()]);
    login.wait_for(&format!("Token of ws://{}/ws/mcp (not shown): ", service.address));
    assert!(!login.has_echo());
    login.press(&format!("typo\u{15}{TOKEN}x\u{7f}\r"));
    login.wait_for("stored profile default: ");
    let (code, shown) = login.finish();
    assert_eq!(code, 0, "{shown}");
    assert!(!shown.contains(TOKEN) && !shown.contains("typo"), "{shown}");
    assert_eq!(user.call(&["run", "--", "echo ok"]), ("ok\n".to_owned(), String::new(), 0));
}

#[test]
fn a_question_that_is_interrupted_stores_nothing_and_restores_the_terminal() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_TOKEN", TOKEN)]);
    let user = ProfileUser::new();
    for (keys, code, part) in [
        ("half\u{3}", 130, "interrupted; nothing was stored"),
        ("\r", 64, "a token must be printable ASCII"),
        ("two words\r", 64, "a token must be printable ASCII"),
        ("wrong\r", 77, "refused the token"),
    ] {
        let mut login = LoginTerminal::start(&user, &[&service.url()]);
        login.wait_for("(not shown): ");
        login.press(keys);
        login.wait_for(part);
        let (exit, shown) = login.finish();
        assert_eq!(exit, code, "{shown}");
        assert!(!user.file().exists(), "{keys:?}");
    }
}

#[test]
fn a_token_comes_from_a_file_or_from_standard_input() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_TOKEN", TOKEN)]);
    let (user, file) = (ProfileUser::new(), token_file());
    let url = service.url();
    let mut command = user.command(&["login", "--token-file", "-", &url]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("{TOKEN}\n").as_bytes()).unwrap();
    assert_eq!(wait_for_exit(&mut child, PATIENCE).code(), Some(0));
    assert_eq!(user.call(&["ps"]).2, 0);

    fs::remove_file(user.file()).unwrap();
    let wrong = TempPath::with_content("wrong-token", "not-the-token");
    wrong.set_mode(0o600);
    let public = TempPath::with_content("public-token", TOKEN);
    public.set_mode(0o644);
    let empty = TempPath::with_content("empty-token", "\n");
    empty.set_mode(0o600);
    for (path, code, part) in [
        (wrong.as_str(), 77, "refused the token; check that it is the one of this service"),
        (public.as_str(), 64, "can be read by every user"),
        (empty.as_str(), 64, "a token must be printable ASCII"),
        ("/nowhere/token", 64, "cannot be read"),
    ] {
        let (stdout, stderr, exit) = user.call(&["login", "--token-file", path, &url]);
        assert!((stdout.as_str(), exit) == ("", code) && stderr.contains(part), "{path}: {exit} {stderr}");
        assert!(!user.file().exists(), "{path}");
    }
    assert_eq!(user.call(&["login", "--token-file", file.as_str(), &url]).2, 0);
}

#[test]
fn without_a_terminal_or_a_service_nothing_is_asked() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_TOKEN", TOKEN)]);
    let user = ProfileUser::new();
    // A session without a controlling terminal.
    let mut command = binary_under("setsid");
    command.args(["--wait", BINARY, "login", &service.url()]).env("XDG_CONFIG_HOME", &user.directory);
    let (_, stderr, code) = run_to_exit(command.stdin(Stdio::null()));
    assert!(code == 64 && stderr.contains("there is no terminal to ask for the token"), "{stderr}");
    assert!(stderr.contains("pass --token-file PATH, or --token-file - for standard input"), "{stderr}");
    let (_, stderr, code) = user.call(&["login", "127.0.0.1:1"]);
    assert!(code == 69 && stderr.contains("cannot reach "), "{stderr}");
    let other = crate::common::stub::Stub::start(|_, stream| crate::common::stub::respond(stream, 200, "<html>"));
    let (_, stderr, code) = user.call(&["login", &other.url()]);
    assert!(code == 69 && stderr.contains("is not a cc-executor service"), "{stderr}");
    assert!(!user.file().exists());
}
