//! The record of an execution on the client's side: all messages, missing bytes, and the time of the last progress.

use std::time::Duration;

use cc_executor_actors::{
    outcome::{Reason, Status},
    protocol::notification::{GapNotice, OutputNotice},
    stream::{PerStream, Stream},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::failure::{CheckFailure, ensure, shown, wrong};
use crate::cli::checksum::{StreamChecksum, decoded};

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
    /// Its id.
    pub(super) id: String,
    pub(super) streams: PerStream<ReceivedStream>,
    /// The parameters of each `statusUpdate`, with the time of arrival.
    pub(super) updates: Vec<(Instant, Value)>,
    /// The parameters of each `error`.
    pub(super) errors: Vec<Value>,
    /// The final `statusUpdate`, once it has arrived.
    pub(super) end: Value,
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
    pub(super) fn of(id: &str, now: Instant) -> Self {
        let (streams, end) = (PerStream::default(), Value::Null);
        Transcript { id: id.to_owned(), streams, updates: Vec::new(), errors: Vec::new(), end, moved_at: now }
    }

    /// The offsets for `attach` after a broken connection.
    pub(super) fn offsets(&self) -> Value {
        json!({ "stdout": self.streams.stdout.seen.end, "stderr": self.streams.stderr.seen.end })
    }

    pub(super) fn has_ended(&self) -> bool {
        !self.end.is_null()
    }

    /// The time since anything but the clocks of the heartbeats has changed.
    pub(super) fn stuck_for(&self, now: Instant) -> Duration {
        now.duration_since(self.moved_at)
    }

    /// Takes the next message. Returns true if it shows progress.
    pub(super) fn take(&mut self, message: &Value, now: Instant) -> Result<bool, CheckFailure> {
        let params = &message["params"];
        let moved = match message["method"].as_str() {
            Some("output") => self.on_output(params).map(|()| true),
            Some("gap") => self.on_gap(params).map(|()| true),
            Some("statusUpdate") => self.on_status(params, now),
            Some("error") => {
                self.errors.push(params.clone());
                Ok(true)
            }
            _ => Err(wrong(format!("an unexpected message: {}", shown(message)))),
        }?;
        if moved {
            self.moved_at = now;
        }
        Ok(moved)
    }

    fn on_status(&mut self, params: &Value, now: Instant) -> Result<bool, CheckFailure> {
        ensure!(params["executionId"] == self.id.as_str(), "a status of another execution than {}", self.id);
        let news = |(_, before): &(Instant, Value)| {
            ["status", "position", "offsets", "reason"].iter().any(|name| before[*name] != params[*name])
        };
        let moved = self.updates.last().is_none_or(news);
        self.updates.push((now, params.clone()));
        if params.get("reason").is_some() {
            self.end = params.clone();
        }
        Ok(moved)
    }

    fn on_output(&mut self, params: &Value) -> Result<(), CheckFailure> {
        let OutputNotice { r#type, content, content_base64, end: told } =
            OutputNotice::deserialize(params).map_err(|error| unreadable(params, &error))?;
        let bytes = decoded((content.as_deref(), content_base64.as_deref())).map_err(|damage| wrong(damage.0))?;
        let received = self.streams.get_mut(r#type);
        received.seen.take(&bytes);
        received.bytes.extend_from_slice(&bytes);
        let end = received.seen.end;
        ensure!(told == end, "{end} bytes of {} had arrived where the service says {told}", r#type.as_str());
        Ok(())
    }

    fn on_gap(&mut self, params: &Value) -> Result<(), CheckFailure> {
        let GapNotice { r#type, from, to, .. } =
            GapNotice::deserialize(params).map_err(|error| unreadable(params, &error))?;
        let received = self.streams.get_mut(r#type);
        let end = received.seen.end;
        ensure!(from == end && to > from, "a gap after {end} bytes is told as {}", shown(params));
        received.seen.end = to;
        received.seen.lost += to - from;
        received.gaps.push((from, to));
        Ok(())
    }

    /// Checks status and reason of the end.
    pub(super) fn ended_as(&self, status: Status, reason: Reason) -> Result<(), CheckFailure> {
        let end = (status_of(&self.end), Reason::deserialize(&self.end["reason"]).ok());
        ensure!(
            end == (Some(status), Some(reason)),
            "the end should be {} {}, and is {}",
            status.as_str(),
            reason.as_str(),
            shown(&self.end)
        );
        Ok(())
    }

    /// Checks that the command exited with this code and that no byte is missing.
    pub(super) fn exited_with(&self, code: i32) -> Result<(), CheckFailure> {
        self.ended_as(if code == 0 { Status::Completed } else { Status::Failed }, Reason::Exit)?;
        ensure!(self.end["exit_code"] == code, "the exit code should be {code}: {}", shown(&self.end));
        self.is_whole()
    }

    /// Checks by count and digest that everything that was written has arrived.
    pub(super) fn is_whole(&self) -> Result<(), CheckFailure> {
        for stream in Stream::BOTH {
            let lost = self.n_lost(stream);
            ensure!(lost == 0, "{lost} bytes of {} are told to be lost", stream.as_str());
        }
        self.adds_up()
    }

    /// Checks that received and lost bytes add up to what was written.
    pub(super) fn adds_up(&self) -> Result<(), CheckFailure> {
        for stream in Stream::BOTH {
            let name = stream.as_str();
            let (bytes, sha256) = (self.end["bytes"][name].as_u64(), self.end["sha256"][name].as_str());
            ensure!(bytes.is_some() && sha256.is_some(), "the end has no count or digest: {}", shown(&self.end));
            self.streams.get(stream).seen.check(stream, bytes, sha256).map_err(|damage| wrong(damage.0))?;
        }
        Ok(())
    }

    /// The number of bytes in the reported gaps.
    pub(super) fn n_lost(&self, stream: Stream) -> u64 {
        self.streams.get(stream).seen.lost
    }
}

fn unreadable(params: &Value, error: &serde_json::Error) -> CheckFailure {
    wrong(format!("{} is not understood: {error}", shown(params)))
}

/// The status that an update or an ending states.
pub(super) fn status_of(update: &Value) -> Option<Status> {
    Status::deserialize(&update["status"]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(params: Value) -> Value {
        let mut params = params;
        params["executionId"] = json!("x");
        json!({ "method": "statusUpdate", "params": params })
    }

    fn output(content: &str, end: u64) -> Value {
        json!({ "method": "output", "params": { "type": "stdout", "content": content, "end": end } })
    }

    #[test]
    fn only_what_is_new_restarts_the_clock() {
        let began_at = Instant::now();
        let after = |seconds| began_at + Duration::from_secs(seconds);
        let mut story = Transcript::of("x", began_at);
        let mut clock = |seconds, message| {
            story.take(&message, after(seconds)).unwrap();
            story.stuck_for(after(seconds)).as_secs()
        };
        assert_eq!(clock(1, update(json!({ "status": "QUEUED", "position": 2 }))), 0);
        assert_eq!(clock(4, update(json!({ "status": "QUEUED", "position": 2 }))), 3, "a heartbeat is none");
        assert_eq!(clock(5, update(json!({ "status": "QUEUED", "position": 1 }))), 0);
        assert_eq!(clock(9, update(json!({ "status": "RUNNING", "elapsedMs": 0, "offsets": { "stdout": 0 } }))), 0);
        assert_eq!(clock(12, update(json!({ "status": "RUNNING", "elapsedMs": 9, "offsets": { "stdout": 0 } }))), 3);
        assert_eq!(clock(13, output("x", 1)), 0);
        assert_eq!(clock(20, update(json!({ "status": "RUNNING", "elapsedMs": 9, "offsets": { "stdout": 1 } }))), 0);
        assert_eq!(clock(29, update(json!({ "status": "RUNNING", "elapsedMs": 19, "offsets": { "stdout": 1 } }))), 9);
    }

    #[test]
    fn a_gap_is_accepted_where_it_fits_and_adds_up() {
        let now = Instant::now();
        let id = "00000000-0000-4000-8000-000000000001";
        let params =
            |from, to| json!({ "executionId": id, "type": "stdout", "from": from, "to": to, "reason": "overwritten" });
        let gap = |from, to| json!({ "method": "gap", "params": params(from, to) });
        let mut story = Transcript::of("x", now);
        assert!(story.take(&gap(1, 2), now).is_err(), "it begins where nothing has come to");
        story.take(&gap(0, 2), now).unwrap();
        story.take(&output("cd", 4), now).unwrap();
        story.take(&gap(4, 5), now).unwrap();
        story.take(&output("f", 6), now).unwrap();
        assert!(story.take(&output("g", 8), now).is_err());
        let stdout = &story.streams.stdout;
        assert!(stdout.is_of(b"abcdefg"));
        assert!(!stdout.is_of(b"abCdefg") && !stdout.is_of(b"abcdef") && !stdout.is_of(b"abcdefgh"));
        let end = |bytes: u64| {
            json!({ "bytes": { "stdout": bytes, "stderr": 0 }, "sha256": { "stdout": "of all",
            "stderr": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" } })
        };
        story.end = end(7);
        assert_eq!((story.adds_up(), story.is_whole().is_err()), (Ok(()), true));
        story.end = end(9);
        assert!(story.adds_up().is_err());
    }
}
