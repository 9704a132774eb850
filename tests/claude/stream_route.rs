//! The backend's route `/execute/claude-stream`, which clients of the legacy image use.

use std::thread;

use cc_executor_actors::rpc::code;
use serde_json::{Value, json};

use super::script::{RESULT, STAND_IN, cat_sample, print_lines, sample_events};
use crate::common::{PATIENCE, procs, service::Service};

/// The status and the events that answer a request.
fn ask(backend: &Service, body: &Value) -> (u16, Vec<Value>) {
    let (status, body) = backend.post("/execute/claude-stream", body);
    (status, body.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn claude_stream_route_returns_events_and_ending() {
    let backend = Service::with(&["backend", "--executors", STAND_IN], &[]);
    let (status, events) =
        ask(&backend, &json!({ "question": format!("{}; echo plain; echo err >&2", cat_sample("success")) }));
    let (recorded, more) = events.split_at(sample_events("success").len());
    assert_eq!((status, recorded), (200, &sample_events("success")[..]));
    let kinds: Vec<_> = more.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!((kinds.len(), kinds.last()), (3, Some(&"complete")), "{kinds:?}");
    let last = more.last().unwrap();
    assert_eq!(
        (&last["status"], &last["exit_code"], &last["result"]["num_turns"]),
        (&json!("success"), &json!(0), &json!(2))
    );
    assert!(last["execution_id"].is_string());
    let (_, events) = ask(&backend, &json!({ "question": format!("{}; exit 1", cat_sample("auth401")) }));
    assert_eq!(
        (&events.last().unwrap()["status"], &events.last().unwrap()["reason"]),
        (&json!("error"), &json!("claude_error"))
    );
    let (status, events) = ask(&backend, &json!({ "question": "x", "executor": "shell" }));
    assert_eq!((status, &events[0]["data"]["param"]), (400, &json!("executor")));
}

#[test]
fn claude_stream_route_takes_the_options_of_execute() {
    let recorded = sample_events("cancelled").len();
    let backend = Service::with(&["backend", "--executors", STAND_IN], &[]);
    let stderr_of = |lines: &[Value]| -> String {
        let stderr = lines.iter().filter(|line| line["type"] == "output" && line["stream"] == "stderr");
        stderr.map(|line| line["content"].as_str().expect("text")).collect()
    };
    let command = format!("printf '%s\\n' \"$@\" >&2; {}", print_lines(&[RESULT]));
    let claude =
        json!({ "model": "haiku", "permissionMode": "plan", "maxTurns": 3, "allowedTools": ["Read"], "resume": "s-1" });
    let (status, lines) = ask(&backend, &json!({ "question": command, "claude": claude }));
    assert_eq!((status, &lines.last().unwrap()["status"]), (200, &json!("success")));
    assert_eq!(
        stderr_of(&lines),
        "-p\n--output-format\nstream-json\n--verbose\n--model=haiku\n--permission-mode=plan\n--max-turns=3\n--resume=s-1\n--allowedTools\nRead\n"
    );

    // The pauses make the backend read each byte alone, as far as the scheduler allows.
    let bytes = "é€😀\n".bytes().map(|byte| format!("printf '\\{byte:o}' >&2; sleep 0.02; ")).collect::<String>();
    let (_, lines) = ask(&backend, &json!({ "question": format!("{bytes}{}", print_lines(&[RESULT])) }));
    assert_eq!(stderr_of(&lines), "é€😀\n");

    let refused = json!({ "question": "x", "env": { "ANTHROPIC_BASE_URL": "http://127.0.0.1:1" } });
    let (status, lines) = ask(&backend, &refused);
    assert_eq!(
        (status, &lines[0]["code"], &lines[0]["data"]["param"]),
        (403, &json!(code::NOT_ALLOWED), &json!("env"))
    );

    let missing = Service::with(&["backend", "--executors", r#"{"claude":["/nonexistent/claude"]}"#], &[]);
    let (_, lines) = ask(&missing, &json!({ "question": "x" }));
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["status"], &last["reason"], &last["exit_code"]),
        (&json!("error"), &json!("not_started"), &json!(127))
    );
    assert!(last["message"].as_str().unwrap().contains("npm install -g @anthropic-ai/claude-code"), "{last}");

    let (mark, id) = (procs::mark(), "6f1d3a52-0c9e-4b57-8f43-4d1f6f0f7c11");
    let command = format!("trap '{}; exit 0' TERM; sleep {mark} & wait", cat_sample("cancelled"));
    let lines = thread::scope(|scope| {
        let response = scope.spawn(|| ask(&backend, &json!({ "question": command, "executionId": id })).1);
        procs::wait_for(&mark, 1, PATIENCE);
        assert_eq!(backend.delete(&format!("/executions/{id}"))["verified"], true);
        response.join().unwrap()
    });
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["status"], &last["reason"], &last["exit_code"]),
        (&json!("cancelled"), &json!("canceled"), &json!(0))
    );
    assert_eq!((&last["execution_id"], &last["result"]["is_error"]), (&json!(id), &json!(false)));
    assert_eq!(lines.len(), recorded + 1);
    assert_eq!(procs::with_argument(&mark), Vec::<u32>::new());
}
