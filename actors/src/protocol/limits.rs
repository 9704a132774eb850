//! The bounds of parameters, and their defaults.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The largest message to a client, in bytes. The protocol states it; longer output is split, a longer event omitted.
pub const MAX_MESSAGE_TO_CLIENT: usize = 1 << 20;

/// Input that may wait until a command reads it, in bytes.
pub const MAX_INPUT_WAITING: usize = 1 << 20;

/// The longest command, in bytes: `MAX_ARG_STRLEN` of execve(2) less the final NUL.
pub const MAX_COMMAND_BYTES: usize = 131_071;

/// The default heartbeat period, in milliseconds.
pub const DEFAULT_HEARTBEAT_MS: u64 = 15_000;

/// The default grace period between TERM and KILL, in milliseconds.
pub const DEFAULT_GRACE_MS: u64 = 5_000;

/// The default time that a detached execution may continue without a client, in milliseconds.
pub const DEFAULT_DETACH_MS: u64 = 5 * 60 * 1000;

/// The bounds of a client's parameters, as `connected` states them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// The longest message from a client, in bytes.
    pub message_bytes: usize,
    /// The longest command, in bytes.
    pub command_bytes: usize,
    /// Responses that may wait for a client that does not read; more close its session.
    pub unsent_responses: usize,
    /// The longest total time-out or stall time-out, in milliseconds.
    pub timeout_ms: u64,
    /// The longest time that an execution may continue without a client, in milliseconds.
    pub detach_ms: u64,
    /// Input that may wait until a command reads it, in bytes.
    pub input_bytes: usize,
    /// The longest grace period between TERM and KILL, in milliseconds.
    pub grace_ms: u64,
    /// The longest time that a client may send nothing, or read nothing, in milliseconds.
    pub client_stall_ms: u64,
    /// The shortest heartbeat period, in milliseconds.
    pub heartbeat_min_ms: u64,
    /// The longest heartbeat period, in milliseconds.
    pub heartbeat_max_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            message_bytes: 1 << 20,
            command_bytes: MAX_COMMAND_BYTES,
            unsent_responses: 64,
            timeout_ms: 24 * 60 * 60 * 1000,
            detach_ms: 60 * 60 * 1000,
            input_bytes: MAX_INPUT_WAITING,
            grace_ms: 5 * 60 * 1000,
            client_stall_ms: 60_000,
            heartbeat_min_ms: 1_000,
            heartbeat_max_ms: 60_000,
        }
    }
}
