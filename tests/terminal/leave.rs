//! Escapes, and a terminal that is closed.

use std::time::Duration;

use super::{AT_ONCE, SHELL, run, run_shell};
use crate::common::{PATIENCE, procs, service::Service};

#[test]
fn an_escape_drops_the_connection_and_the_command_ends_soon() {
    let service = Service::start();
    let mark = procs::mark();
    let mut terminal = run(&service, &["--reconnect=1", "--", &format!("sleep {mark} & {SHELL}")]);
    terminal.wait_for("ready> ");
    terminal.type_keys("~");
    terminal.type_keys("?");
    terminal.wait_for("~.   drop the connection\r\n");
    terminal.wait_for("ctrl-p,ctrl-q");
    terminal.type_keys("\r~~.\r");
    terminal.wait_for("~.: ");
    terminal.type_keys("~.");
    let (code, screen) = terminal.finish(AT_ONCE);
    assert_eq!(code, 130, "{screen:?}");
    let dropped =
        "\r\ncc-executor: connection dropped; the command ends in 1 s unless you come back: cc-executor attach -it ";
    assert!(screen.contains(dropped), "{screen:?}");
    procs::wait_for(&mark, 0, Duration::from_secs(10));
}

#[test]
fn a_closed_terminal_ends_the_command_soon() {
    let service = Service::start();
    let mark = procs::mark();
    let mut terminal = run(&service, &["--reconnect=1", "--", &format!("sleep {mark} & {SHELL}")]);
    terminal.wait_for("ready> ");
    procs::wait_for(&mark, 1, PATIENCE);
    terminal.hang_up();
    terminal.wait(AT_ONCE);
    procs::wait_for(&mark, 0, Duration::from_secs(10));
}

#[test]
fn ctrl_c_and_ctrl_z_go_to_the_command() {
    let service = Service::start();
    let mut terminal = run_shell(&service, &[]);
    terminal.type_keys("sleep 1000\r");
    terminal.wait_for("sleep 1000\r\n");
    terminal.type_keys("\x1a");
    terminal.wait_for("Stopped");
    terminal.clear();
    terminal.type_keys("fg\r");
    terminal.wait_for("sleep 1000\r\n");
    terminal.clear();
    terminal.type_keys("\x03");
    terminal.wait_for("ready> ");
    terminal.type_keys("exit 5\r");
    assert_eq!(terminal.finish(PATIENCE).0, 5);
}
