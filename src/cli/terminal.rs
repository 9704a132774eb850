//! The client's terminal: raw mode for a command that has a terminal itself, and the line with the elapsed time.

use std::{
    io::{IsTerminal, Write, stderr, stdin, stdout},
    time::Duration,
};

use cc_executor_actors::protocol::control::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::time::Instant;

use crate::console::is_obeyed;

/// The size that a command's terminal gets if the client has none.
const DEFAULT_SIZE: TerminalSize = TerminalSize { rows: 24, cols: 80 };

/// Keeps the terminal in raw mode until it is dropped.
pub(super) struct RawMode(Termios);

impl RawMode {
    /// Returns `None` if standard input is not a terminal.
    pub(super) fn enter() -> Option<RawMode> {
        let before = tcgetattr(stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).ok()?;
        Some(RawMode(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // This fails if the terminal is gone, and then needs no repair.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.0);
    }
}

/// The size of the client's terminal.
pub(super) fn size() -> TerminalSize {
    let found = [tcgetwinsize(stdout()), tcgetwinsize(stdin())].into_iter().flatten();
    let mut sizes = found.filter(|size| size.ws_row > 0 && size.ws_col > 0);
    sizes.next().map_or(DEFAULT_SIZE, |size| TerminalSize { rows: size.ws_row, cols: size.ws_col })
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

/// The elapsed time is shown after this time without output, and as often.
const QUIET: Duration = Duration::from_secs(1);

/// A line with the elapsed time, which is erased before other output.
pub(super) struct ElapsedLine {
    wanted: bool,
    since: Option<Instant>,
    next_at: Instant,
    at_line_start: bool,
    shown: bool,
    activity: Option<String>,
}

impl ElapsedLine {
    /// Shows nothing if standard error is not a terminal.
    pub(super) fn new(wanted: bool) -> Self {
        ElapsedLine {
            wanted: wanted && stderr().is_terminal(),
            since: None,
            next_at: Instant::now(),
            at_line_start: true,
            shown: false,
            activity: None,
        }
    }

    /// Starts the clock, if it is not running, and sets the activity that is shown beside the time.
    pub(super) fn start(&mut self, activity: Option<&str>) {
        if self.since.is_none() {
            let now = Instant::now();
            self.since = Some(now);
            self.next_at = now + QUIET;
        }
        self.activity = activity.map(|text| text.chars().filter(|c| !is_obeyed(*c)).take(60).collect());
    }

    /// When [`ElapsedLine::show`] is due; `None` if there is nothing to show.
    pub(super) fn tick_at(&self) -> Option<Instant> {
        (self.wanted && self.since.is_some() && self.at_line_start).then_some(self.next_at)
    }

    /// Shows the time.
    pub(super) fn show(&mut self) {
        if let Some(since) = self.since {
            let activity = self.activity.as_ref().map(|text| format!(" {text}")).unwrap_or_default();
            let _ = write!(stderr(), "\r\x1b[2K\x1b[2m{} s{activity}\x1b[0m", since.elapsed().as_secs());
            self.shown = true;
            self.next_at = Instant::now() + QUIET;
        }
    }

    /// Erases the line.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(stderr(), "\r\x1b[2K");
        }
    }

    /// Records that output was printed.
    pub(super) fn printed(&mut self, ended_a_line: bool) {
        self.at_line_start = ended_a_line;
        self.next_at = Instant::now() + QUIET;
    }
}
