//! What a person sees of the checks, or a program.

use std::{
    io::{IsTerminal, Write, stderr},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::failure::CheckFailure;
use crate::{
    cli::{ClientError, print_line},
    console::OutputReader,
};

/// What came of one check.
pub(super) struct CheckOutcome<'a> {
    pub(super) name: &'a str,
    pub(super) result: Result<String, CheckFailure>,
    pub(super) took: Duration,
    /// The service's log lines of the session in which it failed.
    pub(super) log: Vec<String>,
}

/// Tells of the checks as they end.
pub(super) struct CheckReport {
    json: bool,
    bar: ProgressBar,
    /// Where it is gone, the exit code still tells.
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

    /// The bar, for a check to say on it what it does. Where there is none a line names the check: whoever
    /// is ended while one hangs has named it.
    pub(super) fn begin(&self, name: &str) -> ProgressBar {
        if self.bar.is_hidden() {
            // Best effort: standard error may be closed.
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
        let lines = if self.json { of_program(outcome) } else { of_person(name, result, *took, log) };
        self.report(&lines)
    }

    fn report(&mut self, lines: &str) -> Result<(), ClientError> {
        if self.reader == OutputReader::Present {
            self.reader = self.bar.suspend(|| print_line(lines))?;
        }
        Ok(())
    }

    /// Says the sums. True if all passed.
    pub(super) fn finish(mut self) -> Result<bool, ClientError> {
        self.bar.finish_and_clear();
        let (n_passed, n_failed) = (self.n_passed, self.n_failed);
        let sums = if self.json {
            json!({ "summary": { "passed": n_passed, "failed": n_failed, "ms": millis(self.took) } }).to_string()
        } else {
            format!("{n_passed} passed, {n_failed} failed, in {:.1} s", self.took.as_secs_f64())
        };
        self.report(&sums)?;
        Ok(n_failed == 0)
    }
}

fn millis(took: Duration) -> u64 {
    cc_executor_actors::clock::millis(took)
}

fn of_person(name: &str, result: &Result<String, CheckFailure>, took: Duration, log: &[String]) -> String {
    let took = format!("{:6.2} s", took.as_secs_f64());
    let mut lines = match result {
        Ok(evidence) => return format!("ok    {name:<13} {took}  {evidence}"),
        Err(problem) => vec![format!("FAIL  {name:<13} {took}  {}", problem.what)],
    };
    let Err(CheckFailure { session, last, .. }) = result else { return lines.join("\n") };
    lines.extend(last.as_ref().map(|last| format!("      last message: {last}")));
    lines.extend(session.as_ref().map(|session| format!("      session {session}")));
    lines.extend(log.iter().map(|line| format!("      | {line}")));
    lines.join("\n")
}

fn of_program(outcome: &CheckOutcome<'_>) -> String {
    let CheckOutcome { name, result, took, log } = outcome;
    let mut line = json!({ "check": name, "passed": result.is_ok(), "ms": millis(*took) });
    match result {
        Ok(evidence) => line["evidence"] = json!(evidence),
        Err(CheckFailure { what, session, last }) => {
            line["problem"] = json!(what);
            line["session"] = json!(session);
            line["last"] = json!(last);
            line["log"] = json!(log);
        }
    }
    line.to_string()
}
