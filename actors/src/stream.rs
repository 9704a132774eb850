//! The two output streams of a process, and gaps in them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One of the two output streams of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Both streams, in the order of their file descriptors.
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "PerStream_{T}")]
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
    /// Applies a function to each value.
    pub fn map<U>(self, of: impl Fn(T) -> U) -> PerStream<U> {
        PerStream { stdout: of(self.stdout), stderr: of(self.stderr) }
    }
}

/// A range of bytes that is lost to a consumer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Gap {
    /// The stream.
    pub stream: Stream,
    /// The offset of the first lost byte.
    pub from: u64,
    /// The offset after the last lost byte.
    pub to: u64,
    /// The reason.
    pub reason: GapReason,
}

/// Why bytes are lost to a consumer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GapReason {
    /// Newer output overwrote them, because the execution does not wait for a consumer.
    Overwritten,
    /// The output buffer was full, and the client had asked for `overflow: "drop"`.
    Dropped,
    /// The file with them could not be read.
    Unreadable,
    /// A reason that only a newer service has.
    #[serde(other)]
    Unknown,
}

impl GapReason {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            GapReason::Overwritten => "overwritten",
            GapReason::Dropped => "dropped",
            GapReason::Unreadable => "unreadable",
            GapReason::Unknown => "unknown",
        }
    }
}
