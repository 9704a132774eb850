//! Claude's events on their way to a client: their texts become output, the events themselves are told
//! where they are wanted.
//!
//! The offsets of this stream count the events, not the texts: a message's `end` moves only with the last
//! piece of an event's text. So whoever attaches again gets each event whole.

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use bytes::Bytes;

use super::{
    ClaudeEvent, EventPart,
    lines::{EventLine, LineSplitter},
    progress::ProgressTracker,
};
use crate::{
    agent::ReaderOptions,
    id::ExecutionId,
    output::{AgentReader, EventSink, EventStep, MAX_CONTENT, cut_before_char},
    protocol::{Framing, MAX_MESSAGE_TO_CLIENT},
    stream::Gap,
};

/// What is around an event in its message, and more, in bytes.
const AROUND: usize = 1_024;

/// One execution's events, from the backend's bytes to messages.
pub struct EventReader {
    lines: LineSplitter,
    framing: Framing,
    /// Whose events are told, if they are wanted.
    wanted: Option<ExecutionId>,
    /// What follows the events, where that is done in this process and nowhere else.
    progress: Option<Rc<RefCell<ProgressTracker>>>,
    /// The offset after the newest line that was taken.
    taken: u64,
    /// The `end` that the client has been told. Lines without text move `taken`, and what is asked about by
    /// pings, at once; this moves with the last piece of a text, or with a gap.
    said: u64,
    /// A line that waits for a gap to be told first.
    held: Option<EventLine>,
    /// What the newest line says, as far as it is not encoded.
    texts: VecDeque<Bytes>,
    gap: Option<Gap>,
    ended: bool,
}

impl EventReader {
    /// A reader of the events after offset `start`, which also updates this progress.
    pub fn new(options: ReaderOptions, progress: Option<Rc<RefCell<ProgressTracker>>>) -> Self {
        let ReaderOptions { framing, start, told_as } = options;
        EventReader {
            lines: LineSplitter::default(),
            framing,
            wanted: told_as,
            progress,
            taken: start,
            said: start,
            held: None,
            texts: VecDeque::new(),
            gap: None,
            ended: false,
        }
    }

    fn take(&mut self, line: EventLine, sink: &mut dyn EventSink) -> EventStep {
        let (EventLine::Whole(bytes) | EventLine::Piece(bytes)) = &line;
        let event = if matches!(line, EventLine::Whole(_)) { ClaudeEvent::parse(bytes) } else { None };
        if let Some(gap) = self.gap.take() {
            if event.is_some() {
                drop(event);
                self.held = Some(line);
                return EventStep::Gap(self.missed(gap, sink));
            }
            // The rest of a line that was cut off is of no use.
            self.taken += bytes.len() as u64;
            return EventStep::Gap(self.missed(Gap { to: self.taken, ..gap }, sink));
        }
        if let Some(progress) = &self.progress {
            progress.borrow_mut().on_line(&line, event.as_ref());
        }
        self.taken += bytes.len() as u64;
        match &event {
            None => self.texts.push_back(bytes.clone()),
            Some(event) => {
                if let Some(id) = self.wanted {
                    tell(event, id, self.taken, sink);
                }
                if !event.is_of_subagent() {
                    self.texts.extend(event.parts().into_iter().filter_map(text_of));
                }
            }
        }
        if self.texts.is_empty() {
            sink.advance(self.taken);
        }
        EventStep::Done
    }

    fn missed(&mut self, gap: Gap, sink: &mut dyn EventSink) -> Gap {
        sink.advance(gap.to);
        self.said = gap.to;
        gap
    }

    /// Encodes the first piece of a text; the rest of it is next.
    fn encode_text(&mut self, mut text: Bytes, sink: &mut dyn EventSink) {
        let line_end = || memchr::memchr(b'\n', &text).map_or(text.len(), |at| at + 1);
        let end = if self.framing == Framing::Line { line_end() } else { text.len() };
        let end = if end > MAX_CONTENT { cut_before_char(&text, MAX_CONTENT) } else { end };
        let piece = text.split_to(end);
        if !text.is_empty() {
            self.texts.push_front(text);
        }
        if self.texts.is_empty() {
            sink.advance(self.taken);
            self.said = self.taken;
        }
        sink.text(&piece, self.said);
    }
}

impl AgentReader for EventReader {
    fn feed(&mut self, bytes: &[u8]) {
        self.lines.push(bytes);
    }

    fn skip(&mut self, gap: Gap) {
        self.lines.rest();
        let from = self.gap.map_or(self.taken, |before| before.from);
        self.gap = Some(Gap { from, ..gap });
        self.taken = gap.to;
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
        let rest = |lines: &mut LineSplitter, ended| if ended { lines.rest() } else { None };
        match self.held.take().or_else(|| self.lines.pop()).or_else(|| rest(&mut self.lines, self.ended)) {
            Some(line) => self.take(line, sink),
            None if self.ended => self.gap.take().map_or(EventStep::Dry, EventStep::Gap),
            None => EventStep::Dry,
        }
    }
}

/// A text that is output: each ends in a newline.
fn text_of(part: EventPart) -> Option<Bytes> {
    let (EventPart::Text(mut text) | EventPart::ToolResult { mut text, .. }) = part else { return None };
    if text.is_empty() {
        return None;
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Some(text.into())
}

/// Tells an event as it came, or what it was where it is too long for a message.
fn tell(event: &ClaudeEvent<'_>, id: ExecutionId, end: u64, sink: &mut dyn EventSink) {
    let json = event.json();
    if json.len() + AROUND <= MAX_MESSAGE_TO_CLIENT {
        return sink.event(id, json, end);
    }
    let brief = |text: &str| text[..text.floor_char_boundary(80)].to_owned();
    let (kind, subtype) = (brief(&event.kind), event.subtype().map(|subtype| brief(&subtype)));
    let omitted = serde_json::json!({ "type": kind, "subtype": subtype, "omitted": json.len() });
    sink.event(id, &omitted.to_string(), end);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        output::{OutputEncoder, OutputOptions},
        stream::{GapReason, PerStream, Stream},
        ws::encoder::{encoder, tests::messages},
    };

    fn of_claude(framing: Framing, offsets: PerStream<u64>, wanted: Option<ExecutionId>) -> Box<dyn OutputEncoder> {
        let agent: Box<dyn AgentReader> = {
            let options = ReaderOptions { framing, start: offsets.stdout, told_as: wanted };
            Box::new(EventReader::new(options, None))
        };
        encoder(OutputOptions { framing, offsets, agent: Some(agent) })
    }

    fn text_message(text: &str, parent: Option<&str>) -> String {
        let content = json!([{ "type": "text", "text": text }]);
        json!({ "type": "assistant", "message": { "content": content }, "parent_tool_use_id": parent }).to_string()
            + "\n"
    }

    fn gap(from: u64, to: u64) -> Gap {
        Gap { stream: Stream::Stdout, from, to, reason: GapReason::Overwritten }
    }

    /// Everything that can be said now: the messages' params, and the gaps.
    fn all(text: &mut Box<dyn OutputEncoder>) -> (Vec<Value>, Vec<Gap>) {
        let mut gaps = Vec::new();
        loop {
            match text.step() {
                EventStep::Dry => break,
                EventStep::Done => {}
                EventStep::Gap(gap) => gaps.push(gap),
            }
        }
        let said = messages(&text.take().0);
        (said.into_iter().map(|message| message["params"].clone()).collect(), gaps)
    }

    fn contents(said: &[Value]) -> Vec<&str> {
        said.iter().filter_map(|params| params["content"].as_str()).collect()
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
    fn an_event_without_text_does_not_move_the_offset_of_the_next_ones_first_piece() {
        let tool = json!({ "type": "assistant", "message": { "content": [{ "type": "tool_use", "id": "1", "name": "Bash" }] } });
        let answer = json!({ "type": "user", "message": { "content": [{ "type": "tool_result", "tool_use_id": "1", "content": "a\nb" }] } });
        let (first, tool, answer) = (text_message("look", None), format!("{tool}\n"), format!("{answer}\n"));
        let mut events = of_claude(Framing::Line, PerStream::default(), None);
        events.feed(Stream::Stdout, format!("{first}{tool}").as_bytes());
        let (said, _) = all(&mut events);
        let ends = |said: &[Value]| said.iter().map(|params| params["end"].as_u64().unwrap()).collect::<Vec<_>>();
        assert_eq!(ends(&said), [first.len() as u64]);
        assert_eq!(events.offsets().stdout, (first.len() + tool.len()) as u64, "it has arrived all the same");
        events.feed(Stream::Stdout, answer.as_bytes());
        let (said, _) = all(&mut events);
        assert_eq!(contents(&said), ["a\n", "b\n"]);
        assert_eq!(ends(&said), [first.len() as u64, (first.len() + tool.len() + answer.len()) as u64]);
    }

    #[test]
    fn after_a_gap_the_first_piece_stands_where_the_gap_ends() {
        let two_lines = text_message("a\nb", None);
        let mut events = of_claude(Framing::Line, PerStream::default(), None);
        events.skip(gap(0, 50));
        events.feed(Stream::Stdout, two_lines.as_bytes());
        let (said, gaps) = all(&mut events);
        assert_eq!(gaps, [gap(0, 50)]);
        let ends: Vec<_> = said.iter().map(|params| params["end"].as_u64().unwrap()).collect();
        assert_eq!(ends, [50, 50 + two_lines.len() as u64]);
    }

    #[test]
    fn what_a_gap_left_of_two_events_does_not_become_one() {
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
        let (said, gaps) = all(&mut events);
        assert_eq!(contents(&said), ["three\n"]);
        let whole = (first.len() + second.len()) as u64;
        assert_eq!(gaps, [gap(0, whole)], "it begins and ends where events do");
        assert_eq!(said.last().unwrap()["end"], whole + third.len() as u64);
    }

    #[test]
    fn what_subagents_say_is_an_event_and_no_output() {
        let (own, of_subagent) = (text_message("mine", None), text_message("its own", Some("toolu_1")));
        let mut events = of_claude(Framing::Chunk, PerStream::default(), Some(ExecutionId::random()));
        events.feed(Stream::Stdout, format!("{of_subagent}{own}").as_bytes());
        let (said, _) = all(&mut events);
        assert_eq!(contents(&said), ["mine\n"]);
        assert_eq!(said.iter().filter(|params| params["event"].is_object()).count(), 2);
    }

    #[test]
    fn what_a_person_or_the_cli_itself_says_is_no_output() {
        let content = json!([{ "type": "text", "text": "[Request interrupted by user for tool use]" }]);
        for content in [json!("as a string"), content] {
            let event = json!({ "type": "user", "message": { "role": "user", "content": content } });
            let mut events = of_claude(Framing::Chunk, PerStream::default(), None);
            events.feed(Stream::Stdout, format!("{event}\n").as_bytes());
            assert_eq!(all(&mut events).0, Vec::<Value>::new());
        }
    }

    #[test]
    fn a_last_line_without_newline_counts_only_where_the_execution_ended() {
        let event = text_message("the end", None);
        for (ended, expected) in [(true, vec!["the end\n"]), (false, vec![])] {
            let mut events = of_claude(Framing::Chunk, PerStream::default(), None);
            events.feed(Stream::Stdout, event.trim_end().as_bytes());
            events.finish(ended);
            let (said, _) = all(&mut events);
            assert_eq!(contents(&said), expected);
        }
    }
}
