//! `check`: asks a running service for everything that it promises, and says what of it works.
//!
//! Each check has a bound on the time between two messages, none on its whole: a service that is slow is
//! waited for as long as it says that it lives, and one that hangs is named, with its last message.

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

use std::{pin::Pin, process::ExitCode, time::Duration};

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
    logs::{self, LogsOptions, sorted::SortedLines},
    print_line, report_outcome,
};
use crate::console::OutputReader;

/// How long it may take until the next message. Heartbeats of what runs come every 5 s.
const QUIET: Duration = Duration::from_secs(12);

/// What `check` was asked to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckOptions {
    /// The session's URL.
    pub url: String,
    /// Only these; all, if there are none.
    pub only: Vec<String>,
    /// Say which checks there are instead.
    pub list: bool,
    /// Whether the results are JSON lines.
    pub json: bool,
    /// Where the service's JSON log is.
    pub logs: Option<String>,
}

type CheckFn = for<'a> fn(&'a Probe) -> Pin<Box<dyn Future<Output = Result<String, CheckFailure>> + 'a>>;

/// One thing that a service can do.
struct Check {
    name: &'static str,
    about: &'static str,
    run: CheckFn,
}

const CHECKS: &[Check] = &[
    Check { name: "basic", about: "a command runs and its answer arrives", run: |p| Box::pin(commands::basic(p)) },
    Check {
        name: "stress",
        about: "commands of twelve kinds, one after the other",
        run: |p| Box::pin(commands::stress(p)),
    },
    Check { name: "concurrent", about: "50 sessions at once", run: |p| Box::pin(concurrency::concurrent(p)) },
    Check {
        name: "reconnect",
        about: "60 clients that come and go in quick succession",
        run: |p| Box::pin(concurrency::reconnect(p)),
    },
    Check {
        name: "cancel",
        about: "a CANCEL ends every process, also of a command that ignores TERM",
        run: |p| Box::pin(lifecycle::cancel(p)),
    },
    Check {
        name: "races",
        about: "what a client leaves while output flows is ended",
        run: |p| Box::pin(lifecycle::races(p)),
    },
    Check {
        name: "slow-client",
        about: "a client that reads nothing for a while loses nothing",
        run: |p| Box::pin(streams::slow_client(p)),
    },
    Check {
        name: "large-output",
        about: "46 MB arrive whole, by count, content and digest",
        run: |p| Box::pin(streams::large_output(p)),
    },
    Check { name: "heartbeat", about: "a silent command is told to live", run: |p| Box::pin(streams::heartbeat(p)) },
    Check {
        name: "detach",
        about: "a command goes on without its client, who comes back for the rest",
        run: |p| Box::pin(streams::detach(p)),
    },
    Check {
        name: "limits",
        about: "wrong calls are refused, and time-outs are failures",
        run: |p| Box::pin(lifecycle::limits(p)),
    },
];

/// Runs the checks. Exits with 0 only if all passed.
pub async fn check(options: CheckOptions) -> ExitCode {
    report_outcome(run(&options).await)
}

async fn run(options: &CheckOptions) -> Result<u8, ClientError> {
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
        return Err(ClientError::new(exit::USAGE, format!("there is no check {name:?}: use {}", names.join(", "))));
    }
    if let Some(file) = &options.logs {
        logs::open(file).map_err(|error| logs::unreadable(file, &error))?;
    }
    // A service that is not there is one problem, not one of each check.
    Connection::open(&options.url).await?.close().await;
    let wanted = |check: &&Check| options.only.is_empty() || options.only.iter().any(|name| name == check.name);
    let checks: Vec<_> = CHECKS.iter().filter(wanted).collect();
    let mut report = CheckReport::new(checks.len(), options.json);
    for check in checks {
        let outcome = try_one(check, options, report.begin(check.name)).await;
        report.end(&outcome)?;
    }
    Ok(if report.finish()? { 0 } else { 1 })
}

async fn try_one(check: &Check, options: &CheckOptions, bar: ProgressBar) -> CheckOutcome<'static> {
    let probe = Probe::new(&options.url, QUIET, bar);
    let since = Instant::now();
    let result = (check.run)(&probe).await;
    let took = since.elapsed();
    let session = result.as_ref().err().and_then(|problem| problem.session.as_deref());
    let log = session.zip(options.logs.as_deref()).map(|(session, file)| log_of(session, file)).unwrap_or_default();
    CheckOutcome { name: check.name, result, took, log }
}

/// What the service's log says of a session.
fn log_of(session: &str, file: &str) -> Vec<String> {
    let options = LogsOptions { session: Some(session.to_owned()), file: file.to_owned(), ..LogsOptions::default() };
    let whole = match SortedLines::read(&options) {
        Ok(whole) => whole,
        Err(error) => return vec![format!("cannot read {file:?}: {error}")],
    };
    let any = whole.counts().any();
    let lines: Vec<_> = whole.lines().collect();
    match (any, lines.is_empty()) {
        (false, _) => vec![format!("no JSON log line in {file:?}: start the service with LOG_FORMAT=json")],
        (true, true) => vec![format!("no line of this session in {file:?}")],
        (true, false) => lines,
    }
}
