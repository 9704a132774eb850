//! The options, environment and start of Claude, and which requests are refused.

use std::path::Path;

use cc_executor_actors::{
    outcome::{Reason, Status},
    rpc::code,
};
use serde_json::json;

use super::script::{RESULT, print_lines, service, service_with};
use crate::common::{client::code_and_param, service::Service};

#[test]
fn claude_gets_options_as_arguments_prompt_on_stdin_and_a_filtered_environment() {
    let service = service_with(&[
        ("ANTHROPIC_API_KEY", ""),
        ("ANTHROPIC_BASE_URL", "http://127.0.0.1:1"),
        ("AWS_SECRET_ACCESS_KEY", "hidden"),
        ("CC_EXECUTOR_CLAUDE_TOOLS", "Bash,Read"),
        ("IS_SANDBOX", "1"),
    ]);
    let mut client = service.connect();
    let padding = format!(": '{}';", "long ".repeat(190_000));
    let command = format!("{padding} printf '%s\\n' \"$@\" >&2; env >&2; {}", print_lines(&[RESULT]));
    let recording = client.run_claude(json!({
        "command": command,
        "claude": {
            "model": "$(touch;/tmp/never-by-claude)", "permissionMode": "bypassPermissions", "maxTurns": 3,
            "allowedTools": ["Bash(git log:*)", "Read"], "resume": "s-1",
        },
    }));
    assert_eq!(recording.status(), Status::Completed, "{}", recording.end);
    let stderr = String::from_utf8(recording.stderr).unwrap();
    let arguments: Vec<_> = stderr.lines().take(11).collect();
    assert_eq!(
        arguments,
        [
            "-p",
            "--output-format",
            "stream-json",
            "--verbose",
            "--model=$(touch;/tmp/never-by-claude)",
            "--permission-mode=bypassPermissions",
            "--max-turns=3",
            "--resume=s-1",
            "--allowedTools",
            "Bash(git log:*)",
            "Read",
        ]
    );
    assert!(!Path::new("/tmp/never-by-claude").exists());
    for (name, is_set) in [
        ("ANTHROPIC_BASE_URL=http://127.0.0.1:1", true),
        ("ANTHROPIC_API_KEY", false),
        ("AWS_SECRET", false),
        ("CC_EXECUTOR", false),
    ] {
        assert_eq!(stderr.lines().any(|line| line.starts_with(name)), is_set, "{name}");
    }
    let refused = client
        .call("execute", json!({ "command": "x", "executor": "claude", "claude": { "allowedTools": ["WebFetch"] } }))
        .unwrap_err();
    assert_eq!(code_and_param(&refused), (code::NOT_ALLOWED, Some("allowedTools")), "{refused}");
}

#[test]
fn invalid_claude_parameters_and_start_failures_are_reported() {
    let service = service();
    let mut client = service.connect();
    for (params, code, param) in [
        (json!({ "command": "x", "executor": "claude", "stdin": true }), code::PARAMS, "stdin"),
        (json!({ "command": "x", "executor": "claude", "pty": { "rows": 1, "cols": 1 } }), code::PARAMS, "pty"),
        (json!({ "command": "x", "executor": "shell", "claude": {} }), code::PARAMS, "claude"),
        (json!({ "command": "x", "claude": {} }), code::PARAMS, "claude"),
        (json!({ "command": "x", "executor": "shell", "events": true }), code::PARAMS, "events"),
        (json!({ "command": "x", "executor": "claude", "claude": { "maxTurns": 0 } }), code::PARAMS, "maxTurns"),
        (json!({ "command": "x", "executor": "claude", "claude": { "model": "a b" } }), code::PARAMS, "model"),
        (
            json!({ "command": "x", "executor": "claude", "claude": { "allowedTools": ["--x"] } }),
            code::PARAMS,
            "allowedTools",
        ),
        (json!({ "command": "x".repeat(131_072) }), code::PARAMS, "command"),
    ] {
        let error = client.call("execute", params).unwrap_err();
        assert_eq!(code_and_param(&error), (code, Some(param)), "{error}");
    }
    let missing = Service::with(&["serve", "--executors", r#"{"claude":["/nonexistent/claude"]}"#], &[]);
    let recording = missing.connect().run_claude(json!({ "command": "x" }));
    assert_eq!((recording.reason(), &recording.end["exit_code"]), (Reason::NotStarted, &json!(127)));
    assert!(
        recording.end["message"].as_str().unwrap().contains("npm install -g @anthropic-ai/claude-code"),
        "{}",
        recording.end
    );
    let recording = client.run_claude(json!({ "command": "echo Error: no such option >&2; exit 3" }));
    assert_eq!((recording.reason(), &recording.end["exit_code"]), (Reason::ClaudeError, &json!(3)));
    assert!(recording.end["message"].as_str().unwrap().contains("no such option"), "{}", recording.end);
}
