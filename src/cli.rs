//! The commands of a person or a script: `run`, `attach`, `ps`, `cancel`, `check`, `logs` and `healthcheck`.
//!
//! `run` and `attach` start a `session_loop`, which follows one execution over one connection or several; start reading
//! there. `connection` makes the connections, `silence` notices a dead one, `reconnect` decides for how long another one
//! is tried, and `output_view` shows what arrives. `ps`, `cancel` and `healthcheck` make one request each, and `check`
//! tests everything that the service promises.

mod agent_view;
pub mod args;
mod attach;
mod cancel;
mod check;
mod checksum;
mod connection;
mod exit_code;
mod healthcheck;
mod http;
mod logs;
mod output_view;
mod params;
mod ps;
mod reconnect;
mod run;
mod session_loop;
mod silence;
mod stdin;
mod stdout;
mod terminal;

use std::{fmt, process::ExitCode, time::Duration};

use cc_executor_actors::{id::ExecutionId, protocol::execute::ClaudeOptions, rpc::code};

pub use self::{
    attach::attach,
    cancel::{CancelOptions, cancel},
    check::{CheckOptions, check},
    healthcheck::healthcheck,
    logs::{LogsOptions, logs},
    ps::{PsOptions, ps},
    run::run,
};
use crate::console::{self, OutputReader};

/// Where a service is asked whether it is ready, by default.
pub const DEFAULT_READY_URL: &str = "http://127.0.0.1:8003/ready";

const DEFAULT_URL: &str = "ws://127.0.0.1:8003/ws/mcp";
const SESSION_PATH: &str = "/ws/mcp";

/// How long a service may take to answer when a connection is opened or something is asked.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long `--reconnect` tries to come back, in seconds, where it is given no time.
pub const DEFAULT_RECONNECT: &str = "30";

/// Exit codes, after sysexits(3) and shells.
mod exit {
    #![allow(missing_docs, reason = "each constant is its own name")]
    pub const USAGE: u8 = 64;
    pub const UNAVAILABLE: u8 = 69;
    pub const SOFTWARE: u8 = 70;
    pub use crate::console::EX_IOERR as IOERR;
    pub const TEMPFAIL: u8 = 75;
    pub const NOPERM: u8 = 77;
    pub const TIMEOUT: u8 = 124;
    pub const SIGNALED: u8 = 128;
}

/// What `run` was asked to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunOptions {
    /// The session's URL.
    pub url: String,
    /// What runs the command.
    pub executor: Option<String>,
    /// The total time-out, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// The longest time without output, in milliseconds.
    pub stall_timeout_ms: Option<u64>,
    /// How often the service says how it is, in milliseconds.
    pub heartbeat_ms: Option<u64>,
    /// The working directory.
    pub cwd: Option<String>,
    /// What Claude is told beside its prompt, as it stands on the wire.
    pub claude: Option<ClaudeOptions>,
    /// Whether the service's messages are printed instead of the output.
    pub json: bool,
    /// Whether our standard input is the command's.
    pub interactive: bool,
    /// Whether it runs on a terminal.
    pub tty: bool,
    /// What becomes of it without us.
    pub leave: DisconnectAction,
    /// The command.
    pub command: String,
}

/// What becomes of a command when its caller is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DisconnectAction {
    /// It is ended.
    Ends,
    /// It goes on for so long, and its caller tries to come back.
    Returns(Duration),
    /// It goes on as long as the service lets it: its caller only wants its id.
    GoesOn,
}

/// What `attach` was asked to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachOptions {
    /// The session's URL.
    pub url: String,
    /// Which execution.
    pub id: ExecutionId,
    /// Whether the service's messages are printed instead of the output.
    pub json: bool,
    /// How long it is tried to come back when the connection breaks.
    pub reconnect: Option<Duration>,
}

/// Why a client command failed, and the exit code that says so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientError {
    code: u8,
    message: String,
}

impl ClientError {
    fn new(code: u8, message: impl Into<String>) -> Self {
        ClientError { code, message: message.into() }
    }

    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cc-executor: {}", self.message)
    }
}

/// The exit code of a command that did its work, or what it failed with, said on standard error.
fn report_outcome(outcome: Result<u8, ClientError>) -> ExitCode {
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            console::report_line(&error.to_string());
            ExitCode::from(error.code)
        }
    }
}

/// Writes a line to standard output, at once.
fn print_line(line: &str) -> Result<OutputReader, ClientError> {
    console::print_line(line).map_err(|error| ClientError::new(exit::IOERR, error.to_string()))
}

/// Where a service answers HTTP beside its sessions.
fn http_url(session_url: &str, path: &str) -> String {
    let base = session_url.strip_suffix(SESSION_PATH).unwrap_or(session_url);
    format!("{}{path}", base.replacen("ws://", "http://", 1))
}

fn exit_code_of_refusal(error: i64) -> u8 {
    match error {
        code::PARAMS | code::NOT_ALLOWED | code::METHOD | code::INVALID_REQUEST => exit::USAGE,
        code::FULL | code::SESSION_LIMIT | code::DRAINING => exit::TEMPFAIL,
        code::NOT_AUTHORIZED => exit::NOPERM,
        code::INTERNAL => exit::SOFTWARE,
        _ => exit::UNAVAILABLE,
    }
}
