//! `check`: tests a running service against its promises.
//!
//! Each check bounds the time between two messages and not its whole duration, because a slow service is not a
//! fault. A check that hangs is reported with its last message.

mod commands;
mod concurrency;
mod failure;
mod lifecycle;
mod probe;
mod process_scan;
mod report;
mod session;
mod streams;
mod transcript;

use std::pin::Pin;

use clap::Args;
use indicatif::ProgressBar;
use tokio::time::Instant;

use self::{
    failure::CheckFailure,
    probe::Probe,
    report::{CheckOutcome, CheckReport},
};
use super::{
    ClientError,
    connection::Connection,
    exit,
    flags::ServiceFlags,
    logs::{self, LogsOptions, SortedLines},
    print_line,
    service::ServiceAccess,
};
use crate::console::OutputReader;

/// The exit codes in the help text.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
   0  all checks passed
   1  a check failed
  64  wrong use: flags, unknown check, unreadable file of --logs
  69  the service cannot be reached
  77  not authorized";

/// Options of `check`.
#[derive(Args, Clone, Debug)]
pub struct CheckOptions {
    #[command(flatten)]
    service: ServiceFlags,

    /// Run only these checks, separated by commas; --list names all
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,

    /// List the checks
    #[arg(long)]
    list: bool,

    /// Print a JSON line for each check
    #[arg(long)]
    json: bool,

    /// JSON log of the service, from which the lines of a failed session are shown
    #[arg(long, value_name = "FILE")]
    logs: Option<String>,
}

type CheckFn = for<'a> fn(&'a Probe) -> Pin<Box<dyn Future<Output = Result<String, CheckFailure>> + 'a>>;

/// A check of one ability of the service.
struct Check {
    name: &'static str,
    about: &'static str,
    run: CheckFn,
}

impl Check {
    const fn new(name: &'static str, about: &'static str, run: CheckFn) -> Self {
        Check { name, about, run }
    }
}

const CHECKS: &[Check] = &[
    Check::new("basic", "a command runs, and its output arrives", |p| Box::pin(commands::basic(p))),
    Check::new("stress", "commands of twelve kinds, one after the other", |p| Box::pin(commands::stress(p))),
    Check::new("concurrent", "50 sessions at the same time", |p| Box::pin(concurrency::concurrent(p))),
    Check::new("reconnect", "60 connections, closed in three ways, leave no session or process", |p| {
        Box::pin(concurrency::reconnect(p))
    }),
    Check::new("cancel", "CANCEL ends every process, also one that ignores TERM", |p| Box::pin(lifecycle::cancel(p))),
    Check::new("races", "24 clients disconnect while output flows, and their commands end", |p| {
        Box::pin(lifecycle::races(p))
    }),
    Check::new("slow-client", "a client that stops reading loses no output", |p| Box::pin(streams::slow_client(p))),
    Check::new("large-output", "46 MB arrive complete and unchanged", |p| Box::pin(streams::large_output(p))),
    Check::new("heartbeat", "a command without output has heartbeats", |p| Box::pin(streams::heartbeat(p))),
    Check::new("detach", "an execution survives broken connections, and each byte comes once", |p| {
        Box::pin(streams::detach(p))
    }),
    Check::new("limits", "invalid calls are refused, time-outs are failures", |p| Box::pin(lifecycle::limits(p))),
];

/// Runs the checks. Returns 0 only if all passed.
pub(super) async fn check(options: CheckOptions) -> Result<u8, ClientError> {
    if options.list {
        for check in CHECKS {
            if print_line(&format!("{:<13} {}", check.name, check.about))? == OutputReader::Gone {
                break;
            }
        }
        return Ok(0);
    }
    let unknown = options.only.iter().find(|name| CHECKS.iter().all(|check| check.name != name.as_str()));
    if let Some(name) = unknown {
        let names: Vec<_> = CHECKS.iter().map(|check| check.name).collect();
        return Err(ClientError::new(exit::USAGE, format!("unknown check {name:?}; use one of {}", names.join(", "))));
    }
    if let Some(file) = &options.logs {
        logs::open(file).map_err(|error| logs::unreadable(file, &error))?;
    }
    // An unreachable service is reported once, and not by each check.
    let service = options.service.access()?;
    Connection::open(&service).await?.close().await;
    let wanted = |check: &&Check| options.only.is_empty() || options.only.iter().any(|name| name == check.name);
    let checks: Vec<_> = CHECKS.iter().filter(wanted).collect();
    let mut report = CheckReport::new(checks.len(), options.json);
    for check in checks {
        let outcome = run_check(check, &options, &service, report.begin(check.name)).await;
        report.end(&outcome)?;
    }
    Ok(if report.finish()? { 0 } else { 1 })
}

async fn run_check(
    check: &Check,
    options: &CheckOptions,
    service: &ServiceAccess,
    bar: ProgressBar,
) -> CheckOutcome<'static> {
    let probe = Probe::new(service, bar);
    let since = Instant::now();
    let result = (check.run)(&probe).await;
    let took = since.elapsed();
    let session = result.as_ref().err().and_then(|problem| problem.session.as_deref());
    let log = session.zip(options.logs.as_deref()).map(|(session, file)| log_of(session, file)).unwrap_or_default();
    CheckOutcome { name: check.name, result, took, log }
}

/// The service's log lines of a session.
fn log_of(session: &str, file: &str) -> Vec<String> {
    let options = LogsOptions { session: Some(session.to_owned()), file: file.to_owned(), ..LogsOptions::default() };
    let timeline = match SortedLines::read(&options) {
        Ok(timeline) => timeline,
        Err(error) => return vec![format!("cannot read {file:?}: {error}")],
    };
    let any = timeline.counts().any();
    let lines: Vec<_> = timeline.lines().collect();
    match (any, lines.is_empty()) {
        (false, _) => vec![format!("no JSON log line in {file:?}; start the service with LOG_FORMAT=json")],
        (true, true) => vec![format!("no line of this session in {file:?}")],
        (true, false) => lines,
    }
}
