//! What is shown of a silent execution, and of its end.

use serde_json::json;

use crate::common::{
    PATIENCE, procs,
    proxy::{CutKind, Proxy},
    service::{Service, binary, run_to_exit},
    terminal::TestTerminal,
};

/// What `run` shows of a command that is silent for three seconds.
fn screen_of(service: &Service, flags: &[&str], env: &[(&str, &str)]) -> String {
    let mut command = service.run_command(&[flags, &["--", "sleep 3; echo over"]].concat());
    command.env_remove("NO_COLOR").env("TERM", "xterm").envs(env.iter().copied());
    let (code, screen) = TestTerminal::start(&command).finish(PATIENCE);
    assert!(code == 0 && screen.ends_with("over\r\n"), "{screen:?}");
    screen
}

#[test]
fn the_state_is_shown_as_the_terminal_allows() {
    let service = Service::start();
    let dim = "\r\x1b[2K\x1b[2mrunning, 2 s, no output for 2 s\x1b[0m";
    let plain = "\r\x1b[2Krunning, 2 s, no output for 2 s";
    for (flags, env, shown) in [
        ([].as_slice(), [("X", "")].as_slice(), Some(dim)),
        (&[], &[("NO_COLOR", "1")], Some(plain)),
        (&["--color", "always"], &[("NO_COLOR", "1")], Some(dim)),
        (&["--color", "never"], &[("X", "")], Some(plain)),
        (&[], &[("TERM", "dumb")], None),
    ] {
        let screen = screen_of(&service, flags, env);
        match shown {
            Some(line) => {
                assert!(screen.contains(line), "{flags:?} {env:?} {screen:?}");
                assert_eq!(screen.contains("\x1b[2m"), line == dim, "{flags:?} {env:?} {screen:?}");
                assert!(screen.ends_with("\r\x1b[2Kover\r\n"), "{flags:?} {env:?} {screen:?}");
            }
            None => assert_eq!(screen, "over\r\n"),
        }
    }
}

#[test]
fn words_that_a_shell_reads_otherwise_are_hinted_at() {
    let service = Service::start();
    for (words, hint) in [
        (["echo", "a b"], Some("\x1b[2mthe shell gets one line: echo a b; --exec runs the words as they are\x1b[0m")),
        (["echo", "ab"], None),
    ] {
        let mut command = service.run_command(&[&["--"], words.as_slice()].concat());
        command.env_remove("NO_COLOR").env("TERM", "xterm");
        let (code, screen) = TestTerminal::start(&command).finish(PATIENCE);
        assert!(code == 0 && screen.ends_with(&format!("{}\r\n", words[1])), "{screen:?}");
        assert_eq!(screen.contains("the shell gets"), hint.is_some(), "{screen:?}");
        assert!(hint.is_none_or(|hint| screen.starts_with(hint)), "{screen:?}");
    }
    let quiet = service.run_command(&["-q", "--", "echo", "a b"]);
    assert_eq!(TestTerminal::start(&quiet).finish(PATIENCE), (0, "a b\r\n".to_owned()));
}

#[test]
fn the_list_is_shown_again_until_ctrl_c() {
    let service = Service::start();
    let ps = service.client_command(&["ps", "--watch=0.1"]);
    let mut terminal = TestTerminal::start(&ps);
    terminal.wait_for("every 0.1 s; Ctrl-C ends");
    run_to_exit(&mut service.client_command(&["run", "-d", "--name", "nightly", "--", "sleep 1000"]));
    terminal.wait_for("nightly  RUNNING");
    terminal.type_keys("\x03");
    let (code, screen) = terminal.finish(PATIENCE);
    assert_eq!(code, 130);
    let left = screen.rsplit_once("\x1b[?1049l").expect("it leaves the other screen").1;
    assert!(left.contains("nightly  RUNNING"), "the last list stays: {left:?}");
    let (_, stderr, exit) = run_to_exit(&mut service.client_command(&["ps", "--watch"]));
    assert!(exit == 64 && stderr.contains("--watch needs a terminal"), "{stderr}");
}

#[test]
fn the_position_in_the_queue_and_a_pause_are_shown() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_MAX_EXECUTIONS", "1")]);
    let mut client = service.connect();
    client.execute(json!({ "command": "sleep 1000" }));
    let mut command = service.run_command(&["--heartbeat", "1", "--", "sleep 1000"]);
    let terminal = TestTerminal::start(command.env("TERM", "xterm"));
    terminal.wait_for("queued, position 1, ");
    client.call("control", json!({ "type": "CANCEL" })).unwrap();
    terminal.wait_for("running, ");
    let executions = service.get("/executions");
    let running = executions["executions"].as_array().unwrap().iter().find(|entry| entry["status"] == "RUNNING");
    let id = running.unwrap()["executionId"].clone();
    client.call("control", json!({ "type": "PAUSE", "executionId": id })).unwrap();
    terminal.wait_for("paused, ");
}

#[test]
fn background_processes_that_were_ended_are_reported() {
    let service = Service::start();
    let mark = procs::mark();
    let run = |flags: &[&str], command: &str| run_to_exit(service.run_command(flags).args(["--", command]));
    let (_, stderr, code) = run(&[], &format!("sleep {mark} & exit 3"));
    assert_eq!((stderr.as_str(), code), ("cc-executor: ended 1 process left in the background\n", 3));
    let (_, stderr, _) = run(&[], &format!("sleep {mark} & sleep {mark} & exit 3"));
    assert_eq!(stderr, "cc-executor: ended 2 processes left in the background\n");
    let (_, stderr, _) = run(&["--json"], &format!("sleep {mark} & exit 3"));
    assert_eq!(stderr, "", "the messages have it");
    assert!(procs::with_argument(&mark).is_empty());
}

#[test]
fn a_new_connection_is_reported() {
    let service = Service::start();
    let proxy = Proxy::start(service.address, |n| (n == 0).then_some((5_000, CutKind::Reset)));
    let url = proxy.url();
    let command = "head -c 20000 /dev/zero | tr '\\0' x";
    let (stdout, stderr, code) =
        run_to_exit(binary().args(["run", "--reconnect", "--color", "always", "--url", &url, "--", command]));
    assert_eq!((stdout.len(), code), (20_000, 0), "{stderr}");
    assert!(stderr.ends_with("\n\x1b[2mreconnected\x1b[0m\n"), "{stderr:?}");
    let (_, stderr, code) = run_to_exit(binary().args(["run", "-i", "--reconnect", "--url", &url, "--", "cat"]));
    assert!(code == 64 && stderr.contains("--reconnect cannot be used with -i"), "{stderr}");
}
