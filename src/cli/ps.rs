//! The commands that ask one question: `ps`, `cancel` and `healthcheck`.

use std::{process::ExitCode, time::Duration};

use cc_executor_actors::{backend_api::Snapshot, clock::millis, id::ExecutionId, protocol::DEFAULT_GRACE_MS};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{
    ClientError, PATIENCE,
    connection::{Connection, ConnectionEvent, ReceivedMessage, garbled, refused, token, unreachable},
    exit, exit_code_of_refusal, http_url, print_line, report_outcome,
};
use crate::console::OutputReader;

/// What awc is given where [`within`] is the bound: longer, so that it is not met first.
const OUTER_PATIENCE: Duration = Duration::from_secs(60);

/// Exit code of `healthcheck` where the service says that it is not ready, or nothing listens: the only one but 0
/// that Docker's HEALTHCHECK defines.
const NOT_READY: u8 = 1;

/// How often an execution that is being ended is looked at.
const CADENCE: Duration = Duration::from_millis(50);

/// What `ps` was asked to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AskOptions {
    /// The session's URL.
    pub url: String,
    /// Whether the answer is printed as it came.
    pub json: bool,
}

/// What `cancel` was asked to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CancelOptions {
    /// The session's URL.
    pub url: String,
    /// Which execution.
    pub id: ExecutionId,
    /// The time between TERM and KILL.
    pub grace: Option<Duration>,
}

/// Asks whether a service is ready.
pub async fn healthcheck(url: String) -> ExitCode {
    report_outcome(within(PATIENCE, &url, is_ready(&url)).await.map(|()| 0))
}

async fn is_ready(url: &str) -> Result<(), ClientError> {
    let problem = match awc::Client::builder().timeout(OUTER_PATIENCE).finish().get(url).send().await {
        Ok(answer) if answer.status().is_success() => return Ok(()),
        Ok(mut answer) => {
            let body = answer.body().limit(64 * 1024).await.unwrap_or_default();
            format!("{url} answers {}: {}", answer.status(), String::from_utf8_lossy(&body))
        }
        Err(error) => format!("{url} does not answer: {error}"),
    };
    Err(ClientError::new(NOT_READY, problem))
}

/// Bounds a whole question: to connect, to be answered, and to read the answer, of which each part may hang.
async fn within<T>(
    patience: Duration,
    url: &str,
    question: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    timeout(patience, question).await.unwrap_or_else(|_| {
        let seconds = patience.as_secs();
        Err(ClientError::new(exit::UNAVAILABLE, format!("{url} does not answer within {seconds} s: is it stopped?")))
    })
}

/// Lists the executions that a service's backend knows.
pub async fn ps(options: AskOptions) -> ExitCode {
    report_outcome(list(&options).await.map(|()| 0))
}

async fn list(options: &AskOptions) -> Result<(), ClientError> {
    let url = http_url(&options.url, "/executions");
    let body = within(PATIENCE, &url, executions(&url)).await?;
    let lines = if options.json { vec![String::from_utf8_lossy(&body).into_owned()] } else { table_of(&body)? };
    for line in lines {
        if print_line(&line)? == OutputReader::Gone {
            break;
        }
    }
    Ok(())
}

/// What the service answers to a question about its executions: JSON.
async fn executions(url: &str) -> Result<bytes::Bytes, ClientError> {
    let mut request = awc::Client::builder().timeout(OUTER_PATIENCE).finish().get(url);
    if let Some(token) = token()? {
        request = request.bearer_auth(token);
    }
    let mut answer = request.send().await.map_err(|error| unreachable(url, &error))?;
    if !answer.status().is_success() {
        return Err(refused(url, answer.status().as_u16()));
    }
    answer.body().limit(64 << 20).await.map_err(|error| unreachable(url, &error))
}

/// The lines of the table that `ps` prints.
fn table_of(body: &[u8]) -> Result<Vec<String>, ClientError> {
    #[derive(Deserialize)]
    struct ListedExecution {
        executions: Vec<Snapshot>,
    }
    let ListedExecution { executions } = serde_json::from_slice(body).map_err(|error| garbled(&error))?;
    let head = format!("{:36}  {:10}  {:8}  {:>9}  {:>12}  FOLLOWED", "ID", "STATUS", "EXECUTOR", "ELAPSED", "BYTES");
    let rows = executions.into_iter().map(|one| {
        let status = match one.position {
            Some(position) => format!("{} {position}", one.status.as_str()),
            None => one.status.as_str().to_owned(),
        };
        format!(
            "{:36}  {status:10}  {:8}  {:>7} s  {:>12}  {}",
            one.execution_id.to_string(),
            one.executor,
            one.alive.elapsed_ms / 1_000,
            one.offsets.stdout + one.offsets.stderr,
            if one.attached { "yes" } else { "no" },
        )
    });
    Ok(std::iter::once(head).chain(rows).collect())
}

/// Cancels an execution, and waits for its end.
pub async fn cancel(options: CancelOptions) -> ExitCode {
    report_outcome(end(&options).await.map(|()| 0))
}

async fn end(options: &CancelOptions) -> Result<(), ClientError> {
    let mut connection = Connection::open(&options.url).await?;
    let grace_ms = options.grace.map_or(DEFAULT_GRACE_MS, millis);
    let params = json!({ "type": "CANCEL", "executionId": options.id, "graceMs": grace_ms });
    ask(&mut connection, 1, "control", params).await?;
    let until = Instant::now() + Duration::from_millis(grace_ms) + PATIENCE;
    for id in 2.. {
        let status = ask(&mut connection, id, "status", json!({ "executionId": options.id })).await?;
        if let Some(reason) = status["reason"].as_str() {
            let proven = match status["cancel"]["verified"].as_bool() {
                Some(true) => ", every process gone",
                Some(false) => ", its processes could not be counted",
                None => "",
            };
            // A reader who has left changes nothing: it is ended.
            let _ = print_line(&format!("{} {reason}{proven}", status["status"].as_str().unwrap_or_default()))?;
            break;
        }
        if Instant::now() > until {
            return Err(ClientError::new(exit::UNAVAILABLE, format!("{} is still being ended", options.id)));
        }
        sleep(CADENCE).await;
    }
    connection.close().await;
    Ok(())
}

/// Calls a method and waits for its response.
async fn ask(connection: &mut Connection, id: u64, method: &str, params: Value) -> Result<Value, ClientError> {
    let answered = async {
        connection.call(id, method, params).await?;
        loop {
            let text = match connection.next().await {
                ConnectionEvent::Message(text) => text,
                ConnectionEvent::Nothing => continue,
                ConnectionEvent::Broken(error) => return Err(error),
            };
            let said: ReceivedMessage<'_> = serde_json::from_slice(&text).map_err(|error| garbled(&error))?;
            match (said.id == Some(id), said.error, said.result) {
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
    timeout(PATIENCE, answered)
        .await
        .unwrap_or_else(|_| Err(ClientError::new(exit::UNAVAILABLE, format!("the service does not answer {method}"))))
}
