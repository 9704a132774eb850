//! Reads an agent's events for a client: their texts become output, and the client may also get the events.
//!
//! The offsets of the stream count the bytes of the events, not of the texts. A message's `end` moves only with the
//! last piece of an event's text, so a client that attaches again gets each event whole.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::json;

use super::{
    ReaderOptions,
    lines::{EventLine, LineSplitter},
};
use crate::{
    id::ExecutionId,
    output::{AgentReader, EventSink, EventStep, MAX_CONTENT, cut_before_char},
    protocol::{Framing, MAX_MESSAGE_TO_CLIENT},
    stream::Gap,
};

/// An upper bound for the rest of the message around an event, in bytes.
const MESSAGE_OVERHEAD: usize = 1_024;

/// The format of one agent's events.
pub trait EventFormat {
    /// Reads a line. `None` if it is not an event; the client then gets the line as it is.
    fn read(&mut self, line: &EventLine) -> Option<AgentEvent>;
}

/// The parts of an event that a client gets.
pub struct AgentEvent {
    /// The texts that become output.
    pub texts: Vec<String>,
    /// The event as a JSON object for clients that want the events. `None` if the line is one.
    pub json: Option<String>,
    /// Type and subtype, which stand for an event that is too long for a message.
    pub kind: (String, Option<String>),
}

/// Turns the output of one execution into texts and events.
pub struct EventReader<F> {
    format: F,
    lines: LineSplitter,
    framing: Framing,
    /// The execution's id, if the client wants its events.
    events_of: Option<ExecutionId>,
    /// The offset after the newest line that was read.
    read_end: u64,
    /// The newest `end` in a message. Lines without text move only `read_end`, which pings use.
    sent_end: u64,
    /// An event that waits until the gap before it was reported.
    held: Option<(EventLine, AgentEvent)>,
    /// Texts of the newest line that are not encoded yet.
    texts: VecDeque<Bytes>,
    gap: Option<Gap>,
    ended: bool,
}

impl<F: EventFormat> EventReader<F> {
    /// A reader of the events after the offset `options.start`.
    pub fn new(format: F, options: ReaderOptions) -> Self {
        let ReaderOptions { framing, start, events_of } = options;
        EventReader {
            format,
            lines: LineSplitter::default(),
            framing,
            events_of,
            read_end: start,
            sent_end: start,
            held: None,
            texts: VecDeque::new(),
            gap: None,
            ended: false,
        }
    }

    fn read(&mut self, line: EventLine, sink: &mut dyn EventSink) -> EventStep {
        let event = self.format.read(&line);
        if let Some(gap) = self.gap.take() {
            let Some(event) = event else {
                // The rest of a line that was cut off is lost with the gap.
                self.read_end += line.bytes().len() as u64;
                return self.report_gap(Gap { to: self.read_end, ..gap }, sink);
            };
            self.held = Some((line, event));
            return self.report_gap(gap, sink);
        }
        self.pass_on(&line, event, sink)
    }

    fn report_gap(&mut self, gap: Gap, sink: &mut dyn EventSink) -> EventStep {
        sink.advance(gap.to);
        self.sent_end = gap.to;
        EventStep::Gap(gap)
    }

    fn pass_on(&mut self, line: &EventLine, event: Option<AgentEvent>, sink: &mut dyn EventSink) -> EventStep {
        self.read_end += line.bytes().len() as u64;
        match event {
            None => self.texts.push_back(line.bytes().clone()),
            Some(event) => {
                if let Some(id) = self.events_of {
                    send_event(line, &event, id, self.read_end, sink);
                }
                self.texts.extend(event.texts.into_iter().filter(|text| !text.is_empty()).map(with_newline));
            }
        }
        if self.texts.is_empty() {
            sink.advance(self.read_end);
        }
        EventStep::Done
    }

    /// Encodes the first piece of a text; the next step encodes the rest.
    fn encode_text(&mut self, mut text: Bytes, sink: &mut dyn EventSink) {
        let line_end = || memchr::memchr(b'\n', &text).map_or(text.len(), |at| at + 1);
        let end = if self.framing == Framing::Line { line_end() } else { text.len() };
        let end = if end > MAX_CONTENT { cut_before_char(&text, MAX_CONTENT) } else { end };
        let piece = text.split_to(end);
        if !text.is_empty() {
            self.texts.push_front(text);
        }
        if self.texts.is_empty() {
            sink.advance(self.read_end);
            self.sent_end = self.read_end;
        }
        sink.text(&piece, self.sent_end);
    }
}

impl<F: EventFormat> AgentReader for EventReader<F> {
    fn feed(&mut self, bytes: &[u8]) {
        self.lines.push(bytes);
    }

    fn skip(&mut self, gap: Gap) {
        self.lines.rest();
        let from = self.gap.map_or(self.read_end, |earlier| earlier.from);
        self.gap = Some(Gap { from, ..gap });
        self.read_end = gap.to;
    }

    fn finish(&mut self, ended: bool) {
        if ended {
            self.ended = true;
        } else {
            self.lines.rest();
        }
    }

    fn step(&mut self, sink: &mut dyn EventSink) -> EventStep {
        if let Some(text) = self.texts.pop_front() {
            self.encode_text(text, sink);
            return EventStep::Done;
        }
        if let Some((line, event)) = self.held.take() {
            return self.pass_on(&line, Some(event), sink);
        }
        let last = |lines: &mut LineSplitter, ended| if ended { lines.rest() } else { None };
        match self.lines.pop().or_else(|| last(&mut self.lines, self.ended)) {
            Some(line) => self.read(line, sink),
            None if self.ended => self.gap.take().map_or(EventStep::Dry, EventStep::Gap),
            None => EventStep::Dry,
        }
    }
}

fn with_newline(mut text: String) -> Bytes {
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.into()
}

/// Sends an event, or its type if it is too long for a message.
fn send_event(line: &EventLine, event: &AgentEvent, id: ExecutionId, end: u64, sink: &mut dyn EventSink) {
    let line = || std::str::from_utf8(line.bytes()).unwrap_or_default().trim();
    let json = event.json.as_deref().unwrap_or_else(line);
    if json.len() + MESSAGE_OVERHEAD <= MAX_MESSAGE_TO_CLIENT {
        return sink.event(id, json, end);
    }
    let shortened = |text: &str| text[..text.floor_char_boundary(80)].to_owned();
    let (kind, subtype) = &event.kind;
    let (kind, subtype) = (shortened(kind), subtype.as_deref().map(shortened));
    sink.event(id, &json!({ "type": kind, "subtype": subtype, "omitted": json.len() }).to_string(), end);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        agent::claude::ClaudeFormat,
        output::{OutputEncoder, OutputOptions},
        stream::{GapReason, PerStream, Stream},
        ws::encoder::{encoder, tests::messages},
    };

    fn of_claude(framing: Framing, offsets: PerStream<u64>, events_of: Option<ExecutionId>) -> Box<dyn OutputEncoder> {
        let agent: Box<dyn AgentReader> = {
            let options = ReaderOptions { framing, start: offsets.stdout, events_of };
            Box::new(EventReader::new(ClaudeFormat::default(), options))
        };
        encoder(OutputOptions { framing, offsets, agent: Some(agent) })
    }

    /// The lines `SAY text`.
    struct Spoken;

    impl EventFormat for Spoken {
        fn read(&mut self, line: &EventLine) -> Option<AgentEvent> {
            let text = std::str::from_utf8(line.bytes()).ok()?.strip_prefix("SAY ")?.trim_end().to_owned();
            let json = Some(json!({ "type": "say", "text": text }).to_string());
            Some(AgentEvent { texts: vec![text], json, kind: ("say".to_owned(), None) })
        }
    }

    #[test]
    fn events_that_are_not_json_are_sent_as_json() {
        let id = ExecutionId::random();
        let options = ReaderOptions { framing: Framing::Line, start: 0, events_of: Some(id) };
        let agent: Box<dyn AgentReader> = Box::new(EventReader::new(Spoken, options));
        let offsets = PerStream::default();
        let mut encoder = encoder(OutputOptions { framing: Framing::Line, offsets, agent: Some(agent) });
        encoder.feed(Stream::Stdout, b"SAY hi\n");
        let (sent, _) = all(&mut encoder);
        assert_eq!(sent[0]["event"], json!({ "type": "say", "text": "hi" }));
        assert_eq!(contents(&sent), ["hi\n"]);
    }

    fn text_message(text: &str, parent: Option<&str>) -> String {
        let content = json!([{ "type": "text", "text": text }]);
        json!({ "type": "assistant", "message": { "content": content }, "parent_tool_use_id": parent }).to_string()
            + "\n"
    }

    fn gap(from: u64, to: u64) -> Gap {
        Gap { stream: Stream::Stdout, from, to, reason: GapReason::Overwritten }
    }

    /// The params of all messages so far, and the gaps.
    fn all(text: &mut Box<dyn OutputEncoder>) -> (Vec<Value>, Vec<Gap>) {
        let mut gaps = Vec::new();
        loop {
            match text.step() {
                EventStep::Dry => break,
                EventStep::Done => {}
                EventStep::Gap(gap) => gaps.push(gap),
            }
        }
        let sent = messages(&text.take().0);
        (sent.into_iter().map(|message| message["params"].clone()).collect(), gaps)
    }

    fn contents(sent: &[Value]) -> Vec<&str> {
        sent.iter().filter_map(|params| params["content"].as_str()).collect()
    }

    #[test]
    fn the_offset_moves_with_the_last_piece_of_an_event() {
        let long = "é".repeat(MAX_CONTENT);
        for (framing, text) in [(Framing::Line, "a\nb\nc"), (Framing::Chunk, long.as_str())] {
            let mut events = of_claude(framing, PerStream::default(), None);
            let event = text_message(text, None);
            events.feed(Stream::Stdout, event.as_bytes());
            let mut ends = Vec::new();
            while events.step() == EventStep::Done {
                let (wire, offsets) = events.take();
                ends.extend(messages(&wire).iter().map(|message| message["params"]["end"].as_u64().unwrap()));
                assert_eq!(ends.last().copied().unwrap_or(0), offsets.stdout);
            }
            let (last, before) = ends.split_last().unwrap();
            assert!(before.len() >= 2 && before.iter().all(|end| *end == 0), "{ends:?}");
            assert_eq!(*last, event.len() as u64);
        }
    }

    #[test]
    fn an_event_without_text_does_not_move_the_offset_of_the_next_text() {
        let tool = json!({ "type": "assistant", "message": { "content": [{ "type": "tool_use", "id": "1", "name": "Bash" }] } });
        let answer = json!({ "type": "user", "message": { "content": [{ "type": "tool_result", "tool_use_id": "1", "content": "a\nb" }] } });
        let (first, tool, answer) = (text_message("look", None), format!("{tool}\n"), format!("{answer}\n"));
        let mut events = of_claude(Framing::Line, PerStream::default(), None);
        events.feed(Stream::Stdout, format!("{first}{tool}").as_bytes());
        let (sent, _) = all(&mut events);
        let ends = |sent: &[Value]| sent.iter().map(|params| params["end"].as_u64().unwrap()).collect::<Vec<_>>();
        assert_eq!(ends(&sent), [first.len() as u64]);
        assert_eq!(events.offsets().stdout, (first.len() + tool.len()) as u64, "a ping covers it");
        events.feed(Stream::Stdout, answer.as_bytes());
        let (sent, _) = all(&mut events);
        assert_eq!(contents(&sent), ["a\n", "b\n"]);
        assert_eq!(ends(&sent), [first.len() as u64, (first.len() + tool.len() + answer.len()) as u64]);
    }

    #[test]
    fn the_first_piece_after_a_gap_has_the_offset_of_its_end() {
        let two_lines = text_message("a\nb", None);
        let mut events = of_claude(Framing::Line, PerStream::default(), None);
        events.skip(gap(0, 50));
        events.feed(Stream::Stdout, two_lines.as_bytes());
        let (sent, gaps) = all(&mut events);
        assert_eq!(gaps, [gap(0, 50)]);
        let ends: Vec<_> = sent.iter().map(|params| params["end"].as_u64().unwrap()).collect();
        assert_eq!(ends, [50, 50 + two_lines.len() as u64]);
    }

    #[test]
    fn the_halves_of_two_events_around_a_gap_are_not_joined() {
        let (first, second, third) =
            (text_message("one", None), text_message("two", None), text_message("three", None));
        // Cut in the same place, the first's beginning and the second's rest would be an event.
        let cut = first.len() - 20;
        let at = second.len() - 20;
        let from = cut as u64;
        let to = (first.len() + at) as u64;
        let mut events = of_claude(Framing::Chunk, PerStream::default(), Some(ExecutionId::random()));
        events.feed(Stream::Stdout, &first.as_bytes()[..cut]);
        assert_eq!(all(&mut events), (vec![], vec![]));
        assert!(events.skip(gap(from, to)).is_none());
        events.feed(Stream::Stdout, &second.as_bytes()[at..]);
        events.feed(Stream::Stdout, third.as_bytes());
        let (sent, gaps) = all(&mut events);
        assert_eq!(contents(&sent), ["three\n"]);
        let whole = (first.len() + second.len()) as u64;
        assert_eq!(gaps, [gap(0, whole)], "it begins and ends at events");
        assert_eq!(sent.last().unwrap()["end"], whole + third.len() as u64);
    }

    #[test]
    fn the_text_of_a_subagent_is_an_event_but_not_output() {
        let (own, of_subagent) = (text_message("mine", None), text_message("its own", Some("toolu_1")));
        let mut events = of_claude(Framing::Chunk, PerStream::default(), Some(ExecutionId::random()));
        events.feed(Stream::Stdout, format!("{of_subagent}{own}").as_bytes());
        let (sent, _) = all(&mut events);
        assert_eq!(contents(&sent), ["mine\n"]);
        assert_eq!(sent.iter().filter(|params| params["event"].is_object()).count(), 2);
    }

    #[test]
    fn the_text_of_a_user_message_is_not_output() {
        let content = json!([{ "type": "text", "text": "[Request interrupted by user for tool use]" }]);
        for content in [json!("as a string"), content] {
            let event = json!({ "type": "user", "message": { "role": "user", "content": content } });
            let mut events = of_claude(Framing::Chunk, PerStream::default(), None);
            events.feed(Stream::Stdout, format!("{event}\n").as_bytes());
            assert_eq!(all(&mut events).0, Vec::<Value>::new());
        }
    }

    #[test]
    fn a_last_line_without_newline_counts_only_if_the_execution_ended() {
        let event = text_message("the end", None);
        for (ended, expected) in [(true, vec!["the end\n"]), (false, vec![])] {
            let mut events = of_claude(Framing::Chunk, PerStream::default(), None);
            events.feed(Stream::Stdout, event.trim_end().as_bytes());
            events.finish(ended);
            let (sent, _) = all(&mut events);
            assert_eq!(contents(&sent), expected);
        }
    }
}
