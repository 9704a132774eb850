//! The thread that writes the lines. Nobody else waits for standard error.

use std::{
    io,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use log::Level;

use super::{
    limit::{LineLimiter, LogSubject, RateDecision},
    line::{Format, LogLine},
    queue::{LineBatch, LineQueue},
};

/// How often the writer looks for omitted lines whose subject has become quiet, and tries to name lines that could not be
/// written.
const CADENCE: Duration = Duration::from_secs(1);

/// What the threads that log share with the writer.
pub(super) struct LogWriter {
    format: Format,
    started_at: Instant,
    state: Mutex<WriterState>,
    /// Wakes the writer.
    work: Condvar,
    /// Wakes [`LogWriter::flush`].
    idle: Condvar,
}

#[derive(Default)]
struct WriterState {
    queue: LineQueue,
    limiter: LineLimiter,
    activity: WriterActivity,
    /// Whether all counts of the limiter are to be written at once.
    is_closing: bool,
}

/// What the writer does. It is woken only if it waits, because that is a system call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum WriterActivity {
    #[default]
    Writing,
    /// It waits for a line.
    Waiting,
    /// It waits for a line, or for its next look at what was left out.
    WaitingUntil,
}

impl LogWriter {
    pub(super) fn new(format: Format) -> LogWriter {
        LogWriter {
            format,
            started_at: Instant::now(),
            state: Mutex::default(),
            work: Condvar::new(),
            idle: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, WriterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Formats a line and queues it, unless there were too many of its kind. Never waits for the output.
    pub(super) fn log(&self, mut line: LogLine<'_>) {
        let mut n_records = 1;
        if let Some(subject) = LogSubject::of(&line) {
            match self.decide(subject) {
                RateDecision::Omit => return,
                RateDecision::Write { omitted: 0 } => {}
                RateDecision::Write { omitted } => {
                    line.fields.insert("omitted".to_owned(), omitted.into());
                    n_records += omitted;
                }
            }
        }
        self.push(&line.format(self.format, Timestamp::now()), n_records);
    }

    fn decide(&self, subject: LogSubject) -> RateDecision {
        let mut state = self.state();
        let decision = state.limiter.decide(subject, self.started_at.elapsed());
        // If it waits with a time-out, it looks soon.
        if decision == RateDecision::Omit && state.activity == WriterActivity::Waiting {
            self.wake(state);
        }
        decision
    }

    /// Queues a line with its end. Never waits for the output.
    pub(super) fn push(&self, line: &str, n_records: u64) {
        let mut state = self.state();
        state.queue.push(line, n_records);
        if state.activity != WriterActivity::Writing {
            self.wake(state);
        }
    }

    fn wake(&self, mut state: MutexGuard<'_, WriterState>) {
        state.activity = WriterActivity::Writing;
        drop(state);
        self.work.notify_one();
    }

    /// Waits until everything that was logged before is written, but not longer than this. After this no count of omitted
    /// lines waits for its subject any more.
    pub(super) fn flush(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let mut state = self.state();
        state.is_closing = true;
        // It waits again when it has looked at the counts, too.
        state.activity = WriterActivity::Writing;
        self.work.notify_one();
        while state.activity == WriterActivity::Writing {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            (state, _) = self.idle.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes what is queued, for ever. `write` is write(2) on standard error; it may block.
    pub(super) fn run(&self, write: impl FnMut(&[u8]) -> io::Result<usize>) -> ! {
        let mut output = LogOutput { write, format: self.format, is_within_line: false, missing: None };
        let mut batch = LineBatch::default();
        loop {
            let n_dropped = self.wait(&mut batch, output.missing.is_some());
            output.write_batch(&mut batch, n_dropped);
        }
    }

    /// Waits for lines, and exchanges them for the empty batch. Returns how many records were dropped after them. Returns
    /// after [`CADENCE`] in any case if lines are missing that have not been named.
    fn wait(&self, batch: &mut LineBatch, is_missing: bool) -> u64 {
        let mut state = self.state();
        loop {
            if state.queue.is_empty() {
                // Only now, because a full queue would drop the counts, too.
                let quiet_at = (!state.is_closing).then(|| self.started_at.elapsed());
                for (subject, n_omitted) in state.limiter.take_omitted(quiet_at) {
                    let line = omitted_line(subject, n_omitted).format(self.format, Timestamp::now());
                    state.queue.push(&line, n_omitted);
                }
            }
            if !state.queue.is_empty() {
                return state.queue.take(batch);
            }
            let is_timed = is_missing || state.limiter.has_omitted();
            state.activity = if is_timed { WriterActivity::WaitingUntil } else { WriterActivity::Waiting };
            self.idle.notify_all();
            let mut is_over = false;
            if is_timed {
                let (woken, timeout) = self.work.wait_timeout(state, CADENCE).unwrap_or_else(PoisonError::into_inner);
                (state, is_over) = (woken, timeout.timed_out());
            } else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.activity = WriterActivity::Writing;
            if is_missing && is_over {
                return state.queue.take(batch);
            }
        }
    }
}

/// Standard error, and what it did not take.
struct LogOutput<W> {
    write: W,
    format: Format,
    /// Whether a write has failed within a line.
    is_within_line: bool,
    /// Records that could not be written, and the last error. They are named before the next line.
    missing: Option<(u64, io::Error)>,
}

impl<W: FnMut(&[u8]) -> io::Result<usize>> LogOutput<W> {
    /// Writes the lines and then, if lines were dropped after them, how many. Empties the batch.
    fn write_batch(&mut self, batch: &mut LineBatch, n_dropped: u64) {
        if n_dropped > 0 {
            let why = "standard error was not read fast enough";
            batch.push(&dropped_line(n_dropped, why).format(self.format, Timestamp::now()), n_dropped);
        }
        if let Some((n_missing, error)) = self.missing.take() {
            let line = dropped_line(n_missing, &format!("standard error could not be written: {error}"));
            self.write_piece(line.format(self.format, Timestamp::now()).as_bytes(), n_missing);
        }
        for (piece, n_records) in batch.pieces() {
            self.write_piece(piece, n_records);
        }
        batch.clear();
    }

    /// Writes whole lines. After a failure all lines of the batch are missing, because the next batch names them first.
    fn write_piece(&mut self, piece: &[u8], n_records: u64) {
        if let Some((n_missing, _)) = &mut self.missing {
            *n_missing += n_records;
        } else if let Err(error) = self.write_all(piece) {
            self.missing = Some((n_records, error));
        }
    }

    fn write_all(&mut self, piece: &[u8]) -> io::Result<()> {
        if self.is_within_line {
            (self.write)(b"\n")?;
            self.is_within_line = false;
        }
        let mut rest = piece;
        while !rest.is_empty() {
            let n = match (self.write)(rest) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                other => other,
            };
            let n = n.inspect_err(|_| self.is_within_line = rest.len() < piece.len())?;
            rest = rest.get(n..).unwrap_or_default();
        }
        Ok(())
    }
}

/// The line that stands where lines are missing.
fn dropped_line(n_records: u64, why: &str) -> LogLine<'static> {
    own_line("log.dropped", n_records, format!("{n_records} log lines are missing here: {why}"))
}

/// The line that counts what a quiet subject has caused beyond its limit.
fn omitted_line(subject: LogSubject, n_records: u64) -> LogLine<'static> {
    let LogSubject { of, by } = subject;
    let mut line = own_line("log.omitted", n_records, format!("{n_records} more lines of {of} were left out"));
    line.fields.insert("of".to_owned(), of.into());
    line.fields.extend(by.map(|by| ("by".to_owned(), by.into())));
    line
}

fn own_line(event: &str, n_records: u64, message: String) -> LogLine<'static> {
    let fields = [("event", event.into()), ("lines", n_records.into())];
    let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    LogLine { level: Level::Warn, target: module_path!(), fields, message: message.into() }
}

#[cfg(test)]
mod tests;
