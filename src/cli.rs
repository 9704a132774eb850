//! The commands for people and scripts, such as `run`, `attach`, `output`, `ps` and `cancel`.
//!
//! `run` and `attach` start a `session_loop`, which follows one execution over one connection or several; start reading
//! there. `connection` makes the connections, `silence` notices a dead one, `reconnect` decides for how long another one
//! is tried, and `output_view` shows what arrives. `output` and `ps` read over HTTP, `cancel` and `healthcheck` make one
//! request each, and `check` tests the promises of a service.

mod agent_view;
pub mod args;
mod attach;
mod cancel;
mod check;
mod checksum;
mod color;
mod completions;
mod connection;
mod control;
mod duration;
mod elapsed_line;
mod escape;
mod execution_arg;
mod executions;
mod exit_code;
mod flags;
mod healthcheck;
mod http;
mod login;
mod logs;
mod man;
mod output;
mod output_view;
mod profile;
mod profiles;
mod progress;
mod ps;
mod ps_table;
mod reconnect;
mod request;
mod run;
mod service;
mod session_loop;
mod silence;
mod status;
mod stdin;
mod stdout;
mod suspend;
mod terminal;
mod terminal_flags;
mod token;
mod token_prompt;
mod usage_line;

use std::{process::ExitCode, time::Duration};

use cc_executor_actors::rpc::code;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use self::args::ClientCommand;
use crate::console::{self, OutputReader, WriteFailed};

/// The longest wait for a connection, or for the response to a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Exit codes, after sysexits(3) and shells.
mod exit {
    pub use crate::console::EX_IOERR as IOERR;
    pub const USAGE: u8 = 64;
    pub const UNAVAILABLE: u8 = 69;
    pub const SOFTWARE: u8 = 70;
    pub const TEMPFAIL: u8 = 75;
    pub const NOPERM: u8 = 77;
    pub const TIMEOUT: u8 = 124;
    pub const SIGNALED: u8 = 128;
}

/// The error and the exit code of a client command.
#[derive(Clone, PartialEq, Eq, Debug)]
struct ClientError {
    code: u8,
    message: String,
}

impl ClientError {
    fn new(code: u8, message: impl Into<String>) -> Self {
        ClientError { code, message: message.into() }
    }
}

/// Runs a command to its end, and reports its error on standard error.
pub async fn execute(command: ClientCommand) -> ExitCode {
    if let Err(error) = protect_token() {
        console::report(error.message);
        return ExitCode::from(error.code);
    }
    let outcome = match command {
        ClientCommand::Run(options) => run::run(*options).await,
        ClientCommand::Attach(options) => attach::attach(options).await,
        ClientCommand::Output(options) => output::output(options).await,
        ClientCommand::Ps(options) => ps::ps(options).await,
        ClientCommand::Cancel(options) => cancel::cancel(options).await,
        ClientCommand::Pause(options) => control::pause(options).await,
        ClientCommand::Resume(options) => control::resume(options).await,
        ClientCommand::Signal(options) => control::signal(options).await,
        ClientCommand::Check(options) => check::check(options).await,
        ClientCommand::Logs(options) => logs::logs(&options),
        ClientCommand::Healthcheck(options) => healthcheck::healthcheck(options).await,
        ClientCommand::Login(options) => login::login(options).await,
        ClientCommand::Profile(options) => profile::profile(options),
        ClientCommand::Token(options) => token::token(options),
    };
    ExitCode::from(outcome.unwrap_or_else(|error| {
        console::report(error.message);
        error.code
    }))
}

/// Keeps other processes of the same user from reading the token in /proc.
fn protect_token() -> Result<(), ClientError> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| {
        let message = format!("cannot protect the token from other processes (PR_SET_DUMPABLE): {error}");
        ClientError::new(exit::SOFTWARE, message)
    })
}

/// Writes a text to standard output, at once.
fn print(text: &str) -> Result<OutputReader, ClientError> {
    console::print(text).map_err(unwritable)
}

/// Writes a line to standard output, at once.
fn print_line(line: &str) -> Result<OutputReader, ClientError> {
    console::print_line(line).map_err(unwritable)
}

fn unwritable(error: WriteFailed) -> ClientError {
    ClientError::new(exit::IOERR, error.to_string())
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
