//! The part of `execute` that goes to the backend: the command, its environment and its limits.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::claude::ClaudeOptions;
use crate::{
    id::ExecutionId,
    protocol::{
        CLAUDE_EXECUTOR, DEFAULT_DETACH_MS, DEFAULT_HEARTBEAT_MS, Limits, MAX_COMMAND_BYTES, control::TerminalSize,
        execution_id,
    },
    rpc::{
        ErrorObject, code,
        params::{Params, ill_typed},
    },
};

/// The command, its environment and its limits: the part of `execute` that goes to the backend.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecutionSpec {
    /// The command, 1 to [`MAX_COMMAND_BYTES`] bytes without NUL.
    #[serde(alias = "question")]
    pub command: String,
    /// The executor's name; the backend's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor: Option<String>,
    /// The client's own id for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution_id: Option<ExecutionId>,
    /// The working directory; the backend's own if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Variables added to the command's environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Whether the command reads what `input` sends; it reads end-of-file otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// The size of the terminal that it runs on, if on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pty: Option<TerminalSize>,
    /// Total time-out in milliseconds, from RUNNING.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// The longest time without output, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall_timeout_ms: Option<u64>,
    /// The heartbeat period in milliseconds; [`DEFAULT_HEARTBEAT_MS`] if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_ms: Option<u64>,
    /// How it goes on when no client follows it; it is ended if absent.
    #[serde(flatten, with = "on_disconnect")]
    pub detach: Option<DetachOptions>,
    /// Claude's options.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claude: Option<ClaudeOptions>,
}

/// How an execution goes on without anybody who follows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DetachOptions {
    /// For how long, in milliseconds.
    #[serde(default = "default_detach_ms")]
    pub detach_ms: u64,
    /// What a full ring means.
    #[serde(default, skip_serializing_if = "Overflow::is_default")]
    pub overflow: Overflow,
}

/// What becomes of output that nobody has acknowledged when there is no room for more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overflow {
    /// It is kept, and the command waits.
    #[default]
    Wait,
    /// It is dropped, which is said.
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
        ExecutionSpec {
            command: command.into(),
            executor: None,
            execution_id: None,
            cwd: None,
            env: BTreeMap::new(),
            stdin: false,
            pty: None,
            timeout_ms: None,
            stall_timeout_ms: None,
            heartbeat_ms: None,
            detach: None,
            claude: None,
        }
    }

    /// Reads what runs. `command` is the name of the field that holds the command.
    pub fn from_fields(fields: &mut Params, command: &str, limits: &Limits) -> Result<Self, ErrorObject> {
        let text = fields
            .string(command)?
            .ok_or_else(|| ErrorObject::new(code::PARAMS, format!("{command} is missing: it is what to run")))?;
        if text.is_empty() {
            return Err(ErrorObject::new(code::PARAMS, format!("{command} must not be empty: it is what to run"))
                .with(json!({ "param": command, "asked": 0, "min": 1 })));
        }
        without_nul(command, &text)?;
        let cwd = fields.string("cwd")?;
        if let Some(cwd) = &cwd {
            without_nul("cwd", cwd)?;
            if cwd.is_empty() {
                return Err(ErrorObject::new(code::PARAMS, "cwd must not be empty: name a directory or leave it out"));
            }
        }
        let run = ExecutionSpec {
            command: text,
            executor: fields.string("executor")?,
            execution_id: execution_id(fields)?,
            cwd,
            env: environment(fields)?,
            stdin: fields.boolean("stdin")?.unwrap_or(false),
            pty: fields.object("pty")?.map(TerminalSize::from_whole).transpose()?,
            timeout_ms: fields.integer("timeoutMs", 1, limits.timeout_ms)?,
            stall_timeout_ms: fields.integer("stallTimeoutMs", 1, limits.timeout_ms)?,
            heartbeat_ms: fields.integer("heartbeatMs", limits.heartbeat_min_ms, limits.heartbeat_max_ms)?,
            detach: detach(fields, limits)?,
            claude: fields.object("claude")?.map(ClaudeOptions::from_whole).transpose()?,
        };
        if let Some(executor) = &run.executor {
            run.check_for(executor)?;
        }
        Ok(run)
    }

    /// Whether it can be asked of this executor. Where none is named, only the backend can say.
    pub fn check_for(&self, executor: &str) -> Result<(), ErrorObject> {
        let refused =
            |param: &str, message: String| Err(ErrorObject::new(code::PARAMS, message).with(json!({ "param": param })));
        if executor == CLAUDE_EXECUTOR {
            // Its prompt goes through standard input, and may be as long as a message.
            return match (self.stdin, self.pty) {
                (true, _) => refused("stdin", "claude reads its prompt there: leave stdin out".to_owned()),
                (_, Some(_)) => refused("pty", "claude's events need no terminal: leave pty out".to_owned()),
                (false, None) => Ok(()),
            };
        }
        if self.claude.is_some() {
            return refused("claude", format!("claude has options for the executor claude, not for {executor:?}"));
        }
        let length = self.command.len();
        if length > MAX_COMMAND_BYTES {
            let message = format!("command must have 1 to {MAX_COMMAND_BYTES} bytes, not {length}");
            return Err(ErrorObject::new(code::PARAMS, message)
                .with(json!({ "param": "command", "asked": length, "min": 1, "max": MAX_COMMAND_BYTES })));
        }
        Ok(())
    }

    /// How often a sign of life is sent, in milliseconds.
    pub fn heartbeat_ms(&self) -> u64 {
        self.heartbeat_ms.unwrap_or(DEFAULT_HEARTBEAT_MS)
    }

    /// The names of what makes two requests the same, their ids apart.
    pub const PARTS: [&'static str; 11] = [
        "command",
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

    /// The value of each of [`PARTS`](ExecutionSpec::PARTS), in a form that is equal exactly where the value is.
    pub fn parts(&self) -> [Cow<'_, str>; ExecutionSpec::PARTS.len()] {
        let ExecutionSpec {
            command,
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
        let detach = detach.map(|DetachOptions { detach_ms, overflow }| (detach_ms, overflow));
        [
            Cow::Borrowed(command.as_str()),
            canonical(executor),
            canonical(cwd),
            canonical(env),
            canonical(stdin),
            canonical(pty),
            canonical(timeout_ms),
            canonical(stall_timeout_ms),
            canonical(&self.heartbeat_ms()),
            canonical(&detach),
            canonical(claude),
        ]
    }

    /// The parameter in which the two differ, their ids apart.
    pub fn difference(&self, other: &ExecutionSpec) -> Option<&'static str> {
        let (own, others) = (self.parts(), other.parts());
        (0..ExecutionSpec::PARTS.len()).find(|at| own[*at] != others[*at]).map(|at| ExecutionSpec::PARTS[at])
    }
}

/// JSON of values whose maps are sorted by their keys.
fn canonical(value: &impl Serialize) -> Cow<'static, str> {
    Cow::Owned(serde_json::to_string(value).expect("a value whose keys are strings is JSON"))
}

/// The default of [`DetachOptions::detach_ms`], where the service's limit is not lower.
fn default_detach_ms() -> u64 {
    DEFAULT_DETACH_MS
}

/// `onDisconnect` beside its two options, which mean nothing without `"detach"`.
mod on_disconnect {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::protocol::execute::spec::DetachOptions;

    #[derive(Serialize, Deserialize)]
    #[serde(tag = "onDisconnect", rename_all = "lowercase")]
    enum OnDisconnect {
        Cancel,
        Detach(DetachOptions),
    }

    pub(super) fn serialize<S: Serializer>(detach: &Option<DetachOptions>, serializer: S) -> Result<S::Ok, S::Error> {
        detach.map(OnDisconnect::Detach).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DetachOptions>, D::Error> {
        Ok(match Option::<OnDisconnect>::deserialize(deserializer)? {
            Some(OnDisconnect::Detach(detach)) => Some(detach),
            Some(OnDisconnect::Cancel) | None => None,
        })
    }
}

fn detach(fields: &mut Params, limits: &Limits) -> Result<Option<DetachOptions>, ErrorObject> {
    let detach = fields.one_of("onDisconnect", &["cancel", "detach"])? == Some(1);
    let detach_ms = fields.integer("detachMs", 1, limits.detach_ms)?;
    let overflow = fields.one_of("overflow", &["wait", "drop"])?;
    if detach {
        let overflow = if overflow == Some(1) { Overflow::Drop } else { Overflow::Wait };
        let detach_ms = detach_ms.unwrap_or(DEFAULT_DETACH_MS.min(limits.detach_ms));
        return Ok(Some(DetachOptions { detach_ms, overflow }));
    }
    match (detach_ms, overflow) {
        (None, None) => Ok(None),
        (ms, _) => {
            let name = if ms.is_some() { "detachMs" } else { "overflow" };
            let message = format!("{name} means nothing without onDisconnect \"detach\": add that, or leave it out");
            Err(ErrorObject::new(code::PARAMS, message).with(json!({ "param": name })))
        }
    }
}

fn without_nul(name: &str, text: &str) -> Result<(), ErrorObject> {
    match text.find('\0') {
        None => Ok(()),
        Some(at) => {
            Err(ErrorObject::new(code::PARAMS, format!("{name} has a NUL at byte {at}: no process can be given that"))
                .with(json!({ "param": name })))
        }
    }
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
            return Err(ill_typed(&format!("env.{name}"), "a string", &value));
        };
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(ErrorObject::new(
                code::PARAMS,
                format!("env has a name {name:?}: names are not empty and have no = and no NUL"),
            )
            .with(json!({ "param": "env" })));
        }
        without_nul(&format!("env.{name}"), &value)?;
        env.insert(name, value);
    }
    Ok(env)
}
