//! The real Claude Code, with a scripted Messages API.

use std::fs;

use cc_executor_actors::{
    outcome::{Reason, Status},
    protocol::notification::BackendHealth,
    rpc::code,
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    claude_cli::{COLD_PATIENCE, on_loopback_only},
    client::Client,
    messages_api::MessagesApi,
    procs,
    recording::Recording,
    service::Service,
};

/// Runs a prompt for which Claude may use the tool Bash.
fn run_prompt(client: &mut Client, prompt: &str) -> Recording {
    client.run_claude(with_bash(prompt))
}

fn with_bash(prompt: &str) -> Value {
    json!({ "command": prompt, "events": true, "heartbeatMs": 1_000, "claude": { "allowedTools": ["Bash"] } })
}

const PRODUCT: &str = r#"run python3 -c "print('RESULT:::' + str(24 * 7))""#;

#[test]
fn tool_result_and_answer_are_output() {
    on_loopback_only(|cli| {
        let api = MessagesApi::start();
        let service = cli.serve(&api);
        let mut client = service.connect();
        let recording = run_prompt(&mut client, PRODUCT);
        assert_eq!(recording.ending(), (Status::Completed, Reason::Exit), "{}", recording.end);
        assert_eq!(recording.text(), "RESULT:::168\nThe result is RESULT:::168\n");
        assert_eq!(recording.end["exit_code"], 0);
        let result = &recording.end["result"];
        assert_eq!(
            (&result["text"], &result["is_error"], &result["num_turns"]),
            (&json!("The result is RESULT:::168"), &json!(false), &json!(2))
        );
        assert!(result["session_id"].is_string() && result["total_cost_usd"].is_number(), "{result}");
        assert_eq!(recording.events.last().unwrap()["end"], recording.end["bytes"]["stdout"]);
        assert_eq!(api.requests().len(), 2);
    });
}

#[test]
fn cli_accepts_every_permission_mode_and_option() {
    on_loopback_only(|cli| {
        let api = MessagesApi::start();
        let service = cli.serve(&api);
        let mut client = service.connect();
        for mode in ["bypassPermissions", "acceptEdits", "default", "plan"] {
            let claude = json!({
                "permissionMode": mode, "model": "claude-of-the-test", "maxTurns": 3, "allowedTools": ["Bash(echo:*)", "Read"],
            });
            let recording = client.run_claude(json!({ "command": "run echo $((6 * 7))", "claude": claude }));
            assert_eq!(recording.ending(), (Status::Completed, Reason::Exit), "{mode}: {}", recording.end);
            if mode == "bypassPermissions" {
                assert_eq!(recording.text(), "42\nThe result is 42\n");
            }
        }
        assert!(api.requests().iter().all(|request| request.body["model"] == "claude-of-the-test"));
        let recording = client.run_claude(json!({ "command": "run ls", "claude": { "permissionMode": "sure" } }));
        assert_eq!(recording.ending(), (Status::Failed, Reason::ClaudeError));
        let message = recording.end["message"].as_str().unwrap();
        assert!(message.contains("permission-mode"), "the message of the CLI: {message}");
    });
}

#[test]
fn failing_tool_does_not_fail_the_execution() {
    on_loopback_only(|cli| {
        let api = MessagesApi::start();
        let service = cli.serve(&api);
        let recording = run_prompt(&mut service.connect(), "run echo before; exit 3");
        assert_eq!(recording.ending(), (Status::Completed, Reason::Exit), "{}", recording.end);
        assert!(recording.text().starts_with("Exit code 3\nbefore\n"), "{:?}", recording.text());
        assert_eq!((&recording.end["exit_code"], &recording.end["result"]["is_error"]), (&json!(0), &json!(false)));
    });
}

#[test]
fn api_refusal_is_a_claude_error_and_a_retried_one_is_not() {
    on_loopback_only(|cli| {
        let api = MessagesApi::refusing(|_| Some((401, "authentication_error")));
        let recording = run_prompt(&mut cli.serve(&api).connect(), PRODUCT);
        assert_eq!(recording.ending(), (Status::Failed, Reason::ClaudeError), "{}", recording.end);
        assert_eq!((&recording.end["exit_code"], &recording.end["result"]["is_error"]), (&json!(1), &json!(true)));
        assert_eq!(recording.errors[0].code, code::CLAUDE);
        let message = recording.end["message"].as_str().unwrap();
        assert!(message.contains("not signed in") && message.contains("ANTHROPIC_API_KEY"), "{message}");

        let api = MessagesApi::refusing(|n| (n < 2).then_some((429, "rate_limit_error")));
        let recording = run_prompt(&mut cli.serve(&api).connect(), PRODUCT);
        assert_eq!(recording.ending(), (Status::Completed, Reason::Exit), "{}", recording.end);
        assert_eq!(recording.text(), "RESULT:::168\nThe result is RESULT:::168\n");
        assert!(
            recording.events.iter().any(|params| params["event"]["subtype"] == "api_retry"),
            "{:?}",
            recording.events
        );
        assert_eq!(api.requests().len(), 4);
    });
}

#[test]
fn unreachable_api_is_a_claude_error() {
    on_loopback_only(|cli| {
        // A port on which no process listens, because its listener was just closed.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let recording = run_prompt(&mut cli.service(&["serve"], &format!("http://{free}"), &[]).connect(), PRODUCT);
        assert_eq!(recording.ending(), (Status::Failed, Reason::ClaudeError), "{}", recording.end);
        assert_eq!((&recording.end["exit_code"], &recording.end["result"]["is_error"]), (&json!(1), &json!(true)));
        assert!(recording.text().starts_with("API Error: "), "{:?}", recording.text());
        assert!(recording.end["message"].as_str().unwrap().contains("API Error: "), "{}", recording.end);
    });
}

#[test]
fn missing_login_is_explained() {
    on_loopback_only(|cli| {
        let api = MessagesApi::start();
        let service = cli.service(&["serve"], &api.url(), &[("ANTHROPIC_API_KEY", "")]);
        let recording = run_prompt(&mut service.connect(), PRODUCT);
        assert_eq!(recording.ending(), (Status::Failed, Reason::ClaudeError), "{}", recording.end);
        let message = recording.end["message"].as_str().unwrap();
        assert!(message.contains("not signed in") && message.contains("ANTHROPIC_API_KEY"), "{message}");
        assert_eq!(api.requests().len(), 0);
    });
}

#[test]
fn heartbeats_name_a_long_silent_tool() {
    on_loopback_only(|cli| {
        let api = MessagesApi::start();
        let service = cli.serve(&api);
        let recording = run_prompt(&mut service.connect(), "run python3 -c 'import time; time.sleep(5)'; echo awake");
        assert_eq!(recording.ending(), (Status::Completed, Reason::Exit), "{}", recording.end);
        assert_eq!(recording.text(), "awake\nThe result is awake\n");
        let busy = recording.updates.iter().filter(|update| {
            (update.status, update.activity.as_deref(), update.turns) == (Status::Running, Some("tool: Bash"), Some(1))
        });
        let n = busy.count();
        assert!(n >= 4, "{n}: {:?}", recording.updates);
        assert!(recording.updates.iter().all(|update| update.backend == BackendHealth::Alive));
    });
}

#[test]
fn cli_woken_by_a_background_task_continues_to_its_last_result() {
    on_loopback_only(|cli| {
        let api = MessagesApi::start();
        let env = [("CC_EXECUTOR_CLAUDE_EXIT_MS", "2000")];
        let service = cli.service(&["serve"], &api.url(), &env);
        // Both pauses are longer than the deadline for the exit. (Some releases refuse `sleep`.)
        let pause = |seconds| format!("python3 -c 'import time; time.sleep({seconds})'");
        let prompt = format!("background {} then {}; echo woken", pause(3), pause(7));
        let recording = run_prompt(&mut service.connect(), &prompt);
        assert_eq!(recording.ending(), (Status::Completed, Reason::Exit), "{}", recording.end);
        assert!(recording.text().ends_with("woken\nThe result is woken\n"), "{:?}", recording.text());
        let results: Vec<_> =
            recording.events.iter().map(|params| &params["event"]).filter(|event| event["type"] == "result").collect();
        assert_eq!(results.len(), 2, "{results:?}");
        let sum = |field: &str| results.iter().map(|event| event[field].as_u64().expect(field)).sum::<u64>();
        let result = &recording.end["result"];
        assert_eq!((&result["text"], &recording.end["exit_code"]), (&json!("The result is woken"), &json!(0)));
        assert_eq!(
            (&result["num_turns"], &result["duration_ms"]),
            (&json!(sum("num_turns")), &json!(sum("duration_ms")))
        );
        assert_eq!(result["num_turns"].as_u64(), Some(api.requests().len() as u64), "{result}");
        assert_eq!(result["usage"]["input_tokens"].as_u64(), Some(api.requests().len() as u64), "{result}");
        assert_eq!(result["total_cost_usd"], results[1]["total_cost_usd"], "the CLI states the cost so far");
    });
}

/// A session in which Claude runs a long tool, with the arguments that mark the tool and the CLI. (Some releases refuse
/// `sleep`.)
fn run_long_tool(service: &Service) -> (Client, String, String) {
    let mark = procs::mark();
    let model = format!("--model=claude-{mark}");
    let mut client = service.connect();
    let mut params = with_bash(&format!("run python3 -c 'import time; time.sleep(1000)' {mark}"));
    params["executor"] = json!("claude");
    params["claude"]["model"] = json!(format!("claude-{mark}"));
    client.call("execute", params).expect("execute is accepted");
    procs::wait_for(&mark, 1, COLD_PATIENCE);
    assert!(!procs::with_argument(&model).is_empty());
    (client, mark, model)
}

fn record_claude(client: &mut Client) -> Recording {
    let mut recording = Recording::of_claude();
    client.record_rest(&mut recording);
    recording
}

#[test]
fn canceled_cli_ends_as_canceled_and_leaves_no_process() {
    on_loopback_only(|cli| {
        let api = MessagesApi::start();
        let service = cli.serve(&api);
        let (mut client, tool, claude) = run_long_tool(&service);
        let answer = client.cancel();
        assert_eq!(answer["status"], "CANCELLING", "{answer}");
        let recording = record_claude(&mut client);
        assert_eq!(recording.ending(), (Status::Cancelled, Reason::Canceled), "{}", recording.end);
        assert_eq!(recording.end["cancel"]["verified"], true, "{}", recording.end);
        assert!(recording.errors.is_empty(), "{:?}", recording.errors);
        // Every process is gone before the ending is sent.
        assert_eq!((procs::with_argument(&tool), procs::with_argument(&claude)), (vec![], vec![]));
        // The session can run another execution.
        assert_eq!(run_prompt(&mut client, PRODUCT).ending(), (Status::Completed, Reason::Exit));
    });
}

#[test]
fn draining_gateway_cancels_claude() {
    on_loopback_only(|cli| {
        let api = MessagesApi::start();
        let backend = cli.service(&["backend"], &api.url(), &[]);
        let mut gateway = Service::gateway_with(&backend.url(), &[("CC_EXECUTOR_DRAIN_MS", "4000")]);
        let (mut client, tool, claude) = run_long_tool(&gateway);
        gateway.signal(Signal::TERM);
        let recording = record_claude(&mut client);
        assert_eq!(recording.ending(), (Status::Cancelled, Reason::Drained), "{}", recording.end);
        assert_eq!(client.close_code(), 1001);
        assert_eq!((procs::with_argument(&tool), procs::with_argument(&claude)), (vec![], vec![]));
        assert_eq!(gateway.wait(PATIENCE).code(), Some(0));
    });
}

#[test]
fn resume_continues_a_claude_session() {
    on_loopback_only(|cli| {
        let api = MessagesApi::start();
        let service = cli.serve(&api);
        let mut client = service.connect();
        let first = run_prompt(&mut client, "remember the number 168");
        assert_eq!(first.text(), "You said: remember the number 168\n");
        let id = &first.end["result"]["session_id"];
        let second = client.run_claude(json!({ "command": "which number?", "claude": { "resume": id } }));
        assert_eq!(second.ending(), (Status::Completed, Reason::Exit), "{}", second.end);
        assert_eq!((second.text().as_str(), &second.end["result"]["session_id"]), ("You said: which number?\n", id));
        let messages = api.requests().pop().unwrap().body["messages"].to_string();
        assert!(messages.contains("remember the number 168") && messages.contains("You said: remember"), "{messages}");
        let unknown = json!({ "resume": "99999999-9999-4999-8999-999999999999" });
        let recording = client.run_claude(json!({ "command": "which number?", "claude": unknown }));
        assert_eq!(recording.ending(), (Status::Failed, Reason::ClaudeError), "{}", recording.end);
        assert!(recording.end["message"].as_str().unwrap().contains("99999999-"), "{}", recording.end);
    });
}

#[test]
fn concurrent_cli_runs_are_independent() {
    on_loopback_only(|cli| {
        let api = MessagesApi::start();
        let service = cli.serve(&api);
        let mut clients = [service.connect(), service.connect()];
        let (mark, gate) = (procs::mark(), cli.home.join("gate"));
        for (n, client) in clients.iter_mut().enumerate() {
            let wait = format!(
                "import os, time; [time.sleep(0.05) for _ in iter(lambda: os.path.exists(\"{}\"), True)]",
                gate.display()
            );
            let mut params = with_bash(&format!("run python3 -c '{wait}' {mark}; echo I am number {n}"));
            params["executor"] = json!("claude");
            client.call("execute", params).expect("execute is accepted");
        }
        // Both tools run at the same time, because each waits for the gate.
        procs::wait_for(&mark, 2, COLD_PATIENCE);
        fs::write(&gate, "").expect("a home");
        let recordings = clients.each_mut().map(record_claude);
        for (n, recording) in recordings.iter().enumerate() {
            assert_eq!(recording.ending(), (Status::Completed, Reason::Exit), "{}", recording.end);
            assert_eq!(recording.text(), format!("I am number {n}\nThe result is I am number {n}\n"));
        }
        assert_ne!(recordings[0].end["result"]["session_id"], recordings[1].end["result"]["session_id"]);
    });
}

#[test]
fn run_prints_text_tools_and_summary_of_the_real_cli() {
    on_loopback_only(|cli| {
        let api = MessagesApi::start();
        let service = cli.serve(&api);
        let output = service.run(&["--executor", "claude", "--allowed-tools", "Bash", "--", PRODUCT]);
        assert_eq!(
            (String::from_utf8_lossy(&output.stdout).as_ref(), output.status.code()),
            ("RESULT:::168\nThe result is RESULT:::168\n", Some(0))
        );
        let stderr = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = stderr.lines().collect();
        assert!(lines[0].starts_with("Bash python3 -c"), "{stderr}");
        assert!(lines.last().unwrap().starts_with("2 turns, "), "{stderr}");
    });
}
