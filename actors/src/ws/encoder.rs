//! Output as WebSocket text frames, each with one JSON-RPC notification.

use crate::{
    id::ExecutionId,
    output::{
        OutputEncoder, OutputOptions,
        message::{MessageFormat, push_end},
        splitter::Splitter,
    },
    stream::Stream,
    ws::frame::{self, OpenFrame},
};

/// The format of a notification in a WebSocket frame.
#[derive(Clone, Copy, Debug, Default)]
struct FrameFormat;

/// The encoder of a WebSocket client.
pub fn encoder(options: OutputOptions) -> Box<dyn OutputEncoder> {
    Box::new(Splitter::new(FrameFormat, options))
}

impl FrameFormat {
    /// Begins a frame with this prefix and about `len` bytes of content.
    #[inline]
    fn begin(out: &mut Vec<u8>, prefix: &[u8], len: usize) -> OpenFrame {
        // The offset and the braces after the content take about 16 bytes.
        let frame = frame::begin_text(out, prefix.len() + len + 16);
        out.extend_from_slice(prefix);
        frame
    }
}

impl MessageFormat for FrameFormat {
    type Open = OpenFrame;

    #[inline]
    fn begin_text(&self, out: &mut Vec<u8>, stream: Stream, len: usize) -> OpenFrame {
        let prefix: &[u8] = match stream {
            Stream::Stdout => br#"{"jsonrpc":"2.0","method":"output","params":{"type":"stdout","content":""#,
            Stream::Stderr => br#"{"jsonrpc":"2.0","method":"output","params":{"type":"stderr","content":""#,
        };
        FrameFormat::begin(out, prefix, len)
    }

    #[inline]
    fn begin_base64(&self, out: &mut Vec<u8>, stream: Stream, len: usize) -> OpenFrame {
        let prefix: &[u8] = match stream {
            Stream::Stdout => br#"{"jsonrpc":"2.0","method":"output","params":{"type":"stdout","contentBase64":""#,
            Stream::Stderr => br#"{"jsonrpc":"2.0","method":"output","params":{"type":"stderr","contentBase64":""#,
        };
        FrameFormat::begin(out, prefix, len * 4 / 3)
    }

    #[inline]
    fn end(&self, out: &mut Vec<u8>, open: OpenFrame, end: u64) {
        push_end(out, end);
        frame::end_text(out, open);
    }

    fn event(&self, out: &mut Vec<u8>, id: ExecutionId, json: &str, end: u64) {
        frame::write_text(out, json.len() + 150, |out| {
            out.extend_from_slice(br#"{"jsonrpc":"2.0","method":"event","params":{"executionId":""#);
            out.extend_from_slice(id.to_string().as_bytes());
            out.extend_from_slice(br#"","event":"#);
            out.extend_from_slice(json.as_bytes());
            out.extend_from_slice(br#","end":"#);
            out.extend_from_slice(itoa::Buffer::new().format(end).as_bytes());
            out.extend_from_slice(b"}}");
        });
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use base64::{Engine, engine::general_purpose::STANDARD};

    use super::*;
    use crate::{
        output::{MAX_CONTENT, OutputEncoder},
        protocol::{Framing, notification::OutputNotice},
        stream::{Gap, GapReason, PerStream},
    };

    /// Reads frames back as a client would.
    pub fn messages(mut wire: &[u8]) -> Vec<Value> {
        let mut found = Vec::new();
        while !wire.is_empty() {
            assert_eq!(wire[0], 0x81);
            let (header, len) = match wire[1] {
                127 => (10, u64::from_be_bytes(wire[2..10].try_into().unwrap()) as usize),
                126 => (4, usize::from(u16::from_be_bytes(wire[2..4].try_into().unwrap()))),
                short => (2, usize::from(short)),
            };
            found.push(serde_json::from_slice(&wire[header..header + len]).expect("a message is JSON"));
            wire = &wire[header + len..];
        }
        found
    }

    /// Reads what the encoder has written by hand with the derived type.
    fn content(message: &Value) -> (Stream, Vec<u8>, u64) {
        let params = message["params"].to_string();
        let notice: OutputNotice<'_> = serde_json::from_str(&params).unwrap();
        assert_eq!(serde_json::to_value(&notice).unwrap(), message["params"], "there is no other field");
        let OutputNotice { r#type, content, content_base64, end } = notice;
        let bytes = match (content, content_base64) {
            (Some(text), None) => text.as_bytes().to_vec(),
            (None, Some(base64)) => STANDARD.decode(&*base64).unwrap(),
            both => panic!("one of the two forms: {both:?}"),
        };
        assert!(!bytes.is_empty(), "no empty messages");
        assert!(bytes.len() <= MAX_CONTENT);
        (r#type, bytes, end)
    }

    fn encoder_of(framing: Framing, offsets: PerStream<u64>) -> Box<dyn OutputEncoder> {
        encoder(OutputOptions { framing, offsets, agent: None })
    }

    fn run(framing: Framing, pieces: &[(Stream, Vec<u8>)], take_every: usize) -> Vec<Value> {
        let mut text = encoder_of(framing, PerStream::default());
        let mut wire = Vec::new();
        for (n, (stream, piece)) in pieces.iter().enumerate() {
            text.feed(*stream, piece);
            if n % take_every == 0 {
                wire.extend(text.take().0);
            }
        }
        text.finish(true);
        wire.extend(text.take().0);
        messages(&wire)
    }

    fn check(framing: Framing, pieces: &[(Stream, Vec<u8>)], take_every: usize) {
        let mut sent: PerStream<Vec<u8>> = PerStream::default();
        for (stream, piece) in pieces {
            sent.get_mut(*stream).extend_from_slice(piece);
        }
        let mut got: PerStream<Vec<u8>> = PerStream::default();
        for message in run(framing, pieces, take_every) {
            let (stream, bytes, end) = content(&message);
            if framing == Framing::Line {
                let newline = bytes.iter().position(|b| *b == b'\n');
                assert!(newline.is_none_or(|at| at == bytes.len() - 1), "one line in a message");
            }
            got.get_mut(stream).extend(bytes);
            assert_eq!(got.get(stream).len() as u64, end);
        }
        assert_eq!(got, sent);
    }

    /// Text with characters of every length, control characters, newlines, and bytes that are no text.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            "[a-z\n\"\\\\\u{1}]{0,40}".prop_map(String::into_bytes),
            "[é€😀\n]{0,20}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..20),
        ]
    }

    fn pieces() -> impl Strategy<Value = Vec<(Stream, Vec<u8>)>> {
        let stream = prop_oneof![3 => Just(Stream::Stdout), 1 => Just(Stream::Stderr)];
        prop::collection::vec((stream, bytes()), 0..30)
    }

    proptest! {
        #[test]
        fn the_contents_are_the_stream(pieces in pieces(), every in 1usize..5) {
            check(Framing::Chunk, &pieces, every);
            check(Framing::Line, &pieces, every);
        }

        #[test]
        fn text_cut_anywhere_is_never_sent_as_base64(text in "[aé€😀\n]{1,60}", cut in 0usize..200, framing in 0..2) {
            let cut = cut.min(text.len());
            let (a, b) = text.as_bytes().split_at(cut);
            let pieces = [(Stream::Stdout, a.to_vec()), (Stream::Stdout, b.to_vec())];
            let framing = if framing == 0 { Framing::Chunk } else { Framing::Line };
            for message in run(framing, &pieces, 1) {
                prop_assert!(message["params"]["content"].is_string());
            }
        }
    }

    #[test]
    fn a_long_stream_is_cut_at_the_limit_and_between_characters() {
        for unit in ["x", "é", "€", "😀", "xé€😀"] {
            for newline in ["", "\n"] {
                let long = (unit.repeat(200_000 / unit.len()) + newline).into_bytes();
                for framing in [Framing::Chunk, Framing::Line] {
                    for size in [1_000, 8_191, 65_536, 300_000] {
                        let pieces: Vec<_> = long.chunks(size).map(|p| (Stream::Stdout, p.to_vec())).collect();
                        check(framing, &pieces, 3);
                        let sent = run(framing, &pieces, 1_000);
                        assert!(sent.iter().all(|m| m["params"]["content"].is_string()));
                        assert!(sent.len() <= 5, "{} messages for 200 000 bytes in {framing:?}", sent.len());
                    }
                }
            }
        }
    }

    #[test]
    fn a_quiet_line_is_released_without_its_incomplete_character() {
        let mut text = encoder_of(Framing::Line, PerStream::default());
        text.feed(Stream::Stdout, b"prompt> \xe2\x82");
        assert_eq!(text.take().0.len(), 0);
        assert!(text.has_unfinished_line(Stream::Stdout));
        text.flush_quiet(Stream::Stdout);
        assert!(!text.has_unfinished_line(Stream::Stdout));
        assert_eq!(content(&messages(&text.take().0)[0]).1, b"prompt> ");
        text.feed(Stream::Stdout, b"\xac\n");
        assert_eq!(content(&messages(&text.take().0)[0]).1, "€\n".as_bytes());
    }

    #[test]
    fn the_offsets_continue_at_the_end_of_a_gap() {
        let mut text = encoder_of(Framing::Line, PerStream { stdout: 10, stderr: 0 });
        text.feed(Stream::Stdout, b"half a li");
        let gap = Gap { stream: Stream::Stdout, from: 19, to: 100, reason: GapReason::Dropped };
        assert_eq!(text.skip(gap), Some(gap));
        text.feed(Stream::Stdout, b"whole\n");
        let ends: Vec<_> = messages(&text.take().0).iter().map(|message| content(message).2).collect();
        assert_eq!(ends, [19, 106]);
    }

    #[test]
    fn a_binary_stream_is_sent_in_large_pieces() {
        let noise: Vec<u8> = (0..200_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let sent = run(Framing::Chunk, &[(Stream::Stdout, noise)], 1);
        assert!(sent.len() <= 5, "{} messages", sent.len());
    }
}
