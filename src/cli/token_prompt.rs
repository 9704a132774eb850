//! Asks for a token on the terminal, without echo.
//!
//! The terminal hands every key over at once and obeys none, so that an interruption goes through the same path as any
//! other end, and the terminal is always restored. Start with [`ask`].

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    thread,
};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::{ClientError, exit};
use crate::console::visible;

/// The terminal of this process, whatever its standard streams are.
const TERMINAL: &str = "/dev/tty";

/// The longest token, in bytes.
const MAX_TOKEN: usize = 4096;

/// The keys that mean something, in the byte that a terminal sends.
const CTRL_C: u8 = 0x03;
const CTRL_D: u8 = 0x04;
const CTRL_U: u8 = 0x15;
const CTRL_BACKSLASH: u8 = 0x1c;
const BACKSPACES: [u8; 2] = [0x08, 0x7f];

/// Keeps a terminal from showing what is typed, until it is dropped.
struct HiddenInput {
    terminal: File,
    before: Termios,
}

impl HiddenInput {
    fn enter(terminal: File) -> io::Result<HiddenInput> {
        let before = tcgetattr(&terminal)?;
        let mut hidden = before.clone();
        hidden.local_modes -= LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG;
        // What was typed before the question is not the token.
        tcsetattr(&terminal, OptionalActions::Flush, &hidden)?;
        Ok(HiddenInput { terminal, before })
    }
}

impl Drop for HiddenInput {
    fn drop(&mut self) {
        // This fails if the terminal is gone, and then needs no repair.
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
        let _ = self.terminal.write_all(b"\r\n");
    }
}

/// How a line that is typed ended.
#[derive(Clone, PartialEq, Eq, Debug)]
enum TypedLine {
    Whole(Vec<u8>),
    Interrupted,
    TooLong,
}

/// Adds a key to a line. Returns how the line ended, if it did.
fn press(line: &mut Vec<u8>, key: u8) -> Option<TypedLine> {
    match key {
        b'\r' | b'\n' | CTRL_D => return Some(TypedLine::Whole(std::mem::take(line))),
        CTRL_C | CTRL_BACKSLASH => return Some(TypedLine::Interrupted),
        CTRL_U => line.clear(),
        key if BACKSPACES.contains(&key) => drop(line.pop()),
        _ if line.len() == MAX_TOKEN => return Some(TypedLine::TooLong),
        key => line.push(key),
    }
    None
}

/// Asks for the token of a service.
///
/// # Errors
/// There is no terminal, or the question was interrupted.
pub(super) async fn ask(url: &str) -> Result<String, ClientError> {
    let no_terminal = |error: io::Error| {
        let advice = "pass --token-file PATH, or --token-file - for standard input";
        ClientError::new(exit::USAGE, format!("there is no terminal to ask for the token ({error}); {advice}"))
    };
    let mut terminal = OpenOptions::new().read(true).write(true).open(TERMINAL).map_err(no_terminal)?;
    let mut keys = terminal.try_clone().map_err(no_terminal)?;
    let hidden = HiddenInput::enter(terminal.try_clone().map_err(no_terminal)?).map_err(no_terminal)?;
    write!(terminal, "Token of {} (not shown): ", visible(url)).map_err(no_terminal)?;
    let (typed, mut line) = mpsc::channel(1);
    // A thread of its own, because nothing else ends a read of a terminal.
    thread::spawn(move || {
        let (mut line, mut key) = (Vec::new(), [0]);
        let end = loop {
            match keys.read(&mut key) {
                Ok(0) => break TypedLine::Interrupted,
                Ok(_) => {
                    if let Some(end) = press(&mut line, key[0]) {
                        break end;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break TypedLine::Interrupted,
            }
        };
        // Fails if the question was given up.
        let _ = typed.blocking_send(end);
    });
    let no_signals = |error| ClientError::new(exit::SOFTWARE, format!("cannot listen for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(no_signals)?;
    let line = tokio::select! {
        line = line.recv() => line,
        _ = terminate.recv() => None,
        _ = hang_up.recv() => None,
    };
    drop(hidden);
    match line {
        Some(TypedLine::Whole(line)) => String::from_utf8(line).map_err(|_| not_a_token()),
        Some(TypedLine::TooLong) => {
            Err(ClientError::new(exit::USAGE, format!("a token has at most {MAX_TOKEN} characters")))
        }
        Some(TypedLine::Interrupted) | None => {
            Err(ClientError::new(exit::SIGNALED + 2, "interrupted; nothing was stored"))
        }
    }
}

/// The error for a text that cannot be a token.
pub(super) fn not_a_token() -> ClientError {
    ClientError::new(exit::USAGE, "a token must be printable ASCII characters without spaces, and not empty")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_edit_a_line_until_it_ends() {
        let whole = |text: &str| Some(TypedLine::Whole(text.into()));
        for (keys, end) in [
            ("abc\r", whole("abc")),
            ("abc\n", whole("abc")),
            ("abx\x7fc\x04", whole("abc")),
            ("\x08xy\x15abc\r", whole("abc")),
            ("\r", whole("")),
            ("ab\x03", Some(TypedLine::Interrupted)),
            ("ab\x1c", Some(TypedLine::Interrupted)),
            ("ab", None),
            (&"x".repeat(MAX_TOKEN), None),
            (&"x".repeat(MAX_TOKEN + 1), Some(TypedLine::TooLong)),
        ] {
            let mut line = Vec::new();
            assert_eq!(keys.bytes().find_map(|key| press(&mut line, key)), end, "{keys:?}");
        }
    }
}
