//! Why the registry has no room for another execution.

use cc_executor_actors::share::ShareExceeded;

/// Why another execution is not admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom {
    /// What is used up.
    pub resource: Resource,
    /// The limit.
    pub exceeded: ShareExceeded,
    /// When the oldest execution within that limit is forgotten, in milliseconds. `None` if none has ended, and for
    /// bytes, because fetching frees those.
    pub next_in_ms: Option<u64>,
}

/// A resource that remembered executions take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resource {
    /// Entries.
    Entries,
    /// Memory for output that is not evicted.
    UnfetchedBytes,
    /// Disk space for output that is not evicted.
    StoredBytes,
}
