//! Writes output and events in the format of a stream.

use cc_executor_actors::{
    backend_api::{BackendEvent, multiplex},
    id::ExecutionId,
    output::{
        OutputEncoder,
        json_lines::{self, JsonLines},
        splitter::Splitter,
    },
    stream::PerStream,
};

use super::{claude::EventFormatter, format::StreamFormat, stored::StreamItem};

/// The encoder of one stream.
pub(super) enum StreamEncoder {
    Plain,
    Multiplexed,
    Ndjson(Box<Splitter<JsonLines>>),
    Claude(Box<EventFormatter>, ExecutionId),
}

impl StreamEncoder {
    /// The encoder of a stream that begins at these offsets.
    pub(super) fn new(format: StreamFormat, id: ExecutionId, offsets: PerStream<u64>) -> Self {
        match format {
            StreamFormat::Plain => StreamEncoder::Plain,
            StreamFormat::Multiplexed => StreamEncoder::Multiplexed,
            StreamFormat::Ndjson => StreamEncoder::Ndjson(Box::new(json_lines::encoder(offsets))),
            StreamFormat::Claude => StreamEncoder::Claude(Box::default(), id),
        }
    }

    /// The bytes of one item. Empty if the format does not show the item, or shows it only together with the next one.
    pub(super) fn encode(&mut self, item: StreamItem) -> Vec<u8> {
        match (self, item) {
            (StreamEncoder::Plain, StreamItem::Output { bytes, .. }) => bytes.into(),
            (StreamEncoder::Plain, StreamItem::Event(_)) => Vec::new(),
            (StreamEncoder::Multiplexed, StreamItem::Output { stream, bytes }) => {
                [&multiplex::header(stream, length(&bytes)), &bytes[..]].concat()
            }
            (StreamEncoder::Multiplexed, StreamItem::Event(event)) => {
                let event = json(&event);
                [&multiplex::event_header(length(&event)), &event[..]].concat()
            }
            (StreamEncoder::Ndjson(lines), StreamItem::Output { stream, bytes }) => {
                lines.feed(stream, &bytes);
                lines.take().0
            }
            (StreamEncoder::Ndjson(lines), StreamItem::Event(event)) => {
                match &event {
                    BackendEvent::Exit(_) | BackendEvent::TakenOver(_) => lines.finish(true),
                    BackendEvent::Gap(gap) => drop(lines.skip(*gap)),
                    _ => {}
                }
                [&lines.take().0, &json(&event)[..], b"\n"].concat()
            }
            (StreamEncoder::Claude(events, _), StreamItem::Output { stream, bytes }) => events.output(stream, &bytes),
            (StreamEncoder::Claude(events, _), StreamItem::Event(BackendEvent::Gap(gap))) => events.gap(gap),
            (StreamEncoder::Claude(events, id), StreamItem::Event(BackendEvent::Exit(ending))) => {
                events.complete(*id, &ending)
            }
            (StreamEncoder::Claude(..), StreamItem::Event(_)) => Vec::new(),
        }
    }
}

fn json(event: &BackendEvent) -> Vec<u8> {
    serde_json::to_vec(event).expect("events have string keys and writing to memory cannot fail")
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("pieces of output and events are far below 4 GiB")
}
