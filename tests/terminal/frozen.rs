//! A service that is frozen: stopped, while its connections stay open.

use std::time::Duration;

use rustix::process::Signal;

use super::{AT_ONCE, SHELL, run, run_shell};
use crate::common::{PATIENCE, procs, service::Service};

#[test]
fn an_escape_leaves_a_frozen_service() {
    let service = Service::start();
    let mark = procs::mark();
    let mut terminal = run(&service, &["--reconnect=1", "--", &format!("sleep {mark} & {SHELL}")]);
    terminal.wait_for("ready> ");
    procs::wait_for(&mark, 1, PATIENCE);
    service.signal(Signal::STOP);
    // Far more than the service takes without reading.
    let text = "echo unread\r".repeat(100_000);
    terminal.type_keys(&text);
    terminal.type_keys("\r~.");
    let (code, screen) = terminal.finish(AT_ONCE);
    service.signal(Signal::CONT);
    assert!(code == 130 && screen.contains("\r\ncc-executor: connection dropped"), "{code} {screen:?}");
    procs::wait_for(&mark, 0, PATIENCE);
}

#[test]
fn a_frozen_service_is_noticed_and_the_terminal_restored() {
    let service = Service::start();
    let terminal = run_shell(&service, &["--heartbeat", "1", "--reconnect=1"]);
    service.signal(Signal::STOP);
    terminal.wait_for(
        "ready> \r\ncc-executor: the service gives no sign of life: nothing came for 3 s; trying to reconnect",
    );
    let (code, screen) = terminal.finish(Duration::from_secs(15));
    service.signal(Signal::CONT);
    assert_eq!(code, 69, "{screen:?}");
    assert!(
        screen.contains("\r\ncc-executor: gave up reconnecting to ") && screen.contains("attach -it "),
        "{screen:?}"
    );
}

#[test]
fn a_session_continues_after_a_short_freeze() {
    let service = Service::start();
    let mut terminal = run_shell(&service, &["--heartbeat", "1"]);
    service.signal(Signal::STOP);
    terminal.wait_for("trying to reconnect for 30 s");
    service.signal(Signal::CONT);
    terminal.wait_for("reconnected");
    terminal.type_keys("\recho back-$((6*7))\r");
    terminal.wait_for("back-42");
    terminal.type_keys("exit\r");
    assert_eq!(terminal.finish(PATIENCE).0, 0);
}
