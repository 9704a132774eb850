//! `ps`: lists the executions of a service's backend.

use std::collections::HashSet;

use cc_executor_actors::{backend_api::Snapshot, id::ExecutionId};
use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    ClientError,
    connection::{not_understood, read, refused, unreachable},
    flags::ServiceFlags,
    http::{MAX_REFUSAL, get, service_url, within},
    print,
};
use crate::console::{OutputReader, visible};

/// The longest page that is read, in bytes. A service of before pages lists up to 4096 executions at once, of less than
/// 16 KiB each.
const MAX_BODY: usize = 64 << 20;

/// The exit codes in the help text.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
   0  the list was printed
  64  wrong use: flags, token variables
  69  service or backend cannot be reached or does not answer
  70  invalid message of the service
  74  output cannot be written
  75  service full or shutting down
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

/// A page of the service's list. The executions are read one by one, because `--json` prints them as they come: a newer
/// service may send fields and values that this client does not know.
#[derive(Deserialize)]
struct ReceivedPage<'a> {
    #[serde(borrow)]
    executions: Vec<&'a RawValue>,
    #[serde(default)]
    next: Option<String>,
}

/// The part of an execution that `--json` reads.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListedId {
    execution_id: ExecutionId,
}

/// Lists the executions of the caller that a service's backend knows, page by page.
pub(super) async fn ps(options: PsOptions) -> Result<u8, ClientError> {
    let list = service_url(&options.service.url, "/executions");
    let mut url = list.clone();
    let mut rows = PrintedRows::new(options.json);
    loop {
        let body = within(&url, fetch_page(&url)).await?;
        let page: ReceivedPage<'_> = serde_json::from_slice(&body).map_err(|error| not_understood(&error))?;
        if rows.print(&page.executions, page.next.is_none())? == OutputReader::Gone {
            break;
        }
        let Some(next) = page.next else { break };
        url = format!("{list}?after={next}");
    }
    Ok(0)
}

/// The executions that were printed.
struct PrintedRows {
    json: bool,
    began: bool,
    /// One that ends between two pages is in both.
    seen: HashSet<ExecutionId>,
}

impl PrintedRows {
    fn new(json: bool) -> Self {
        PrintedRows { json, began: false, seen: HashSet::new() }
    }

    /// Prints a page with one write: with `json` its part of one JSON document.
    fn print(&mut self, page: &[&RawValue], is_last: bool) -> Result<OutputReader, ClientError> {
        print(&self.text_of(page, is_last)?)
    }

    fn text_of(&mut self, page: &[&RawValue], is_last: bool) -> Result<String, ClientError> {
        let mut text = String::new();
        let mut push = |line: &str| text.extend([line, "\n"]);
        if !std::mem::replace(&mut self.began, true) {
            push(&if self.json { "{\"executions\":[".to_owned() } else { head() });
        }
        for execution in page {
            let separator = if self.seen.is_empty() { "" } else { "," };
            let (id, line) = if self.json {
                (read::<ListedId>(execution)?.execution_id, format!("{separator}{execution}"))
            } else {
                let snapshot: Snapshot = read(execution)?;
                (snapshot.execution_id, row_of(&snapshot))
            };
            if self.seen.insert(id) {
                push(&line);
            }
        }
        if self.json && is_last {
            push("]}");
        }
        Ok(text)
    }
}

/// Fetches a page of the service's list: JSON.
async fn fetch_page(url: &str) -> Result<bytes::Bytes, ClientError> {
    let mut response = get(url)?.send().await.map_err(|error| unreachable(url, &error))?;
    if !response.status().is_success() {
        let reason = response.body().limit(MAX_REFUSAL).await.unwrap_or_default();
        return Err(refused(url, response.status(), &reason));
    }
    response.body().limit(MAX_BODY).await.map_err(|error| unreachable(url, &error))
}

/// The head of the table.
fn head() -> String {
    format!("{:36}  {:10}  {:8}  {:>9}  {:>12}  FOLLOWED", "ID", "STATUS", "EXECUTOR", "ELAPSED", "BYTES")
}

/// A line of the table. The name of an executor comes from the service's configuration.
fn row_of(execution: &Snapshot) -> String {
    let status = match execution.position {
        Some(position) => format!("{} {position}", execution.status.as_str()),
        None => execution.status.as_str().to_owned(),
    };
    let row = format!(
        "{:36}  {status:10}  {:8}  {:>7} s  {:>12}  {}",
        execution.execution_id.to_string(),
        execution.executor,
        execution.alive.elapsed_ms / 1_000,
        execution.offsets.stdout.saturating_add(execution.offsets.stderr),
        if execution.attached { "yes" } else { "no" },
    );
    visible(&row).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn json_passes_on_what_a_newer_service_adds() {
        let [a, b] = [(); 2].map(|()| ExecutionId::random());
        let newer = json!({ "executionId": a, "status": "LATER", "elapsedMs": { "later": 1 }, "kind": "later" });
        let other = json!({ "executionId": b });
        let mut rows = PrintedRows::new(true);
        let mut text = String::new();
        for (page, is_last) in [([&newer, &newer], false), ([&newer, &other], true)] {
            let page = page.map(|execution| RawValue::from_string(execution.to_string()).unwrap());
            text += &rows.text_of(&[&page[0], &page[1]], is_last).unwrap();
        }
        let printed: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(printed, json!({ "executions": [newer, other] }), "each once");
    }
}
