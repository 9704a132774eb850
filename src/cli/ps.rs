//! `ps`: lists the executions of a service's backend.

mod filter;
mod watch;

use std::{collections::HashSet, time::Duration};

use cc_executor_actors::{backend_api::Snapshot, id::ExecutionId};
use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;

use self::{
    filter::{PsFilter, passes, read_filter},
    watch::watch,
};
use super::{
    ClientError,
    connection::{not_understood, read},
    duration::duration,
    executions::fetch_list,
    flags::ServiceFlags,
    http::HttpClient,
    print,
    ps_table::PsTable,
    terminal::output_width,
};
use crate::{
    config::value::Checker,
    console::{self, OutputReader},
};

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

    /// Print whole ids only, a line each
    #[arg(short, long, conflicts_with_all = ["json", "watch"])]
    quiet: bool,

    /// List only executions in a state, or whose name has a part: state=running, name=build; repeated keys add up
    #[arg(long = "filter", value_name = "KEY=VALUE", value_parser = Checker::new(read_filter, PsFilter::placeholder))]
    filters: Vec<PsFilter>,

    /// Print the service's JSON instead of a table
    #[arg(long)]
    json: bool,

    /// List again every DURATION (2s if not given) until Ctrl-C; needs a terminal
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, value_parser = duration())]
    #[arg(default_missing_value = "2", conflicts_with = "json")]
    watch: Option<Duration>,
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

/// Lists the executions of the caller that a service's backend knows.
pub(super) async fn ps(options: PsOptions) -> Result<u8, ClientError> {
    let service = options.service.access()?;
    let (list, client) = (service.http("/executions"), HttpClient::new(&service));
    let rows = || {
        let form = match options {
            PsOptions { json: true, .. } => ListForm::Json,
            PsOptions { quiet: true, .. } => ListForm::Ids,
            _ => ListForm::Table(PsTable::new(output_width())),
        };
        PrintedRows::new(form, options.all, options.filters.clone())
    };
    if let Some(period) = options.watch {
        return watch(period, async || {
            let mut text = String::new();
            let mut rows = rows();
            fetch_pages(&client, &list, &mut rows, |part| {
                text += part;
                Ok(OutputReader::Present)
            })
            .await?;
            Ok(text)
        })
        .await;
    }
    let mut rows = rows();
    fetch_pages(&client, &list, &mut rows, print).await?;
    rows.report_omitted();
    Ok(0)
}

/// Fetches the list page by page, and passes the text of each page on.
async fn fetch_pages(
    client: &HttpClient,
    list: &str,
    rows: &mut PrintedRows,
    mut print: impl FnMut(&str) -> Result<OutputReader, ClientError>,
) -> Result<(), ClientError> {
    let mut url = list.to_owned();
    loop {
        let body = fetch_list(client, &url).await?;
        let page: ReceivedPage<'_> = serde_json::from_slice(&body).map_err(|error| not_understood(&error))?;
        if print(&rows.text_of(&page)?)? == OutputReader::Gone {
            return Ok(());
        }
        let Some(next) = page.next.filter(|_| !rows.is_full()) else { return Ok(()) };
        url = format!("{list}?after={next}");
    }
}

/// The form of the list.
enum ListForm {
    Table(PsTable),
    Json,
    Ids,
}

/// The executions that were printed.
struct PrintedRows {
    form: ListForm,
    filters: Vec<PsFilter>,
    /// How many ended ones are printed at the most.
    max_ended: usize,
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
    fn new(form: ListForm, all: bool, filters: Vec<PsFilter>) -> Self {
        PrintedRows {
            form,
            filters,
            max_ended: if all { usize::MAX } else { LAST_ENDED },
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

    /// The text of a page: as JSON its part of one document.
    fn text_of(&mut self, page: &ReceivedPage<'_>) -> Result<String, ClientError> {
        self.total = page.total;
        let (mut running, mut ended) = (Vec::new(), Vec::new());
        for execution in &page.executions {
            let listed: ListedSummary<'_> = read(execution)?;
            let has_ended = listed.ending.is_some();
            self.has_seen_active |= has_ended && !listed.attached;
            if !self.seen.insert(listed.execution_id) || !self.is_wanted(execution)? {
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
        let is_last = page.next.is_none() || self.is_full();
        let text = match &mut self.form {
            ListForm::Json => json_of(&shown, self.n_printed, is_first, is_last),
            ListForm::Ids => ids_of(&shown)?,
            ListForm::Table(table) => table.text_of(&snapshots_of(&shown)?, is_first),
        };
        self.n_printed += shown.len();
        Ok(text)
    }

    fn is_wanted(&self, execution: &RawValue) -> Result<bool, ClientError> {
        if self.filters.is_empty() {
            return Ok(true);
        }
        let snapshot = read::<Snapshot>(execution)?;
        Ok(passes(&self.filters, &snapshot))
    }

    /// Says on standard error how many executions `--all` would add.
    fn report_omitted(&self) {
        if !self.filters.is_empty() || matches!(self.form, ListForm::Ids) {
            return;
        }
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

fn snapshots_of(shown: &[&RawValue]) -> Result<Vec<Snapshot>, ClientError> {
    shown.iter().map(|execution| read::<Snapshot>(execution)).collect()
}

fn ids_of(shown: &[&RawValue]) -> Result<String, ClientError> {
    let line = |execution: &&RawValue| Ok(format!("{}\n", read::<ListedSummary<'_>>(execution)?.execution_id));
    shown.iter().map(line).collect()
}

/// `n_before` of the document's executions have been printed.
fn json_of(shown: &[&RawValue], n_before: usize, is_first: bool, is_last: bool) -> String {
    let mut text = String::new();
    if is_first {
        text.push_str("{\"executions\":[\n");
    }
    for (at, execution) in shown.iter().enumerate() {
        let separator = if n_before + at == 0 { "" } else { "," };
        text.extend([separator, execution.get(), "\n"]);
    }
    if is_last {
        text.push_str("]}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn all_as_json() -> PrintedRows {
        PrintedRows::new(ListForm::Json, true, Vec::new())
    }

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
        let printed: Value = serde_json::from_str(&printed(&mut all_as_json(), &pages)).unwrap();
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
        let mut rows = PrintedRows::new(ListForm::Json, false, Vec::new());
        let list: Value = serde_json::from_str(&printed(&mut rows, &pages)).unwrap();
        let listed = ids(&[list["executions"].as_array().unwrap()]);
        assert_eq!(listed, ids(&[&running[..1], &attached[..10], &running[1..]]), "a page after the other");
        assert_eq!((rows.n_printed, rows.total), (13, Some(45)));
        let mut rows = all_as_json();
        let list: Value = serde_json::from_str(&printed(&mut rows, &pages)).unwrap();
        assert_eq!(list["executions"].as_array().unwrap().len(), 45);
    }
}
