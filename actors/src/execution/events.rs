//! Claude's events on their way to a client: their texts become output, the events themselves are told
//! where they are wanted.
//!
//! The offsets of this stream count the events, not the texts: a message's `end` moves only with the last
//! piece of an event's text. So whoever attaches again gets each event whole.

use std::collections::VecDeque;

use bytes::Bytes;

use super::text::{Encoder, MAX_CONTENT, cut_before_char};
use crate::{
    backend::api::Gap,
    claude::{
        Event, Part,
        lines::{Line, Lines},
    },
    id::ExecutionId,
    protocol::{Framing, MAX_MESSAGE_TO_CLIENT, Stream},
};

/// What is around an event in its message, and more, in bytes.
const AROUND: usize = 1_024;

/// One execution's events, from the backend's bytes to messages.
pub(super) struct Events {
    lines: Lines,
    framing: Framing,
    /// Whose events are told, if they are wanted.
    wanted: Option<ExecutionId>,
    /// The offset after the newest line that was taken.
    taken: u64,
    /// A line that waits for a gap to be told first.
    held: Option<Line>,
    /// What the newest line says, as far as it is not encoded.
    texts: VecDeque<Bytes>,
    gap: Option<Gap>,
    ended: bool,
}

/// What came of a step.
#[derive(PartialEq, Eq, Debug)]
pub enum Step {
    /// Nothing is left to do until more comes.
    Dry,
    /// Something was encoded, or passed over.
    Done,
    /// Here the client misses something.
    Gap(Gap),
}

impl Events {
    pub(super) fn new(framing: Framing, start: u64, wanted: Option<ExecutionId>) -> Self {
        Events {
            lines: Lines::default(),
            framing,
            wanted,
            taken: start,
            held: None,
            texts: VecDeque::new(),
            gap: None,
            ended: false,
        }
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.lines.push(bytes);
    }

    /// The bytes of a gap are lost. It begins for the client where the event began that it cut off, and
    /// ends where the next event begins.
    pub(super) fn skip(&mut self, gap: Gap) {
        self.lines.rest();
        let from = self.gap.map_or(self.taken, |before| before.from);
        self.gap = Some(Gap { from, ..gap });
        self.taken = gap.to;
    }

    /// Nothing more will come. If the execution itself has ended, a last line without a newline counts;
    /// else it is left to whoever attaches.
    pub(super) fn finish(&mut self, ended: bool) {
        if ended {
            self.ended = true;
        } else {
            self.lines.rest();
        }
    }

    /// Encodes a little more. Small steps, so that nothing long is encoded whole before it is sent.
    pub(super) fn step(&mut self, encoder: &mut Encoder) -> Step {
        if let Some(text) = self.texts.pop_front() {
            self.say(text, encoder);
            return Step::Done;
        }
        let rest = |lines: &mut Lines, ended| if ended { lines.rest() } else { None };
        match self.held.take().or_else(|| self.lines.pop()).or_else(|| rest(&mut self.lines, self.ended)) {
            Some(line) => self.take(line, encoder),
            None if self.ended => self.gap.take().map_or(Step::Dry, Step::Gap),
            None => Step::Dry,
        }
    }

    fn take(&mut self, line: Line, encoder: &mut Encoder) -> Step {
        let (Line::Whole(bytes) | Line::Piece(bytes)) = &line;
        let event = if matches!(line, Line::Whole(_)) { Event::parse(bytes) } else { None };
        if let Some(gap) = self.gap.take() {
            if event.is_some() {
                drop(event);
                self.held = Some(line);
                *encoder.end(Stream::Stdout) = gap.to;
                return Step::Gap(gap);
            }
            // The rest of a line that was cut off is of no use.
            self.taken += bytes.len() as u64;
            *encoder.end(Stream::Stdout) = self.taken;
            return Step::Gap(Gap { to: self.taken, ..gap });
        }
        self.taken += bytes.len() as u64;
        match &event {
            None => self.texts.push_back(bytes.clone()),
            Some(event) => {
                if let Some(id) = self.wanted {
                    tell(event, id, self.taken, encoder);
                }
                if !event.is_of_subagent() {
                    self.texts.extend(event.parts().into_iter().filter_map(text_of));
                }
            }
        }
        if self.texts.is_empty() {
            *encoder.end(Stream::Stdout) = self.taken;
        }
        Step::Done
    }

    /// Encodes the first piece of a text; the rest of it is next.
    fn say(&mut self, mut text: Bytes, encoder: &mut Encoder) {
        let line_end = || memchr::memchr(b'\n', &text).map_or(text.len(), |at| at + 1);
        let end = if self.framing == Framing::Line { line_end() } else { text.len() };
        let end = if end > MAX_CONTENT { cut_before_char(&text, MAX_CONTENT) } else { end };
        let piece = text.split_to(end);
        if !text.is_empty() {
            self.texts.push_front(text);
        }
        if self.texts.is_empty() {
            *encoder.end(Stream::Stdout) = self.taken;
        }
        encoder.piece(Stream::Stdout, &piece);
    }
}

/// A text that is output: each ends in a newline.
fn text_of(part: Part) -> Option<Bytes> {
    let (Part::Text(mut text) | Part::ToolResult { mut text, .. }) = part else { return None };
    if text.is_empty() {
        return None;
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Some(text.into())
}

/// Tells an event as it came, or what it was where it is too long for a message.
fn tell(event: &Event<'_>, id: ExecutionId, end: u64, encoder: &mut Encoder) {
    let json = event.json();
    if json.len() + AROUND <= MAX_MESSAGE_TO_CLIENT {
        return encoder.event(id, json, end);
    }
    let brief = |text: &str| text[..text.floor_char_boundary(80)].to_owned();
    let (kind, subtype) = (brief(&event.kind), event.subtype().map(|subtype| brief(&subtype)));
    let omitted = serde_json::json!({ "type": kind, "subtype": subtype, "omitted": json.len() });
    encoder.event(id, &omitted.to_string(), end);
}
