//! A shell stands in for Claude Code: its prompt, which it reads from standard input as the CLI does, is a script that
//! prints events recorded from the real CLI.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::common::service::Service;

pub const STAND_IN: &str = r#"{"claude":["bash","-c","eval \"$(cat)\"","claude"]}"#;

pub fn service() -> Service {
    service_with(&[])
}

pub fn service_with(env: &[(&str, &str)]) -> Service {
    Service::with(&["serve", "--executors", STAND_IN], env)
}

/// The file of a recorded run.
pub fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/samples/claude-{name}.ndjson"))
}

/// A shell command that prints a recorded run.
pub fn cat_sample(name: &str) -> String {
    format!("cat {}", sample(name).display())
}

/// The events of a recorded run.
pub fn sample_events(name: &str) -> Vec<Value> {
    let text = fs::read_to_string(sample(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// An event in which Claude writes this text.
pub fn text_event(text: &str) -> String {
    json!({ "type": "assistant", "message": { "content": [{ "type": "text", "text": text }] } }).to_string()
}

/// A `result` of one turn, with its text and the cost so far.
pub fn result_event(text: &str, cost: f64) -> String {
    json!({
        "type": "result", "subtype": "success", "is_error": false, "result": text, "num_turns": 2, "duration_ms": 500,
        "total_cost_usd": cost, "session_id": "s-1",
        "usage": { "input_tokens": 3, "service_tier": "standard", "cache": { "read": 5 } },
    })
    .to_string()
}

pub const TOOL_USE: &str = r#"{"message":{"content":[{"type":"tool_use","id":"1","name":"Bash","input":{"command":"ls"}}]},"type":"assistant"}"#;
pub const TOOL_RESULT: &str =
    r#"{"type":"user","message":{"content":[{"type":"tool_result","tool_use_id":"1","content":"a\nb"}]}}"#;
pub const RESULT: &str = r#"{"type":"result","subtype":"success","is_error":false,"result":"done","num_turns":2,"duration_ms":5,"total_cost_usd":0.5,"usage":{"input_tokens":1},"session_id":"s-1"}"#;

/// The events of the CLI when a background task begins, and when it ends and wakes the CLI (2.1.330).
pub const TASK_STARTED: [&str; 2] = [
    r#"{"type":"system","subtype":"background_tasks_changed","tasks":[{"task_id":"b1","task_type":"local_bash"}]}"#,
    r#"{"type":"system","subtype":"task_started","task_id":"b1","is_backgrounded":true,"task_type":"local_bash"}"#,
];
pub const TASK_ENDED: [&str; 3] = [
    r#"{"type":"system","subtype":"task_updated","task_id":"b1","patch":{"status":"completed"}}"#,
    r#"{"type":"system","subtype":"task_notification","task_id":"b1","status":"completed"}"#,
    r#"{"type":"system","subtype":"background_tasks_changed","tasks":[]}"#,
];
pub const INIT: &str = r#"{"type":"system","subtype":"init"}"#;
pub const SUBAGENT_MESSAGE: &str =
    r#"{"type":"user","parent_tool_use_id":"7","message":{"content":[{"type":"text","text":"interrupted"}]}}"#;

/// Shell commands that print these lines.
pub fn print_lines(lines: &[&str]) -> String {
    lines.iter().map(|line| format!("printf '%s\\n' '{line}'; ")).collect()
}

/// The deadline for the exit after a result, in tests that wait for it.
pub const SHORT_EXIT_DEADLINE: (&str, &str) = ("CC_EXECUTOR_CLAUDE_EXIT_MS", "1500");
