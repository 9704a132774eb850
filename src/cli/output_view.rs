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
    ClientError, agent_view::AgentView, checksum::ChecksumError, color::ErrorStyle, connection::read,
    elapsed_line::ElapsedLine, exit, stdout::StdoutWriter, terminal::output_width, usage_line::usage_line,
};
use crate::console::{self, visible};

/// The output of one execution, over all connections.
pub(super) struct OutputView {
    json: bool,
    stats: bool,
    quiet: bool,
    pub(super) output: StdoutWriter,
    pub(super) elapsed: ElapsedLine,
    agent: AgentView,
    style: ErrorStyle,
    /// Whether the terminal is in raw mode, in which a line ends with a carriage return, too.
    pub(super) is_raw: bool,
}

impl OutputView {
    /// With `json` the service's messages are printed instead of the output. With `stats` the usage follows the output; with
    /// `quiet` an agent's tools and all summaries are left out.
    pub(super) fn new(json: bool, stats: bool, quiet: bool, shows_elapsed: bool, style: ErrorStyle) -> Self {
        let (output, elapsed) = (StdoutWriter::new(json), ElapsedLine::new(shows_elapsed, style));
        OutputView { json, stats, quiet, output, elapsed, agent: AgentView::new(style), style, is_raw: false }
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
            self.print_line(&line);
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
        self.print_line(&console::report_text(text));
    }

    /// Shows a text beside the output, less prominently than a message.
    pub(super) fn note(&mut self, text: &str) {
        let line = self.style.dimmed(&visible(text));
        self.print_line(&line);
    }

    /// Shows lines of this program's own.
    pub(super) fn show_lines(&mut self, lines: &[String]) {
        for line in lines {
            self.print_line(line);
        }
    }

    /// Erases the elapsed time, and moves the cursor to the beginning of a line, if output has left it inside of one.
    pub(super) fn begin_line(&mut self) {
        self.elapsed.clear();
        if !self.output.ends_a_line() && output_width().is_some() && self.style.is_terminal {
            console::report_line(self.line_end());
            self.output.line_was_ended();
            self.elapsed.printed(true);
        }
    }

    fn print_line(&mut self, line: &str) {
        self.begin_line();
        console::report_line(&format!("{line}{}", self.line_end()));
    }

    /// What precedes the newline of a line.
    fn line_end(&self) -> &'static str {
        if self.is_raw { "\r" } else { "" }
    }

    /// Writes the rest of the output.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        self.elapsed.clear();
        self.output.finish().await
    }

    /// Compares the output with the counts and digests of the outcome, and shows the summary of an agent and the usage.
    pub(super) fn conclude(&mut self, outcome: &Outcome) -> Result<(), ClientError> {
        self.output.check(outcome).map_err(damaged)?;
        if outcome.leftovers > 0 && !self.json && !self.quiet {
            self.report(&leftovers_line(outcome.leftovers));
        }
        if let Some(result) = outcome.result.as_ref().filter(|_| !self.json && !self.quiet) {
            console::report_line(&self.agent.of_outcome(result));
        }
        if self.stats && !self.json {
            console::report_line(&self.agent.dimmed(&usage_line(outcome)));
        }
        Ok(())
    }
}

/// The message about background processes that were ended after the command's own exit.
fn leftovers_line(leftovers: u32) -> String {
    let plural = if leftovers == 1 { "" } else { "es" };
    format!("ended {leftovers} process{plural} left in the background")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_is_not_several() {
        assert_eq!(leftovers_line(1), "ended 1 process left in the background");
        assert_eq!(leftovers_line(2), "ended 2 processes left in the background");
    }
}
