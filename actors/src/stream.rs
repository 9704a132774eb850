//! The two output streams of a process, and the ranges of them that a consumer does not get.

use serde::{Deserialize, Serialize};

/// One of the two output streams of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Both, in the order of their file descriptors.
    pub const BOTH: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// One value for each output stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PerStream<T> {
    /// Of standard output.
    pub stdout: T,
    /// Of standard error.
    pub stderr: T,
}

impl<T> PerStream<T> {
    /// The value of one stream.
    pub fn get_mut(&mut self, stream: Stream) -> &mut T {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// The value of one stream.
    pub fn get(&self, stream: Stream) -> &T {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }
}

impl<T: Copy> PerStream<T> {
    /// The same, of each value.
    pub fn map<U>(self, of: impl Fn(T) -> U) -> PerStream<U> {
        PerStream { stdout: of(self.stdout), stderr: of(self.stderr) }
    }
}

/// Bytes that a consumer will not get.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Gap {
    /// Of which stream.
    pub stream: Stream,
    /// The offset of the first of them.
    pub from: u64,
    /// The offset after the last of them.
    pub to: u64,
    /// Why they are lost.
    pub reason: GapReason,
}

/// Why bytes are lost to a consumer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GapReason {
    /// Newer output took their place, as it does where nobody was to be waited for.
    Overwritten,
    /// Nobody took them in time, and the client had asked for `overflow: "drop"`.
    Dropped,
}

impl GapReason {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            GapReason::Overwritten => "overwritten",
            GapReason::Dropped => "dropped",
        }
    }
}
