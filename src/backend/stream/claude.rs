//! The format of `POST /execute/claude-stream`, for callers of the legacy image: Claude's events as they came, then the
//! ending.
//!
//! All other output becomes an event of type `output`, so that every line is JSON. Bytes that are not UTF-8 are written
//! as base64, and lost bytes as a `gap`.

use base64::{Engine, engine::general_purpose::STANDARD};
use cc_executor_actors::{
    agent::{
        claude::ClaudeEvent,
        lines::{EventLine, LineSplitter},
    },
    id::ExecutionId,
    outcome::{Outcome, Status},
    output::partial_char,
    stream::{Gap, PerStream, Stream},
};
use serde_json::{Value, json};

/// Formats the output of Claude. Holds incomplete lines and characters.
#[derive(Default)]
pub(super) struct EventFormatter {
    lines: LineSplitter,
    /// Incomplete characters of output that is not an event.
    carry: PerStream<Vec<u8>>,
}

impl EventFormatter {
    /// The lines that this output completes.
    pub(super) fn output(&mut self, stream: Stream, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        if stream == Stream::Stderr {
            self.write_output(stream, bytes, &mut out);
            return out;
        }
        self.lines.push(bytes);
        while let Some(line) = self.lines.pop() {
            self.line(&line, &mut out);
        }
        out
    }

    /// A gap. Incomplete output before it is written first, so that it is not joined with output after the gap.
    pub(super) fn gap(&mut self, gap: Gap) -> Vec<u8> {
        let mut out = Vec::new();
        self.rest(gap.stream, &mut out);
        let Gap { stream, from, to, reason } = gap;
        push(json!({ "type": "gap", "stream": stream, "from": from, "to": to, "reason": reason }), &mut out);
        out
    }

    /// The last lines: incomplete output, and the ending.
    pub(super) fn complete(&mut self, id: ExecutionId, ending: &Outcome) -> Vec<u8> {
        let mut out = Vec::new();
        for stream in Stream::BOTH {
            self.rest(stream, &mut out);
        }
        let status = match ending.status {
            Status::Completed => "success",
            Status::Cancelled => "cancelled",
            _ => "error",
        };
        let last = json!({
            "type": "complete", "execution_id": id, "status": status, "exit_code": ending.exit_code,
            "signal": ending.signal, "reason": ending.reason, "message": ending.message, "result": ending.result,
        });
        push(last, &mut out);
        out
    }

    fn line(&mut self, line: &EventLine, out: &mut Vec<u8>) {
        match line {
            EventLine::Whole(bytes) if ClaudeEvent::parse(bytes).is_some() => {
                out.extend_from_slice(bytes);
                if !bytes.ends_with(b"\n") {
                    out.push(b'\n');
                }
            }
            EventLine::Whole(bytes) | EventLine::Piece(bytes) => self.write_output(Stream::Stdout, bytes, out),
        }
    }

    fn write_output(&mut self, stream: Stream, bytes: &[u8], out: &mut Vec<u8>) {
        let carry = self.carry.get_mut(stream);
        carry.extend_from_slice(bytes);
        let rest = carry.split_off(carry.len() - partial_char(carry));
        output(stream, &std::mem::replace(carry, rest), out);
    }

    /// Writes the incomplete output of a stream.
    fn rest(&mut self, stream: Stream, out: &mut Vec<u8>) {
        if stream == Stream::Stdout
            && let Some(line) = self.lines.rest()
        {
            self.line(&line, out);
        }
        output(stream, &std::mem::take(self.carry.get_mut(stream)), out);
    }
}

/// Writes output that is not an event.
fn output(stream: Stream, bytes: &[u8], out: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    push(
        match std::str::from_utf8(bytes) {
            Ok(text) => json!({ "type": "output", "stream": stream, "content": text }),
            Err(_) => json!({ "type": "output", "stream": stream, "contentBase64": STANDARD.encode(bytes) }),
        },
        out,
    );
}

fn push(line: Value, out: &mut Vec<u8>) {
    out.extend_from_slice(line.to_string().as_bytes());
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use cc_executor_actors::{agent::lines::MAX_LINE, outcome::Reason, stream::GapReason};

    use super::*;

    fn read(lines: &[u8]) -> Vec<Value> {
        std::str::from_utf8(lines).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn complete(events: &mut EventFormatter) -> Vec<Value> {
        let ending = Outcome::without_process(Status::Completed, Reason::Exit, None);
        let mut lines = read(&events.complete(ExecutionId::random(), &ending));
        assert_eq!(lines.pop().unwrap()["status"], "success");
        lines
    }

    #[test]
    fn a_character_that_is_cut_in_two_is_whole() {
        let mut events = EventFormatter::default();
        let mut written = read(&events.output(Stream::Stderr, b"caf\xc3"));
        written.extend(read(&events.output(Stream::Stderr, b"\xa9 \xe2\x82")));
        written.extend(read(&events.output(Stream::Stderr, b"\xac\n")));
        let contents: String = written.iter().map(|line| line["content"].as_str().unwrap()).collect();
        assert_eq!(contents, "café €\n");
        // A line of odd length is cut in a character.
        let long = format!("x{}\n", "é".repeat(MAX_LINE / 2));
        let written = read(&events.output(Stream::Stdout, long.as_bytes()));
        let contents: String = written.iter().map(|line| line["content"].as_str().unwrap()).collect();
        assert!(written.len() == 2 && contents == long, "{} messages, {} bytes", written.len(), contents.len());
        assert_eq!(complete(&mut events), Vec::<Value>::new());
    }

    #[test]
    fn output_that_is_not_utf8_is_base64() {
        let mut events = EventFormatter::default();
        let written = read(&events.output(Stream::Stderr, b"\xff\n\xc3"));
        assert_eq!(written, [json!({ "type": "output", "stream": "stderr", "contentBase64": "/wo=" })]);
        assert_eq!(complete(&mut events), [json!({ "type": "output", "stream": "stderr", "contentBase64": "ww==" })]);
    }

    #[test]
    fn a_gap_is_written_in_its_place_and_output_is_not_joined_over_it() {
        let mut events = EventFormatter::default();
        assert_eq!(read(&events.output(Stream::Stdout, br#"{"type":"#)), Vec::<Value>::new());
        let gap = Gap { stream: Stream::Stdout, from: 8, to: 20, reason: GapReason::Dropped };
        let mut written = read(&events.gap(gap));
        written.extend(read(&events.output(Stream::Stdout, b"\"a\"}\n{\"type\":\"b\"}\n")));
        assert_eq!(
            written,
            [
                json!({ "type": "output", "stream": "stdout", "content": "{\"type\":" }),
                json!({ "type": "gap", "stream": "stdout", "from": 8, "to": 20, "reason": "dropped" }),
                json!({ "type": "output", "stream": "stdout", "content": "\"a\"}\n" }),
                json!({ "type": "b" }),
            ]
        );
    }
}
