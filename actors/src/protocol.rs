//! The wire towards the client: JSON-RPC 2.0 in WebSocket text frames.
//!
//! Nothing here knows a socket or an actor; it is values in, values or bytes out.

pub mod method;
pub mod notification;

use serde::Serialize;

/// The version of the native dialect, as `connected` states it.
pub const VERSION: u32 = 1;

/// The WebSocket subprotocol that names the native dialect.
pub const SUBPROTOCOL: &str = "cc-executor.v1";

/// What this build can do beyond running and streaming, as `connected` and `/health` list it.
pub const CAPABILITIES: &[&str] = &[
    "cancel", "signal", "pause", "status", "line", "timeout", "stall", "stdin", "pty", "detach", "attach", "queue",
    "claude", "events",
];

/// The executor that runs Claude Code: the only one to which `claude` and `events` apply.
pub const CLAUDE_EXECUTOR: &str = "claude";

/// The largest message to a client, in bytes. Stated by the protocol; what is longer is cut or split.
pub const MAX_MESSAGE_TO_CLIENT: usize = 1 << 20;

/// Input that may wait for a command to read it, in bytes.
pub const MAX_INPUT_WAITING: usize = 1 << 20;

/// The longest command, in bytes: `MAX_ARG_STRLEN` of execve(2) less the final NUL.
pub const MAX_COMMAND_BYTES: usize = 131_071;

/// How output is cut into messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Framing {
    /// What is there goes into one message.
    #[default]
    Chunk,
    /// One line with its newline in each message.
    Line,
}

/// The bounds a server puts on what a client may ask for, as `connected` states them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// The longest message from a client, in bytes.
    pub message_bytes: usize,
    /// The longest command, in bytes.
    pub command_bytes: usize,
    /// Responses that may wait for a client that does not read, before its session is closed.
    pub unsent_responses: usize,
    /// The longest total or stall time-out, in milliseconds.
    pub timeout_ms: u64,
    /// The longest time without a client, in milliseconds.
    pub detach_ms: u64,
    /// Input that may wait for a command to read it, in bytes.
    pub input_bytes: usize,
    /// The longest grace between TERM and KILL, in milliseconds.
    pub grace_ms: u64,
    /// How long a client may give no sign of life, or accept nothing, in milliseconds.
    pub client_stall_ms: u64,
    /// The shortest heartbeat, in milliseconds.
    pub heartbeat_min_ms: u64,
    /// The longest heartbeat, in milliseconds.
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

/// How often the newest status is repeated when the client names no cadence, in milliseconds.
pub const DEFAULT_HEARTBEAT_MS: u64 = 15_000;

/// How long a process may take to end after TERM when the client names no grace, in milliseconds.
pub const DEFAULT_GRACE_MS: u64 = 5_000;

/// How long an execution may go on without a client when the client names no time, in milliseconds.
pub const DEFAULT_DETACH_MS: u64 = 5 * 60 * 1000;
