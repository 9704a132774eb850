//! The output of a client: the command's output on the client's own streams, and on standard error messages, the
//! elapsed time and lines about an agent's work.

use std::io;

use cc_executor_actors::{
    outcome::Outcome,
    protocol::notification::{EventNotice, GapNotice, OutputNotice},
    stream::GapReason,
};
use serde_json::value::RawValue;

use super::{
    ClientError, agent_view::AgentView, checksum::ChecksumError, connection::read, exit, stdout::StdoutWriter,
    terminal::ElapsedLine, usage_line::usage_line,
};
use crate::console;

/// The output of one execution, over all connections.
pub(super) struct OutputView {
    json: bool,
    stats: bool,
    quiet: bool,
    pub(super) output: StdoutWriter,
    pub(super) elapsed: ElapsedLine,
    agent: AgentView,
}

impl OutputView {
    /// With `json` the service's messages are printed instead of the output. With `stats` the usage follows the output; with
    /// `quiet` an agent's tools and summary are left out.
    pub(super) fn new(json: bool, stats: bool, quiet: bool, shows_elapsed: bool) -> Self {
        let (output, elapsed) = (StdoutWriter::new(json), ElapsedLine::new(shows_elapsed));
        OutputView { json, stats, quiet, output, elapsed, agent: AgentView::new() }
    }

    /// Shows the output in a message. Returns false if the message has none, and must be handled elsewhere.
    pub(super) fn take(&mut self, method: Option<&str>, params: Option<&RawValue>) -> Result<bool, ClientError> {
        match (method, params) {
            (Some("output"), Some(params)) => self.take_output(&read(params)?)?,
            // An event is only shown, so one that cannot be read is left out.
            (Some("event"), Some(params)) if !self.json && !self.quiet => {
                if let Ok(notice) = read(params) {
                    self.take_agent_event(&notice);
                }
            }
            (Some("gap"), Some(params)) => self.take_gap(&read(params)?)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Prints the text of a message, with `--json`.
    pub(super) fn take_text(&mut self, text: &[u8]) {
        if self.json {
            self.output.message(text);
        }
    }

    fn take_output(&mut self, output: &OutputNotice<'_>) -> Result<(), ClientError> {
        self.elapsed.clear();
        self.output.take(output).map_err(damaged)?;
        self.elapsed.printed(self.output.ends_a_line());
        Ok(())
    }

    fn take_agent_event(&mut self, notice: &EventNotice<'_>) {
        for line in self.agent.of_event(notice.event.get(), notice.end) {
            self.elapsed.clear();
            console::report_line(&line);
        }
    }

    fn take_gap(&mut self, gap: &GapNotice) -> Result<(), ClientError> {
        let &GapNotice { r#type: stream, from, to, reason, .. } = gap;
        self.output.skip(stream, from, to).map_err(damaged)?;
        let (stream, n_bytes, reason) = (stream.as_str(), to - from, shown_reason(reason));
        self.report(&format!("bytes {from} to {to} of {stream} are lost ({n_bytes} bytes): {reason}"));
        Ok(())
    }

    /// Prints a message for the user.
    pub(super) fn report(&mut self, text: &str) {
        self.elapsed.clear();
        console::report(text);
    }

    /// Writes the rest of the output.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        self.elapsed.clear();
        self.output.finish().await
    }

    /// Compares the output with the counts and digests of the outcome, and shows the summary of an agent and the usage.
    pub(super) fn conclude(&self, outcome: &Outcome) -> Result<(), ClientError> {
        self.output.check(outcome).map_err(damaged)?;
        if let Some(result) = outcome.result.as_ref().filter(|_| !self.json && !self.quiet) {
            console::report_line(&self.agent.of_outcome(result));
        }
        if self.stats && !self.json {
            console::report_line(&self.agent.dimmed(&usage_line(outcome)));
        }
        Ok(())
    }
}

/// Why bytes are lost, for people.
fn shown_reason(reason: GapReason) -> &'static str {
    match reason {
        GapReason::Overwritten => {
            "newer output replaced them in the service's buffer, or the service evicted the output of the ended execution"
        }
        GapReason::Dropped => "the service dropped them because its buffer was full",
        GapReason::Unreadable => "the service could not read them from its disk",
        GapReason::Unknown => "the service gives a reason that this client does not know",
    }
}

fn damaged(damage: ChecksumError) -> ClientError {
    ClientError::new(exit::SOFTWARE, format!("the output was damaged on the way: {damage}"))
}
