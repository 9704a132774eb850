//! Why a consumer does not get the output.

use cc_executor_actors::stream::Stream;

use crate::backend::holds::HoldError;

/// An offset beyond the end of an execution's output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("offset {asked} of {} is beyond its {end} bytes", .stream.as_str())]
pub struct OffsetError {
    /// The stream.
    pub stream: Stream,
    /// The offset.
    pub asked: u64,
    /// How much was written to the stream so far.
    pub end: u64,
}

/// Why a consumer's claim or its offsets are refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConsumerError {
    /// Its offsets are beyond the end of the output.
    #[error(transparent)]
    Offset(#[from] OffsetError),
    /// Its claim is not valid.
    #[error(transparent)]
    Hold(#[from] HoldError),
    /// The execution has as many observers as it may have.
    #[error(
        "{used} observers follow this execution, and the limit of --max-observers is {limit}: try again when one has left"
    )]
    TooManyObservers {
        /// The limit.
        limit: usize,
        /// How many there are.
        used: usize,
    },
}
