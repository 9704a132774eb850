//! The record of an execution on the client's side: all messages, missing bytes, and the time of the last progress.

use std::time::Duration;

use cc_executor_actors::{
    id::ExecutionId,
    outcome::{Outcome, Reason, Status},
    protocol::notification::{ErrorNotice, GapNotice, OutputNotice, StatusNotice, StatusUpdate},
    rpc::{ErrorObject, ReceivedMessage},
    stream::{PerStream, Stream},
};
use tokio::time::Instant;

use super::failure::{CheckFailure, ensure, shown, wrong};
use crate::cli::{
    checksum::{StreamChecksum, decoded},
    connection::{not_understood, read},
};

/// The received bytes of a stream.
#[derive(Default)]
pub(super) struct ReceivedStream {
    pub(super) bytes: Vec<u8>,
    /// The gaps that were reported: the offsets of the first byte and after the last.
    gaps: Vec<(u64, u64)>,
    seen: StreamChecksum,
}

/// The messages of an execution.
pub(super) struct Transcript {
    pub(super) id: ExecutionId,
    pub(super) streams: PerStream<ReceivedStream>,
    /// Each `statusUpdate` that is not final, with the time of its arrival.
    pub(super) updates: Vec<(Instant, StatusUpdate)>,
    pub(super) errors: Vec<ErrorObject>,
    /// How the execution ended, once the final `statusUpdate` has arrived.
    end: Option<Outcome>,
    moved_at: Instant,
}

impl ReceivedStream {
    /// The received bytes as text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// Whether the received bytes equal this stream except for the reported gaps.
    pub(super) fn is_of(&self, whole: &[u8]) -> bool {
        let (mut at, mut rest) = (0, self.bytes.as_slice());
        let end = whole.len() as u64;
        for (from, to) in self.gaps.iter().copied().chain([(end, end)]) {
            let piece = usize::try_from(from).ok().and_then(|from| whole.get(at..from));
            let Some(after) = piece.and_then(|piece| rest.strip_prefix(piece)) else { return false };
            (at, rest) = (usize::try_from(to).unwrap_or(usize::MAX), after);
        }
        rest.is_empty()
    }
}

impl Transcript {
    pub(super) fn of(id: ExecutionId, now: Instant) -> Self {
        Transcript {
            id,
            streams: PerStream::default(),
            updates: Vec::new(),
            errors: Vec::new(),
            end: None,
            moved_at: now,
        }
    }

    /// The offsets for `attach` after a broken connection.
    pub(super) fn offsets(&self) -> PerStream<u64> {
        PerStream { stdout: self.streams.stdout.seen.end, stderr: self.streams.stderr.seen.end }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// How the execution ended.
    pub(super) fn end(&self) -> Result<&Outcome, CheckFailure> {
        self.end.as_ref().ok_or_else(|| wrong("the execution has not ended"))
    }

    /// The time since anything but the clocks of the heartbeats has changed.
    pub(super) fn stuck_for(&self, now: Instant) -> Duration {
        now.duration_since(self.moved_at)
    }

    /// Takes the next message. Returns true if it shows progress.
    pub(super) fn take(&mut self, message: &ReceivedMessage<'_>, now: Instant) -> Result<bool, CheckFailure> {
        let moved = match (message.method.as_deref(), message.params) {
            (Some("output"), Some(params)) => self.on_output(&read(params)?).map(|()| true),
            (Some("gap"), Some(params)) => self.on_gap(&read(params)?).map(|()| true),
            (Some("statusUpdate"), Some(params)) => {
                self.on_status(StatusNotice::read(params.get()).map_err(|error| not_understood(&error))?, now)
            }
            (Some("error"), Some(params)) => {
                self.errors.push(read::<ErrorNotice>(params)?.error);
                Ok(true)
            }
            (method, _) => Err(wrong(format!("unexpected message: {}", method.unwrap_or("a response")))),
        }?;
        if moved {
            self.moved_at = now;
        }
        Ok(moved)
    }

    fn on_status(&mut self, notice: StatusNotice, now: Instant) -> Result<bool, CheckFailure> {
        let id = match &notice {
            StatusNotice::Progress(update) => update.execution_id,
            StatusNotice::Ended(end) => end.execution_id,
        };
        ensure!(id == self.id, "a status of another execution than {}", self.id);
        Ok(match notice {
            StatusNotice::Progress(update) => {
                let state = |update: &StatusUpdate| (update.status, update.position, update.offsets);
                let moved = self.updates.last().is_none_or(|(_, before)| state(before) != state(&update));
                self.updates.push((now, update));
                moved
            }
            StatusNotice::Ended(end) => {
                self.end = Some(end.ending);
                true
            }
        })
    }

    fn on_output(&mut self, output: &OutputNotice<'_>) -> Result<(), CheckFailure> {
        let bytes = decoded(output).map_err(|damage| wrong(damage.0))?;
        let received = self.streams.get_mut(output.r#type);
        received.seen.take(&bytes);
        received.bytes.extend_from_slice(&bytes);
        let (end, stated, name) = (received.seen.end, output.end, output.r#type.as_str());
        ensure!(stated == end, "{end} bytes of {name} have arrived, but the service states {stated}");
        Ok(())
    }

    fn on_gap(&mut self, gap: &GapNotice) -> Result<(), CheckFailure> {
        let received = self.streams.get_mut(gap.r#type);
        let end = received.seen.end;
        ensure!(gap.from == end && gap.to > gap.from, "after {end} bytes this gap is reported: {}", shown(gap));
        received.seen.end = gap.to;
        received.seen.lost += gap.to - gap.from;
        received.gaps.push((gap.from, gap.to));
        Ok(())
    }

    /// Checks status and reason of the end.
    pub(super) fn ended_as(&self, status: Status, reason: Reason) -> Result<(), CheckFailure> {
        let end = self.end()?;
        let (expected, reason_name) = (status.as_str(), reason.as_str());
        ensure!(
            (end.status, end.reason) == (status, reason),
            "the end should be {expected} {reason_name}, and is {}",
            shown(end)
        );
        Ok(())
    }

    /// Checks that the command exited with this code and that no byte is missing.
    pub(super) fn exited_with(&self, code: i32) -> Result<(), CheckFailure> {
        self.ended_as(if code == 0 { Status::Completed } else { Status::Failed }, Reason::Exit)?;
        let end = self.end()?;
        ensure!(end.exit_code == Some(code), "the exit code should be {code}: {}", shown(end));
        self.is_whole()
    }

    /// Checks by count and digest that everything that was written has arrived.
    pub(super) fn is_whole(&self) -> Result<(), CheckFailure> {
        for stream in Stream::BOTH {
            let lost = self.n_lost(stream);
            ensure!(lost == 0, "{lost} bytes of {} are reported as lost", stream.as_str());
        }
        self.adds_up()
    }

    /// Checks that received and lost bytes add up to what was written.
    pub(super) fn adds_up(&self) -> Result<(), CheckFailure> {
        let end = self.end()?;
        for stream in Stream::BOTH {
            let (bytes, sha256) = (*end.bytes.get(stream), end.sha256.get(stream).as_deref());
            ensure!(bytes.is_some() && sha256.is_some(), "the end has no count or digest: {}", shown(end));
            self.streams.get(stream).seen.check(stream, bytes, sha256).map_err(|damage| wrong(damage.0))?;
        }
        Ok(())
    }

    /// The number of bytes in the reported gaps.
    pub(super) fn n_lost(&self, stream: Stream) -> u64 {
        self.streams.get(stream).seen.lost
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ID: &str = "00000000-0000-4000-8000-000000000000";

    fn transcript(now: Instant) -> Transcript {
        Transcript::of(ID.parse().unwrap(), now)
    }

    fn update(status: &str, position: Option<u64>, elapsed_ms: u64, stdout: u64) -> Value {
        json!({ "method": "statusUpdate", "params": {
            "executionId": ID, "status": status, "position": position, "elapsedMs": elapsed_ms,
            "sinceOutputMs": elapsed_ms, "backend": "alive", "offsets": { "stdout": stdout, "stderr": 0 },
        } })
    }

    fn output(content: &str, end: u64) -> Value {
        json!({ "method": "output", "params": { "type": "stdout", "content": content, "end": end } })
    }

    fn take(transcript: &mut Transcript, message: &Value, now: Instant) -> Result<bool, CheckFailure> {
        let text = message.to_string();
        transcript.take(&serde_json::from_str(&text).unwrap(), now)
    }

    #[test]
    fn only_progress_restarts_the_clock() {
        let began_at = Instant::now();
        let after = |seconds| began_at + Duration::from_secs(seconds);
        let mut transcript = transcript(began_at);
        let mut clock = |seconds, message| {
            take(&mut transcript, &message, after(seconds)).unwrap();
            transcript.stuck_for(after(seconds)).as_secs()
        };
        assert_eq!(clock(1, update("QUEUED", Some(2), 0, 0)), 0);
        assert_eq!(clock(4, update("QUEUED", Some(2), 0, 0)), 3, "a heartbeat is no progress");
        assert_eq!(clock(5, update("QUEUED", Some(1), 0, 0)), 0);
        assert_eq!(clock(9, update("RUNNING", None, 0, 0)), 0);
        assert_eq!(clock(12, update("RUNNING", None, 9, 0)), 3);
        assert_eq!(clock(13, output("x", 1)), 0);
        assert_eq!(clock(20, update("RUNNING", None, 9, 1)), 0);
        assert_eq!(clock(29, update("RUNNING", None, 19, 1)), 9);
    }

    #[test]
    fn a_gap_is_accepted_where_it_fits_and_adds_up() {
        let now = Instant::now();
        let gap = |from: u64, to: u64| {
            json!({ "method": "gap", "params": {
                "executionId": ID, "type": "stdout", "from": from, "to": to, "reason": "dropped",
            } })
        };
        let mut transcript = transcript(now);
        let mut take = |message: &Value| take(&mut transcript, message, now);
        assert!(take(&gap(1, 2)).is_err(), "it begins beyond the end of the received output");
        take(&gap(0, 2)).unwrap();
        take(&output("cd", 4)).unwrap();
        take(&gap(4, 5)).unwrap();
        take(&output("f", 6)).unwrap();
        assert!(take(&output("g", 8)).is_err());
        let stdout = &transcript.streams.stdout;
        assert!(stdout.is_of(b"abcdefg"));
        assert!(!stdout.is_of(b"abCdefg") && !stdout.is_of(b"abcdef") && !stdout.is_of(b"abcdefgh"));
        let end = |bytes| {
            let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
            Some(Outcome {
                bytes: PerStream { stdout: Some(bytes), stderr: Some(0) },
                sha256: PerStream { stdout: Some("of all".to_owned()), stderr: Some(empty.to_owned()) },
                ..Outcome::without_process(Status::Completed, Reason::Exit, None)
            })
        };
        transcript.end = end(7);
        assert_eq!((transcript.adds_up(), transcript.is_whole().is_err()), (Ok(()), true));
        transcript.end = end(9);
        assert!(transcript.adds_up().is_err());
    }
}
