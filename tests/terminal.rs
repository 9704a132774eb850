//! The client in a terminal: detach keys, escapes, suspension, a frozen service, and what is shown of a silent execution.

mod detach;
mod frozen;
mod leave;
mod progress;
mod suspend;

use std::time::Duration;

use crate::common::{service::Service, terminal::TestTerminal};

/// Leaves the command running.
const DETACH: &str = "\x10\x11";

/// A shell that shows when it is ready.
const SHELL: &str = "PS1='ready> ' exec bash --norc --noprofile -i";

/// The bound of an exit that needs no answer of the service.
const AT_ONCE: Duration = Duration::from_secs(5);

/// `run -it` with these arguments.
fn run(service: &Service, arguments: &[&str]) -> TestTerminal {
    let terminal = TestTerminal::start(&service.run_command(&[&["-it"], arguments].concat()));
    terminal.wait_for_raw(true);
    terminal
}

/// A shell that runs through the service, after its first prompt.
fn run_shell(service: &Service, flags: &[&str]) -> TestTerminal {
    let terminal = run(service, &[flags, &["--", SHELL]].concat());
    terminal.wait_for("ready> ");
    terminal
}

/// Types the detach keys, and returns the id that is printed.
fn detach(mut terminal: TestTerminal) -> String {
    terminal.type_keys(DETACH);
    let (code, screen) = terminal.finish(Duration::from_secs(20));
    assert_eq!(code, 0, "{screen:?}");
    let id = screen.trim_end_matches("\r\n").rsplit("\r\n").next().unwrap().to_owned();
    assert_eq!(id.len(), 36, "the id is a line of its own: {screen:?}");
    id
}
