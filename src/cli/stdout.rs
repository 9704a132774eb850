//! What was received: written to our own streams, counted, and checked against what was sent.

use std::io;

use cc_executor_actors::{
    protocol::notification::OutputNotice,
    stream::{PerStream, Stream},
};
use tokio::io::{AsyncWriteExt, Stderr, Stdout};

pub(super) use super::checksum::ChecksumError;
use super::checksum::{StreamChecksum, decoded};
use crate::console;

/// Both streams on their way to our own.
pub(super) struct StdoutWriter {
    stdout: Stdout,
    stderr: Stderr,
    waiting: PerStream<Vec<u8>>,
    seen: PerStream<StreamChecksum>,
    json: bool,
    discarding: bool,
    ends_a_line: bool,
    /// Where standard output is made of Claude's events.
    texts: Option<TextOffsets>,
}

/// Texts of Claude's events: their offsets count the events, and move with the last piece of a text.
#[derive(Default)]
struct TextOffsets {
    /// Bytes of the newest event's text, while it is not whole.
    partial: u64,
    /// So much of what comes next was there before the connection broke.
    again: u64,
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

    /// Standard output is made of Claude's events.
    pub(super) fn is_of_claude(&mut self) {
        self.texts.get_or_insert_default();
    }

    /// It goes on over another connection: Claude's newest text comes again whole.
    pub(super) fn goes_on(&mut self) {
        if let Some(texts) = &mut self.texts {
            // What is still to come again of a text that broke off earlier counts on.
            texts.again += std::mem::take(&mut texts.partial);
        }
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
                let had = usize::try_from(texts.again).unwrap_or(usize::MAX).min(bytes.len());
                texts.again -= had as u64;
                &bytes[had..]
            }
        };
        if seen.end != end {
            return Err(ChecksumError(format!(
                "{} bytes of {} arrived where the service had sent {end}",
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

    /// Takes note that bytes are lost.
    pub(super) fn skip(&mut self, stream: Stream, from: u64, to: u64) -> Result<(), ChecksumError> {
        let counted = self.texts.is_none() || stream == Stream::Stderr;
        let seen = self.seen.get_mut(stream);
        if (counted && from != seen.end) || from < seen.end || to < from {
            let name = stream.as_str();
            return Err(ChecksumError(format!(
                "bytes {from} to {to} of {name} are said to be lost, after {}",
                seen.end
            )));
        }
        seen.end = to;
        seen.lost += to - from;
        if let Some(texts) = self.texts.as_mut().filter(|_| stream == Stream::Stdout) {
            // The text that broke off is not coming again.
            *texts = TextOffsets::default();
        }
        Ok(())
    }

    /// The bytes of each stream that did not come, as the service said.
    pub(super) fn lost(&self) -> PerStream<u64> {
        PerStream { stdout: self.seen.stdout.lost, stderr: self.seen.stderr.lost }
    }

    /// How far each stream has come: where to go on after a broken connection.
    pub(super) fn offsets(&self) -> PerStream<u64> {
        PerStream { stdout: self.seen.stdout.end, stderr: self.seen.stderr.end }
    }

    /// Takes a message to be printed as it is.
    pub(super) fn message(&mut self, text: &[u8]) {
        if !self.discarding {
            self.waiting.stdout.extend_from_slice(text);
            self.waiting.stdout.push(b'\n');
        }
    }

    /// Whether something waits to be written: nothing more is read from the service then.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.stdout.is_empty() || !self.waiting.stderr.is_empty()
    }

    /// Whether what was written last ended a line, so that a status line would not be mixed into it.
    pub(super) fn ends_a_line(&self) -> bool {
        self.ends_a_line
    }

    /// Writes what waits. May be dropped half-way and called again: what was handed over is remembered.
    pub(super) async fn write(&mut self) -> io::Result<()> {
        write_out(&mut self.stdout, &mut self.waiting.stdout).await?;
        write_out(&mut self.stderr, &mut self.waiting.stderr).await
    }

    /// Nobody reads any more.
    pub(super) fn discard(&mut self) {
        self.discarding = true;
        self.waiting = PerStream::default();
    }

    /// Writes the rest, unless an earlier write has failed.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        if self.discarding {
            return Ok(());
        }
        self.write().await?;
        self.stdout.flush().await?;
        self.stderr.flush().await
    }

    /// Compares what was received with what the service counted and digested where it ran.
    pub(super) fn check(&self, sent: &PerStream<(Option<u64>, Option<&str>)>) -> Result<(), ChecksumError> {
        for stream in Stream::BOTH {
            if stream == Stream::Stdout && self.texts.is_some() {
                continue;
            }
            let (bytes, sha256) = sent.get(stream);
            self.seen.get(stream).check(stream, *bytes, *sha256)?;
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
        output.is_of_claude();
        output
    }

    fn sent(bytes: u64, sha256: &str) -> PerStream<(Option<u64>, Option<&str>)> {
        PerStream { stdout: (Some(bytes), Some(sha256)), stderr: (None, None) }
    }

    #[test]
    fn a_lost_or_changed_byte_is_damage() {
        const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        let mut output = StdoutWriter::new(true);
        output.take(&text("hel", 3)).unwrap();
        output.take(&base64("bG8=", 5)).unwrap();
        assert_eq!(output.check(&sent(5, HELLO)), Ok(()));
        assert!(output.check(&sent(6, HELLO)).is_err());
        assert!(output.check(&sent(5, &HELLO.replace('2', "3"))).is_err());
        assert!(output.take(&text("x", 7)).is_err());
        assert!(output.take(&base64("!", 7)).is_err());
    }

    #[test]
    fn a_text_that_comes_again_is_written_once() {
        let mut output = of_claude();
        output.take(&text("one\n", 100)).unwrap();
        output.take(&text("two, ", 100)).unwrap();
        output.take(&text("three", 100)).unwrap();
        assert_eq!(output.offsets().stdout, 100);
        output.goes_on();
        output.take(&text("two, thr", 100)).unwrap();
        output.take(&text("ee and four\n", 200)).unwrap();
        assert_eq!(output.waiting.stdout, b"one\ntwo, three and four\n");
        assert_eq!(output.offsets().stdout, 200);
        assert_eq!(output.check(&sent(300, "of events")), Ok(()), "there is nothing to compare");
    }

    #[test]
    fn a_text_that_breaks_off_again_and_again_is_written_once() {
        let mut output = of_claude();
        output.take(&text("one, two, ", 0)).unwrap();
        output.goes_on();
        output.goes_on();
        output.take(&text("one, ", 0)).unwrap();
        output.goes_on();
        output.take(&text("one, two, three, ", 0)).unwrap();
        output.goes_on();
        output.take(&text("one, two, three, four\n", 100)).unwrap();
        assert_eq!(output.waiting.stdout, b"one, two, three, four\n");
    }

    #[test]
    fn after_a_gap_in_claudes_events_nothing_is_taken_for_what_was_there_before() {
        let mut output = of_claude();
        output.take(&text("half of ", 0)).unwrap();
        output.goes_on();
        output.skip(Stream::Stdout, 0, 100).unwrap();
        output.take(&text("another\n", 200)).unwrap();
        assert_eq!(output.waiting.stdout, b"half of another\n");
        output.take(&text("half of ", 200)).unwrap();
        output.skip(Stream::Stdout, 200, 300).unwrap();
        output.goes_on();
        output.take(&text("a third\n", 400)).unwrap();
        assert_eq!(output.waiting.stdout, b"half of another\nhalf of a third\n");
    }

    #[test]
    fn a_gap_that_was_said_is_counted_and_one_that_does_not_fit_is_damage() {
        let mut output = StdoutWriter::new(true);
        output.take(&text("hel", 3)).unwrap();
        assert!(output.skip(Stream::Stdout, 4, 5).is_err());
        output.skip(Stream::Stdout, 3, 9).unwrap();
        output.take(&text("!", 10)).unwrap();
        assert_eq!(output.offsets(), PerStream { stdout: 10, stderr: 0 });
        assert_eq!(output.check(&sent(10, "whatever")), Ok(()), "there is no digest of a part");
        assert!(output.check(&sent(11, "whatever")).is_err());
    }
}
