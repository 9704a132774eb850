//! The configuration of a backend: its executors, its limits, its containment.

use std::time::Duration;

use super::{executor::Executors, shim::containment::Containment, storage::location::StateLocation};

/// The configuration of a backend.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// The executors.
    pub executors: Executors,
    /// How many executions may run at a time.
    pub max_executions: usize,
    /// How many may be queued.
    pub max_queued: usize,
    /// The longest total or stall time-out a client may ask for, in milliseconds.
    pub max_timeout_ms: u64,
    /// The longest time without a consumer that a client may ask for, in milliseconds.
    pub max_detach_ms: u64,
    /// How much of each output stream its ring holds, in bytes.
    pub ring_bytes: usize,
    /// How much output of ended executions is retained in all, in bytes.
    pub max_kept_bytes: usize,
    /// How many observers an execution may have.
    pub max_observers: usize,
    /// How many executions are remembered at the most, running and ended ones.
    pub max_ended: usize,
    /// How long the output and the ending of an execution are retained after its end.
    pub retention: Duration,
    /// Where the output of executions that may detach is kept on disk.
    pub state: StateLocation,
    /// How much of one execution's output is kept on disk, in bytes.
    pub max_output_bytes: u64,
    /// How much output is kept on disk in all, in bytes.
    pub max_state_bytes: u64,
    /// How long what is on disk is kept after the end of its execution.
    pub state_retention: Duration,
    /// How long a consumer may read nothing while its gateway does not poll, before it counts as gone.
    pub consumer_stall: Duration,
    /// How long Claude may take to exit after its last event.
    pub claude_exit: Duration,
    /// The longest message of a client, in bytes.
    pub max_message_bytes: usize,
    /// How many bytes of request bodies may wait for their rest in all.
    pub max_body_bytes: usize,
    /// The containment of executions besides their process trees.
    pub containment: Containment,
    /// The soft limit of open descriptors that commands get, where the service has raised its own.
    pub descriptor_limit: Option<u64>,
}

#[cfg(test)]
impl BackendConfig {
    /// A configuration for tests.
    pub fn for_tests() -> BackendConfig {
        let no_executors = std::collections::BTreeMap::new();
        let executors = Executors::new(no_executors, "shell", Default::default(), Default::default());
        BackendConfig {
            executors: executors.expect("shell is an executor"),
            max_executions: 64,
            max_queued: 256,
            max_timeout_ms: 1_000,
            max_detach_ms: 1_000,
            ring_bytes: 1_000,
            max_kept_bytes: 1 << 20,
            max_observers: 50,
            max_ended: 1_000,
            retention: Duration::from_secs(3_600),
            state: StateLocation::None,
            max_output_bytes: 1 << 20,
            max_state_bytes: 1 << 30,
            state_retention: Duration::from_secs(7_200),
            consumer_stall: Duration::from_secs(60),
            max_message_bytes: 1_000,
            max_body_bytes: 1 << 20,
            containment: Containment::None,
            claude_exit: Duration::from_secs(45),
            descriptor_limit: None,
        }
    }
}
