//! `ps`: lists the executions of a service's backend.

use std::process::ExitCode;

use cc_executor_actors::backend_api::Snapshot;
use serde::Deserialize;

use super::{
    ClientError,
    connection::{not_understood, refused, token, unreachable},
    http::{client, within},
    http_url, print_line, report_outcome,
};
use crate::console::OutputReader;

/// The longest list that is read, in bytes. A backend lists at most 4096 executions, of less than 16 KiB each.
const MAX_BODY: usize = 64 << 20;

/// Options of `ps`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PsOptions {
    /// The session's URL.
    pub url: String,
    /// Whether the service's JSON is printed as it came.
    pub json: bool,
}

/// Lists the executions that a service's backend knows.
pub async fn ps(options: PsOptions) -> ExitCode {
    report_outcome(list(&options).await.map(|()| 0))
}

async fn list(options: &PsOptions) -> Result<(), ClientError> {
    let url = http_url(&options.url, "/executions");
    let body = within(&url, executions(&url)).await?;
    let lines = if options.json { vec![String::from_utf8_lossy(&body).into_owned()] } else { table_of(&body)? };
    for line in lines {
        if print_line(&line)? == OutputReader::Gone {
            break;
        }
    }
    Ok(())
}

/// Fetches the service's list of executions: JSON.
async fn executions(url: &str) -> Result<bytes::Bytes, ClientError> {
    let mut request = client().get(url);
    if let Some(token) = token()? {
        request = request.bearer_auth(token);
    }
    let mut response = request.send().await.map_err(|error| unreachable(url, &error))?;
    if !response.status().is_success() {
        return Err(refused(url, response.status().as_u16()));
    }
    response.body().limit(MAX_BODY).await.map_err(|error| unreachable(url, &error))
}

/// The lines of the table that `ps` prints.
fn table_of(body: &[u8]) -> Result<Vec<String>, ClientError> {
    #[derive(Deserialize)]
    struct ListedExecution {
        executions: Vec<Snapshot>,
    }
    let ListedExecution { executions } = serde_json::from_slice(body).map_err(|error| not_understood(&error))?;
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
