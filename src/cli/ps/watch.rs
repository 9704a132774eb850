//! `ps --watch`: the list again and again, on a screen of its own.

use std::time::Duration;

use cc_executor_actors::excerpt::cut;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use crate::{
    cli::{
        ClientError, exit,
        exit_code::EndRequest,
        print,
        terminal::{output_height, output_width},
    },
    console::OutputReader,
};

/// Switches to the other screen of the terminal, and back.
const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";

/// Moves to the top, and clears the rest of a line and of the screen.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// The longest error that is shown above the list, in bytes.
const MAX_ERROR: usize = 200;

/// Shows the list every `period` until a signal. A list that cannot be fetched later leaves the one before in place.
pub(super) async fn watch(
    period: Duration,
    list: impl AsyncFn() -> Result<String, ClientError>,
) -> Result<u8, ClientError> {
    if output_width().is_none() {
        let message = "--watch needs a terminal as standard output; without it run ps again, or leave --watch out";
        return Err(ClientError::new(exit::USAGE, message));
    }
    let mut newest = list().await?;
    let no_signals = |error| ClientError::new(exit::SOFTWARE, format!("cannot listen for signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    if print(ENTER)? == OutputReader::Gone {
        return Ok(0);
    }
    let mut error = None;
    let ended = loop {
        let head = match &error {
            None => format!("every {} s; Ctrl-C ends", period.as_secs_f64()),
            Some(ClientError { message, .. }) => {
                cut(message.lines().next().unwrap_or_default(), MAX_ERROR).into_owned()
            }
        };
        match print(&screen(&head, &newest, output_height())) {
            Ok(OutputReader::Present) => {}
            Ok(OutputReader::Gone) => break Ok(0),
            Err(error) => break Err(error),
        }
        tokio::select! {
            () = sleep(period) => {}
            _ = interrupt.recv() => break Ok(EndRequest::INTERRUPTED),
            _ = terminate.recv() => break Ok(exit::SIGNALED + 15),
        }
        let listed = tokio::select! {
            listed = list() => listed,
            _ = interrupt.recv() => break Ok(EndRequest::INTERRUPTED),
            _ = terminate.recv() => break Ok(exit::SIGNALED + 15),
        };
        error = match listed {
            Ok(text) => {
                newest = text;
                None
            }
            Err(error) => Some(error),
        };
    };
    // The list stays where the shell continues.
    let _ = print(&format!("{LEAVE}{newest}"));
    ended
}

/// The list below a line, as much of it as fits.
fn screen(head: &str, list: &str, height: usize) -> String {
    let room = height.saturating_sub(2);
    let n_lines = list.lines().count();
    let mut text = format!("{HOME}{head}{CLEAR_LINE}\r\n");
    for line in list.lines().take(room) {
        text += &format!("{line}{CLEAR_LINE}\r\n");
    }
    if n_lines > room {
        text += &format!("and {} more{CLEAR_LINE}", n_lines - room);
    }
    text + CLEAR_BELOW
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_cut_to_the_screen() {
        let list = "HEAD\na\nb\nc\n";
        let shown = screen("every 2 s", list, 5);
        assert!(shown.contains("HEAD\x1b[K\r\na\x1b[K\r\nb\x1b[K\r\nand 1 more"), "{shown:?}");
        assert!(!screen("every 2 s", list, 6).contains("more"));
    }
}
