//! Shows on a terminal that time passes while a command says nothing.

use std::{
    io::{IsTerminal, Write, stderr},
    time::Duration,
};

use tokio::time::Instant;

/// How long nothing must have been printed before the time is shown.
const QUIET: Duration = Duration::from_secs(1);

/// The elapsed time, on a line of its own that is wiped before anything else is printed.
pub(super) struct Elapsed {
    wanted: bool,
    since: Option<Instant>,
    next_at: Instant,
    at_line_start: bool,
    shown: bool,
}

impl Elapsed {
    /// Shows nothing where standard error is no terminal.
    pub(super) fn new(wanted: bool) -> Self {
        Elapsed {
            wanted: wanted && stderr().is_terminal(),
            since: None,
            next_at: Instant::now(),
            at_line_start: true,
            shown: false,
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

    /// When [`Elapsed::show`] is due; `None` where there is nothing to show.
    pub(super) fn tick_at(&self) -> Option<Instant> {
        (self.wanted && self.since.is_some() && self.at_line_start).then_some(self.next_at)
    }

    /// Shows the time.
    pub(super) fn show(&mut self) {
        if let Some(since) = self.since {
            let _ = write!(stderr(), "\r\x1b[2K\x1b[2m{} s\x1b[0m", since.elapsed().as_secs());
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
