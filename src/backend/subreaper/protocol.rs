//! The messages between backend and subreaper: one JSON object each, on a socket that preserves message
//! boundaries.

use serde::{Deserialize, Serialize};

use crate::backend::shim::protocol::TreeGone;

/// The first argument that makes the binary a subreaper. The second is the containment, as JSON.
pub const ARGUMENT: &str = "subreaper";

/// Descriptors that come with a request to fork: the shim's socket and the command's ends.
pub(super) const MAX_PASSED: usize = 4;

/// The longest request, in bytes.
pub const MAX_REQUEST: usize = 1024;

/// Identifies a shim. Never reused, unlike a process id.
pub type Ticket = u64;

/// A message with its number; an answer repeats that of its request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NumberedRequest<T> {
    /// Increases by one with each request.
    pub number: u64,
    /// The request or response.
    pub message: T,
}

/// A request of the backend. Each gets a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubreaperRequest {
    /// Fork a shim. The message carries descriptors: the shim's socket and the command's output, error and input.
    Fork {
        /// Identifies the new shim.
        ticket: Ticket,
    },
    /// Continue a shim that may be stopped.
    Continue {
        /// Identifies the shim.
        ticket: Ticket,
    },
    /// Kill a shim if it is still stopped.
    KillIfStopped {
        /// Identifies the shim.
        ticket: Ticket,
    },
    /// Kill a shim.
    Kill {
        /// Identifies the shim.
        ticket: Ticket,
    },
    /// End the processes that a lost shim has left behind. Accepted at once; a second response reports the result.
    Sweep {
        /// Identifies the shim.
        ticket: Ticket,
    },
}

/// A response of the subreaper.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubreaperResponse {
    /// The shim was forked.
    Forked {
        /// Its process id.
        pid: i32,
    },
    /// The shim could not be forked, and nothing runs.
    NotForked {
        /// The cause.
        message: String,
    },
    /// The request was carried out.
    Done,
    /// The sweep has begun; another response follows.
    Accepted,
    /// The sweep is over.
    Swept(TreeGone),
}
