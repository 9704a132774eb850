//! `control` and `resize`, and the one type of what can be asked of an execution that runs.
//!
//! A [`ControlRequest`] travels from the client's message to the execution, in HTTP to the backend
//! ([`crate::backend_api::control`]), there to the job, and to its shim.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{DEFAULT_GRACE_MS, Limits, execution_id, input::InputParams};
use crate::{
    id::ExecutionId,
    outcome::{CancelReason, Status},
    rpc::{ErrorObject, code, params::Params},
    signal::Signal,
};

/// Parameters of `control`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlParams {
    /// Which execution; the session's own if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution_id: Option<ExecutionId>,
    /// What is to happen to it.
    #[serde(flatten)]
    pub request: ControlRequest,
}

/// What can be asked of an execution.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "UPPERCASE", rename_all_fields = "camelCase")]
pub enum ControlRequest {
    /// End it: TERM, then KILL after the grace.
    Cancel {
        /// Milliseconds between TERM and KILL.
        #[serde(default = "default_grace_ms", skip_serializing_if = "is_default_grace")]
        grace_ms: u64,
        /// Who asked. Not on the wire: a client's request is always `Canceled`.
        #[serde(skip)]
        reason: CancelReason,
    },
    /// Stop all of its processes.
    Pause,
    /// Continue them.
    Resume,
    /// Send a signal to its process group.
    Signal {
        /// Which one.
        signal: Signal,
    },
    /// Tell its terminal its size. A method of its own, because it concerns the session's own execution alone.
    #[serde(skip)]
    Resize(TerminalSize),
    /// Write to its standard input. A method of its own, for the same reason.
    #[serde(skip)]
    Stdin(InputParams),
}

/// What a control request that was carried out is answered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlReply {
    /// The status that the execution has after it.
    Status(Status),
    /// The command can read this many bytes more.
    Accepted(usize),
    /// Nothing.
    Done,
}

/// Response of `control`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlResult {
    /// Which execution.
    pub execution_id: ExecutionId,
    /// Its status after that.
    pub status: Status,
}

/// Parameters of `resize`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ResizeParams(pub TerminalSize);

/// The size of a terminal, in characters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

fn default_grace_ms() -> u64 {
    DEFAULT_GRACE_MS
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
            ErrorObject::new(code::PARAMS, format!("signal {name:?} cannot be sent: use one of {}", allowed.join(", ")))
                .with(json!({ "param": "signal", "asked": name, "allowed": allowed }))
        })
    }
}

impl ControlRequest {
    /// A cancellation that a client asks for.
    pub fn cancel(grace_ms: u64) -> Self {
        ControlRequest::Cancel { grace_ms, reason: CancelReason::Canceled }
    }

    /// Its name for a person and for the log.
    pub fn name(&self) -> &'static str {
        match self {
            ControlRequest::Cancel { .. } => "CANCEL",
            ControlRequest::Pause => "PAUSE",
            ControlRequest::Resume => "RESUME",
            ControlRequest::Signal { signal } => signal.name(),
            ControlRequest::Resize(_) => "resize",
            ControlRequest::Stdin(_) => "input",
        }
    }
}

impl ControlParams {
    pub(super) fn from_fields(fields: &mut Params, limits: &Limits) -> Result<Self, ErrorObject> {
        let execution_id = execution_id(fields)?;
        let request = match fields.one_of("type", &["CANCEL", "PAUSE", "RESUME", "SIGNAL"])? {
            None => return Err(ErrorObject::new(code::PARAMS, "type is missing: CANCEL, PAUSE, RESUME or SIGNAL")),
            Some(0) => {
                ControlRequest::cancel(fields.integer("graceMs", 0, limits.grace_ms)?.unwrap_or(DEFAULT_GRACE_MS))
            }
            Some(1) => ControlRequest::Pause,
            Some(2) => ControlRequest::Resume,
            Some(_) => ControlRequest::Signal { signal: Signal::from_fields(fields)? },
        };
        Ok(ControlParams { execution_id, request })
    }
}

impl ResizeParams {
    pub(super) fn from_fields(fields: &mut Params, _: &Limits) -> Result<Self, ErrorObject> {
        TerminalSize::from_fields(fields).map(ResizeParams)
    }
}

impl TerminalSize {
    /// Reads `rows` and `cols`.
    pub fn from_fields(fields: &mut Params) -> Result<Self, ErrorObject> {
        let mut side = |name: &str| match fields.integer(name, 1, u64::from(u16::MAX))? {
            Some(side) => Ok(u16::try_from(side).unwrap_or(u16::MAX)),
            None => Err(ErrorObject::new(code::PARAMS, format!("{name} is missing: a terminal has rows and cols"))
                .with(json!({ "param": name }))),
        };
        Ok(TerminalSize { rows: side("rows")?, cols: side("cols")? })
    }

    pub(super) fn from_whole(mut fields: Params) -> Result<Self, ErrorObject> {
        let size = TerminalSize::from_fields(&mut fields)?;
        fields.finish()?;
        Ok(size)
    }
}
