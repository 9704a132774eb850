//! The command-line client under faults: a silent or restarted service, lost output, and output that cannot be written.

mod lost_execution;
mod newer_service;
mod refused;
mod restart;
mod stopped_service;
mod unwritable_output;

use std::time::Duration;

/// The bound of noticing that heartbeats of one second have ceased: three of them, and time to be scheduled.
const NOTICED: Duration = Duration::from_secs(12);
