//! `ps`: lists the executions of a service's backend.

use std::collections::HashSet;

use cc_executor_actors::{backend_api::Snapshot, id::ExecutionId};
use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    ClientError,
    connection::{not_understood, read},
    flags::ServiceFlags,
    http::{HttpClient, MAX_REFUSAL, within},
    print,
    ps_table::PsTable,
    terminal::output_width,
};
use crate::console::{self, OutputReader};

/// The longest page that is read, in bytes. A service of before pages lists up to 4096 executions at once, of less than
/// 16 KiB each.
const MAX_BODY: usize = 64 << 20;

/// How many ended executions are listed without `--all`.
const LAST_ENDED: usize = 10;

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

    /// List all ended executions, not only the last 10
    #[arg(short, long)]
    all: bool,

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
    #[serde(default)]
    total: Option<usize>,
}

/// The part of an execution that `--json` reads.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListedSummary<'a> {
    execution_id: ExecutionId,
    /// Present if it has ended.
    #[serde(default, borrow)]
    ending: Option<&'a RawValue>,
    #[serde(default)]
    attached: bool,
}

/// Lists the executions of the caller that a service's backend knows, page by page.
pub(super) async fn ps(options: PsOptions) -> Result<u8, ClientError> {
    let service = options.service.access()?;
    let (list, client) = (service.http("/executions"), HttpClient::new(&service));
    let mut url = list.clone();
    let mut rows = PrintedRows::new(options.json, options.all);
    loop {
        let body = within(&url, fetch_page(&client, &url)).await?;
        let page: ReceivedPage<'_> = serde_json::from_slice(&body).map_err(|error| not_understood(&error))?;
        if rows.print(&page)? == OutputReader::Gone {
            break;
        }
        let Some(next) = page.next.filter(|_| !rows.is_full()) else { break };
        url = format!("{list}?after={next}");
    }
    rows.report_omitted();
    Ok(0)
}

/// The executions that were printed.
struct PrintedRows {
    json: bool,
    /// How many ended ones are printed at the most.
    max_ended: usize,
    table: PsTable,
    began: bool,
    /// One that ends between two pages is in both.
    seen: HashSet<ExecutionId>,
    n_printed: usize,
    n_ended: usize,
    /// Whether those that run or are attached, which the list has first, have all been seen.
    has_seen_active: bool,
    /// How many executions the service has, as of the last page. `None` from an older service.
    total: Option<usize>,
}

impl PrintedRows {
    fn new(json: bool, all: bool) -> Self {
        PrintedRows {
            json,
            max_ended: if all { usize::MAX } else { LAST_ENDED },
            table: PsTable::new(output_width()),
            began: false,
            seen: HashSet::new(),
            n_printed: 0,
            n_ended: 0,
            has_seen_active: false,
            total: None,
        }
    }

    /// Whether no further page has an execution to print.
    fn is_full(&self) -> bool {
        self.has_seen_active && self.n_ended >= self.max_ended
    }

    /// Prints a page with one write: with `json` its part of one JSON document.
    fn print(&mut self, page: &ReceivedPage<'_>) -> Result<OutputReader, ClientError> {
        print(&self.text_of(page)?)
    }

    fn text_of(&mut self, page: &ReceivedPage<'_>) -> Result<String, ClientError> {
        self.total = page.total;
        let (mut running, mut ended) = (Vec::new(), Vec::new());
        for execution in &page.executions {
            let listed: ListedSummary<'_> = read(execution)?;
            let has_ended = listed.ending.is_some();
            self.has_seen_active |= has_ended && !listed.attached;
            if !self.seen.insert(listed.execution_id) {
                continue;
            }
            if !has_ended {
                running.push(*execution);
            } else if self.n_ended < self.max_ended {
                self.n_ended += 1;
                ended.push(*execution);
            }
        }
        let shown = [running, ended].concat();
        let is_first = !std::mem::replace(&mut self.began, true);
        let text = if self.json {
            let is_last = page.next.is_none() || self.is_full();
            self.json_of(&shown, is_first, is_last)
        } else {
            let snapshots = shown.iter().map(|execution| read::<Snapshot>(execution)).collect::<Result<Vec<_>, _>>()?;
            self.table.text_of(&snapshots, is_first)
        };
        self.n_printed += shown.len();
        Ok(text)
    }

    fn json_of(&self, shown: &[&RawValue], is_first: bool, is_last: bool) -> String {
        let mut text = String::new();
        if is_first {
            text.push_str("{\"executions\":[\n");
        }
        for (at, execution) in shown.iter().enumerate() {
            let separator = if self.n_printed + at == 0 { "" } else { "," };
            text.extend([separator, execution.get(), "\n"]);
        }
        if is_last {
            text.push_str("]}\n");
        }
        text
    }

    /// Says on standard error how many executions `--all` would add.
    fn report_omitted(&self) {
        let known = self.total.unwrap_or(0).max(self.seen.len());
        match known.saturating_sub(self.n_printed) {
            0 => {}
            n if self.max_ended == usize::MAX => {
                console::report(format_args!("{n} more did not answer, or ended meanwhile: list again"));
            }
            n => console::report(format_args!("{n} more ended: list them with --all")),
        }
    }
}

/// Fetches a page of the service's list: JSON.
async fn fetch_page(client: &HttpClient, url: &str) -> Result<bytes::Bytes, ClientError> {
    let mut response = client.get(url).send().await.map_err(|error| client.unreachable(url, &error))?;
    if !response.status().is_success() {
        let reason = response.body().limit(MAX_REFUSAL).await.unwrap_or_default();
        return Err(client.refused(url, response.status(), &reason));
    }
    response.body().limit(MAX_BODY).await.map_err(|error| client.broke_off(url, &error))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// What is printed of these pages.
    fn printed(rows: &mut PrintedRows, pages: &[Value]) -> String {
        let mut text = String::new();
        for page in pages {
            let page = page.to_string();
            text += &rows.text_of(&serde_json::from_str(&page).unwrap()).unwrap();
            if rows.is_full() {
                break;
            }
        }
        text
    }

    #[test]
    fn json_passes_on_what_a_newer_service_adds() {
        let [a, b] = [(); 2].map(|()| ExecutionId::random());
        let newer = json!({ "executionId": a, "status": "LATER", "elapsedMs": { "later": 1 }, "kind": "later" });
        let other = json!({ "executionId": b });
        let pages =
            [json!({ "executions": [newer, newer], "next": "x" }), json!({ "executions": [newer, other], "later": 1 })];
        let printed: Value = serde_json::from_str(&printed(&mut PrintedRows::new(true, true), &pages)).unwrap();
        assert_eq!(printed, json!({ "executions": [newer, other] }), "each once");
    }

    #[test]
    fn the_last_ended_follow_all_that_run() {
        let row = |ended: bool, attached: bool| {
            let ending = if ended { json!({}) } else { Value::Null };
            json!({ "executionId": ExecutionId::random(), "ending": ending, "attached": attached })
        };
        let (running, attached) = ([(); 3].map(|()| row(false, false)), [(); 12].map(|()| row(true, true)));
        let ended = [(); 30].map(|()| row(true, false));
        let ids = |rows: &[&[Value]]| rows.concat().iter().map(|row| row["executionId"].clone()).collect::<Vec<_>>();
        let first = [attached.as_slice(), &running[..1]].concat();
        let second = [&running[1..], &ended[..20]].concat();
        let pages = [
            json!({ "executions": first, "next": "a", "total": 45 }),
            json!({ "executions": second, "next": "b", "total": 45 }),
            json!({ "executions": ended[20..], "total": 45 }),
        ];
        let mut rows = PrintedRows::new(true, false);
        let list: Value = serde_json::from_str(&printed(&mut rows, &pages)).unwrap();
        let listed = ids(&[list["executions"].as_array().unwrap()]);
        assert_eq!(listed, ids(&[&running[..1], &attached[..10], &running[1..]]), "a page after the other");
        assert_eq!((rows.n_printed, rows.total), (13, Some(45)));
        let mut rows = PrintedRows::new(true, true);
        let list: Value = serde_json::from_str(&printed(&mut rows, &pages)).unwrap();
        assert_eq!(list["executions"].as_array().unwrap().len(), 45);
    }
}
