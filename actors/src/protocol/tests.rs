//! Tables of valid and invalid parameters, and the same message read by gateway and backend.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    control::{ControlRequest, TerminalSize},
    execute::{ClaudeOptions, DetachOptions, ExecutionSpec, Overflow, RequestedCommand},
    input::CommandInput,
    *,
};
use crate::{backend_api::ExecuteRequest, signal::Signal, stream::PerStream};

/// Reads a call as a session does.
fn parse(method: &str, params: Value) -> Result<Method, ErrorObject> {
    let Value::Object(params) = params else { panic!("params are an object") };
    let method = Method::parse(Call { id: None, method: method.into(), params }, &Limits::default())?;
    if let Method::Execute(execute) = &method {
        execute.check_executor(|name| name == CLAUDE_EXECUTOR)?;
    }
    Ok(method)
}

#[test]
fn the_error_names_the_invalid_parameter() {
    let long = "x".repeat(MAX_COMMAND_BYTES + 1);
    let table = [
        ("execute", json!({}), code::PARAMS, "command is missing"),
        ("execute", json!({ "command": "" }), code::PARAMS, "must not be empty"),
        ("execute", json!({ "command": long, "executor": "shell" }), code::PARAMS, "not 131072"),
        ("execute", json!({ "command": "a\u{0}b" }), code::PARAMS, "NUL at byte 1"),
        ("execute", json!({ "command": "x", "argv": ["x"] }), code::PARAMS, "send one of them"),
        ("execute", json!({ "argv": [] }), code::PARAMS, "argv must not be empty"),
        ("execute", json!({ "argv": "ls" }), code::PARAMS, "argv must be a list of strings"),
        ("execute", json!({ "argv": ["ls", 7] }), code::PARAMS, "argv[1] must be a string"),
        ("execute", json!({ "argv": ["ls", "a\u{0}b"] }), code::PARAMS, "argv[1] has a NUL at byte 1"),
        ("execute", json!({ "argv": ["ls", long] }), code::PARAMS, "argv[1] must have at most 131071 bytes"),
        ("execute", json!({ "argv": ["ls"], "executor": "shell" }), code::PARAMS, "on executor exec only"),
        ("execute", json!({ "argv": ["ls"], "executor": "claude" }), code::PARAMS, "on executor exec only"),
        ("execute", json!({ "argv": ["ls"], "claude": {} }), code::PARAMS, "claude"),
        ("execute", json!({ "command": "ls", "executor": "exec" }), code::PARAMS, "send argv"),
        ("execute", json!({ "command": "ls", "name": "dead" }), code::PARAMS, "name must have 1 to 63"),
        ("execute", json!({ "command": "ls", "name": "a b" }), code::PARAMS, "name must have 1 to 63"),
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
        (
            "attach",
            json!({ "executionId": "00000000-0000-4000-8000-000000000000", "observe": 1 }),
            code::PARAMS,
            "observe must be true or false",
        ),
        ("input", json!({}), code::PARAMS, "data is missing"),
        ("input", json!({ "data": "x", "dataBase64": "eA==" }), code::PARAMS, "send one"),
        ("input", json!({ "dataBase64": "%" }), code::PARAMS, "base64"),
        ("input", json!({ "data": "x".repeat((1 << 20) + 1) }), code::PARAMS, "send it in several calls"),
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
fn a_request_reaches_the_backend_unchanged() {
    let asked = json!({
        "command": "echo", "executor": "shell", "cwd": "/tmp", "env": { "A": "1" },
        "timeoutMs": 5, "stallTimeoutMs": 6, "heartbeatMs": 2000, "stdin": true, "pty": { "rows": 2, "cols": 3 },
        "onDisconnect": "detach", "detachMs": 7, "overflow": "drop", "events": null,
    });
    let Ok(Method::Execute(execute)) = parse("execute", asked) else { panic!("is an execute") };
    let id = ExecutionId::random();
    let body = serde_json::to_vec(&ExecuteRequest::new(&execute.run, id)).unwrap();
    let again = ExecuteRequest::read(&body, &Limits::default()).unwrap();
    assert_eq!(again.run.difference(&execute.run), None);
    assert_eq!(again.run, ExecutionSpec { execution_id: Some(id), ..execute.run });
    assert_eq!((again.instance, again.request_id), (None, None));
}

/// One call of each method with all parameters, and one with the required ones only.
fn calls() -> Vec<Method> {
    let id = ExecutionId::random();
    let run = ExecutionSpec {
        executor: Some("claude".to_owned()),
        execution_id: Some(id),
        cwd: Some("/tmp".to_owned()),
        env: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
        timeout_ms: Some(1),
        stall_timeout_ms: Some(2),
        heartbeat_ms: Some(3_000),
        detach: Some(DetachOptions { detach_ms: 4, overflow: Overflow::Drop }),
        claude: Some(ClaudeOptions {
            model: Some("haiku".to_owned()),
            permission_mode: Some("plan".to_owned()),
            allowed_tools: vec!["Bash(git log:*)".to_owned()],
            max_turns: Some(3),
            resume: Some("1-2".to_owned()),
        }),
        name: Some("nightly".parse().unwrap()),
        ..ExecutionSpec::of("echo")
    };
    let words = ["ls", "", "a b"].map(str::to_owned).to_vec();
    let argv = ExecutionSpec {
        command: RequestedCommand::Argv(words),
        executor: Some("exec".to_owned()),
        ..ExecutionSpec::default()
    };
    let size = TerminalSize { rows: 1, cols: 2 };
    let on_terminal = ExecutionSpec { stdin: true, pty: Some(size), ..ExecutionSpec::of("echo") };
    let execute = |run| ExecuteParams { run, framing: Framing::Chunk, events: false, instance: None };
    let instance = Some("00000000-0000-4000-8000-000000000000".parse().unwrap());
    let attach = AttachParams {
        execution_id: id,
        offsets: PerStream { stdout: 1, stderr: 2 },
        framing: Framing::Line,
        events: true,
        observe: true,
    };
    let control = |request| Method::Control(ControlParams { execution_id: Some(id), request });
    let input = |execution_id, input| Method::Input(InputParams { execution_id, input });
    vec![
        Method::Execute(ExecuteParams { run, framing: Framing::Line, events: true, instance }),
        Method::Execute(execute(on_terminal)),
        Method::Execute(execute(argv)),
        Method::Execute(execute(ExecutionSpec::of("echo"))),
        Method::Attach(attach),
        Method::Attach(AttachParams { framing: Framing::Chunk, events: false, observe: false, ..attach }),
        control(ControlRequest::cancel(7)),
        control(ControlRequest::Pause),
        control(ControlRequest::Resume),
        control(ControlRequest::Keep { detach_ms: None }),
        control(ControlRequest::Keep { detach_ms: Some(0) }),
        control(ControlRequest::Signal { signal: Signal::named("SIGINT").unwrap() }),
        Method::Control(ControlParams { execution_id: None, request: ControlRequest::Pause }),
        input(Some(id), CommandInput { data: b"\xff"[..].into(), eof: false }),
        input(None, CommandInput { data: Default::default(), eof: true }),
        Method::Resize(ResizeParams { execution_id: None, size }),
        Method::Resize(ResizeParams { execution_id: Some(id), size }),
        Method::Status(StatusParams { execution_id: Some(id) }),
        Method::Status(StatusParams::default()),
        Method::Ack(AckParams { execution_id: Some(id), offsets: PerStream { stdout: 1, stderr: 2 } }),
        Method::Ping(PingParams {}),
    ]
}

#[test]
fn a_call_is_read_as_it_was_written() {
    fn check<P: MethodParams>(params: &P) -> Method {
        parse(P::NAME, serde_json::to_value(params).unwrap()).unwrap()
    }
    for call in calls() {
        let read = match &call {
            Method::Execute(params) => check(params),
            Method::Attach(params) => check(params),
            Method::Control(params) => check(params),
            Method::Input(params) => check(params),
            Method::Resize(params) => check(params),
            Method::Ack(params) => check(params),
            Method::Status(params) => check(params),
            Method::Ping(params) => check(params),
        };
        assert_eq!(read, call);
    }
}

#[test]
fn the_error_for_an_unknown_method_lists_all_methods() {
    let error = parse("run", json!({})).unwrap_err();
    assert!(error.message.starts_with("unknown method \"run\": there are execute, attach, "), "{}", error.message);
    assert!(Method::NAMES.iter().all(|name| error.message.contains(name)), "{}", error.message);
}
