//! The bodies of the fuzzers. The tests of `replay` call them with the inputs of the corpus.
#![allow(dead_code, reason = "each fuzzer uses one of these functions")]

use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use cc_executor::gateway::{
    frame_reader::{FrameReader, Intake},
    message_budget::MessageBudget,
};
use cc_executor_actors::{
    agent::{
        AgentProgress, ReaderOptions,
        claude::{
            ClaudeFormat,
            progress::{EXIT_PATIENCE, ProgressTracker},
        },
        reader::EventReader,
    },
    backend_api::multiplex::{Decoder, StreamPart},
    backend_client::body_end::BodyTracker,
    client::ClientName,
    id::ExecutionId,
    output::{AgentReader, EventStep, OutputEncoder, OutputOptions, json_lines},
    protocol::{Framing, Limits, Method},
    rpc,
    session::phase::Incoming,
    stream::{PerStream, Stream},
    ws,
};
use futures_util::{FutureExt, StreamExt, stream};
use serde_json::Value;

/// The longest message that is accepted, in bytes.
const LIMIT: usize = 10_000;

/// Cuts the input, after its first byte, into pieces of the length that this byte gives.
fn pieces(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (size, rest) = data.split_first().map_or((1, data), |(first, rest)| (usize::from(*first) + 1, rest));
    rest.chunks(size)
}

/// WebSocket frames from a client, cut anywhere, and the calls in them: nothing panics, no message exceeds the limit, and
/// each call is parsed or answered with an error.
pub fn input(data: &[u8]) {
    let payload: Vec<_> = pieces(data).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let budget = MessageBudget::new(1 << 30);
    let intake = Intake { budget, client: ClientName::anonymous(), patience: Duration::from_secs(60) };
    let read = FrameReader::new(stream::iter(payload), LIMIT, intake).into_stream().collect::<Vec<_>>().now_or_never();
    let incoming = read.expect("the whole input is available");
    assert!(matches!(incoming.last(), Some(Incoming::Gone)), "the connection ends once");
    for text in incoming.iter().filter_map(|incoming| match incoming {
        Incoming::Text(text) => Some(text),
        _ => None,
    }) {
        assert!(text.len() <= LIMIT);
        match rpc::parse(text) {
            Ok(call) => drop(Method::parse(call, &Limits::default())),
            Err(response) => assert!(response.outcome.is_err()),
        }
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(call) = rpc::parse(text)
    {
        let _ = Method::parse(call, &Limits::default());
    }
}

/// A multiplexed stream gives the same output and events, wherever it is cut.
pub fn multiplex(data: &[u8]) {
    let whole = decode(std::iter::once(data.get(1..).unwrap_or_default()));
    let cut = decode(pieces(data));
    assert_eq!(whole, cut);
}

/// The bytes of both streams, the events as JSON, and whether decoding ended in an error.
fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (PerStream<Vec<u8>>, Vec<Bytes>, bool) {
    let mut decoder = Decoder::default();
    let (mut output, mut events) = (PerStream::<Vec<u8>>::default(), Vec::new());
    for piece in pieces {
        decoder.push(Bytes::copy_from_slice(piece));
        loop {
            match decoder.next_part() {
                Ok(Some(StreamPart::Output(stream, bytes))) => output.get_mut(stream).extend_from_slice(&bytes),
                Ok(Some(StreamPart::Event(event))) => events.push(event),
                Ok(None) => break,
                Err(_) => return (output, events, true),
            }
        }
    }
    (output, events, false)
}

/// Whether the body of a response is complete does not depend on where the response is cut.
pub fn body_end(data: &[u8]) {
    let mut whole = BodyTracker::default();
    whole.follow(data.get(1..).unwrap_or_default());
    let mut cut = BodyTracker::default();
    for piece in pieces(data) {
        cut.follow(piece);
    }
    assert_eq!(whole.is_complete(), cut.is_complete());
}

/// The encoder of a WebSocket client that starts at offset 0.
fn encoder_of(framing: Framing, agent: Option<Box<dyn AgentReader>>) -> Box<dyn OutputEncoder> {
    ws::encoder::encoder(OutputOptions { framing, offsets: PerStream::default(), agent })
}

/// The encoder for WebSocket clients loses, adds and moves no byte, in either framing.
pub fn text(data: &[u8]) {
    for framing in [Framing::Chunk, Framing::Line] {
        let mut encoder = encoder_of(framing, None);
        let sent = feed(&mut *encoder, data);
        let (wire, offsets) = encoder.take();
        assert_eq!(offsets, sent.as_lengths());
        let mut got = PerStream::<Vec<u8>>::default();
        for message in frames(&wire) {
            take(&message["params"], &mut got);
        }
        assert_eq!(got, sent.0);
    }
}

/// The same for the encoder of JSON lines.
pub fn json_lines(data: &[u8]) {
    let mut encoder = json_lines::encoder(PerStream::default());
    let sent = feed(&mut encoder, data);
    let (wire, _) = encoder.take();
    let mut got = PerStream::<Vec<u8>>::default();
    for line in wire.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let message: Value = serde_json::from_slice(line).expect("a line is JSON");
        take(&message["output"], &mut got);
    }
    assert_eq!(got, sent.0);
}

/// Claude's events give the same text, offsets, progress and outcome, wherever their stream is cut.
pub fn claude(data: &[u8]) {
    let whole = data.get(1..).unwrap_or_default();
    assert_eq!(events(std::iter::once(whole)), events(pieces(data)));
    let now = Instant::now();
    let (mut once, mut cut) = (ProgressTracker::new(EXIT_PATIENCE, now), ProgressTracker::new(EXIT_PATIENCE, now));
    once.push_stdout(whole, now);
    for piece in pieces(data) {
        cut.push_stdout(piece, now);
    }
    assert_eq!(once.exit_due(None), cut.exit_due(None));
    once.finish(now);
    cut.finish(now);
    assert_eq!((once.activity(), once.result()), (cut.activity(), cut.result()));
}

/// The concatenated text of all messages.
fn events<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let execution_id = Some(ExecutionId::random());
    let reader = EventReader::new(
        ClaudeFormat::default(),
        ReaderOptions { framing: Framing::Chunk, start: 0, events_of: execution_id },
    );
    let mut encoder = encoder_of(Framing::Chunk, Some(Box::new(reader)));
    let (mut text_sent, mut n_fed, mut end) = (Vec::new(), 0, 0);
    let mut step = |encoder: &mut dyn OutputEncoder| {
        while encoder.step() == EventStep::Done {}
        let (wire, offsets) = encoder.take();
        for message in raw_frames(&wire) {
            let Ok(message) = serde_json::from_slice::<Value>(message) else { continue };
            if message["method"] == "output" {
                text_sent.extend(content(&message["params"]));
            }
            let now = message["params"]["end"].as_u64().expect("an end");
            assert!(now >= end, "an end never goes back");
            end = if message["method"] == "output" { now } else { end };
        }
        offsets.stdout
    };
    for piece in pieces {
        encoder.feed(Stream::Stdout, piece);
        n_fed += piece.len() as u64;
        assert!(step(&mut *encoder) <= n_fed);
    }
    encoder.finish(true);
    assert_eq!(step(&mut *encoder), n_fed);
    text_sent
}

/// The bytes that were fed to an encoder.
struct SentBytes(PerStream<Vec<u8>>);

impl SentBytes {
    fn as_lengths(&self) -> PerStream<u64> {
        PerStream { stdout: self.0.stdout.len() as u64, stderr: self.0.stderr.len() as u64 }
    }
}

/// Feeds the input in pieces, every fifth one to standard error.
fn feed(encoder: &mut dyn OutputEncoder, data: &[u8]) -> SentBytes {
    let mut sent = PerStream::<Vec<u8>>::default();
    for (n, piece) in pieces(data).enumerate() {
        let stream = if n % 5 == 4 { Stream::Stderr } else { Stream::Stdout };
        encoder.feed(stream, piece);
        sent.get_mut(stream).extend_from_slice(piece);
        if n % 7 == 3 {
            encoder.flush_quiet(stream);
        }
    }
    encoder.finish(true);
    SentBytes(sent)
}

/// The messages in the frames of a server.
fn frames(wire: &[u8]) -> Vec<Value> {
    raw_frames(wire).into_iter().map(|frame| serde_json::from_slice(frame).expect("a message is JSON")).collect()
}

/// The payloads of the frames of a server.
fn raw_frames(mut wire: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some((head, _)) = wire.split_first_chunk::<2>() {
        let (header, length) = match head[1] {
            126 => (4, usize::from(u16::from_be_bytes([wire[2], wire[3]]))),
            127 => (10, u64::from_be_bytes(wire[2..10].try_into().expect("eight bytes")) as usize),
            short => (2, usize::from(short)),
        };
        found.push(&wire[header..header + length]);
        wire = &wire[header + length..];
    }
    found
}

fn content(params: &Value) -> Vec<u8> {
    match params["content"].as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => STANDARD.decode(params["contentBase64"].as_str().expect("a content")).expect("base64"),
    }
}

fn take(params: &Value, got: &mut PerStream<Vec<u8>>) {
    let stream = if params["type"] == "stdout" { Stream::Stdout } else { Stream::Stderr };
    let got = got.get_mut(stream);
    got.extend(content(params));
    assert_eq!(params["end"], got.len());
}
