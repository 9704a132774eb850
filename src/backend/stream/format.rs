//! The formats of a stream, and their choice by `Accept`.

use actix_web::{HttpRequest, http::header};
use cc_executor_actors::backend_api::{MULTIPLEXED, NDJSON};

/// The format of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamFormat {
    /// The output as it comes, without events.
    Plain,
    /// Docker's framing.
    Multiplexed,
    /// JSON lines.
    Ndjson,
    /// For callers of the legacy image: Claude's own events as JSON lines, then the ending.
    Claude,
}

impl StreamFormat {
    /// The format that a request asks for.
    pub fn of(request: &HttpRequest) -> StreamFormat {
        StreamFormat::accepted(request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok()))
    }

    /// The first known format in an `Accept` header; plain if there is none.
    pub fn accepted(accept: Option<&str>) -> StreamFormat {
        let listed = accept.unwrap_or_default().split(',');
        let known =
            listed.map(|entry| entry.split(';').next().unwrap_or_default().trim()).find_map(|media| match media {
                MULTIPLEXED => Some(StreamFormat::Multiplexed),
                NDJSON => Some(StreamFormat::Ndjson),
                "text/plain" => Some(StreamFormat::Plain),
                _ => None,
            });
        known.unwrap_or(StreamFormat::Plain)
    }

    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            StreamFormat::Plain => "text/plain; charset=utf-8",
            StreamFormat::Multiplexed => MULTIPLEXED,
            StreamFormat::Ndjson | StreamFormat::Claude => NDJSON,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_determines_the_format() {
        for (accept, format) in [
            (None, StreamFormat::Plain),
            (Some("*/*"), StreamFormat::Plain),
            (Some("text/plain"), StreamFormat::Plain),
            (Some(MULTIPLEXED), StreamFormat::Multiplexed),
            (Some("application/x-ndjson;q=0.9, */*"), StreamFormat::Ndjson),
            (Some("image/png, application/vnd.docker.multiplexed-stream"), StreamFormat::Multiplexed),
        ] {
            assert_eq!(StreamFormat::accepted(accept), format, "{accept:?}");
        }
    }
}
