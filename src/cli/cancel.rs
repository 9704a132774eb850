//! `cancel`: cancels an execution and waits for its end.

use std::time::Duration;

use cc_executor_actors::{
    clock::millis,
    name::ExecutionRef,
    outcome::{Outcome, Reason},
    protocol::{
        DEFAULT_GRACE_MS,
        control::{ControlParams, ControlRequest},
        status::StatusParams,
    },
    rpc::code,
};
use clap::Args;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep};

use super::{
    ClientError, PATIENCE,
    completions::executions,
    connection::Connection,
    duration::duration,
    execution_arg::{execution_ref, resolve},
    exit,
    flags::ServiceFlags,
    print_line,
    request::{RequestError, request},
    status::ReceivedStatus,
};

/// The interval between two requests for the status of the canceled execution.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The exit codes in the help text.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
   0  the execution has ended, now or before
  64  wrong use: flags, token variables, an ID with several matches
  69  service or backend cannot be reached or does not answer; or the execution
      is not known, or has not ended in time
  70  invalid message of the service
  74  output cannot be written
  75  service full or shutting down
  77  not authorized";

/// Options of `cancel`.
#[derive(Args, Clone, Debug)]
pub struct CancelOptions {
    #[command(flatten)]
    service: ServiceFlags,

    /// Time between TERM and KILL (5s if not given)
    #[arg(long, value_name = "DURATION", value_parser = duration(), allow_negative_numbers = true)]
    grace: Option<Duration>,

    /// Execution to cancel: its id, the beginning of its id, or its name
    #[arg(value_name = "ID", value_parser = execution_ref(), add = executions())]
    id: ExecutionRef,
}

/// Cancels an execution, and waits for its end.
pub(super) async fn cancel(options: CancelOptions) -> Result<u8, ClientError> {
    let service = options.service.access()?;
    let target = resolve(&service, &options.id).await?;
    let mut connection = Connection::open(&service).await?;
    let grace_ms = options.grace.map_or(DEFAULT_GRACE_MS, millis);
    let (execution_id, order) = (Some(target), ControlRequest::cancel(grace_ms));
    let accepted = request(&mut connection, 1, &ControlParams { execution_id, request: order }).await;
    let had_ended = match accepted {
        Ok(IgnoredAny) => false,
        // It has ended, and its status says how.
        Err(RequestError::Refused(code::NOT_RUNNING, _)) => true,
        Err(error) => return Err(error.into()),
    };
    let until = Instant::now() + Duration::from_millis(grace_ms) + PATIENCE;
    for id in 2.. {
        let status: Box<RawValue> = request(&mut connection, id, &StatusParams { execution_id }).await?;
        if let ReceivedStatus::Ended(ending) = ReceivedStatus::read(&status)? {
            // The execution has ended whether or not the line is read.
            let _ = print_line(&description(&ending, had_ended))?;
            break;
        }
        if Instant::now() > until {
            return Err(ClientError::new(
                exit::UNAVAILABLE,
                format!("{target} has not ended yet; run `cc-executor ps` to see its status"),
            ));
        }
        sleep(POLL_INTERVAL).await;
    }
    connection.close().await;
    Ok(0)
}

/// How an execution ended, in one line.
fn description(ending: &Outcome, had_ended: bool) -> String {
    let before = if had_ended { "had already ended: " } else { "" };
    let code =
        ending.exit_code.filter(|_| ending.reason == Reason::Exit).map(|code| format!(" {code}")).unwrap_or_default();
    let proven = match ending.cancel.map(|cancel| cancel.verified) {
        Some(true) => ", every process gone",
        Some(false) => ", but processes may still run: look for them on the backend's machine",
        None => "",
    };
    format!("{before}{} {}{code}{proven}", ending.status.as_str(), ending.reason.as_str())
}

#[cfg(test)]
mod tests {
    use cc_executor_actors::outcome::{CancelReport, Status};

    use super::*;

    #[test]
    fn the_line_says_how_it_ended_and_whether_that_was_before() {
        let mut ending = Outcome::without_process(Status::Failed, Reason::Exit, None);
        ending.exit_code = Some(3);
        assert_eq!(description(&ending, true), "had already ended: FAILED exit 3");
        let mut canceled = Outcome::without_process(Status::Cancelled, Reason::Canceled, None);
        canceled.cancel = Some(CancelReport::unknown(5));
        assert!(description(&canceled, false).starts_with("CANCELLED canceled, but processes may still run"));
    }
}
