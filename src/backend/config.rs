//! What a backend needs to know: its executors, its limits, its containment.

use std::time::Duration;

use super::{executor::Executors, shim::containment::Containment};

/// What a backend needs to know.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// What can be run.
    pub executors: Executors,
    /// How many executions may run at a time.
    pub max_executions: usize,
    /// How many may wait for a place.
    pub max_queued: usize,
    /// The longest total or stall time-out a client may ask for, in milliseconds.
    pub max_timeout_ms: u64,
    /// The longest time without a consumer that a client may ask for, in milliseconds.
    pub max_detach_ms: u64,
    /// How much of each output stream is kept, in bytes.
    pub ring_bytes: usize,
    /// How much output of ended executions is kept in all, in bytes.
    pub max_kept_bytes: usize,
    /// How many executions are known at the most, those that have ended included.
    pub max_ended: usize,
    /// How long output and ending of an ended execution are kept.
    pub retention: Duration,
    /// How long a consumer may take nothing while nobody asks for it, before it counts as gone.
    pub consumer_stall: Duration,
    /// How long Claude may take to exit after its last event.
    pub claude_exit: Duration,
    /// The longest request body, in bytes.
    pub max_message_bytes: usize,
    /// What contains executions besides their process trees.
    pub containment: Containment,
    /// The soft limit of open descriptors that commands get, where the service has raised its own.
    pub descriptor_limit: Option<u64>,
}
