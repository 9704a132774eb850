//! Our own terminal: raw while a command runs on one of its own, and a line that shows that time
//! passes while a command says nothing.

use std::{
    io::{IsTerminal, Write, stderr, stdin, stdout},
    time::Duration,
};

use cc_executor_actors::protocol::control::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::time::Instant;

/// The size of a terminal that nobody can ask for it.
const DEFAULT_SIZE: TerminalSize = TerminalSize { rows: 24, cols: 80 };

/// Our terminal hands every key on as it is, until this is dropped.
pub(super) struct RawMode(Termios);

impl RawMode {
    /// `None` where standard input is no terminal.
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
        // A terminal that is gone needs no mending.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.0);
    }
}

/// The size of our terminal.
pub(super) fn size() -> TerminalSize {
    let found = [tcgetwinsize(stdout()), tcgetwinsize(stdin())].into_iter().flatten();
    let mut sizes = found.filter(|size| size.ws_row > 0 && size.ws_col > 0);
    sizes.next().map_or(DEFAULT_SIZE, |size| TerminalSize { rows: size.ws_row, cols: size.ws_col })
}

/// How long nothing must have been printed before the time is shown.
const QUIET: Duration = Duration::from_secs(1);

/// The elapsed time, on a line of its own that is wiped before anything else is printed.
pub(super) struct ElapsedLine {
    wanted: bool,
    since: Option<Instant>,
    next_at: Instant,
    at_line_start: bool,
    shown: bool,
    doing: Option<String>,
}

impl ElapsedLine {
    /// Shows nothing where standard error is no terminal.
    pub(super) fn new(wanted: bool) -> Self {
        ElapsedLine {
            wanted: wanted && stderr().is_terminal(),
            since: None,
            next_at: Instant::now(),
            at_line_start: true,
            shown: false,
            doing: None,
        }
    }

    /// The command runs.
    pub(super) fn running(&mut self) {
        if self.since.is_none() {
            let now = Instant::now();
            self.since = Some(now);
            self.next_at = now + QUIET;
        }
    }

    /// What the command is known to do.
    pub(super) fn doing(&mut self, doing: Option<&str>) {
        self.doing = doing.map(|doing| doing.chars().filter(|c| !c.is_control()).take(60).collect());
    }

    /// When [`ElapsedLine::show`] is due; `None` where there is nothing to show.
    pub(super) fn tick_at(&self) -> Option<Instant> {
        (self.wanted && self.since.is_some() && self.at_line_start).then_some(self.next_at)
    }

    /// Shows the time.
    pub(super) fn show(&mut self) {
        if let Some(since) = self.since {
            let doing = self.doing.as_ref().map(|doing| format!(" {doing}")).unwrap_or_default();
            let _ = write!(stderr(), "\r\x1b[2K\x1b[2m{} s{doing}\x1b[0m", since.elapsed().as_secs());
            self.shown = true;
            self.next_at = Instant::now() + QUIET;
        }
    }

    /// Wipes the time.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(stderr(), "\r\x1b[2K");
        }
    }

    /// Something was printed.
    pub(super) fn printed(&mut self, ended_a_line: bool) {
        self.at_line_start = ended_a_line;
        self.next_at = Instant::now() + QUIET;
    }
}
