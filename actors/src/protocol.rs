//! The wire towards the client: JSON-RPC 2.0 in WebSocket text frames.
//!
//! Nothing here knows a socket or an actor; it is values in, values or bytes out. Each message is one type, which
//! the server, the client and the tests share. The table of methods is below; [`notification`] has what the server
//! sends by itself. Handlers are in [`crate::session`].

pub mod attach;
pub mod control;
pub mod execute;
pub mod input;
mod limits;
pub mod notification;
pub mod status;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use self::{
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
};

/// The version of the native dialect, as `connected` states it.
pub const VERSION: u32 = 1;

/// The WebSocket subprotocol that names the native dialect.
pub const SUBPROTOCOL: &str = "cc-executor.v1";

/// What this build can do beyond running and streaming, as `connected` and `/health` list it.
pub const CAPABILITIES: &[&str] = &[
    "cancel", "signal", "pause", "status", "line", "timeout", "stall", "stdin", "pty", "detach", "attach", "queue",
    "claude", "events",
];

/// The executor that runs Claude Code: the only one to which `claude` and `events` apply.
pub const CLAUDE_EXECUTOR: &str = "claude";

/// The parameters of a method. They know its name and its response, so that both ends of a call agree.
pub trait MethodParams: Serialize + DeserializeOwned {
    /// The method's name.
    const NAME: &'static str;
    /// The result of a call that succeeded.
    type Response: Serialize + DeserializeOwned;
}

/// Declares each method once: its name, its parameters and its response.
macro_rules! methods {
    ($($(#[$doc:meta])* $variant:ident = $name:literal ($params:ty) -> $response:ty;)*) => {
        /// A call that was read.
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
        }
    };
}

methods! {
    /// Run a command.
    Execute = "execute" (ExecuteParams) -> ExecuteResult;
    /// Follow an execution that is there already.
    Attach = "attach" (AttachParams) -> AttachResult;
    /// Cancel, pause, resume or signal an execution.
    Control = "control" (ControlParams) -> ControlResult;
    /// Write to the command's standard input.
    Input = "input" (InputParams) -> InputResult;
    /// Tell the command's terminal its size.
    Resize = "resize" (ResizeParams) -> EmptyResult;
    /// The newest status.
    Status = "status" (StatusParams) -> StatusResult;
    /// Ask whether the service answers.
    Ping = "ping" (PingParams) -> EmptyResult;
}

/// Parameters of `ping`: none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PingParams {}

/// The response of a method that has nothing to tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
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

/// Reads the parameter `executionId`.
fn execution_id(fields: &mut Params) -> Result<Option<ExecutionId>, ErrorObject> {
    fields.parsed("executionId", "a UUID")
}

#[cfg(test)]
mod tests;
