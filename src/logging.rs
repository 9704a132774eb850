//! Log lines, for people and for programs.
//!
//! Every line has a time, a level, a text and fields; the field `event` is the name of an event. With
//! `LOG_FORMAT=json` each line is a JSON object, with `text` (the default) it is easier to read. `RUST_LOG` filters.
//!
//! Logging never waits for standard error: `queue` bounds what waits for the thread of `writer`, and `limit` bounds
//! what a stranger can cause.

mod limit;
mod line;
mod queue;
mod writer;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fmt, io,
    panic::PanicHookInfo,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use env_logger::{Builder, Env, Logger};
use log::{Level, Log, Metadata, Record};

pub use self::line::Format;
use self::{line::LogLine, writer::LogWriter};
use crate::console;

/// The filter without `RUST_LOG`: the service's own lines from `info` up, others' from `warn` up.
pub const DEFAULT_FILTER: &str = "warn,cc_executor=info,cc_executor_actors=info";

/// How long the end of the process waits for its last lines to be read.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

/// The log target of actix's acceptor. It logs an error for a connection that arrives while the server stops.
const ACCEPTOR: &str = "actix_server::accept";

/// Whether the servers of this process are being stopped.
static STOPPING: AtomicBool = AtomicBool::new(false);

/// The writer of this process.
static WRITER: OnceLock<LogWriter> = OnceLock::new();

/// Suppresses the acceptor's errors from now on, because the servers of this process are being stopped.
pub fn stopping() {
    STOPPING.store(true, Ordering::Relaxed);
}

/// When dropped, also by a panic, waits until all lines are written. Gives up after a second, because a reader that hangs
/// must not keep this process from its end.
#[must_use]
pub struct FlushOnDrop(&'static LogWriter);

impl Drop for FlushOnDrop {
    fn drop(&mut self) {
        self.0.flush(FLUSH_PATIENCE);
    }
}

/// Starts logging to standard error, filtered by `RUST_LOG` or [`DEFAULT_FILTER`]. Panics are logged, too. To be called
/// once.
///
/// # Errors
///
/// The writer's thread cannot be started.
pub fn init(format: Format) -> io::Result<FlushOnDrop> {
    let writer = WRITER.get_or_init(|| LogWriter::new(format));
    thread::Builder::new().name("log".to_owned()).spawn(|| writer.run(console::write_error))?;
    let filter = Builder::from_env(Env::default().default_filter_or(DEFAULT_FILTER)).build();
    log::set_max_level(filter.filter());
    log::set_boxed_logger(Box::new(QueueLogger { filter, writer })).map_err(io::Error::other)?;
    std::panic::set_hook(Box::new(|panic| log_panic(writer, panic)));
    Ok(FlushOnDrop(writer))
}

/// Writes a message to standard error after the program's name, in order with the log lines.
pub fn report(message: impl fmt::Display) {
    match WRITER.get() {
        Some(writer) => writer.push(&format!("cc-executor: {message}\n"), 1),
        None => console::report(message),
    }
}

/// The logger behind [`log`]: env_logger's filter in front of the writer's queue.
struct QueueLogger {
    filter: Logger,
    writer: &'static LogWriter,
}

impl Log for QueueLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.filter.matches(record) && !(record.target() == ACCEPTOR && STOPPING.load(Ordering::Relaxed)) {
            self.writer.log(LogLine::of(record));
        }
    }

    fn flush(&self) {
        self.writer.flush(FLUSH_PATIENCE);
    }
}

/// Logs a panic, whatever the filter. The default hook would write to standard error, and wait there.
fn log_panic(writer: &LogWriter, panic: &PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    let mut message = panic.to_string();
    if backtrace.status() == BacktraceStatus::Captured {
        message.push_str(&format!("\n{backtrace}"));
    }
    let thread = thread::current();
    let fields = [("event", "panic"), ("thread", thread.name().unwrap_or_default())];
    let fields = fields.into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect();
    writer.log(LogLine { level: Level::Error, target: module_path!(), fields, message: message.into() });
}

#[cfg(test)]
mod tests {
    use std::{panic, sync::mpsc};

    use super::*;

    #[test]
    fn lines_of_a_panic_are_written_before_it_ends_the_process() {
        static WRITER: OnceLock<LogWriter> = OnceLock::new();
        let writer = WRITER.get_or_init(|| LogWriter::new(Format::Json));
        let (send, written) = mpsc::channel();
        thread::spawn(|| {
            writer.run(move |bytes| {
                let _ = send.send(bytes.to_vec());
                Ok(bytes.len())
            })
        });
        let unwound = panic::catch_unwind(|| {
            let _flush = FlushOnDrop(writer);
            let message = "a bug".into();
            writer.log(LogLine { level: Level::Error, target: module_path!(), fields: Default::default(), message });
            panic::resume_unwind(Box::new(()));
        });
        assert!(unwound.is_err());
        let lines: Vec<u8> = written.try_iter().flatten().collect();
        assert!(String::from_utf8_lossy(&lines).contains("a bug"), "{lines:?}");
    }
}
