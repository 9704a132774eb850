//! The client's terminal: raw mode for a command that has a terminal itself, and the size.

use std::io::{IsTerminal, stdin, stdout};

use cc_executor_actors::protocol::control::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The size that a command's terminal gets if the client has none.
const DEFAULT_SIZE: TerminalSize = TerminalSize { rows: 24, cols: 80 };

/// Keeps the terminal in raw mode until it is dropped.
pub(super) struct RawMode {
    before: Termios,
    raw: Termios,
}

impl RawMode {
    /// Returns `None` if standard input is not a terminal.
    pub(super) fn enter() -> Option<RawMode> {
        let before = tcgetattr(stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).ok()?;
        Some(RawMode { before, raw })
    }

    /// Sets raw mode again, after a shell may have changed the mode.
    pub(super) fn renew(&self) {
        // This fails if the terminal is gone.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.raw);
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // This fails if the terminal is gone, and then needs no repair.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}

/// Whether standard input is a terminal.
pub(super) fn is_input() -> bool {
    stdin().is_terminal()
}

/// The size of the client's terminal.
pub(super) fn size() -> TerminalSize {
    let found = [tcgetwinsize(stdout()), tcgetwinsize(stdin())].into_iter().flatten();
    let mut sizes = found.filter(|size| size.ws_row > 0 && size.ws_col > 0);
    sizes.next().map_or(DEFAULT_SIZE, |size| TerminalSize { rows: size.ws_row, cols: size.ws_col })
}

/// Another size. A command redraws its screen only when the size changes, so this one is set before the true one.
pub(super) fn other_size() -> TerminalSize {
    let TerminalSize { rows, cols } = size();
    TerminalSize { rows: if rows > 1 { rows - 1 } else { 2 }, cols }
}

/// The width of the terminal to which standard output goes, in columns; `None` if it goes elsewhere.
pub(super) fn output_width() -> Option<usize> {
    let size = tcgetwinsize(stdout()).ok()?;
    Some(usize::from(if size.ws_col > 0 { size.ws_col } else { DEFAULT_SIZE.cols }))
}

/// The height of the terminal to which standard output goes, in lines.
pub(super) fn output_height() -> usize {
    let height = tcgetwinsize(stdout()).map_or(0, |size| size.ws_row);
    usize::from(if height > 0 { height } else { DEFAULT_SIZE.rows })
}
