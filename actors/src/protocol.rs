//! The messages between client and service: JSON-RPC 2.0 in WebSocket text frames.
//!
//! Each message is one type, shared by the service, the client and the tests; no socket or actor is known here. The
//! table of methods is below, and [`notification`] has the messages that the service sends unasked. The handlers of the
//! methods are in `session/phase/requests.rs`.
//!
//! The parameters of a method have no `Deserialize`: [`Method::parse`] is the only way to read them, so that their
//! bounds are always checked and an error names the parameter.

pub mod ack;
pub mod attach;
pub mod control;
pub mod execute;
pub mod input;
mod limits;
pub mod notification;
pub mod schema;
pub mod status;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use self::{
    ack::AckParams,
    attach::{AttachParams, AttachResult},
    control::{ControlParams, ControlResult, ResizeParams},
    execute::{ExecuteParams, ExecuteResult},
    input::{InputParams, InputResult},
    status::{StatusParams, StatusResult},
};
pub use self::{
    execute::Framing,
    limits::{
        DEFAULT_DETACH_MS, DEFAULT_GRACE_MS, DEFAULT_HEARTBEAT_MS, Limits, MAX_COMMAND_BYTES, MAX_INPUT_WAITING,
        MAX_MESSAGE_TO_CLIENT,
    },
};
use crate::{
    id::ExecutionId,
    rpc::{Call, ErrorObject, code, params::Params},
    stream::PerStream,
};

/// The version of the native protocol, as `connected` states it.
pub const VERSION: u32 = 1;

/// The WebSocket subprotocol of the native protocol.
pub const SUBPROTOCOL: &str = "cc-executor.v1";

/// The optional features of this build, as `connected` and `/health` list them.
pub const CAPABILITIES: &[&str] = &[
    "cancel", "signal", "pause", "status", "line", "timeout", "stall", "stdin", "pty", "detach", "attach", "queue",
    "claude", "events", "ack", OBSERVE, "argv", "names", "keep",
];

/// The capability of a backend to let sessions observe an execution.
pub const OBSERVE: &str = "observe";

/// The executor that runs Claude Code. The parameter `claude` is for this executor only.
pub const CLAUDE_EXECUTOR: &str = "claude";

/// The executor that runs the words of `argv` without a shell.
pub const EXEC_EXECUTOR: &str = "exec";

/// The parameters of a method, with its name and its response.
pub trait MethodParams: Serialize {
    /// The method's name.
    const NAME: &'static str;
    /// The result of a call that succeeded.
    type Response: Serialize + DeserializeOwned;
}

/// Declares each method once: its name, its parameters and its response.
macro_rules! methods {
    ($($(#[$doc:meta])* $variant:ident = $name:literal ($params:ty) -> $response:ty;)*) => {
        /// A call with its parameters.
        #[derive(Clone, PartialEq, Debug)]
        #[expect(clippy::large_enum_variant, reason = "a call is read, handled and dropped")]
        pub enum Method {
            $($(#[$doc])* $variant($params),)*
        }

        $(impl MethodParams for $params {
            const NAME: &'static str = $name;
            type Response = $response;
        })*

        impl Method {
            /// The names of all methods.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// Reads a call.
            ///
            /// # Errors
            ///
            /// The method is unknown, or a parameter is unknown, ill-typed or out of its bounds: the error names it.
            pub fn parse(call: Call, limits: &Limits) -> Result<Self, ErrorObject> {
                let mut fields = Params::new(call.params);
                let method = match call.method.as_str() {
                    $($name => Method::$variant(<$params>::from_fields(&mut fields, limits)?),)*
                    name => return Err(unknown_method(name)),
                };
                fields.finish()?;
                Ok(method)
            }

            /// The name of each method, with the schemas of its parameters and of its response.
            fn schemas(schemas: &mut SchemaGenerator) -> Vec<(&'static str, Schema, Schema)> {
                vec![$(($name, schemas.subschema_for::<$params>(), schemas.subschema_for::<$response>())),*]
            }
        }
    };
}

methods! {
    /// Run a command.
    Execute = "execute" (ExecuteParams) -> ExecuteResult;
    /// Follow an execution that exists already.
    Attach = "attach" (AttachParams) -> AttachResult;
    /// Cancel, pause, resume or signal an execution.
    Control = "control" (ControlParams) -> ControlResult;
    /// Write to the command's standard input.
    Input = "input" (InputParams) -> InputResult;
    /// Set the size of the command's terminal.
    Resize = "resize" (ResizeParams) -> EmptyResult;
    /// Acknowledge output.
    Ack = "ack" (AckParams) -> EmptyResult;
    /// Get the newest status.
    Status = "status" (StatusParams) -> StatusResult;
    /// Check that the service answers.
    Ping = "ping" (PingParams) -> EmptyResult;
}

/// Parameters of `ping`: none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema, Serialize)]
pub struct PingParams {}

/// The response of a method that returns nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema, Serialize, Deserialize)]
pub struct EmptyResult {}

impl PingParams {
    fn from_fields(_: &mut Params, _: &Limits) -> Result<Self, ErrorObject> {
        Ok(PingParams {})
    }
}

fn unknown_method(name: &str) -> ErrorObject {
    let name = &name[..name.floor_char_boundary(80)];
    let (last, others) = Method::NAMES.split_last().expect("there are methods");
    ErrorObject::new(code::METHOD, format!("unknown method {name:?}: there are {} and {last}", others.join(", ")))
}

/// Reads the parameter `offsets`. An absent stream has the offset 0.
fn offsets(fields: &mut Params) -> Result<Option<PerStream<u64>>, ErrorObject> {
    let Some(mut fields) = fields.object("offsets")? else { return Ok(None) };
    let mut offset = |name| Ok::<_, ErrorObject>(fields.integer(name, 0, u64::MAX)?.unwrap_or(0));
    let offsets = PerStream { stdout: offset("stdout")?, stderr: offset("stderr")? };
    fields.finish()?;
    Ok(Some(offsets))
}

/// Reads the parameter `executionId`.
fn execution_id(fields: &mut Params) -> Result<Option<ExecutionId>, ErrorObject> {
    fields.parsed("executionId", "a UUID")
}

#[cfg(test)]
mod tests;
