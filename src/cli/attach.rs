//! `attach`: follows an execution that another client has started.

use std::time::Duration;

use cc_executor_actors::name::ExecutionRef;
use clap::Args;

use super::{
    ClientError,
    completions::executions,
    duration::duration,
    execution_arg::{execution_ref, resolve},
    exit,
    flags::{DEFAULT_RECONNECT, ServiceFlags},
    session_loop::{LoopOptions, LoopPurpose, SessionLoop},
    silence::HeartbeatEstimate,
    terminal::is_input,
    terminal_flags::TerminalFlags,
};

/// The exit codes in the help text.
pub(super) const EXIT_CODES: &str = "\
Exit codes: as for run, see `cc-executor run --help`. Ctrl-C ends attach with 130
and cancels nothing.";

/// Options of `attach`.
#[derive(Args, Clone, Debug)]
pub struct AttachOptions {
    #[command(flatten)]
    service: ServiceFlags,

    /// Print the service's messages instead of the output
    #[arg(long)]
    json: bool,

    /// Reconnect and continue when the connection breaks, for up to DURATION (30s if not given)
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, value_parser = duration())]
    #[arg(default_missing_value = DEFAULT_RECONNECT)]
    reconnect: Option<Duration>,

    /// Follow the execution beside its client, instead of taking it over
    #[arg(long)]
    observe: bool,

    /// Forward standard input to the execution; only together with -t
    #[arg(long, short, requires = "tty", conflicts_with_all = ["observe", "json"])]
    interactive: bool,

    /// Connect this terminal with that of the execution; only together with -i
    #[arg(long, short, requires = "interactive")]
    tty: bool,

    #[command(flatten)]
    terminal: TerminalFlags,

    /// Execution to follow: its id, the beginning of its id, or its name
    #[arg(value_name = "ID", value_parser = execution_ref(), add = executions())]
    id: ExecutionRef,
}

/// Follows an execution to its end. Returns the command's own exit code.
pub(super) async fn attach(options: AttachOptions) -> Result<u8, ClientError> {
    let AttachOptions { service, id, json, reconnect, observe, interactive: is_session, terminal, .. } = options;
    if is_session && !is_input() {
        return Err(ClientError::new(
            exit::USAGE,
            "attach -it needs a terminal as its standard input; attach without -it",
        ));
    }
    let service = service.access()?;
    let id = resolve(&service, &id).await?;
    let reconnect = reconnect.or(is_session.then_some(TerminalFlags::RECONNECT));
    let (style, keys) = (terminal.color.style(), is_session.then(|| terminal.keys()));
    let shows_elapsed = !json && !is_session;
    let loop_options = LoopOptions { service, json, stats: false, quiet: false, shows_elapsed, style, run: None };
    // The client that started the execution chose its heartbeat.
    let heartbeat = HeartbeatEstimate::Observed { longest: None, updated_at: None };
    let purpose = LoopPurpose::Attach { id, reconnect, observe, terminal: is_session };
    SessionLoop::new(loop_options, purpose, keys, heartbeat).run().await
}
