//! What is kept of output that nobody has received, and of the output of an execution that has ended.

use cc_executor_actors::protocol::execute::Overflow;

/// What becomes of output that nobody has taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnreadPolicy {
    /// It is overwritten: the execution does not outlive its consumer.
    Overwrite,
    /// It is kept, or not, for an execution that may.
    Detach(Overflow),
}

/// What is kept of the output of an execution that has ended, with the memory that this takes in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RetainedOutput {
    /// Nothing.
    Nothing,
    /// A consumer follows it: it is neither evicted nor forgotten.
    Followed(usize),
    /// Its client may come back for it: it is kept for the whole retention.
    Unfetched(usize),
    /// Its client has it, or will not come back: it is evicted when memory is short.
    Fetched(usize),
}
