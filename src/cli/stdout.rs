//! Writes received output to the client's own streams, and checks that it is complete.

use std::io;

use cc_executor_actors::{
    outcome::Outcome,
    protocol::notification::OutputNotice,
    stream::{PerStream, Stream},
};
use tokio::io::{AsyncWriteExt, Stderr, Stdout};

pub(super) use super::checksum::ChecksumError;
use super::checksum::{StreamChecksum, decoded};
use crate::console;

/// Writes both streams.
pub(super) struct StdoutWriter {
    stdout: Stdout,
    stderr: Stderr,
    waiting: PerStream<Vec<u8>>,
    seen: PerStream<StreamChecksum>,
    json: bool,
    discarding: bool,
    ends_a_line: bool,
    /// Present if standard output is text from Claude's events.
    texts: Option<TextOffsets>,
}

/// The position in the text of Claude's events. The offsets of such output count the bytes of the events, so they change
/// only with the last piece of a text.
#[derive(Default)]
struct TextOffsets {
    /// The bytes received of an incomplete text.
    partial: u64,
    /// The bytes of the next text that are a repetition, because they came over an earlier connection.
    repeated: u64,
}

impl StdoutWriter {
    pub(super) fn new(json: bool) -> Self {
        let (stdout, stderr) = console::streams();
        StdoutWriter {
            stdout,
            stderr,
            waiting: PerStream::default(),
            seen: PerStream::default(),
            json,
            discarding: false,
            ends_a_line: true,
            texts: None,
        }
    }

    /// Standard output is text from Claude's events, and a connection begins. The service repeats the text that the
    /// connection before left incomplete.
    pub(super) fn resume_agent_text(&mut self) {
        let texts = self.texts.get_or_insert_default();
        // Added, because an earlier repetition may itself have been cut short.
        texts.repeated += std::mem::take(&mut texts.partial);
    }

    /// The output begins at these offsets.
    pub(super) fn begin_at(&mut self, offsets: PerStream<u64>) {
        self.seen = PerStream {
            stdout: StreamChecksum::beginning_at(offsets.stdout),
            stderr: StreamChecksum::beginning_at(offsets.stderr),
        };
    }

    /// Takes a piece of output.
    pub(super) fn take(&mut self, output: &OutputNotice<'_>) -> Result<(), ChecksumError> {
        let (stream, end) = (output.r#type, output.end);
        let decoded = decoded(output)?;
        let bytes = decoded.as_ref();
        let seen = self.seen.get_mut(stream);
        let texts = self.texts.as_mut().filter(|_| stream == Stream::Stdout);
        let bytes = match texts {
            None => {
                seen.take(bytes);
                bytes
            }
            Some(texts) => {
                texts.partial = if end > seen.end { 0 } else { texts.partial + bytes.len() as u64 };
                seen.end = seen.end.max(end);
                let had = usize::try_from(texts.repeated).unwrap_or(usize::MAX).min(bytes.len());
                texts.repeated -= had as u64;
                &bytes[had..]
            }
        };
        if seen.end != end {
            return Err(ChecksumError(format!(
                "{} bytes of {} arrived, but the service had sent {end}",
                seen.end,
                stream.as_str()
            )));
        }
        if !self.json && !self.discarding {
            self.waiting.get_mut(stream).extend_from_slice(bytes);
        }
        if let Some(last) = bytes.last() {
            self.ends_a_line = *last == b'\n';
        }
        Ok(())
    }

    /// Records a gap.
    pub(super) fn skip(&mut self, stream: Stream, from: u64, to: u64) -> Result<(), ChecksumError> {
        let counted = self.texts.is_none() || stream == Stream::Stderr;
        let seen = self.seen.get_mut(stream);
        if (counted && from != seen.end) || from < seen.end || to < from {
            let name = stream.as_str();
            return Err(ChecksumError(format!(
                "bytes {from} to {to} of {name} are reported as lost, but {} bytes had arrived",
                seen.end
            )));
        }
        seen.end = to;
        seen.lost += to - from;
        if let Some(texts) = self.texts.as_mut().filter(|_| stream == Stream::Stdout) {
            // An incomplete text is in the gap, so it is not repeated.
            *texts = TextOffsets::default();
        }
        Ok(())
    }

    /// The bytes of each stream that the service reported as lost.
    pub(super) fn lost(&self) -> PerStream<u64> {
        PerStream { stdout: self.seen.stdout.lost, stderr: self.seen.stderr.lost }
    }

    /// The offsets at which the output continues on a new connection.
    pub(super) fn offsets(&self) -> PerStream<u64> {
        PerStream { stdout: self.seen.stdout.end, stderr: self.seen.stderr.end }
    }

    /// Takes a message that is printed unchanged.
    pub(super) fn message(&mut self, text: &[u8]) {
        if !self.discarding {
            self.waiting.stdout.extend_from_slice(text);
            self.waiting.stdout.push(b'\n');
        }
    }

    /// Whether output waits to be written. This is the client's back-pressure: while it holds, the loop reads nothing
    /// from the service, which then slows down to the reader of the output.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.stdout.is_empty() || !self.waiting.stderr.is_empty()
    }

    /// Whether the output is at the beginning of a line, where the elapsed time can be shown.
    pub(super) fn ends_a_line(&self) -> bool {
        self.ends_a_line
    }

    /// Records that the cursor was moved to the beginning of a line.
    pub(super) fn line_was_ended(&mut self) {
        self.ends_a_line = true;
    }

    /// Writes the waiting output. The future may be dropped and called again, because written bytes are removed at once.
    pub(super) async fn write(&mut self) -> io::Result<()> {
        write_out(&mut self.stdout, &mut self.waiting.stdout).await?;
        write_out(&mut self.stderr, &mut self.waiting.stderr).await
    }

    /// Discards all output from now on.
    pub(super) fn discard(&mut self) {
        self.discarding = true;
        self.waiting = PerStream::default();
    }

    /// Writes the rest, unless output is discarded.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        if self.discarding {
            return Ok(());
        }
        self.write().await?;
        self.flush().await
    }

    /// Waits until what was given to the system is written.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush().await?;
        self.stderr.flush().await
    }

    /// Compares the received output with the counts and digests of the outcome. Text from Claude's events has none.
    pub(super) fn check(&self, outcome: &Outcome) -> Result<(), ChecksumError> {
        for stream in Stream::BOTH {
            if stream == Stream::Stdout && self.texts.is_some() {
                continue;
            }
            let (bytes, sha256) = (*outcome.bytes.get(stream), outcome.sha256.get(stream).as_deref());
            self.seen.get(stream).check(stream, bytes, sha256)?;
        }
        Ok(())
    }
}

async fn write_out(to: &mut (impl AsyncWriteExt + Unpin), waiting: &mut Vec<u8>) -> io::Result<()> {
    if waiting.is_empty() {
        return Ok(());
    }
    while !waiting.is_empty() {
        let written = to.write(waiting).await?;
        waiting.drain(..written);
    }
    to.flush().await
}

#[cfg(test)]
mod tests {
    use cc_executor_actors::outcome::{Reason, Status};

    use super::*;

    fn text(content: &str, end: u64) -> OutputNotice<'_> {
        OutputNotice { r#type: Stream::Stdout, content: Some(content.into()), content_base64: None, end }
    }

    fn base64(content: &str, end: u64) -> OutputNotice<'_> {
        OutputNotice { r#type: Stream::Stdout, content: None, content_base64: Some(content.into()), end }
    }

    /// The output of Claude: each piece that is taken is text of the event that ends at the given offset.
    fn of_claude() -> StdoutWriter {
        let mut output = StdoutWriter::new(false);
        output.resume_agent_text();
        output
    }

    /// The outcome of a command that wrote so many bytes to standard output.
    fn wrote(bytes: u64, sha256: &str) -> Outcome {
        Outcome {
            bytes: PerStream { stdout: Some(bytes), stderr: None },
            sha256: PerStream { stdout: Some(sha256.to_owned()), stderr: None },
            ..Outcome::without_process(Status::Completed, Reason::Exit, None)
        }
    }

    #[test]
    fn a_lost_or_changed_byte_is_damage() {
        const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        let mut output = StdoutWriter::new(true);
        output.take(&text("hel", 3)).unwrap();
        output.take(&base64("bG8=", 5)).unwrap();
        assert_eq!(output.check(&wrote(5, HELLO)), Ok(()));
        assert!(output.check(&wrote(6, HELLO)).is_err());
        assert!(output.check(&wrote(5, &HELLO.replace('2', "3"))).is_err());
        assert!(output.take(&text("x", 7)).is_err());
        assert!(output.take(&base64("!", 7)).is_err());
    }

    #[test]
    fn output_that_begins_later_is_counted_and_has_no_digest() {
        let mut output = StdoutWriter::new(true);
        output.begin_at(PerStream { stdout: 3, stderr: 0 });
        assert_eq!(output.offsets(), PerStream { stdout: 3, stderr: 0 });
        output.take(&text("lo", 5)).unwrap();
        assert_eq!(output.check(&wrote(5, "of all")), Ok(()));
        assert!(output.check(&wrote(6, "of all")).is_err());
        assert_eq!(output.lost(), PerStream::default());
    }

    #[test]
    fn a_repeated_text_is_written_once() {
        let mut output = of_claude();
        output.take(&text("one\n", 100)).unwrap();
        output.take(&text("two, ", 100)).unwrap();
        output.take(&text("three", 100)).unwrap();
        assert_eq!(output.offsets().stdout, 100);
        output.resume_agent_text();
        output.take(&text("two, thr", 100)).unwrap();
        output.take(&text("ee and four\n", 200)).unwrap();
        assert_eq!(output.waiting.stdout, b"one\ntwo, three and four\n");
        assert_eq!(output.offsets().stdout, 200);
        assert_eq!(output.check(&wrote(300, "of events")), Ok(()), "there is nothing to compare");
    }

    #[test]
    fn a_text_that_is_cut_several_times_is_written_once() {
        let mut output = of_claude();
        output.take(&text("one, two, ", 0)).unwrap();
        output.resume_agent_text();
        output.resume_agent_text();
        output.take(&text("one, ", 0)).unwrap();
        output.resume_agent_text();
        output.take(&text("one, two, three, ", 0)).unwrap();
        output.resume_agent_text();
        output.take(&text("one, two, three, four\n", 100)).unwrap();
        assert_eq!(output.waiting.stdout, b"one, two, three, four\n");
    }

    #[test]
    fn after_a_gap_in_claudes_events_no_text_counts_as_repeated() {
        let mut output = of_claude();
        output.take(&text("half of ", 0)).unwrap();
        output.resume_agent_text();
        output.skip(Stream::Stdout, 0, 100).unwrap();
        output.take(&text("another\n", 200)).unwrap();
        assert_eq!(output.waiting.stdout, b"half of another\n");
        output.take(&text("half of ", 200)).unwrap();
        output.skip(Stream::Stdout, 200, 300).unwrap();
        output.resume_agent_text();
        output.take(&text("a third\n", 400)).unwrap();
        assert_eq!(output.waiting.stdout, b"half of another\nhalf of a third\n");
    }

    #[test]
    fn a_reported_gap_is_counted_and_one_at_another_offset_is_damage() {
        let mut output = StdoutWriter::new(true);
        output.take(&text("hel", 3)).unwrap();
        assert!(output.skip(Stream::Stdout, 4, 5).is_err());
        output.skip(Stream::Stdout, 3, 9).unwrap();
        output.take(&text("!", 10)).unwrap();
        assert_eq!(output.offsets(), PerStream { stdout: 10, stderr: 0 });
        assert_eq!(output.check(&wrote(10, "whatever")), Ok(()), "there is no digest of a part");
        assert!(output.check(&wrote(11, "whatever")).is_err());
    }
}
