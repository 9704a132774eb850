//! The HTTP form of a [`ControlRequest`], written and read. No other module knows these routes.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::{
    excerpt::Quoted,
    outcome::CancelReason,
    protocol::{
        DEFAULT_GRACE_MS, Limits,
        control::{ControlRequest, TerminalSize},
        input::CommandInput,
    },
    rpc::{ErrorObject, code, params::Params},
    signal::Signal,
};

/// The last part of the path of each `POST /executions/{id}/ACTION`.
pub const ACTIONS: [&str; 6] = [PAUSE, RESUME, SIGNAL, KEEP, RESIZE, STDIN];

const PAUSE: &str = "pause";
const RESUME: &str = "resume";
const SIGNAL: &str = "signal";
const KEEP: &str = "keep";
const RESIZE: &str = "resize";
const STDIN: &str = "stdin";

/// The HTTP request that carries a control request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ControlCall {
    /// `DELETE /executions/{id}?QUERY`.
    Delete {
        /// The query, without its question mark.
        query: String,
    },
    /// `POST /executions/{id}/ACTION` with JSON.
    Post {
        /// The last part of the path.
        action: &'static str,
        /// The body.
        body: Value,
    },
    /// `POST /executions/{id}/ACTION?QUERY` with bytes, answered when all of them are in the command's pipe.
    Write {
        /// The last part of the path.
        action: &'static str,
        /// The query, without its question mark.
        query: String,
        /// The body.
        data: Bytes,
    },
}

impl ControlCall {
    /// The HTTP request of this control request.
    pub fn of(request: &ControlRequest) -> Self {
        let post = |action, body| ControlCall::Post { action, body };
        match request {
            ControlRequest::Cancel { grace_ms, reason } => {
                ControlCall::Delete { query: cancel_query(*grace_ms, *reason) }
            }
            ControlRequest::Pause => post(PAUSE, json!({})),
            ControlRequest::Resume => post(RESUME, json!({})),
            ControlRequest::Signal { signal } => post(SIGNAL, json!({ "signal": signal })),
            ControlRequest::Keep { detach_ms: None } => post(KEEP, json!({})),
            ControlRequest::Keep { detach_ms: Some(detach_ms) } => post(KEEP, json!({ "detachMs": detach_ms })),
            ControlRequest::Resize(size) => post(RESIZE, json!(size)),
            ControlRequest::Stdin(CommandInput { data, eof }) => {
                ControlCall::Write { action: STDIN, query: format!("eof={eof}"), data: data.clone() }
            }
        }
    }
}

/// The query of a cancellation. Its sender may append the name of its hold.
pub fn cancel_query(grace_ms: u64, reason: CancelReason) -> String {
    format!("grace_ms={grace_ms}&reason={}", reason.as_str())
}

/// Reads the query of a `DELETE`. The name of the sender's hold stays in the query.
///
/// # Errors
///
/// A parameter is ill-typed or out of its bounds: the error names it.
pub fn read_cancel(query: &mut Params, limits: &Limits) -> Result<(u64, CancelReason), ErrorObject> {
    let limit = limits.grace_ms;
    let grace_ms = match query.string("grace_ms")? {
        None => DEFAULT_GRACE_MS,
        Some(text) => text.parse().ok().filter(|grace_ms| *grace_ms <= limit).ok_or_else(|| {
            ErrorObject::new(
                code::PARAMS,
                format!("grace_ms must be a whole number from 0 to {limit}, not {}", Quoted(&text)),
            )
        })?,
    };
    let reason = match query.one_of("reason", &["canceled", "drained"])? {
        Some(1) => CancelReason::Drained,
        _ => CancelReason::Canceled,
    };
    Ok((grace_ms, reason))
}

/// Reads a `POST` of one of [`ACTIONS`].
///
/// # Errors
///
/// A parameter is missing, unknown, ill-typed or out of its bounds: the error names it.
pub fn read_action(action: &str, query: Map<String, Value>, body: Bytes) -> Result<ControlRequest, ErrorObject> {
    let from_body = |read: fn(&mut Params) -> Result<ControlRequest, ErrorObject>| {
        let mut fields = Params::of_body(&body)?;
        let request = read(&mut fields)?;
        fields.finish()?;
        Ok(request)
    };
    match action {
        PAUSE => Ok(ControlRequest::Pause),
        RESUME => Ok(ControlRequest::Resume),
        SIGNAL => from_body(|fields| Ok(ControlRequest::Signal { signal: Signal::from_fields(fields)? })),
        // The job compares it with the backend's own limit.
        KEEP => from_body(|fields| {
            Ok(ControlRequest::Keep { detach_ms: fields.integer("detachMs", 0, u64::from(u32::MAX))? })
        }),
        RESIZE => from_body(|fields| TerminalSize::from_fields(fields).map(ControlRequest::Resize)),
        STDIN => {
            let mut query = Params::new(query);
            let eof = query.one_of("eof", &["false", "true"])? == Some(1);
            query.finish()?;
            Ok(ControlRequest::Stdin(CommandInput { data: body, eof }))
        }
        _ => Err(ErrorObject::new(code::METHOD, format!("POST /executions/{{id}}/{action}: there is no such action"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query_of(text: &str) -> Map<String, Value> {
        let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), json!(value))).collect()
    }

    #[test]
    fn the_backend_reads_each_request_as_its_gateway_wrote_it() {
        for request in [
            ControlRequest::Cancel { grace_ms: 7, reason: CancelReason::Drained },
            ControlRequest::cancel(0),
            ControlRequest::Pause,
            ControlRequest::Resume,
            ControlRequest::Signal { signal: Signal::named("SIGINT").unwrap() },
            ControlRequest::Keep { detach_ms: None },
            ControlRequest::Keep { detach_ms: Some(0) },
            ControlRequest::Resize(TerminalSize { rows: 1, cols: 2 }),
            ControlRequest::Stdin(CommandInput { data: Bytes::from_static(b"\xff"), eof: false }),
            ControlRequest::Stdin(CommandInput { data: Bytes::new(), eof: true }),
        ] {
            let read = match ControlCall::of(&request) {
                ControlCall::Delete { query } => {
                    let (grace_ms, reason) =
                        read_cancel(&mut Params::new(query_of(&query)), &Limits::default()).unwrap();
                    ControlRequest::Cancel { grace_ms, reason }
                }
                ControlCall::Post { action, body } => {
                    assert!(ACTIONS.contains(&action));
                    read_action(action, Map::new(), body.to_string().into()).unwrap()
                }
                ControlCall::Write { action, query, data } => {
                    assert!(ACTIONS.contains(&action));
                    read_action(action, query_of(&query), data).unwrap()
                }
            };
            assert_eq!(read, request);
        }
    }
}
