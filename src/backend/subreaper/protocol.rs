//! The messages between backend and subreaper: one JSON object each, on a socket that preserves message
//! boundaries.

use serde::{Deserialize, Serialize};

use crate::backend::{deadlines::WatchAction, shim::protocol::TreeGone};

/// The first argument that makes the binary a subreaper. The second is the containment, as JSON.
pub const ARGUMENT: &str = "subreaper";

/// Identifies a shim. Never reused, unlike a process id.
pub type Ticket = u64;

/// A request of the backend about one shim. Each gets a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SubreaperRequest {
    /// Identifies the shim.
    pub ticket: Ticket,
    /// What to do with the shim.
    pub action: SubreaperAction,
}

/// What a subreaper does with a shim.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubreaperAction {
    /// Fork it. The message carries descriptors: the shim's socket and the command's output, error and input.
    Fork,
    /// Wake or kill it, because it has not acknowledged an order in time.
    Enforce(WatchAction),
    /// End the processes that it has left behind. Accepted at once; a second response reports the result.
    Sweep,
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
