//! What backend and subreaper say to each other: one JSON object a message, on a socket that keeps messages
//! apart.

use serde::{Deserialize, Serialize};

use crate::backend::shim::protocol::TreeGone;

/// The first argument that makes the binary a subreaper. What contains executions follows, as JSON.
pub const ARGUMENT: &str = "subreaper";

/// Descriptors that come with a request to fork: the shim's socket and the command's ends.
pub(super) const MAX_PASSED: usize = 4;

/// The longest request, in bytes.
pub const MAX_REQUEST: usize = 1024;

/// What names a shim between the two, for good: a process id may be given to another.
pub type Ticket = u64;

/// A message with its number; an answer repeats that of its request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NumberedRequest<T> {
    /// Numbers grow by one.
    pub number: u64,
    /// What is said.
    pub message: T,
}

/// What the backend asks for. Each request is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubreaperRequest {
    /// Fork a shim. Its socket and the command's standard output, error and input come along.
    Fork {
        /// What names it from now on.
        ticket: Ticket,
    },
    /// Continue a shim that may be stopped.
    Continue {
        /// Which one.
        ticket: Ticket,
    },
    /// Kill a shim if it is still stopped.
    KillIfStopped {
        /// Which one.
        ticket: Ticket,
    },
    /// Kill a shim.
    Kill {
        /// Which one.
        ticket: Ticket,
    },
    /// End what a lost shim has left behind. Accepted at once, and answered when that is done, or could not be.
    Sweep {
        /// Which one.
        ticket: Ticket,
    },
}

/// What the subreaper answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubreaperResponse {
    /// The shim was forked.
    Forked {
        /// Its process id.
        pid: i32,
    },
    /// It could not be forked: nothing runs.
    NotForked {
        /// Why.
        message: String,
    },
    /// That was done.
    Done,
    /// The sweep has begun; another answer follows.
    Accepted,
    /// The sweep is over.
    Swept(TreeGone),
}
