//! The line on standard error that shows the progress of a silent execution, and is erased before other output.

use std::io::{Write, stderr};

use rustix::{
    process::getpgrp,
    termios::{tcgetpgrp, tcgetwinsize},
};
use tokio::time::{Duration, Instant};

use super::{color::ErrorStyle, progress::Progress};

/// The line is shown after this time without output, and as often.
const QUIET: Duration = Duration::from_secs(1);

/// The line, which is there only while it is wanted and output does not end in the middle of a line.
pub(super) struct ElapsedLine {
    wanted: bool,
    style: ErrorStyle,
    since: Option<Instant>,
    progress: Progress,
    progress_at: Instant,
    output_at: Instant,
    next_at: Instant,
    at_line_start: bool,
    shown: bool,
}

impl ElapsedLine {
    /// Shows nothing if standard error is not a terminal that can replace a line.
    pub(super) fn new(wanted: bool, style: ErrorStyle) -> Self {
        let now = Instant::now();
        ElapsedLine {
            wanted: wanted && style.replaces_lines,
            style,
            since: None,
            progress: Progress::default(),
            progress_at: now,
            output_at: now,
            next_at: now,
            at_line_start: true,
            shown: false,
        }
    }

    /// Starts the clock, if it is not running, and sets what is shown.
    pub(super) fn start(&mut self, progress: Progress) {
        let now = Instant::now();
        if self.since.is_none() {
            self.since = Some(now);
            self.next_at = now + QUIET;
        }
        // The service knows of output before this client has it.
        let silent = Duration::from_millis(progress.since_output_ms.unwrap_or(0));
        self.output_at = now.checked_sub(silent).unwrap_or(now).max(self.output_at);
        (self.progress, self.progress_at) = (progress, now);
    }

    /// When [`ElapsedLine::show`] is due; `None` if there is nothing to show.
    pub(super) fn tick_at(&self) -> Option<Instant> {
        (self.wanted && self.since.is_some() && self.at_line_start).then_some(self.next_at)
    }

    /// Shows the line, unless this process is in the background, where it would disturb the user's shell.
    pub(super) fn show(&mut self) {
        let now = Instant::now();
        self.next_at = now + QUIET;
        if tcgetpgrp(stderr()).is_ok_and(|group| group != getpgrp()) {
            return;
        }
        if let Some(since) = self.since {
            let line = self.progress.line(now - self.progress_at, now - self.output_at, now - since);
            // A longer line would fill two, of which one would stay.
            let width = tcgetwinsize(stderr()).map_or(80, |size| usize::from(size.ws_col).max(2));
            let line: String = line.chars().take(width - 1).collect();
            let _ = write!(stderr(), "\r\x1b[2K{}", self.style.dimmed(&line));
            self.shown = true;
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
        let now = Instant::now();
        (self.output_at, self.next_at) = (now, now + QUIET);
    }
}
