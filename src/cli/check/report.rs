//! Prints the results of the checks, for people or as JSON.

use std::{
    io::{IsTerminal, Write, stderr},
    time::Duration,
};

use cc_executor_actors::clock::millis;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::failure::CheckFailure;
use crate::{
    cli::{ClientError, print_line},
    console::{OutputReader, visible},
};

/// The result of one check.
pub(super) struct CheckOutcome<'a> {
    pub(super) name: &'a str,
    pub(super) result: Result<String, CheckFailure>,
    pub(super) took: Duration,
    /// The service's log lines of the session in which it failed.
    pub(super) log: Vec<String>,
}

/// Prints each check's result as it ends.
pub(super) struct CheckReport {
    json: bool,
    bar: ProgressBar,
    /// The reader of standard output is gone; the exit code still reports the result.
    reader: OutputReader,
    n_passed: usize,
    n_failed: usize,
    took: Duration,
}

impl CheckReport {
    pub(super) fn new(n_checks: usize, json: bool) -> Self {
        let target =
            if !json && stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(n_checks as u64), target);
        let template = "{bar:24} {pos}/{len}  {prefix:<12} {elapsed:>4}  {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        CheckReport { json, bar, reader: OutputReader::Present, n_passed: 0, n_failed: 0, took: Duration::ZERO }
    }

    /// The progress bar, on which the check shows its current step. Without a terminal a line names the check, so that
    /// the output of an interrupted run ends with the check that hung.
    pub(super) fn begin(&self, name: &str) -> ProgressBar {
        if self.bar.is_hidden() {
            // Ignored, because standard error may be closed.
            let _ = writeln!(stderr(), "...   {name}");
        }
        self.bar.set_message("");
        self.bar.set_prefix(name.to_owned());
        self.bar.reset_elapsed();
        self.bar.clone()
    }

    pub(super) fn end(&mut self, outcome: &CheckOutcome<'_>) -> Result<(), ClientError> {
        let CheckOutcome { name, result, took, log } = outcome;
        self.took += *took;
        match result {
            Ok(_) => self.n_passed += 1,
            Err(_) => self.n_failed += 1,
        }
        self.bar.inc(1);
        let lines = if self.json { json_line(outcome) } else { text_line(name, result, *took, log) };
        self.report(&lines)
    }

    fn report(&mut self, lines: &str) -> Result<(), ClientError> {
        if self.reader == OutputReader::Present {
            self.reader = self.bar.suspend(|| print_line(lines))?;
        }
        Ok(())
    }

    /// Prints the summary. Returns true if all checks passed.
    pub(super) fn finish(mut self) -> Result<bool, ClientError> {
        self.bar.finish_and_clear();
        let (n_passed, n_failed) = (self.n_passed, self.n_failed);
        let summary = if self.json {
            json!({ "summary": { "passed": n_passed, "failed": n_failed, "ms": millis(self.took) } }).to_string()
        } else {
            format!("{n_passed} passed, {n_failed} failed, in {:.1} s", self.took.as_secs_f64())
        };
        self.report(&summary)?;
        Ok(n_failed == 0)
    }
}

/// The lines of a check. They may contain messages and log lines of the service.
fn text_line(name: &str, result: &Result<String, CheckFailure>, took: Duration, log: &[String]) -> String {
    let took = format!("{:6.2} s", took.as_secs_f64());
    let mut lines = match result {
        Ok(evidence) => vec![format!("ok    {name:<13} {took}  {evidence}")],
        Err(problem) => vec![format!("FAIL  {name:<13} {took}  {}", problem.text)],
    };
    if let Err(CheckFailure { session, last, .. }) = result {
        lines.extend(last.as_ref().map(|last| format!("      last message: {last}")));
        lines.extend(session.as_ref().map(|session| format!("      session {session}")));
        lines.extend(log.iter().map(|line| format!("      | {line}")));
    }
    lines.iter().map(|line| visible(line)).collect::<Vec<_>>().join("\n")
}

fn json_line(outcome: &CheckOutcome<'_>) -> String {
    let CheckOutcome { name, result, took, log } = outcome;
    let mut line = json!({ "check": name, "passed": result.is_ok(), "ms": millis(*took) });
    match result {
        Ok(evidence) => line["evidence"] = json!(evidence),
        Err(CheckFailure { text, session, last }) => {
            line["problem"] = json!(text);
            line["session"] = json!(session);
            line["last"] = json!(last);
            line["log"] = json!(log);
        }
    }
    visible(&line.to_string()).into_owned()
}
