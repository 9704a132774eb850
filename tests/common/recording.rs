//! What a client receives about one execution, with the checks that hold for every execution.

use base64::{Engine, engine::general_purpose::STANDARD};
use cc_executor_actors::{
    outcome::{Outcome, Reason, Status},
    protocol::notification::{DetachedNotice, GapNotice, OutputNotice, ServerMessage, StatusUpdate},
    rpc::ErrorObject,
    stream::Stream,
};
use serde::Deserialize;
use serde_json::{Value, json};

/// Stands for each lost byte in the streams of a [`Recording`].
pub const LOST: u8 = 0;

/// Everything that a client received about one execution.
#[derive(Debug, Default)]
pub struct Recording {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// The number of `output` messages.
    pub n_messages: usize,
    /// The status of each `statusUpdate`, in order.
    pub statuses: Vec<Status>,
    /// Each `statusUpdate` but the final one.
    pub updates: Vec<StatusUpdate>,
    /// The `error` notifications.
    pub errors: Vec<ErrorObject>,
    /// The `gap` notifications. Their bytes are [`LOST`] in the stream.
    pub gaps: Vec<GapNotice>,
    pub detached: Option<DetachedNotice>,
    /// For Claude, the offset in its event stream. Standard output then is text from the events, which has other offsets.
    pub event_offset: Option<u64>,
    /// The params of each `event`.
    pub events: Vec<Value>,
    /// The params of the final `statusUpdate` as they came, null before that.
    pub end: Value,
    pub outcome: Option<Outcome>,
}

impl Recording {
    /// An empty recording of an execution of Claude.
    pub fn of_claude() -> Recording {
        Recording { event_offset: Some(0), ..Recording::default() }
    }

    /// The offsets from which an attach continues.
    pub fn offsets(&self) -> Value {
        let stdout = self.event_offset.unwrap_or(self.stdout.len() as u64);
        json!({ "stdout": stdout, "stderr": self.stderr.len() })
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).expect("text is UTF-8")
    }

    /// The updates with this status.
    pub fn with_status(&self, status: Status) -> Vec<&StatusUpdate> {
        self.updates.iter().filter(|update| update.status == status).collect()
    }

    /// The final status and its reason.
    pub fn ending(&self) -> (Status, Reason) {
        let outcome = self.outcome.as_ref().expect("the execution has ended");
        (outcome.status, outcome.reason)
    }

    /// The final status.
    pub fn status(&self) -> Status {
        self.ending().0
    }

    /// The reason of the final status.
    pub fn reason(&self) -> Reason {
        self.ending().1
    }

    /// Adds a message. True if no message about the execution can follow it.
    pub fn push(&mut self, message: &Value) -> bool {
        let params = &message["params"];
        match message["method"].as_str() {
            Some("output") => self.push_output(&OutputNotice::deserialize(params).expect("the params of output")),
            Some("event") => self.events.push(params.clone()),
            Some(_) => {
                // As text, because `ServerMessage` borrows the text of its parameters.
                let text = message.to_string();
                let message = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                return self.push_notification(message, params);
            }
            // A response, which belongs to a call and not to the execution.
            None => {}
        }
        false
    }

    fn push_notification(&mut self, message: ServerMessage, params: &Value) -> bool {
        match message {
            ServerMessage::Gap(gap) => self.push_gap(gap),
            ServerMessage::Error(notice) => self.errors.push(notice.error),
            ServerMessage::Progress(update) => {
                assert!(!update.status.is_final(), "a final status has a reason: {params}");
                self.statuses.push(update.status);
                self.updates.push(update);
            }
            ServerMessage::Ended(last) => {
                assert!(last.ending.status.is_final(), "only a final status has a reason: {params}");
                self.statuses.push(last.ending.status);
                self.outcome = Some(last.ending);
                self.end = params.clone();
                return true;
            }
            ServerMessage::Detached(notice) => {
                self.detached = Some(notice);
                return true;
            }
            ServerMessage::Connected(_) | ServerMessage::Response(_) => {}
        }
        false
    }

    fn push_output(&mut self, output: &OutputNotice<'_>) {
        self.n_messages += 1;
        let stream = self.stream(output.r#type);
        match (&output.content, &output.content_base64) {
            (Some(text), None) => stream.extend_from_slice(text.as_bytes()),
            (None, Some(base64)) => stream.extend(STANDARD.decode(&**base64).expect("base64")),
            both_or_none => panic!("output has one content: {both_or_none:?}"),
        }
        let len = stream.len() as u64;
        match (&mut self.event_offset, output.r#type) {
            (Some(offset), Stream::Stdout) => {
                assert!(output.end >= *offset, "an end never goes back");
                *offset = output.end;
            }
            _ => assert_eq!(output.end, len, "offsets count every byte"),
        }
    }

    fn push_gap(&mut self, gap: GapNotice) {
        match (&mut self.event_offset, gap.r#type) {
            (Some(offset), Stream::Stdout) => *offset = gap.to,
            _ => {
                let stream = self.stream(gap.r#type);
                assert_eq!(gap.from, stream.len() as u64, "a gap begins where the stream is");
                stream.resize(usize::try_from(gap.to).unwrap(), LOST);
            }
        }
        self.gaps.push(gap);
    }

    fn stream(&mut self, stream: Stream) -> &mut Vec<u8> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}
