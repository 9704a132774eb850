//! `ps`: lists the executions of a service's backend.

use cc_executor_actors::backend_api::Snapshot;
use clap::Args;
use serde::Deserialize;

use super::{
    ClientError,
    connection::{not_understood, refused, token, unreachable},
    flags::ServiceFlags,
    http::{MAX_REFUSAL, client, service_url, within},
    print_line,
};
use crate::console::OutputReader;

/// The longest list that is read, in bytes. A backend lists at most 4096 executions, of less than 16 KiB each.
const MAX_BODY: usize = 64 << 20;

/// The exit codes in the help text.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
   0  the list was printed
  64  wrong use: flags, token variables
  69  service or backend cannot be reached or does not answer
  70  invalid message of the service
  74  output cannot be written
  75  service shutting down
  77  not authorized";

/// Options of `ps`.
#[derive(Args, Clone, Debug)]
pub struct PsOptions {
    #[command(flatten)]
    service: ServiceFlags,

    /// Print the service's JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Lists the executions that a service's backend knows.
pub(super) async fn ps(options: PsOptions) -> Result<u8, ClientError> {
    let url = service_url(&options.service.url, "/executions");
    let body = within(&url, executions(&url)).await?;
    let lines = if options.json { vec![String::from_utf8_lossy(&body).into_owned()] } else { table_of(&body)? };
    for line in lines {
        if print_line(&line)? == OutputReader::Gone {
            break;
        }
    }
    Ok(0)
}

/// Fetches the service's list of executions: JSON.
async fn executions(url: &str) -> Result<bytes::Bytes, ClientError> {
    let mut request = client().get(url);
    if let Some(token) = token()? {
        request = request.bearer_auth(token);
    }
    let mut response = request.send().await.map_err(|error| unreachable(url, &error))?;
    if !response.status().is_success() {
        let reason = response.body().limit(MAX_REFUSAL).await.unwrap_or_default();
        return Err(refused(url, response.status(), &reason));
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
    let rows = executions.into_iter().map(|execution| {
        let status = match execution.position {
            Some(position) => format!("{} {position}", execution.status.as_str()),
            None => execution.status.as_str().to_owned(),
        };
        format!(
            "{:36}  {status:10}  {:8}  {:>7} s  {:>12}  {}",
            execution.execution_id.to_string(),
            execution.executor,
            execution.alive.elapsed_ms / 1_000,
            execution.offsets.stdout.saturating_add(execution.offsets.stderr),
            if execution.attached { "yes" } else { "no" },
        )
    });
    Ok(std::iter::once(head).chain(rows).collect())
}
