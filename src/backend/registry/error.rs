//! Why the registry does not admit or find an execution.

use cc_executor_actors::id::{ExecutionId, InstanceId};

/// A refusal by the registry.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RegistryError {
    /// The service ends.
    #[error("the backend is shutting down: try again in a moment")]
    Draining,
    /// All places to run and in the queue are taken.
    #[error("{max} executions run and {max_queued} are queued, which are the limits: try again when one has ended")]
    Full {
        /// How many may run.
        max: usize,
        /// How many may be queued.
        max_queued: usize,
    },
    /// No more executions can be remembered.
    #[error(
        "the backend remembers {max_ended} executions, which is the limit of --max-ended: try again {}, raise --max-ended, or lower --retention-ms",
        when(*.next_in_ms)
    )]
    TooManyEnded {
        /// How many are remembered.
        max_ended: usize,
        /// When the oldest is forgotten, in milliseconds.
        next_in_ms: Option<u64>,
    },
    /// Output that may not be evicted takes too much memory.
    #[error(
        "unfetched output takes {held} bytes, more than the {max} of --max-kept-bytes: attach to ended executions to fetch it, wait until its retention ends, or execute without onDisconnect \"detach\""
    )]
    TooMuchUnfetched {
        /// How much it takes, in bytes.
        held: usize,
        /// How much it may take.
        max: usize,
    },
    /// Another request has this id.
    #[error("executionId {id} exists already, with another {difference}: choose a new id")]
    IdTaken {
        /// The id.
        id: ExecutionId,
        /// The parameter in which the requests differ.
        difference: &'static str,
    },
    /// The execution was canceled before its request arrived.
    #[error("execution {0} was canceled before its request arrived")]
    Withdrawn(ExecutionId),
    /// The id was never known, or was forgotten.
    #[error("there is no execution {id} here, or it ended long ago")]
    Unknown {
        /// The id.
        id: ExecutionId,
        /// The backend's process that does not know it.
        instance: InstanceId,
    },
    /// The execution has ended.
    #[error("execution {0} has ended")]
    Ended(ExecutionId),
    /// The execution's task does not answer.
    #[error("the execution does not answer")]
    NoReply,
}

fn when(next_in_ms: Option<u64>) -> String {
    match next_in_ms {
        Some(ms) => format!("in {} s, when the oldest is forgotten", ms.div_ceil(1_000)),
        None => "when the oldest is forgotten".to_owned(),
    }
}
