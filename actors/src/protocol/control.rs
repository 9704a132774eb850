//! `control` and `resize`, and the control requests of a running execution.
//!
//! A [`ControlRequest`] is the same type from the client's message through the execution and HTTP
//! ([`crate::backend_api::control`]) to the job. The shim gets an `Order` of `src/backend/shim/protocol.rs`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{DEFAULT_GRACE_MS, Limits, execution_id, input::CommandInput};
use crate::{
    excerpt::Quoted,
    id::ExecutionId,
    outcome::{CancelReason, Status},
    rpc::{
        ErrorObject, code,
        params::{Params, invalid},
    },
    signal::Signal,
};

/// Parameters of `control`.
#[derive(Clone, PartialEq, Eq, Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlParams {
    /// The execution; the session's own if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execution_id: Option<ExecutionId>,
    /// The request.
    #[serde(flatten)]
    pub request: ControlRequest,
}

/// A request for an execution.
#[derive(Clone, PartialEq, Eq, Debug, JsonSchema, Serialize)]
#[serde(tag = "type", rename_all = "UPPERCASE", rename_all_fields = "camelCase")]
pub enum ControlRequest {
    /// End it: TERM, then KILL after the grace period.
    Cancel {
        /// Milliseconds between TERM and KILL.
        #[serde(skip_serializing_if = "is_default_grace")]
        grace_ms: u64,
        /// On whose behalf. Not on the wire, because a client's request is always `Canceled`.
        #[serde(skip)]
        reason: CancelReason,
    },
    /// Stop all of its processes.
    Pause,
    /// Continue them.
    Resume,
    /// Send a signal to its process group.
    Signal {
        /// The signal.
        signal: Signal,
    },
    /// Set how long it continues without a session, from its next absence until a session attaches.
    Keep {
        /// Milliseconds; `None` is the longest that the service allows, 0 the time that it was started with.
        #[serde(skip_serializing_if = "Option::is_none")]
        detach_ms: Option<u64>,
    },
    /// Set the size of its terminal. Sent by the method `resize`.
    #[serde(skip)]
    Resize(TerminalSize),
    /// Write to its standard input. Sent by the method `input`.
    #[serde(skip)]
    Stdin(CommandInput),
}

/// The result of a control request that succeeded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlReply {
    /// The status that the execution has now.
    Status(Status),
    /// The number of bytes written to standard input.
    Accepted(usize),
    /// Nothing to report.
    Done,
}

/// Response of `control`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlResult {
    /// The execution.
    pub execution_id: ExecutionId,
    /// Its status after the request.
    pub status: Status,
}

/// Parameters of `resize`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResizeParams {
    /// The execution; the session's own if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execution_id: Option<ExecutionId>,
    /// The new size.
    #[serde(flatten)]
    pub size: TerminalSize,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    #[schemars(range(min = 1))]
    pub rows: u16,
    /// Columns.
    #[schemars(range(min = 1))]
    pub cols: u16,
}

fn is_default_grace(grace_ms: &u64) -> bool {
    *grace_ms == DEFAULT_GRACE_MS
}

impl Signal {
    /// Reads the parameter `signal`.
    pub fn from_fields(fields: &mut Params) -> Result<Self, ErrorObject> {
        let Some(name) = fields.string("signal")? else {
            return Err(ErrorObject::new(code::PARAMS, "signal is missing: name one, such as SIGINT"));
        };
        Signal::named(&name).ok_or_else(|| {
            let allowed = Signal::SENDABLE;
            ErrorObject::new(
                code::PARAMS,
                format!("signal {} cannot be sent: use one of {}", Quoted(&name), allowed.join(", ")),
            )
            .with(json!({ "param": "signal", "asked": name, "allowed": allowed }))
        })
    }
}

impl ControlRequest {
    /// A cancellation on behalf of a client.
    pub fn cancel(grace_ms: u64) -> Self {
        ControlRequest::Cancel { grace_ms, reason: CancelReason::Canceled }
    }

    /// The name in messages for people and in the log.
    pub fn name(&self) -> &'static str {
        match self {
            ControlRequest::Cancel { .. } => "CANCEL",
            ControlRequest::Pause => "PAUSE",
            ControlRequest::Resume => "RESUME",
            ControlRequest::Signal { signal } => signal.name(),
            ControlRequest::Keep { .. } => "KEEP",
            ControlRequest::Resize(_) => "resize",
            ControlRequest::Stdin(_) => "input",
        }
    }
}

/// Reads the other parameters of a control request.
type ReadRequest = fn(&mut Params, &Limits) -> Result<ControlRequest, ErrorObject>;

/// The values of `type`.
const TYPES: [(&str, ReadRequest); 5] = [
    ("CANCEL", |fields, limits| {
        let grace_ms = fields.integer("graceMs", 0, limits.grace_ms)?;
        Ok(ControlRequest::cancel(grace_ms.unwrap_or(DEFAULT_GRACE_MS)))
    }),
    ("PAUSE", |_, _| Ok(ControlRequest::Pause)),
    ("RESUME", |_, _| Ok(ControlRequest::Resume)),
    ("SIGNAL", |fields, _| Ok(ControlRequest::Signal { signal: Signal::from_fields(fields)? })),
    ("KEEP", |fields, limits| Ok(ControlRequest::Keep { detach_ms: fields.integer("detachMs", 0, limits.detach_ms)? })),
];

impl ControlParams {
    pub(super) fn from_fields(fields: &mut Params, limits: &Limits) -> Result<Self, ErrorObject> {
        let execution_id = execution_id(fields)?;
        let names = TYPES.map(|(name, _)| name);
        let Some(at) = fields.one_of("type", &names)? else {
            let text = format!("type is missing: it is one of {}", names.join(", "));
            return Err(ErrorObject::new(code::PARAMS, text));
        };
        let (_, read) = TYPES[at];
        Ok(ControlParams { execution_id, request: read(fields, limits)? })
    }
}

impl ResizeParams {
    pub(super) fn from_fields(fields: &mut Params, _: &Limits) -> Result<Self, ErrorObject> {
        Ok(ResizeParams { execution_id: execution_id(fields)?, size: TerminalSize::from_fields(fields)? })
    }
}

impl TerminalSize {
    /// Reads `rows` and `cols`.
    pub fn from_fields(fields: &mut Params) -> Result<Self, ErrorObject> {
        let mut side = |name: &str| match fields.integer(name, 1, u64::from(u16::MAX))? {
            Some(side) => Ok(u16::try_from(side).unwrap_or(u16::MAX)),
            None => Err(invalid(name, format!("{name} is missing: a terminal has rows and cols"))),
        };
        Ok(TerminalSize { rows: side("rows")?, cols: side("cols")? })
    }

    pub(super) fn from_object(mut fields: Params) -> Result<Self, ErrorObject> {
        let size = TerminalSize::from_fields(&mut fields)?;
        fields.finish()?;
        Ok(size)
    }
}
