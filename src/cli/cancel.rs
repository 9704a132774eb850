//! `cancel`: cancels an execution and waits for its end.

use std::{process::ExitCode, time::Duration};

use cc_executor_actors::{clock::millis, id::ExecutionId, protocol::DEFAULT_GRACE_MS};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{
    ClientError, PATIENCE,
    connection::{Connection, ConnectionEvent, ReceivedMessage, garbled},
    exit, exit_code_of_refusal, print_line, report_outcome,
};

/// How often the status of an execution that is being canceled is asked for.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Options of `cancel`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CancelOptions {
    /// The session's URL.
    pub url: String,
    /// The execution to cancel.
    pub id: ExecutionId,
    /// The time between TERM and KILL.
    pub grace: Option<Duration>,
}

/// Cancels an execution, and waits for its end.
pub async fn cancel(options: CancelOptions) -> ExitCode {
    report_outcome(end(&options).await.map(|()| 0))
}

async fn end(options: &CancelOptions) -> Result<(), ClientError> {
    let mut connection = Connection::open(&options.url).await?;
    let grace_ms = options.grace.map_or(DEFAULT_GRACE_MS, millis);
    let params = json!({ "type": "CANCEL", "executionId": options.id, "graceMs": grace_ms });
    call(&mut connection, 1, "control", params).await?;
    let until = Instant::now() + Duration::from_millis(grace_ms) + PATIENCE;
    for id in 2.. {
        let status = call(&mut connection, id, "status", json!({ "executionId": options.id })).await?;
        if let Some(reason) = status["reason"].as_str() {
            let proven = match status["cancel"]["verified"].as_bool() {
                Some(true) => ", every process gone",
                Some(false) => ", its processes could not be counted",
                None => "",
            };
            // The execution has ended whether or not the line is read.
            let _ = print_line(&format!("{} {reason}{proven}", status["status"].as_str().unwrap_or_default()))?;
            break;
        }
        if Instant::now() > until {
            return Err(ClientError::new(exit::UNAVAILABLE, format!("{} is still being ended", options.id)));
        }
        sleep(POLL_INTERVAL).await;
    }
    connection.close().await;
    Ok(())
}

/// Calls a method and waits for its response.
async fn call(connection: &mut Connection, id: u64, method: &str, params: Value) -> Result<Value, ClientError> {
    let response = async {
        connection.call(id, method, params).await?;
        loop {
            let text = match connection.next().await {
                ConnectionEvent::Message(text) => text,
                ConnectionEvent::Nothing => continue,
                ConnectionEvent::Broken(error) => return Err(error),
            };
            let message: ReceivedMessage<'_> = serde_json::from_slice(&text).map_err(|error| garbled(&error))?;
            match (message.id == Some(id), message.error, message.result) {
                (true, Some(error), _) => {
                    return Err(ClientError::new(exit_code_of_refusal(error.code), error.message));
                }
                (true, None, Some(result)) => {
                    return serde_json::from_str(result.get()).map_err(|error| garbled(&error));
                }
                _ => {}
            }
        }
    };
    timeout(PATIENCE, response)
        .await
        .unwrap_or_else(|_| Err(ClientError::new(exit::UNAVAILABLE, format!("the service does not answer {method}"))))
}
