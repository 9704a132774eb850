//! The methods a client may call, and the rules for their parameters.
//!
//! The same options travel from client to gateway and from gateway to backend, so both read them here.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    DEFAULT_GRACE_MS, DEFAULT_HEARTBEAT_MS, Framing, Limits, MAX_COMMAND_BYTES,
    fields::{Fields, ill_typed},
    rpc::{Call, ErrorObject, code},
};
use crate::id::ExecutionId;

/// What a client asks of its session.
#[derive(Clone, PartialEq, Debug)]
pub enum Method {
    /// Run a command.
    Execute(Box<Execute>),
    /// Cancel or signal an execution.
    Control(Control),
    /// The newest status.
    Status(Option<ExecutionId>),
    /// Is anybody there?
    Ping,
}

/// What runs, and within which bounds: the part of `execute` that the backend is told.
#[derive(Clone, PartialEq, Debug)]
pub struct Run {
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
    /// Total time-out in milliseconds, from RUNNING.
    pub timeout_ms: Option<u64>,
    /// How often a sign of life is sent, in milliseconds.
    pub heartbeat_ms: u64,
}

/// Parameters of `execute`.
#[derive(Clone, PartialEq, Debug)]
pub struct Execute {
    /// What runs.
    pub run: Run,
    /// How its output is cut into messages.
    pub framing: Framing,
}

/// Parameters of `control`.
#[derive(Clone, PartialEq, Debug)]
pub struct Control {
    /// Which execution; the session's own if absent.
    pub execution_id: Option<ExecutionId>,
    /// What is to happen to it.
    pub kind: ControlKind,
}

/// What `control` asks for.
#[derive(Clone, PartialEq, Debug)]
pub enum ControlKind {
    /// End it: TERM, then KILL after the grace.
    Cancel {
        /// Milliseconds between TERM and KILL.
        grace_ms: u64,
    },
    /// Send a signal to its process group.
    Signal(Signal),
}

/// The signals a client may send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signal(&'static str);

impl Signal {
    /// Names and numbers on Linux (signal(7)). STOP, TSTP and CONT are missing: they would make an
    /// execution stand still without anybody saying so, which is what PAUSE is for.
    const ALL: [(&'static str, i32); 13] = [
        ("SIGHUP", 1),
        ("SIGINT", 2),
        ("SIGQUIT", 3),
        ("SIGABRT", 6),
        ("SIGKILL", 9),
        ("SIGUSR1", 10),
        ("SIGUSR2", 12),
        ("SIGPIPE", 13),
        ("SIGALRM", 14),
        ("SIGTERM", 15),
        ("SIGWINCH", 28),
        ("SIGURG", 23),
        ("SIGIO", 29),
    ];

    /// The signal of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(known, _)| Signal(known))
    }

    /// The name, such as `SIGINT`.
    pub fn name(self) -> &'static str {
        self.0
    }

    /// The number on Linux.
    pub fn number(self) -> i32 {
        Self::ALL.iter().find(|(known, _)| *known == self.0).map_or(0, |(_, number)| *number)
    }

    /// Reads the parameter `signal`.
    pub fn from_fields(fields: &mut Fields) -> Result<Self, ErrorObject> {
        let Some(name) = fields.string("signal")? else {
            return Err(ErrorObject::new(code::PARAMS, "signal is missing: name one, such as SIGINT"));
        };
        Signal::named(&name).ok_or_else(|| {
            let allowed: Vec<_> = Self::ALL.iter().map(|(name, _)| *name).collect();
            ErrorObject::new(code::PARAMS, format!("signal {name:?} cannot be sent: use one of {}", allowed.join(", ")))
                .with(json!({ "param": "signal", "asked": name, "allowed": allowed }))
        })
    }
}

impl Method {
    /// Reads a call.
    pub fn parse(call: Call, limits: &Limits) -> Result<Self, ErrorObject> {
        let mut fields = Fields::new(call.params);
        let method = match call.method.as_str() {
            "execute" => Method::Execute(Box::new(Execute::from_fields(&mut fields, limits)?)),
            "control" => Method::Control(Control::from_fields(&mut fields, limits)?),
            "status" => Method::Status(execution_id(&mut fields)?),
            "ping" => Method::Ping,
            name @ ("input" | "resize" | "attach") => {
                return Err(ErrorObject::new(code::METHOD, format!("{name} is not supported by this version")));
            }
            name => {
                let mut name = name.to_owned();
                name.truncate(name.floor_char_boundary(80));
                return Err(ErrorObject::new(
                    code::METHOD,
                    format!("unknown method {name:?}: there are execute, control, status and ping"),
                ));
            }
        };
        fields.finish()?;
        Ok(method)
    }
}

impl Execute {
    fn from_fields(fields: &mut Fields, limits: &Limits) -> Result<Self, ErrorObject> {
        let run = Run::from_fields(fields, "command", limits)?;
        let framing = match fields.one_of("framing", &["chunk", "line"])? {
            Some(1) => Framing::Line,
            _ => Framing::Chunk,
        };
        fields.not_yet("events", Some(json!(false)))?;
        Ok(Execute { run, framing })
    }
}

impl Run {
    /// Reads what runs. `command` is the name of the field that holds the command.
    pub fn from_fields(fields: &mut Fields, command: &str, limits: &Limits) -> Result<Self, ErrorObject> {
        let text = fields
            .string(command)?
            .ok_or_else(|| ErrorObject::new(code::PARAMS, format!("{command} is missing: it is what to run")))?;
        if text.is_empty() || text.len() > MAX_COMMAND_BYTES {
            return Err(ErrorObject::new(
                code::PARAMS,
                format!("{command} must have 1 to {MAX_COMMAND_BYTES} bytes, not {}", text.len()),
            )
            .with(json!({ "param": command, "asked": text.len(), "min": 1, "max": MAX_COMMAND_BYTES })));
        }
        without_nul(command, &text)?;
        let cwd = fields.string("cwd")?;
        if let Some(cwd) = &cwd {
            without_nul("cwd", cwd)?;
            if cwd.is_empty() {
                return Err(ErrorObject::new(code::PARAMS, "cwd must not be empty: name a directory or leave it out"));
            }
        }
        let run = Run {
            command: text,
            executor: fields.string("executor")?,
            execution_id: execution_id(fields)?,
            cwd,
            env: environment(fields)?,
            timeout_ms: fields.integer("timeoutMs", 1, limits.timeout_ms)?,
            heartbeat_ms: fields
                .integer("heartbeatMs", limits.heartbeat_min_ms, limits.heartbeat_max_ms)?
                .unwrap_or(DEFAULT_HEARTBEAT_MS),
        };
        fields.not_yet("stdin", Some(json!(false)))?;
        fields.not_yet("onDisconnect", Some(json!("cancel")))?;
        for name in ["pty", "stallTimeoutMs", "detachMs", "overflow", "claude"] {
            fields.not_yet(name, None)?;
        }
        Ok(run)
    }

    /// The body of the request that asks the backend to run it under this id.
    pub fn to_body(&self, id: ExecutionId) -> Value {
        let mut body = Map::new();
        body.insert("question".into(), json!(self.command));
        body.insert("executionId".into(), json!(id));
        body.insert("heartbeatMs".into(), json!(self.heartbeat_ms));
        if let Some(executor) = &self.executor {
            body.insert("executor".into(), json!(executor));
        }
        if let Some(cwd) = &self.cwd {
            body.insert("cwd".into(), json!(cwd));
        }
        if !self.env.is_empty() {
            body.insert("env".into(), json!(self.env));
        }
        if let Some(timeout_ms) = self.timeout_ms {
            body.insert("timeoutMs".into(), json!(timeout_ms));
        }
        Value::Object(body)
    }
}

impl Control {
    fn from_fields(fields: &mut Fields, limits: &Limits) -> Result<Self, ErrorObject> {
        let execution_id = execution_id(fields)?;
        let kind = match fields.one_of("type", &["CANCEL", "SIGNAL", "PAUSE", "RESUME"])? {
            None => return Err(ErrorObject::new(code::PARAMS, "type is missing: CANCEL or SIGNAL")),
            Some(0) => ControlKind::Cancel {
                grace_ms: fields.integer("graceMs", 0, limits.grace_ms)?.unwrap_or(DEFAULT_GRACE_MS),
            },
            Some(1) => ControlKind::Signal(Signal::from_fields(fields)?),
            Some(_) => {
                return Err(ErrorObject::new(code::PARAMS, "PAUSE and RESUME are not supported by this version")
                    .with(json!({ "param": "type", "allowed": ["CANCEL", "SIGNAL"] })));
            }
        };
        Ok(Control { execution_id, kind })
    }
}

fn execution_id(fields: &mut Fields) -> Result<Option<ExecutionId>, ErrorObject> {
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

fn environment(fields: &mut Fields) -> Result<BTreeMap<String, String>, ErrorObject> {
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
            ("execute", json!({ "command": "" }), code::PARAMS, "1 to 131071"),
            ("execute", json!({ "command": long }), code::PARAMS, "not 131072"),
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
            ("execute", json!({ "command": "x", "stdin": true }), code::PARAMS, "stdin is not supported"),
            ("execute", json!({ "command": "x", "pty": { "rows": 1 } }), code::PARAMS, "pty is not supported"),
            ("execute", json!({ "command": "x", "onDisconnect": "detach" }), code::PARAMS, "onDisconnect"),
            ("execute", json!({ "command": "x", "wat": 1 }), code::PARAMS, "unknown parameter wat"),
            ("control", json!({}), code::PARAMS, "type is missing"),
            ("control", json!({ "type": "STOP" }), code::PARAMS, "STOP"),
            ("control", json!({ "type": "PAUSE" }), code::PARAMS, "not supported"),
            ("control", json!({ "type": "SIGNAL" }), code::PARAMS, "signal is missing"),
            ("control", json!({ "type": "SIGNAL", "signal": "SIGSTOP" }), code::PARAMS, "SIGSTOP"),
            ("control", json!({ "type": "CANCEL", "graceMs": 999_999_999u64 }), code::PARAMS, "graceMs"),
            ("ping", json!({ "x": 1 }), code::PARAMS, "unknown parameter x"),
            ("attach", json!({}), code::METHOD, "attach is not supported"),
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
            "timeoutMs": 5, "heartbeatMs": 2000, "stdin": false, "onDisconnect": "cancel", "events": null,
        });
        let Ok(Method::Execute(execute)) = parse("execute", asked) else { panic!("is an execute") };
        let id = ExecutionId::random();
        let Value::Object(body) = execute.run.to_body(id) else { panic!("is an object") };
        let again = Run::from_fields(&mut Fields::new(body), "question", &Limits::default()).unwrap();
        assert_eq!(again, Run { execution_id: Some(id), ..execute.run });
    }
}
