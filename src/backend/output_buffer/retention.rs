//! The policy for unread output, and the kinds of retained output of an ended execution.

use cc_executor_actors::protocol::execute::Overflow;

/// What happens to output that no client has acknowledged when a ring is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnreadPolicy {
    /// It is overwritten, because the execution does not outlive its consumer.
    Overwrite,
    /// The execution may continue without a consumer, and the client has chosen.
    Detach(Overflow),
}

/// The retained output of an ended execution, with the memory that it takes in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RetainedOutput {
    /// Nothing.
    Nothing,
    /// A consumer reads it, so it is neither evicted nor forgotten.
    Followed(usize),
    /// Its client may come back for it, so it is retained for the whole retention time.
    Unfetched(usize),
    /// Its client has received it or will not come back, so it may be evicted when memory is short.
    Fetched(usize),
}

impl RetainedOutput {
    /// The bytes that it takes.
    pub fn bytes(self) -> usize {
        match self {
            RetainedOutput::Nothing => 0,
            RetainedOutput::Followed(bytes) | RetainedOutput::Unfetched(bytes) | RetainedOutput::Fetched(bytes) => {
                bytes
            }
        }
    }

    /// Whether a consumer reads it.
    pub fn is_followed(self) -> bool {
        matches!(self, RetainedOutput::Followed(_))
    }

    /// The same output while a consumer reads it.
    pub fn followed(self) -> RetainedOutput {
        match self {
            RetainedOutput::Nothing => RetainedOutput::Nothing,
            RetainedOutput::Followed(bytes) | RetainedOutput::Unfetched(bytes) | RetainedOutput::Fetched(bytes) => {
                RetainedOutput::Followed(bytes)
            }
        }
    }
}
