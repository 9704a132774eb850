//! Everything that this program prints to its own standard output and standard error.
//!
//! `println!` and `print!` panic if a write fails, and writes do fail: `ps | head -1` closes the pipe, a disk is
//! full. So no other module of this crate prints; tests/tidy.rs checks it.

mod visible;

use std::{
    fmt,
    io::{self, ErrorKind, Write},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    stdio::stderr,
};

pub use self::visible::{is_obeyed, visible};

/// Exit code of a wrong use: `EX_USAGE` of sysexits(3).
pub const EX_USAGE: u8 = 64;

/// Exit code where output could not be written: `EX_IOERR` of sysexits(3).
pub const EX_IOERR: u8 = 74;

/// Whether the output still has a reader.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OutputReader {
    /// The output was written.
    Present,
    /// The pipe is closed. This is no error, because a reader such as `head` may exit early.
    Gone,
}

/// Output could not be written although it has a reader: a full disk, an I/O error.
#[derive(Debug)]
pub struct WriteFailed(io::Error);

impl fmt::Display for WriteFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write the output: {}", self.0)
    }
}

/// Tells a closed pipe from a failed write.
///
/// # Errors
/// Every failure but a closed pipe.
pub fn outcome(written: io::Result<()>) -> Result<OutputReader, WriteFailed> {
    match written {
        Ok(()) => Ok(OutputReader::Present),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(OutputReader::Gone),
        Err(error) => Err(WriteFailed(error)),
    }
}

/// Writes a text to standard output, at once.
///
/// # Errors
/// See [`outcome`].
pub fn print(text: &str) -> Result<OutputReader, WriteFailed> {
    let mut out = io::stdout().lock();
    outcome(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Writes a line to standard output, at once.
///
/// # Errors
/// See [`outcome`].
pub fn print_line(line: &str) -> Result<OutputReader, WriteFailed> {
    print(&format!("{line}\n"))
}

/// Standard output and standard error for a stream of bytes. Each failed write goes through [`outcome`].
pub fn streams() -> (tokio::io::Stdout, tokio::io::Stderr) {
    (tokio::io::stdout(), tokio::io::stderr())
}

/// Writes bytes to standard error (write(2)), and returns how many. Waits until it takes some, also where the process
/// that started this one has made it non-blocking.
///
/// Unlike the standard library's handle it takes no lock, so that a thread that waits here does not hold up another.
///
/// # Errors
/// Those of write(2).
pub fn write_error(bytes: &[u8]) -> io::Result<usize> {
    loop {
        match rustix::io::write(stderr(), bytes) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&stderr(), PollFlags::OUT)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            },
            written => return Ok(written?),
        }
    }
}

/// Writes a line to standard error as it is. A failure is ignored, because there is nowhere to report it.
pub fn report_line(line: &str) {
    let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

/// Writes a message to standard error, after the program's name, in its [`visible`] form, because it may contain a
/// message of another machine.
pub fn report(message: impl fmt::Display) {
    report_line(&report_text(message));
}

/// The line that [`report`] writes.
pub fn report_text(message: impl fmt::Display) -> String {
    format!("cc-executor: {}", visible(&message.to_string()))
}
