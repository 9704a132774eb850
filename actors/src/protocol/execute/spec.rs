//! The part of `execute` that goes to the backend: the command, its environment and its limits.
//!
//! The gateway reads it from the client's message and the backend from the HTTP body, both through
//! [`ExecutionSpec::from_fields`]. It has no `Deserialize`, because derived code would skip the bounds.

use std::{borrow::Cow, collections::BTreeMap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};

use super::{
    claude::ClaudeOptions,
    command::{CommandSchema, RequestedCommand, check_no_nul},
};
use crate::{
    excerpt::{Quoted, excerpt},
    id::ExecutionId,
    name::ExecutionName,
    protocol::{
        CLAUDE_EXECUTOR, DEFAULT_DETACH_MS, DEFAULT_HEARTBEAT_MS, Limits, MAX_COMMAND_BYTES, control::TerminalSize,
        execution_id,
    },
    rpc::{
        ErrorObject, code,
        params::{Params, ill_typed, invalid},
    },
};

/// The command, its environment and its limits.
#[derive(Clone, PartialEq, Debug, Default, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecutionSpec {
    /// What to run: `command` or `argv`.
    #[serde(flatten)]
    #[schemars(with = "CommandSchema")]
    pub command: RequestedCommand,
    /// A name for people, which no other execution of the client has while this one waits or runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<ExecutionName>,
    /// The executor's name; the backend's default if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executor: Option<String>,
    /// An id that the client chose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execution_id: Option<ExecutionId>,
    /// The working directory; the backend's own if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub cwd: Option<String>,
    /// Variables added to the command's environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Whether `input` writes to the command's standard input; otherwise the command reads end-of-file.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// The size of the command's terminal; `None` to run it on pipes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pty: Option<TerminalSize>,
    /// Total time-out in milliseconds, from RUNNING.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub timeout_ms: Option<u64>,
    /// The longest time without output, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub stall_timeout_ms: Option<u64>,
    /// The heartbeat period in milliseconds; [`DEFAULT_HEARTBEAT_MS`] if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_ms: Option<u64>,
    /// How the execution continues without a client; `None` to end it then.
    #[serde(flatten, serialize_with = "with_on_disconnect")]
    #[schemars(with = "DetachParams")]
    pub detach: Option<DetachOptions>,
    /// Claude's options.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claude: Option<ClaudeOptions>,
}

/// How an execution continues without a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DetachOptions {
    /// The longest time without a client, in milliseconds.
    pub detach_ms: u64,
    /// What the backend does when the output buffer is full.
    #[serde(skip_serializing_if = "Overflow::is_default", default)]
    pub overflow: Overflow,
}

/// The parameters of which [`DetachOptions`] is made, for the schema.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
struct DetachParams {
    /// What the service does with the execution when no session holds it: cancel by default.
    #[schemars(skip_serializing_if = "Option::is_none")]
    on_disconnect: Option<OnDisconnectParam>,
    /// With `detach`: how long the execution continues without a session, in milliseconds.
    #[schemars(range(min = 1))]
    #[schemars(skip_serializing_if = "Option::is_none")]
    detach_ms: Option<u64>,
    /// With `detach`: what happens to output that no client has received when the output buffer is full.
    #[schemars(skip_serializing_if = "Option::is_none")]
    overflow: Option<Overflow>,
}

/// The values of `onDisconnect`.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
#[expect(dead_code, reason = "only its schema is used")]
enum OnDisconnectParam {
    Cancel,
    Detach,
}

/// What happens to unacknowledged output when the output buffer is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overflow {
    /// It is kept, and the command waits.
    #[default]
    Wait,
    /// It is dropped, and the client gets a `gap`.
    Drop,
}

impl Overflow {
    fn is_default(&self) -> bool {
        *self == Overflow::Wait
    }
}

impl ExecutionSpec {
    /// A command without any option.
    pub fn of(command: impl Into<String>) -> Self {
        ExecutionSpec { command: RequestedCommand::Text(command.into()), ..ExecutionSpec::default() }
    }

    /// Reads a spec and checks its bounds. `command` is the name of the field that holds the command.
    ///
    /// # Errors
    ///
    /// A parameter is ill-typed or out of its bounds: the error names it.
    pub fn from_fields(fields: &mut Params, command: &str, limits: &Limits) -> Result<Self, ErrorObject> {
        let command = RequestedCommand::from_fields(fields, command)?;
        let executor = command.executor(fields.string("executor")?)?;
        let cwd = fields.string("cwd")?;
        if let Some(cwd) = &cwd {
            check_no_nul("cwd", cwd)?;
            if cwd.is_empty() {
                return Err(ErrorObject::new(code::PARAMS, "cwd must not be empty: name a directory or leave it out"));
            }
        }
        Ok(ExecutionSpec {
            command,
            name: name(fields)?,
            executor,
            execution_id: execution_id(fields)?,
            cwd,
            env: environment(fields)?,
            stdin: fields.boolean("stdin")?,
            pty: fields.object("pty")?.map(TerminalSize::from_object).transpose()?,
            timeout_ms: fields.integer("timeoutMs", 1, limits.timeout_ms)?,
            stall_timeout_ms: fields.integer("stallTimeoutMs", 1, limits.timeout_ms)?,
            heartbeat_ms: fields.integer("heartbeatMs", limits.heartbeat_min_ms, limits.heartbeat_max_ms)?,
            detach: detach(fields, limits)?,
            claude: fields.object("claude")?.map(ClaudeOptions::from_object).transpose()?,
        })
    }

    /// Checks that these options apply to the executor `name`, which runs an agent or commands.
    ///
    /// # Errors
    ///
    /// An option does not apply: the error names it.
    pub fn check_executor(&self, name: &str, is_agent: bool) -> Result<(), ErrorObject> {
        if self.claude.is_some() && name != CLAUDE_EXECUTOR {
            let message = format!(
                "the parameter claude (model, permissionMode, …) applies to executor claude only, not to {}: leave it out",
                Quoted(name)
            );
            return Err(invalid("claude", message));
        }
        if is_agent {
            // The prompt goes through standard input, so it may be as long as a message.
            return match (self.stdin, self.pty) {
                (true, _) => Err(invalid(
                    "stdin",
                    format!(
                        "stdin is not available with executor {name}, which reads its prompt from it: leave out stdin (run: -i)"
                    ),
                )),
                (_, Some(_)) => Err(invalid(
                    "pty",
                    format!(
                        "pty is not available with executor {name}, whose events need no terminal: leave out pty (run: -t)"
                    ),
                )),
                (false, None) => Ok(()),
            };
        }
        // The words of `argv` are checked when they are read.
        let RequestedCommand::Text(command) = &self.command else { return Ok(()) };
        let length = command.len();
        if length > MAX_COMMAND_BYTES {
            let message = format!("command must have 1 to {MAX_COMMAND_BYTES} bytes, not {length}");
            return Err(ErrorObject::new(code::PARAMS, message)
                .with(json!({ "param": "command", "asked": length, "min": 1, "max": MAX_COMMAND_BYTES })));
        }
        Ok(())
    }

    /// The heartbeat period, in milliseconds.
    pub fn heartbeat_ms(&self) -> u64 {
        self.heartbeat_ms.unwrap_or(DEFAULT_HEARTBEAT_MS)
    }

    /// The names of the parameters in which two requests for the same execution must agree.
    pub const PARTS: [&'static str; 12] = [
        "command",
        "name",
        "executor",
        "cwd",
        "env",
        "stdin",
        "pty",
        "timeoutMs",
        "stallTimeoutMs",
        "heartbeatMs",
        "onDisconnect, detachMs or overflow",
        "claude",
    ];

    /// The value of each of [`PARTS`](ExecutionSpec::PARTS) as a text that is equal exactly if the value is.
    pub fn parts(&self) -> [Cow<'_, str>; ExecutionSpec::PARTS.len()] {
        // Each field is named, because a field that is forgotten here would let different requests pass as the same.
        let ExecutionSpec {
            command,
            name,
            executor,
            execution_id: _,
            cwd,
            env,
            stdin,
            pty,
            timeout_ms,
            stall_timeout_ms,
            heartbeat_ms: _,
            detach,
            claude,
        } = self;
        [
            match command {
                RequestedCommand::Text(text) => text.into(),
                // No text has a NUL, so no text is equal to it.
                RequestedCommand::Argv(words) => format!("\0{}", canonical(words)).into(),
            },
            canonical(name),
            canonical(executor),
            canonical(cwd),
            canonical(env),
            canonical(stdin),
            canonical(pty),
            canonical(timeout_ms),
            canonical(stall_timeout_ms),
            canonical(&self.heartbeat_ms()),
            canonical(detach),
            canonical(claude),
        ]
    }

    /// The first parameter in which the two differ, apart from their ids.
    pub fn difference(&self, other: &ExecutionSpec) -> Option<&'static str> {
        let (own, others) = (self.parts(), other.parts());
        (0..ExecutionSpec::PARTS.len()).find(|at| own[*at] != others[*at]).map(|at| ExecutionSpec::PARTS[at])
    }
}

/// JSON of values whose maps are sorted by their keys.
fn canonical(value: &impl Serialize) -> Cow<'static, str> {
    Cow::Owned(serde_json::to_string(value).expect("a value whose keys are strings is JSON"))
}

/// Writes `onDisconnect` beside the two options that apply to `"detach"` only.
fn with_on_disconnect<S: Serializer>(detach: &Option<DetachOptions>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    #[serde(tag = "onDisconnect", rename_all = "lowercase")]
    enum OnDisconnect {
        Detach(DetachOptions),
    }
    detach.map(OnDisconnect::Detach).serialize(serializer)
}

fn detach(fields: &mut Params, limits: &Limits) -> Result<Option<DetachOptions>, ErrorObject> {
    let detaches = fields.one_of("onDisconnect", &["cancel", "detach"])? == Some(1);
    let detach_ms = fields.integer("detachMs", 1, limits.detach_ms)?;
    let overflow = fields.one_of("overflow", &["wait", "drop"])?;
    if detaches {
        let overflow = if overflow == Some(1) { Overflow::Drop } else { Overflow::Wait };
        let detach_ms = detach_ms.unwrap_or(DEFAULT_DETACH_MS.min(limits.detach_ms));
        return Ok(Some(DetachOptions { detach_ms, overflow }));
    }
    let name = match (detach_ms, overflow) {
        (None, None) => return Ok(None),
        (Some(_), _) => "detachMs",
        (None, Some(_)) => "overflow",
    };
    Err(invalid(name, format!("{name} means nothing without onDisconnect \"detach\": add that, or leave it out")))
}

fn name(fields: &mut Params) -> Result<Option<ExecutionName>, ErrorObject> {
    let Some(text) = fields.string("name")? else { return Ok(None) };
    text.parse().map(Some).map_err(|why| invalid("name", format!("name {why}, not {}", Quoted(&text))))
}

fn environment(fields: &mut Params) -> Result<BTreeMap<String, String>, ErrorObject> {
    let map = match fields.take("env") {
        None => return Ok(BTreeMap::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(ill_typed("env", "an object of strings", &other)),
    };
    let mut env = BTreeMap::new();
    for (name, value) in map {
        let Value::String(value) = value else {
            return Err(ill_typed(&format!("env.{}", excerpt(&name)), "a string", &value));
        };
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(invalid(
                "env",
                format!("env has a name {}: a name is not empty and has no = and no NUL", Quoted(&name)),
            ));
        }
        check_no_nul(&format!("env.{}", excerpt(&name)), &value)?;
        env.insert(name, value);
    }
    Ok(env)
}
