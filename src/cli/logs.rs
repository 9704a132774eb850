//! `logs`: a service's JSON log lines as a timeline that a person can read.
//!
//! A file is read to its end and printed in the order of its times, because `docker-compose logs` prints the
//! containers' lines one container after the other. Standard input may be a log that grows: its lines are printed
//! as they arrive.

mod filter;
mod format;
mod sorted;
mod tail;

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
};

use clap::Args;

pub(super) use self::sorted::SortedLines;
use self::tail::LogTail;
use super::{ClientError, exit, print_line};
use crate::console::{self, OutputReader};

/// Options of `logs`.
#[derive(Args, Clone, Debug, Default)]
pub struct LogsOptions {
    /// Show only this session and its executions; the beginning of the id suffices
    #[arg(long, value_name = "ID")]
    pub(super) session: Option<String>,

    /// Show only this execution; the beginning of the id suffices
    #[arg(long, value_name = "ID")]
    pub(super) execution: Option<String>,

    /// Show only this event, such as session.closed, or a group of events, such as session
    #[arg(long, value_name = "NAME")]
    pub(super) event: Option<String>,

    /// File of JSON log lines, such as the output of `docker logs`; - is standard input
    #[arg(value_name = "FILE")]
    pub(super) file: String,
}

/// The number of lines that were read, and of those that were not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct LineCounts {
    lines: usize,
    /// Lines that are not JSON log lines, such as a panic.
    foreign: usize,
    /// Lines of unknown executions that were dropped, and may have belonged to the session.
    dropped: usize,
}

impl LineCounts {
    /// Whether there was a log line at all.
    pub(super) fn any(&self) -> bool {
        self.lines > self.foreign
    }
}

/// Prints the timeline. Exits with 1 if there was nothing to print.
pub(super) fn logs(options: &LogsOptions) -> Result<u8, ClientError> {
    if options.file == "-" { follow(options) } else { read(options) }
}

fn read(options: &LogsOptions) -> Result<u8, ClientError> {
    let timeline = SortedLines::read(options).map_err(|error| unreadable(&options.file, &error))?;
    let counts = timeline.counts();
    let mut n_printed = 0;
    for line in timeline.lines() {
        if print_line(&line)? == OutputReader::Gone {
            return Ok(0);
        }
        n_printed += 1;
    }
    summarize(counts, n_printed, &options.file)
}

fn follow(options: &LogsOptions) -> Result<u8, ClientError> {
    let mut tail = LogTail::new(options);
    let mut n_printed = 0;
    for line in io::stdin().lock().split(b'\n') {
        let line = line.map_err(|error| unreadable(&options.file, &error))?;
        for line in tail.take(&String::from_utf8_lossy(&line)) {
            if print_line(&line)? == OutputReader::Gone {
                return Ok(0);
            }
            n_printed += 1;
        }
    }
    summarize(tail.counts(), n_printed, &options.file)
}

/// Opens a log. Refuses a directory, whose first read would fail.
pub(super) fn open(file: &str) -> io::Result<impl BufRead> {
    let mut input = BufReader::new(File::open(file)?);
    input.fill_buf()?;
    Ok(input)
}

pub(super) fn unreadable(file: &str, error: &io::Error) -> ClientError {
    ClientError::new(exit::USAGE, format!("cannot read {file:?}: {error}"))
}

/// Reports on standard error which lines the timeline does not show.
fn summarize(counts: LineCounts, n_printed: usize, file: &str) -> Result<u8, ClientError> {
    if counts.lines == 0 {
        let hint = if file == "-" { "; docker writes the log to standard error, so add 2>&1" } else { "" };
        console::report(format_args!("{file:?} has no lines{hint}"));
        return Ok(1);
    }
    if !counts.any() {
        let advice = format!("{file:?} has no JSON log line; start the service with LOG_FORMAT=json");
        return Err(ClientError::new(exit::USAGE, advice));
    }
    if counts.foreign > 0 {
        console::report(format_args!("{} lines are not shown, because they are not JSON log lines", counts.foreign));
    }
    if counts.dropped > 0 {
        console::report(format_args!(
            "{} lines may belong to the session and are not shown; give the log as a file, which is read as a whole",
            counts.dropped
        ));
    }
    if n_printed == 0 {
        console::report(format_args!("none of {} log lines matches the options", counts.lines));
        return Ok(1);
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"
claude-api_1 | {"time":"2026-01-02T03:04:05.000Z","level":"INFO","target":"b","event":"process.started","execution_id":"eeeeeeee-1","pid":7,"message":"process started"}
{"time":"2026-01-02T03:04:05.000Z","level":"INFO","target":"b","event":"process.started","execution_id":"ffffffff-1","pid":8,"message":"process started"}
{"time":"2026-01-02T03:04:07.500Z","level":"INFO","target":"b","event":"process.finished","execution_id":"eeeeeeee-1","status":"COMPLETED","message":"process finished"}
{"time":"2026-01-02T03:04:04.900Z","level":"INFO","target":"g","event":"session.opened","session_id":"aaaaaaaa-1","message":"session opened"}
no log line
{"time":"2026-01-02T03:04:05.010Z","level":"INFO","target":"g","event":"execution.started","session_id":"aaaaaaaa-1","execution_id":"eeeeeeee-1","message":"execution started"}
{"time":"2026-01-02T03:04:05.010Z","level":"INFO","target":"g","event":"execution.started","session_id":"bbbbbbbb-1","execution_id":"ffffffff-1","message":"execution started"}
{"time":"2026-01-02T03:04:06.000Z","level":"WARN","target":"g","event":"client.stalled","session_id":"aaaaaaaa-1","message":"it \u001b[31mreads nothing"}
{"time":"2026-01-02T03:04:08.000Z","level":"INFO","target":"g","event":"session.closed","session_id":"aaaaaaaa-1","close_code":4408,"message":"session closed: nothing was read for 60 s"}
"#;

    fn sorted(options: &LogsOptions) -> Vec<String> {
        SortedLines::of(options, LOG.as_bytes()).unwrap().lines().collect()
    }

    fn tailed(options: &LogsOptions) -> Vec<String> {
        let mut tail = LogTail::new(options);
        LOG.lines().flat_map(|line| tail.take(line)).collect()
    }

    fn of_session(id: &str) -> LogsOptions {
        LogsOptions { session: Some(id.to_owned()), ..LogsOptions::default() }
    }

    const OPENED: &str = "session.opened        session_id=aaaaaaaa-1";
    const STALLED: &str = "client.stalled        WARN  session_id=aaaaaaaa  it \\u001b[31mreads nothing";
    const CLOSED: &str = "session.closed        session_id=aaaaaaaa  close_code=4408  nothing was read for 60 s";

    #[test]
    fn a_file_is_shown_in_the_order_of_its_times() {
        let expected = [
            format!("03:04:04.900     +0.000  {OPENED}"),
            "03:04:05.000     +0.100  process.started       execution_id=eeeeeeee-1  pid=7".to_owned(),
            "03:04:05.010     +0.110  execution.started     session_id=aaaaaaaa  execution_id=eeeeeeee".to_owned(),
            format!("03:04:06.000     +1.100  {STALLED}"),
            "03:04:07.500     +2.600  process.finished      execution_id=eeeeeeee  status=COMPLETED".to_owned(),
            format!("03:04:08.000     +3.100  {CLOSED}"),
        ];
        assert_eq!(sorted(&of_session("aaaa")), expected);
    }

    #[test]
    fn a_growing_log_is_shown_line_by_line() {
        let expected = [
            format!("03:04:04.900     +0.000  {OPENED}"),
            // Held back until a line of the gateway named their session.
            "03:04:05.000     +0.100  process.started       execution_id=eeeeeeee-1  pid=7".to_owned(),
            "03:04:05.010     +0.110  execution.started     session_id=aaaaaaaa  execution_id=eeeeeeee".to_owned(),
            "03:04:07.500     +2.600  process.finished      execution_id=eeeeeeee  status=COMPLETED".to_owned(),
            format!("03:04:06.000     +1.100  {STALLED}"),
            format!("03:04:08.000     +3.100  {CLOSED}"),
        ];
        assert_eq!(tailed(&of_session("aaaa")), expected);
    }

    #[test]
    fn executions_and_events_are_selected_by_their_beginnings() {
        // Without a selection, a growing log is shown with the line that is not JSON.
        for (lines, all) in [(sorted as fn(&LogsOptions) -> _, 8), (tailed, 9)] {
            let of = |execution: Option<&str>, event: Option<&str>| {
                let (execution, event) = (execution.map(str::to_owned), event.map(str::to_owned));
                lines(&LogsOptions { execution, event, ..LogsOptions::default() }).len()
            };
            assert_eq!(of(None, None), all);
            assert_eq!(of(Some("ffff"), None), 2);
            assert_eq!((of(None, Some("process")), of(None, Some("process.started"))), (3, 2));
            assert_eq!(of(None, Some("proc")), 0);
        }
    }

    #[test]
    fn a_backends_events_of_a_session_are_found_by_their_execution() {
        for lines in [sorted, tailed] {
            let of = |session: &str, event: &str, execution: Option<&str>| {
                let (event, execution) = (Some(event.to_owned()), execution.map(str::to_owned));
                lines(&LogsOptions { event, execution, ..of_session(session) }).len()
            };
            assert_eq!(of("aaaa", "process", None), 2);
            assert_eq!(of("bbbb", "process", None), 1);
            assert_eq!((of("aaaa", "process", Some("eeee")), of("aaaa", "process", Some("ffff"))), (2, 0));
        }
    }
}
