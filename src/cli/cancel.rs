//! `cancel`: cancels an execution and waits for its end.

use std::time::Duration;

use cc_executor_actors::{
    clock::millis,
    id::ExecutionId,
    protocol::{
        DEFAULT_GRACE_MS, MethodParams,
        control::{ControlParams, ControlRequest},
        status::StatusParams,
    },
    rpc::ReceivedMessage,
};
use clap::Args;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep, timeout};

use super::{
    ClientError, PATIENCE,
    connection::{Connection, ConnectionEvent, not_understood, read},
    exit, exit_code_of_refusal,
    flags::{ServiceFlags, execution_id, seconds},
    print_line,
    status::ReceivedStatus,
};

/// The interval between two requests for the status of the canceled execution.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The exit codes in the help text.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
   0  the execution has ended
  64  wrong use: flags, token variables
  69  service or backend cannot be reached or does not answer; or the execution
      is not known, had already ended, or has not ended in time
  70  invalid message of the service
  74  output cannot be written
  75  service full or shutting down
  77  not authorized";

/// Options of `cancel`.
#[derive(Args, Clone, Debug)]
pub struct CancelOptions {
    #[command(flatten)]
    service: ServiceFlags,

    /// Time between TERM and KILL (5 if not given)
    #[arg(long, value_name = "SECONDS", value_parser = seconds(), allow_negative_numbers = true)]
    grace: Option<Duration>,

    /// Execution to cancel
    #[arg(value_name = "ID", value_parser = execution_id())]
    id: ExecutionId,
}

/// Cancels an execution, and waits for its end.
pub(super) async fn cancel(options: CancelOptions) -> Result<u8, ClientError> {
    let mut connection = Connection::open(&options.service.access()?).await?;
    let grace_ms = options.grace.map_or(DEFAULT_GRACE_MS, millis);
    let (execution_id, request) = (Some(options.id), ControlRequest::cancel(grace_ms));
    let _: IgnoredAny = call(&mut connection, 1, &ControlParams { execution_id, request }).await?;
    let until = Instant::now() + Duration::from_millis(grace_ms) + PATIENCE;
    for id in 2.. {
        let status: Box<RawValue> = call(&mut connection, id, &StatusParams { execution_id }).await?;
        if let ReceivedStatus::Ended(ending) = ReceivedStatus::read(&status)? {
            let proven = match ending.cancel.map(|cancel| cancel.verified) {
                Some(true) => ", every process gone",
                Some(false) => ", but processes may still run: look for them on the backend's machine",
                None => "",
            };
            // The execution has ended whether or not the line is read.
            let _ = print_line(&format!("{} {}{proven}", ending.status.as_str(), ending.reason.as_str()))?;
            break;
        }
        if Instant::now() > until {
            return Err(ClientError::new(
                exit::UNAVAILABLE,
                format!("{} has not ended yet; run `cc-executor ps` to see its status", options.id),
            ));
        }
        sleep(POLL_INTERVAL).await;
    }
    connection.close().await;
    Ok(0)
}

/// Calls a method and waits for its response.
async fn call<P: MethodParams, R: DeserializeOwned>(
    connection: &mut Connection,
    id: u64,
    params: &P,
) -> Result<R, ClientError> {
    let response = async {
        connection.call(id, params).await?;
        loop {
            let text = match connection.next().await {
                ConnectionEvent::Message(text) => text,
                ConnectionEvent::Nothing => continue,
                ConnectionEvent::Broken(error) => return Err(error),
            };
            let message: ReceivedMessage<'_> = serde_json::from_slice(&text).map_err(|error| not_understood(&error))?;
            match (message.id == Some(id), message.error, message.result) {
                (true, Some(error), _) => {
                    return Err(ClientError::new(exit_code_of_refusal(error.code), error.message));
                }
                (true, None, Some(result)) => return read(result),
                _ => {}
            }
        }
    };
    timeout(PATIENCE, response).await.unwrap_or_else(|_| {
        let seconds = PATIENCE.as_secs();
        let message = format!("the service did not answer the request {} within {seconds} s; try again", P::NAME);
        Err(ClientError::new(exit::UNAVAILABLE, message))
    })
}
