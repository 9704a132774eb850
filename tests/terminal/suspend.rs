//! Suspension by a shell with job control.

use super::SHELL;
use crate::common::{
    PATIENCE,
    service::{Service, binary_under},
    terminal::TestTerminal,
};

/// A shell of the user, with the variables `RUN` (a command with this service) and `SHELL_COMMAND`.
fn user_shell(service: &Service) -> TestTerminal {
    let mut bash = binary_under("bash");
    bash.args(["--norc", "--noprofile", "-i"]).envs([
        ("PS1", "user$ "),
        ("RUN", &format!("{} run --url {}", crate::common::service::BINARY, service.url())),
        ("SHELL_COMMAND", SHELL),
        ("TERM", "xterm"),
    ]);
    let terminal = TestTerminal::start(&bash);
    terminal.wait_for("user$ ");
    terminal
}

#[test]
fn a_terminal_session_is_suspended_and_continues() {
    let service = Service::with(&["serve", "--client-stall-ms", "2000"], &[]);
    let mut terminal = user_shell(&service);
    terminal.type_keys("$RUN -it --reconnect=1 -- \"$SHELL_COMMAND\"\r");
    terminal.wait_for("ready> ");
    terminal.type_keys("n=7\r~\x1a");
    terminal.wait_for("Stopped");
    terminal.clear();
    terminal.type_keys("stty -a\r");
    terminal.wait_for(" icanon");
    // The service closes the session of a client that is stopped. The command lives on beyond its second.
    service.wait_for_event("session.closed", 1);
    service.wait_for_event("execution.detached", 1);
    let at = std::time::Instant::now();
    crate::common::wait_until("the second is over", PATIENCE, || at.elapsed().as_millis() > 1_500);
    terminal.type_keys("fg\r");
    terminal.wait_for("reconnected");
    terminal.type_keys("echo n is $n\r");
    terminal.wait_for("n is 7");
    terminal.clear();
    terminal.type_keys("exit 3\r");
    terminal.wait_for("user$ ");
    terminal.type_keys("echo code-$?\r");
    terminal.wait_for("code-3");
}

#[test]
fn a_short_suspension_needs_no_new_connection() {
    let service = Service::start();
    let mut terminal = user_shell(&service);
    terminal.type_keys("$RUN -it -- \"$SHELL_COMMAND\"\r");
    terminal.wait_for("ready> ");
    for round in 0..2 {
        terminal.clear();
        terminal.type_keys("~\x1a");
        terminal.wait_for("Stopped");
        terminal.clear();
        terminal.type_keys("fg\r");
        terminal.wait_for("ready> ");
        terminal.type_keys(format!("echo round-$(({round}+40))\r"));
        terminal.wait_for(&format!("round-4{round}"));
    }
    assert_eq!(service.count("session.opened"), 1);
    terminal.type_keys("exit 0\r");
    terminal.wait_for("user$ ");
}

#[test]
fn ctrl_z_suspends_a_plain_run_cleanly() {
    let service = Service::start();
    let mut terminal = user_shell(&service);
    terminal.type_keys("$RUN -- 'read x < /dev/null; sleep 3; echo over'\r");
    terminal.wait_for("running, 1 s");
    terminal.type_keys("\x1a");
    terminal.wait_for("Stopped");
    let screen = terminal.screen();
    let line = screen.rfind("running, ").unwrap();
    assert!(screen[line..].contains("\r\x1b[2K"), "the line is erased before the shell writes: {screen:?}");
    terminal.type_keys("fg\r");
    terminal.wait_for("over\r\n");
    terminal.wait_for("user$ ");
}

#[test]
fn a_plain_run_says_after_a_suspension_how_it_ended() {
    let service = Service::with(&["serve", "--client-stall-ms", "2000"], &[]);
    let mut terminal = user_shell(&service);
    terminal.type_keys("$RUN -- 'echo begun; exec sleep 1000'\r");
    terminal.wait_for("begun\r\n");
    terminal.type_keys("\x1a");
    terminal.wait_for("Stopped");
    service.wait_for_event("execution.finished", 1);
    terminal.clear();
    terminal.type_keys("fg\r");
    terminal.wait_for("ended by the service");
    terminal.type_keys("echo code-$?\r");
    terminal.wait_for("code-75");
}
