//! The methods a client may call, and the rules for their parameters.
//!
//! The same options travel from client to gateway and from gateway to backend, so both read them here.

use std::{borrow::Cow, collections::BTreeMap};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    CLAUDE_EXECUTOR, DEFAULT_DETACH_MS, DEFAULT_GRACE_MS, DEFAULT_HEARTBEAT_MS, Framing, Limits, MAX_COMMAND_BYTES,
};
use crate::rpc::{
    Call, ErrorObject, code,
    params::{Params, ill_typed},
};
use crate::{
    id::{ExecutionId, InstanceId},
    signal::Signal,
    stream::PerStream,
};

/// What a client asks of its session.
#[derive(Clone, PartialEq, Debug)]
pub enum Method {
    /// Run a command.
    Execute(Box<ExecuteParams>),
    /// Follow an execution that is there already.
    Attach(AttachParams),
    /// Cancel, pause, resume or signal an execution.
    Control(ControlParams),
    /// Write to the command's standard input.
    Input(InputParams),
    /// Tell the command's terminal its size.
    Resize(TerminalSize),
    /// The newest status.
    Status(Option<ExecutionId>),
    /// Is anybody there?
    Ping,
}

/// What runs, and within which bounds: the part of `execute` that the backend is told.
#[derive(Clone, PartialEq, Debug)]
pub struct ExecutionSpec {
    /// The command, 1 to [`MAX_COMMAND_BYTES`] bytes without NUL.
    pub command: String,
    /// The executor's name; the backend's default if absent.
    pub executor: Option<String>,
    /// The client's own id for it.
    pub execution_id: Option<ExecutionId>,
    /// The working directory; the backend's own if absent.
    pub cwd: Option<String>,
    /// Variables added to the command's environment.
    pub env: BTreeMap<String, String>,
    /// Whether the command reads what `input` sends; it reads end-of-file otherwise.
    pub stdin: bool,
    /// The size of the terminal that it runs on, if on one.
    pub pty: Option<TerminalSize>,
    /// Total time-out in milliseconds, from RUNNING.
    pub timeout_ms: Option<u64>,
    /// The longest time without output, in milliseconds.
    pub stall_timeout_ms: Option<u64>,
    /// How often a sign of life is sent, in milliseconds.
    pub heartbeat_ms: u64,
    /// What becomes of it when nobody follows it any more; it is ended if absent.
    pub detach: Option<DetachOptions>,
    /// What Claude is told beside its prompt.
    pub claude: Option<ClaudeOptions>,
}

/// Options of the executor `claude`. What is absent is left to Claude's own settings.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClaudeOptions {
    /// The model's name or alias.
    pub model: Option<String>,
    /// What it may do without being asked, such as `acceptEdits`.
    pub permission_mode: Option<String>,
    /// Tools that it may use without being asked, such as `Bash(git log:*)`.
    pub allowed_tools: Vec<String>,
    /// How often the model may answer.
    pub max_turns: Option<u64>,
    /// The session of Claude that is to go on.
    pub resume: Option<String>,
}

/// How an execution goes on without anybody who follows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DetachOptions {
    /// For how long, in milliseconds.
    pub detach_ms: u64,
    /// What a full ring means.
    pub overflow: Overflow,
}

/// What becomes of output that nobody has acknowledged when there is no room for more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Overflow {
    /// It is kept, and the command waits.
    #[default]
    Wait,
    /// It is dropped, which is said.
    Drop,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// Parameters of `execute`.
#[derive(Clone, PartialEq, Debug)]
pub struct ExecuteParams {
    /// What runs.
    pub run: ExecutionSpec,
    /// How its output is cut into messages.
    pub framing: Framing,
    /// Whether Claude's events are told too.
    pub events: bool,
    /// The only instance of the backend that may run it. A client that repeats a request whose answer it did not get
    /// names the instance of `connected`, because a restarted backend does not know that it has run already.
    pub instance: Option<InstanceId>,
}

/// Parameters of `attach`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttachParams {
    /// Which execution.
    pub execution_id: ExecutionId,
    /// What the client has of each stream already, in bytes.
    pub offsets: PerStream<u64>,
    /// How the output is cut into messages.
    pub framing: Framing,
    /// Whether Claude's events are told too.
    pub events: bool,
}

/// Parameters of `input`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InputParams {
    /// What the command is to read.
    pub data: Vec<u8>,
    /// Whether nothing follows.
    pub eof: bool,
}

/// Parameters of `control`.
#[derive(Clone, PartialEq, Debug)]
pub struct ControlParams {
    /// Which execution; the session's own if absent.
    pub execution_id: Option<ExecutionId>,
    /// What is to happen to it.
    pub kind: ControlAction,
}

/// What `control` asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlAction {
    /// End it: TERM, then KILL after the grace.
    Cancel {
        /// Milliseconds between TERM and KILL.
        grace_ms: u64,
    },
    /// Let it stand still.
    Pause,
    /// Let it go on.
    Resume,
    /// Send a signal to its process group.
    Signal(Signal),
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

impl Method {
    /// Reads a call.
    pub fn parse(call: Call, limits: &Limits) -> Result<Self, ErrorObject> {
        let mut fields = Params::new(call.params);
        let method = match call.method.as_str() {
            "execute" => Method::Execute(Box::new(ExecuteParams::from_fields(&mut fields, limits)?)),
            "attach" => Method::Attach(AttachParams::from_fields(&mut fields)?),
            "control" => Method::Control(ControlParams::from_fields(&mut fields, limits)?),
            "input" => Method::Input(InputParams::from_fields(&mut fields, limits)?),
            "resize" => Method::Resize(TerminalSize::from_fields(&mut fields)?),
            "status" => Method::Status(execution_id(&mut fields)?),
            "ping" => Method::Ping,
            name => {
                let mut name = name.to_owned();
                name.truncate(name.floor_char_boundary(80));
                return Err(ErrorObject::new(
                    code::METHOD,
                    format!(
                        "unknown method {name:?}: there are execute, attach, control, input, resize, status and ping"
                    ),
                ));
            }
        };
        fields.finish()?;
        Ok(method)
    }
}

impl ExecuteParams {
    fn from_fields(fields: &mut Params, limits: &Limits) -> Result<Self, ErrorObject> {
        let run = ExecutionSpec::from_fields(fields, "command", limits)?;
        let framing = framing(fields)?;
        let events = fields.boolean("events")?.unwrap_or(false);
        if let Some(other) = run.executor.as_deref().filter(|name| events && *name != CLAUDE_EXECUTOR) {
            let message = format!("events come from the executor claude alone, not from {other:?}: leave them out");
            return Err(ErrorObject::new(code::PARAMS, message).with(json!({ "param": "events" })));
        }
        Ok(ExecuteParams { run, framing, events, instance: fields.parsed("instance", "a UUID")? })
    }

    /// The parameter in which the two differ.
    pub fn difference(&self, other: &ExecuteParams) -> Option<&'static str> {
        let own = [("framing", self.framing != other.framing), ("events", self.events != other.events)];
        self.run.difference(&other.run).or(own.into_iter().find_map(|(name, differs)| differs.then_some(name)))
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
            heartbeat_ms: DEFAULT_HEARTBEAT_MS,
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
            heartbeat_ms: fields
                .integer("heartbeatMs", limits.heartbeat_min_ms, limits.heartbeat_max_ms)?
                .unwrap_or(DEFAULT_HEARTBEAT_MS),
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

    /// The body of the request that asks the backend to run it under this id.
    pub fn to_body(&self, id: ExecutionId) -> Value {
        let mut body = Map::new();
        body.insert("question".into(), json!(self.command));
        body.insert("executionId".into(), json!(id));
        body.insert("heartbeatMs".into(), json!(self.heartbeat_ms));
        let mut optional = |name: &str, value: Option<Value>| value.map(|value| body.insert(name.to_owned(), value));
        optional("executor", self.executor.as_ref().map(|name| json!(name)));
        optional("cwd", self.cwd.as_ref().map(|cwd| json!(cwd)));
        optional("env", (!self.env.is_empty()).then(|| json!(self.env)));
        optional("stdin", self.stdin.then_some(json!(true)));
        optional("pty", self.pty.map(TerminalSize::to_json));
        optional("timeoutMs", self.timeout_ms.map(|ms| json!(ms)));
        optional("stallTimeoutMs", self.stall_timeout_ms.map(|ms| json!(ms)));
        optional("claude", self.claude.as_ref().map(ClaudeOptions::to_json));
        if let Some(detach) = self.detach {
            optional("onDisconnect", Some(json!("detach")));
            optional("detachMs", Some(json!(detach.detach_ms)));
            optional("overflow", Some(json!(detach.overflow.as_str())));
        }
        Value::Object(body)
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
            heartbeat_ms,
            detach,
            claude,
        } = self;
        let detach = detach.map(|DetachOptions { detach_ms, overflow }| (detach_ms, overflow.as_str()));
        [
            Cow::Borrowed(command.as_str()),
            canonical(executor),
            canonical(cwd),
            canonical(env),
            canonical(stdin),
            canonical(&pty.map(TerminalSize::to_json)),
            canonical(timeout_ms),
            canonical(stall_timeout_ms),
            canonical(heartbeat_ms),
            canonical(&detach),
            canonical(&claude.as_ref().map(ClaudeOptions::to_json)),
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

impl ClaudeOptions {
    fn from_whole(mut fields: Params) -> Result<Self, ErrorObject> {
        let claude = ClaudeOptions {
            model: word(&mut fields, "model")?,
            permission_mode: word(&mut fields, "permissionMode")?,
            allowed_tools: fields.strings("allowedTools")?,
            max_turns: fields.integer("maxTurns", 1, 1_000_000)?,
            resume: word(&mut fields, "resume")?,
        };
        fields.finish()?;
        for tool in &claude.allowed_tools {
            let plain = tool.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
            if !plain || tool.len() > MAX_OPTION || tool.chars().any(char::is_control) {
                let message = format!("allowedTools has {tool:?}: name tools, such as Bash or \"Bash(git log:*)\"");
                return Err(ErrorObject::new(code::PARAMS, message).with(json!({ "param": "allowedTools" })));
            }
        }
        Ok(claude)
    }

    fn to_json(&self) -> Value {
        let mut options = Map::new();
        let mut optional = |name: &str, value: Option<Value>| value.map(|value| options.insert(name.to_owned(), value));
        optional("model", self.model.as_ref().map(|model| json!(model)));
        optional("permissionMode", self.permission_mode.as_ref().map(|mode| json!(mode)));
        optional("allowedTools", (!self.allowed_tools.is_empty()).then(|| json!(self.allowed_tools)));
        optional("maxTurns", self.max_turns.map(|turns| json!(turns)));
        optional("resume", self.resume.as_ref().map(|session| json!(session)));
        Value::Object(options)
    }
}

/// The longest option of Claude, in bytes.
const MAX_OPTION: usize = 1_000;

/// Takes an option that is one word.
fn word(fields: &mut Params, name: &str) -> Result<Option<String>, ErrorObject> {
    let Some(text) = fields.string(name)? else { return Ok(None) };
    let plain = text.chars().all(|c| !c.is_control() && !c.is_whitespace());
    if text.is_empty() || text.len() > MAX_OPTION || !plain {
        return Err(ill_typed(name, "one word", &Value::String(text)));
    }
    Ok(Some(text))
}

impl Overflow {
    fn as_str(self) -> &'static str {
        match self {
            Overflow::Wait => "wait",
            Overflow::Drop => "drop",
        }
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

    fn from_whole(mut fields: Params) -> Result<Self, ErrorObject> {
        let size = TerminalSize::from_fields(&mut fields)?;
        fields.finish()?;
        Ok(size)
    }

    /// As it stands on the wire.
    pub fn to_json(self) -> Value {
        json!({ "rows": self.rows, "cols": self.cols })
    }
}

impl AttachParams {
    fn from_fields(fields: &mut Params) -> Result<Self, ErrorObject> {
        let execution_id = execution_id(fields)?
            .ok_or_else(|| ErrorObject::new(code::PARAMS, "executionId is missing: it says what to attach to"))?;
        let offsets = match fields.object("offsets")? {
            None => PerStream::default(),
            Some(mut fields) => {
                let offset =
                    |fields: &mut Params, name| fields.integer(name, 0, u64::MAX).map(Option::unwrap_or_default);
                let offsets =
                    PerStream { stdout: offset(&mut fields, "stdout")?, stderr: offset(&mut fields, "stderr")? };
                fields.finish()?;
                offsets
            }
        };
        let events = fields.boolean("events")?.unwrap_or(false);
        Ok(AttachParams { execution_id, offsets, framing: framing(fields)?, events })
    }
}

impl InputParams {
    fn from_fields(fields: &mut Params, limits: &Limits) -> Result<Self, ErrorObject> {
        let data = match (fields.string("data")?, fields.base64("dataBase64")?) {
            (Some(_), Some(_)) => {
                return Err(ErrorObject::new(code::PARAMS, "data and dataBase64 are two forms of the same: send one"));
            }
            (Some(text), None) => text.into_bytes(),
            (None, data) => data.unwrap_or_default(),
        };
        let eof = fields.boolean("eof")?.unwrap_or(false);
        if data.is_empty() && !eof {
            return Err(ErrorObject::new(code::PARAMS, "data is missing: send data, dataBase64 or eof"));
        }
        if data.len() > limits.input_bytes {
            let message = format!("data has {} bytes: at most {} may wait", data.len(), limits.input_bytes);
            return Err(ErrorObject::new(code::PARAMS, message)
                .with(json!({ "param": "data", "asked": data.len(), "max": limits.input_bytes })));
        }
        Ok(InputParams { data, eof })
    }
}

impl ControlParams {
    fn from_fields(fields: &mut Params, limits: &Limits) -> Result<Self, ErrorObject> {
        let execution_id = execution_id(fields)?;
        let kind = match fields.one_of("type", &["CANCEL", "PAUSE", "RESUME", "SIGNAL"])? {
            None => return Err(ErrorObject::new(code::PARAMS, "type is missing: CANCEL, PAUSE, RESUME or SIGNAL")),
            Some(0) => ControlAction::Cancel {
                grace_ms: fields.integer("graceMs", 0, limits.grace_ms)?.unwrap_or(DEFAULT_GRACE_MS),
            },
            Some(1) => ControlAction::Pause,
            Some(2) => ControlAction::Resume,
            Some(_) => ControlAction::Signal(Signal::from_fields(fields)?),
        };
        Ok(ControlParams { execution_id, kind })
    }
}

fn framing(fields: &mut Params) -> Result<Framing, ErrorObject> {
    Ok(match fields.one_of("framing", &["chunk", "line"])? {
        Some(1) => Framing::Line,
        _ => Framing::Chunk,
    })
}

fn execution_id(fields: &mut Params) -> Result<Option<ExecutionId>, ErrorObject> {
    fields.parsed("executionId", "a UUID")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, params: Value) -> Result<Method, ErrorObject> {
        let Value::Object(params) = params else { panic!("params are an object") };
        Method::parse(Call { id: None, method: method.into(), params }, &Limits::default())
    }

    #[test]
    fn what_is_wrong_with_a_parameter_is_named() {
        let long = "x".repeat(MAX_COMMAND_BYTES + 1);
        let table = [
            ("execute", json!({}), code::PARAMS, "command is missing"),
            ("execute", json!({ "command": "" }), code::PARAMS, "must not be empty"),
            ("execute", json!({ "command": long, "executor": "shell" }), code::PARAMS, "not 131072"),
            ("execute", json!({ "command": "a\u{0}b" }), code::PARAMS, "NUL at byte 1"),
            ("execute", json!({ "command": 7 }), code::PARAMS, "command must be a string, not 7"),
            ("execute", json!({ "command": "x", "cwd": 1 }), code::PARAMS, "cwd must be"),
            ("execute", json!({ "command": "x", "env": { "A": 1 } }), code::PARAMS, "env.A must be a string"),
            ("execute", json!({ "command": "x", "env": { "A=B": "1" } }), code::PARAMS, "A=B"),
            ("execute", json!({ "command": "x", "timeoutMs": 0 }), code::PARAMS, "from 1 to"),
            ("execute", json!({ "command": "x", "timeoutMs": 1.5 }), code::PARAMS, "whole number"),
            ("execute", json!({ "command": "x", "heartbeatMs": 999 }), code::PARAMS, "from 1000 to 60000"),
            ("execute", json!({ "command": "x", "framing": "word" }), code::PARAMS, "chunk, line"),
            ("execute", json!({ "command": "x", "executionId": "7" }), code::PARAMS, "a UUID"),
            ("execute", json!({ "command": "x", "stdin": 1 }), code::PARAMS, "stdin must be true or false"),
            ("execute", json!({ "command": "x", "pty": { "rows": 1 } }), code::PARAMS, "cols is missing"),
            ("execute", json!({ "command": "x", "pty": { "rows": 0, "cols": 1 } }), code::PARAMS, "from 1 to 65535"),
            (
                "execute",
                json!({ "command": "x", "pty": { "rows": 1, "cols": 1, "x": 1 } }),
                code::PARAMS,
                "unknown parameter x",
            ),
            ("execute", json!({ "command": "x", "stallTimeoutMs": 0 }), code::PARAMS, "stallTimeoutMs"),
            ("execute", json!({ "command": "x", "onDisconnect": "stay" }), code::PARAMS, "cancel, detach"),
            ("execute", json!({ "command": "x", "detachMs": 1 }), code::PARAMS, "detachMs means nothing"),
            ("execute", json!({ "command": "x", "overflow": "drop" }), code::PARAMS, "overflow means nothing"),
            (
                "execute",
                json!({ "command": "x", "onDisconnect": "detach", "detachMs": 3_600_001 }),
                code::PARAMS,
                "3600000",
            ),
            ("execute", json!({ "command": "x", "executor": "shell", "claude": {} }), code::PARAMS, "claude"),
            ("execute", json!({ "command": "x", "executor": "shell", "events": true }), code::PARAMS, "events"),
            ("execute", json!({ "command": "x", "wat": 1 }), code::PARAMS, "unknown parameter wat"),
            ("control", json!({}), code::PARAMS, "type is missing"),
            ("control", json!({ "type": "STOP" }), code::PARAMS, "STOP"),
            ("control", json!({ "type": "SIGNAL" }), code::PARAMS, "signal is missing"),
            ("control", json!({ "type": "SIGNAL", "signal": "SIGSTOP" }), code::PARAMS, "SIGSTOP"),
            ("control", json!({ "type": "CANCEL", "graceMs": 999_999_999u64 }), code::PARAMS, "graceMs"),
            ("ping", json!({ "x": 1 }), code::PARAMS, "unknown parameter x"),
            ("attach", json!({}), code::PARAMS, "executionId is missing"),
            (
                "attach",
                json!({ "executionId": "00000000-0000-4000-8000-000000000000", "offsets": { "stdout": -1 } }),
                code::PARAMS,
                "stdout",
            ),
            (
                "attach",
                json!({ "executionId": "00000000-0000-4000-8000-000000000000", "offsets": 7 }),
                code::PARAMS,
                "an object",
            ),
            ("input", json!({}), code::PARAMS, "data is missing"),
            ("input", json!({ "data": "x", "dataBase64": "eA==" }), code::PARAMS, "send one"),
            ("input", json!({ "dataBase64": "%" }), code::PARAMS, "base64"),
            ("input", json!({ "data": "x".repeat((1 << 20) + 1) }), code::PARAMS, "may wait"),
            ("resize", json!({ "rows": 1 }), code::PARAMS, "cols is missing"),
            ("nope", json!({}), code::METHOD, "unknown method \"nope\""),
        ];
        for (method, params, code, part) in table {
            let error = parse(method, params).expect_err(part);
            assert_eq!(error.code, code, "{part}");
            assert!(error.message.contains(part), "{:?} should say {part:?}", error.message);
        }
    }

    #[test]
    fn what_a_client_asked_for_reaches_the_backend_unchanged() {
        let asked = json!({
            "command": "echo", "executor": "shell", "cwd": "/tmp", "env": { "A": "1" },
            "timeoutMs": 5, "stallTimeoutMs": 6, "heartbeatMs": 2000, "stdin": true, "pty": { "rows": 2, "cols": 3 },
            "onDisconnect": "detach", "detachMs": 7, "overflow": "drop", "events": null,
        });
        let Ok(Method::Execute(execute)) = parse("execute", asked) else { panic!("is an execute") };
        let id = ExecutionId::random();
        let Value::Object(body) = execute.run.to_body(id) else { panic!("is an object") };
        let again = ExecutionSpec::from_fields(&mut Params::new(body), "question", &Limits::default()).unwrap();
        assert_eq!(again.difference(&execute.run), None);
        assert_eq!(again, ExecutionSpec { execution_id: Some(id), ..execute.run });
    }
}
