//! What a client shows: the command's output on our own streams, and on standard error the messages, the elapsed time
//! and what an agent does.

use std::io;

use cc_executor_actors::{
    outcome::Outcome,
    protocol::notification::{EventNotice, GapNotice, OutputNotice},
    stream::PerStream,
};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{
    ClientError, agent_view::AgentView, checksum::ChecksumError, connection::read, exit, stdout::StdoutWriter,
    terminal::ElapsedLine,
};
use crate::console;

/// The output of one execution, over all connections.
pub(super) struct OutputView {
    json: bool,
    output: StdoutWriter,
    elapsed: ElapsedLine,
    agent: AgentView,
}

impl OutputView {
    /// With `json` the service's messages are shown instead of the output.
    pub(super) fn new(json: bool, shows_elapsed: bool) -> Self {
        let (output, elapsed) = (StdoutWriter::new(json), ElapsedLine::new(shows_elapsed));
        OutputView { json, output, elapsed, agent: AgentView::new() }
    }

    /// Takes a message of the service. Returns whether it was one to show only.
    pub(super) fn take(&mut self, method: Option<&str>, params: Option<&RawValue>) -> Result<bool, ClientError> {
        match (method, params) {
            (Some("output"), Some(params)) => self.take_output(&read(params)?)?,
            (Some("event"), Some(params)) if !self.json => self.take_agent_event(&read(params)?),
            (Some("gap"), Some(params)) => self.take_gap(&read(params)?)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Takes a message's text, which is shown where that was asked for.
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
        let (stream, n_bytes, reason) = (stream.as_str(), to - from, reason.as_str());
        self.report(&format!("bytes {from} to {to} of {stream} are lost ({n_bytes} bytes): {reason}"));
        Ok(())
    }

    /// Tells the user.
    pub(super) fn report(&mut self, text: &str) {
        self.elapsed.clear();
        console::report(text);
    }

    /// The command runs, and this is what it is known to do.
    pub(super) fn show_activity(&mut self, activity: Option<&str>) {
        self.elapsed.running();
        self.elapsed.doing(activity);
    }

    /// When [`OutputView::show_elapsed`] is due.
    pub(super) fn tick_at(&self) -> Option<Instant> {
        self.elapsed.tick_at()
    }

    /// Shows the elapsed time.
    pub(super) fn show_elapsed(&mut self) {
        self.elapsed.show();
    }

    /// Wipes the elapsed time, before anything else is printed.
    pub(super) fn clear_elapsed(&mut self) {
        self.elapsed.clear();
    }

    /// Standard output is made of Claude's events, and its newest text comes again whole.
    pub(super) fn resume_agent_output(&mut self) {
        self.output.is_of_claude();
        self.output.goes_on();
    }

    /// Where the output goes on after a broken connection.
    pub(super) fn offsets(&self) -> PerStream<u64> {
        self.output.offsets()
    }

    /// The bytes that did not come, as the service said.
    pub(super) fn lost(&self) -> PerStream<u64> {
        self.output.lost()
    }

    /// Whether something waits to be written. Nothing more is read from the service then, which slows it down to our
    /// reader.
    pub(super) fn is_waiting(&self) -> bool {
        self.output.is_waiting()
    }

    /// Writes what waits. May be dropped half-way and called again.
    pub(super) async fn write(&mut self) -> io::Result<()> {
        self.output.write().await
    }

    /// Writes no more output.
    pub(super) fn discard(&mut self) {
        self.output.discard();
    }

    /// Writes the rest.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        self.elapsed.clear();
        self.output.finish().await
    }

    /// Compares the output with what the service counted and digested where it ran, and shows what an agent did.
    pub(super) fn conclude(&self, outcome: &Outcome) -> Result<(), ClientError> {
        let sent = PerStream {
            stdout: (outcome.bytes.stdout, outcome.sha256.stdout.as_deref()),
            stderr: (outcome.bytes.stderr, outcome.sha256.stderr.as_deref()),
        };
        self.output.check(&sent).map_err(damaged)?;
        if let Some(result) = outcome.result.as_ref().filter(|_| !self.json) {
            console::report_line(&self.agent.of_outcome(result));
        }
        Ok(())
    }
}

fn damaged(damage: ChecksumError) -> ClientError {
    ClientError::new(exit::SOFTWARE, format!("the output was damaged on the way: {damage}"))
}
