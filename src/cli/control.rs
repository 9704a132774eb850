//! `pause`, `resume` and `signal`: one control request each.

use cc_executor_actors::{
    name::ExecutionRef,
    protocol::control::{ControlParams, ControlRequest},
    signal::{self, Signal},
};
use clap::Args;
use serde::de::IgnoredAny;

use super::{
    ClientError,
    completions::executions,
    connection::Connection,
    execution_arg::{execution_ref, resolve},
    flags::ServiceFlags,
    request::request,
};
use crate::config::value::Checker;

/// The exit codes in the help texts.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
   0  done
  64  wrong use: flags, token variables, an ID with several matches
  69  service or backend cannot be reached or does not answer; or the execution
      is not known, or its state does not allow the request
  70  invalid message of the service
  75  service full or shutting down
  77  not authorized";

/// Options of `pause` and `resume`.
#[derive(Args, Clone, Debug)]
pub struct ControlOptions {
    #[command(flatten)]
    service: ServiceFlags,

    /// Execution: its id, the beginning of its id, or its name
    #[arg(value_name = "ID", value_parser = execution_ref(), add = executions())]
    id: ExecutionRef,
}

/// Options of `signal`.
#[derive(Args, Clone, Debug)]
pub struct SignalOptions {
    #[command(flatten)]
    execution: ControlOptions,

    /// Signal, such as INT, SIGUSR1 or 15
    #[arg(value_name = "SIGNAL", value_parser = signal_name())]
    signal: Signal,
}

/// The parser of a signal: its name with or without SIG, or its number.
fn signal_name() -> Checker<Signal> {
    let read = |text: &str| {
        let name = text.to_ascii_uppercase();
        let found = Signal::named(&name).or_else(|| Signal::named(&format!("SIG{name}")));
        let found = found.or_else(|| Signal::named(&signal::name(text.parse().ok()?)));
        found.ok_or_else(|| {
            format!("must be the name or the number of one of {}, not {text:?}", Signal::SENDABLE.join(", "))
        })
    };
    Checker::new(read, || Signal::named("SIGTERM").expect("the table has SIGTERM"))
}

/// Pauses an execution. Returns when all of its processes are stopped.
pub(super) async fn pause(options: ControlOptions) -> Result<u8, ClientError> {
    control(options, ControlRequest::Pause).await
}

/// Continues a paused execution.
pub(super) async fn resume(options: ControlOptions) -> Result<u8, ClientError> {
    control(options, ControlRequest::Resume).await
}

/// Sends a signal to the process group of an execution.
pub(super) async fn signal(SignalOptions { execution, signal }: SignalOptions) -> Result<u8, ClientError> {
    control(execution, ControlRequest::Signal { signal }).await
}

async fn control(ControlOptions { service, id }: ControlOptions, order: ControlRequest) -> Result<u8, ClientError> {
    let service = service.access()?;
    let execution_id = Some(resolve(&service, &id).await?);
    let mut connection = Connection::open(&service).await?;
    let _: IgnoredAny = request(&mut connection, 1, &ControlParams { execution_id, request: order }).await?;
    connection.close().await;
    Ok(0)
}
