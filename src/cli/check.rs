//! `check`: tests a running service against everything that it promises.
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

use std::{pin::Pin, time::Duration};

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
};
use crate::console::OutputReader;

/// The longest time until the next message. The checks ask for heartbeats every 5 s.
const QUIET: Duration = Duration::from_secs(12);

/// The exit codes in the help text.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
   0  all checks passed
   1  a check failed
  69  the service cannot be reached";

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
        return Err(ClientError::new(exit::USAGE, format!("there is no check {name:?}: use {}", names.join(", "))));
    }
    if let Some(file) = &options.logs {
        logs::open(file).map_err(|error| logs::unreadable(file, &error))?;
    }
    // An unreachable service is reported once, and not by each check.
    Connection::open(&options.service.url).await?.close().await;
    let wanted = |check: &&Check| options.only.is_empty() || options.only.iter().any(|name| name == check.name);
    let checks: Vec<_> = CHECKS.iter().filter(wanted).collect();
    let mut report = CheckReport::new(checks.len(), options.json);
    for check in checks {
        let outcome = try_one(check, &options, report.begin(check.name)).await;
        report.end(&outcome)?;
    }
    Ok(if report.finish()? { 0 } else { 1 })
}

async fn try_one(check: &Check, options: &CheckOptions, bar: ProgressBar) -> CheckOutcome<'static> {
    let probe = Probe::new(&options.service.url, QUIET, bar);
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
