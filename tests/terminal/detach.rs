//! The detach keys and `attach -it`.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use super::{AT_ONCE, DETACH, SHELL, detach, run, run_shell};
use crate::common::{
    PATIENCE, procs,
    service::{Service, kill},
    sha256,
    terminal::TestTerminal,
    wait_until,
};

#[test]
fn a_shell_is_left_and_found_again_on_another_terminal() {
    let service = Service::start();
    let mut terminal = run_shell(&service, &[]);
    terminal.type_keys("n=$((6 * 7))\r");
    terminal.wait_for("n=$((6 * 7))\r\n");
    let id = detach(terminal);
    let executions = service.get("/executions");
    let state = &executions["executions"][0];
    assert_eq!(
        (state["executionId"].as_str(), state["status"].as_str()),
        (Some(id.as_str()), Some("RUNNING")),
        "{state}"
    );

    let mut terminal = TestTerminal::with_size(&service.client_command(&["attach", "-it", &id]), 33, 99);
    terminal.wait_for_raw(true);
    terminal.wait_for("ready> ");
    wait_until("the prompt is drawn for both sizes", PATIENCE, || terminal.screen().matches("ready> ").count() == 2);
    assert!(!terminal.screen().contains("n=$"), "the past is not drawn again: {:?}", terminal.screen());
    terminal.type_keys("echo n is $n; stty size\r");
    terminal.wait_for("n is 42");
    terminal.wait_for("33 99");
    assert_eq!(detach(terminal), id);

    let mut terminal = TestTerminal::start(&service.client_command(&["attach", "-it", &id]));
    wait_until("the prompt is drawn for both sizes", PATIENCE, || terminal.screen().matches("ready> ").count() == 2);
    terminal.type_keys("stty size; exit 7\r");
    terminal.wait_for("24 80");
    let (code, screen) = terminal.finish(PATIENCE);
    assert_eq!(code, 7, "{screen:?}");
}

#[test]
fn keys_that_are_no_request_reach_the_command_unchanged() {
    let service = Service::start();
    let line = "a ~. b ~~ \x10 c\x10\x10d\r";
    let text = line.repeat(1_000_000 / line.len());
    let command = format!("stty raw -echo; echo ready; head -c {} | sha256sum", text.len());
    let mut terminal = run(&service, &["--", &command]);
    terminal.wait_for("ready");
    terminal.type_keys(&text);
    terminal.wait_for(&sha256(text.as_bytes()));
    assert_eq!(terminal.finish(PATIENCE).0, 0);
}

#[test]
fn other_keys_can_be_chosen() {
    let service = Service::start();
    let mut terminal = run_shell(&service, &["--detach-keys", "ctrl-x,d", "--escape-char", "none"]);
    terminal.type_keys("~.\r");
    terminal.wait_for("~.: ");
    terminal.type_keys("echo \x10\x11-$((6*7))\r");
    terminal.wait_for("-42");
    terminal.type_keys("\x18");
    terminal.type_keys("d");
    let (code, screen) = terminal.finish(PATIENCE);
    assert_eq!(code, 0, "{screen:?}");
}

#[test]
fn a_flood_of_output_can_be_left() {
    let service = Service::start();
    let mark = procs::mark();
    let terminal = run(&service, &["--", &format!("sleep {mark} & exec yes ~~~~~~~~~~~~~~~~~~~~")]);
    terminal.wait_for(&"~".repeat(20));
    let id = detach(terminal);
    assert_eq!(procs::with_argument(&mark).len(), 1);
    let mut terminal = TestTerminal::start(&service.client_command(&["attach", "-it", &id]));
    terminal.wait_for("~~~~~~");
    terminal.type_keys("\x03");
    assert_eq!(terminal.finish(PATIENCE).0, 130);
    procs::wait_for(&mark, 0, PATIENCE);
}

#[test]
fn input_before_the_detach_keys_arrives() {
    let service = Service::start();
    let mut terminal = run_shell(&service, &[]);
    terminal.type_keys(format!("echo one-$((6*7))\rread x; echo $x-two\r{DETACH}"));
    let (code, screen) = std::mem::replace(&mut terminal, run_shell(&service, &[])).finish(PATIENCE);
    assert_eq!(code, 0, "{screen:?}");
    let id = screen.trim_end_matches("\r\n").rsplit("\r\n").next().unwrap();
    let mut terminal = TestTerminal::start(&service.client_command(&["attach", "-it", id]));
    terminal.wait_for_raw(true);
    terminal.type_keys("x\r");
    terminal.wait_for("x-two");
}

#[test]
fn the_client_that_another_one_replaces_says_so() {
    let service = Service::start();
    let first = run_shell(&service, &[]);
    let id = service.get("/executions")["executions"][0]["executionId"].as_str().unwrap().to_owned();
    let mut second = TestTerminal::start(&service.client_command(&["attach", "-it", &id]));
    second.wait_for("ready> ");
    let (code, screen) = first.finish(PATIENCE);
    assert!(code == 69 && screen.contains("\r\ncc-executor: another client has attached"), "{code} {screen:?}");
    second.type_keys("exit 3\r");
    assert_eq!(second.finish(PATIENCE).0, 3);
}

#[test]
fn what_has_no_terminal_or_has_ended_is_followed_plainly() {
    let service = Service::start();
    let mut client = service.connect();
    let id = client
        .execute(json!({ "command": "echo plain; read x < /dev/null; sleep 0.5; exit 4", "onDisconnect": "detach" }));
    let attach = || TestTerminal::start(&service.client_command(&["attach", "-it", &id])).finish(PATIENCE);
    let (code, screen) = attach();
    assert!(code == 4 && screen.contains("no terminal") && screen.contains("plain\r\n"), "{code} {screen:?}");
    let (code, screen) = attach();
    assert!(code == 4 && screen.contains("has ended") && screen.contains("plain\r\n"), "{code} {screen:?}");
    let unknown = service.client_command(&["attach", "-it", "00000000-0000-4000-8000-000000000000"]);
    let (code, screen) = TestTerminal::start(&unknown).finish(PATIENCE);
    assert!(code == 69 && screen.contains("00000000-0000"), "{code} {screen:?}");
    let piped = service.client_command(&["attach", "-it", &id]).stdin(std::process::Stdio::null()).output().unwrap();
    assert_eq!(piped.status.code(), Some(64), "{piped:?}");
}

#[test]
fn a_killed_client_leaves_no_command_for_long() {
    let service = Service::start();
    for after_detach in [false, true] {
        let mark = procs::mark();
        let flags = ["--reconnect=1", "--", &format!("sleep {mark} & {SHELL}")];
        let mut terminal = run(&service, &flags);
        terminal.wait_for("ready> ");
        if after_detach {
            // The long time of the detach keys is over when a client attaches.
            let id = detach(terminal);
            terminal = TestTerminal::start(&service.client_command(&["attach", "-it", &id]));
            terminal.wait_for("ready> ");
        }
        procs::wait_for(&mark, 1, PATIENCE);
        kill(terminal.pid(), Signal::KILL);
        terminal.wait(AT_ONCE);
        procs::wait_for(&mark, 0, Duration::from_secs(10));
    }
}
