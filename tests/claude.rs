//! Claude's events through the whole service. A shell stands in for the CLI: its prompt, which it reads
//! from standard input as the CLI does, is a script that prints events recorded from the real one.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    client::{Client, Recording},
    procs,
    service::{Service, binary},
    stub::{Stub, chunk, chunked_head, respond},
    wait_until,
};

const STAND_IN: &str = r#"{"claude":["bash","-c","eval \"$(cat)\"","claude"]}"#;

fn service() -> Service {
    with(&[])
}

fn with(env: &[(&str, &str)]) -> Service {
    Service::with(&["serve", "--executors", STAND_IN], env)
}

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/samples/claude-{name}.ndjson"))
}

fn cat(name: &str) -> String {
    format!("cat {}", sample(name).display())
}

fn lines(name: &str) -> Vec<Value> {
    let text = fs::read_to_string(sample(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// An event with this text.
fn said(text: &str) -> String {
    json!({ "type": "assistant", "message": { "content": [{ "type": "text", "text": text }] } }).to_string()
}

const TOOL: &str = r#"{"message":{"content":[{"type":"tool_use","id":"1","name":"Bash","input":{"command":"ls"}}]},"type":"assistant"}"#;
const ANSWER: &str =
    r#"{"type":"user","message":{"content":[{"type":"tool_result","tool_use_id":"1","content":"a\nb"}]}}"#;
const DONE: &str = r#"{"type":"result","subtype":"success","is_error":false,"result":"done","num_turns":2,"duration_ms":5,"total_cost_usd":0.5,"usage":{"input_tokens":1},"session_id":"s-1"}"#;

/// Prints these lines.
fn print(lines: &[&str]) -> String {
    lines.iter().map(|line| format!("printf '%s\\n' '{line}'; ")).collect()
}

#[test]
fn recorded_runs_give_their_recorded_text_events_and_ending() {
    let service = service();
    let mut client = service.connect();
    let result = "The result is RESULT:::168 \n";
    let unreachable = "API Error: Connection refused — a firewall or proxy may be blocking it (ECONNREFUSED)\n";
    let interrupted = "Calling mcp__demo__slow\nThe user doesn't want to proceed with this tool use. The tool use was rejected (eg. if it was a file edit, the new_string was NOT written to the file). STOP what you are doing and wait for the user to tell you how to proceed.\n";
    let table: [(&str, &str, &str, &str, String); 12] = [
        ("success", "exit 0", "COMPLETED", "exit", format!("RESULT:::168\n{result}")),
        ("success", "exit 1", "FAILED", "exit", format!("RESULT:::168\n{result}")),
        ("success", "kill -9 $$", "FAILED", "signal", format!("RESULT:::168\n{result}")),
        ("multiline", "exit 0", "COMPLETED", "exit", format!("1\n2\n3\n4\n5\nerr\n{result}")),
        ("partial", "exit 0", "COMPLETED", "exit", format!("RESULT:::168\n{result}")),
        (
            "toolerror",
            "exit 0",
            "COMPLETED",
            "exit",
            format!("Exit code 2\nls: cannot access '/nonexistent': No such file or directory\n{result}"),
        ),
        ("cancelled", "exit 0", "COMPLETED", "exit", format!("Exit code 137\n{result}")),
        ("auth401", "exit 1", "FAILED", "claude_error", "Invalid API key · Fix external API key\n".to_owned()),
        ("auth401", "exit 0", "FAILED", "claude_error", "Invalid API key · Fix external API key\n".to_owned()),
        ("api-unreachable", "exit 1", "FAILED", "claude_error", unreachable.to_owned()),
        ("sigint", "exit 0", "FAILED", "claude_error", interrupted.to_owned()),
        ("sigint", "exit 130", "FAILED", "claude_error", interrupted.to_owned()),
    ];
    for (name, exit, status, reason, text) in table {
        let story = client.ask_claude(json!({ "command": format!("{}; {exit}", cat(name)), "events": true }));
        let end = &story.end;
        assert_eq!(
            (end["status"].as_str(), end["reason"].as_str()),
            (Some(status), Some(reason)),
            "{name} {exit}: {end}"
        );
        assert_eq!(story.text(), text, "{name}");
        let events: Vec<_> = story.events.iter().map(|params| params["event"].clone()).collect();
        assert_eq!(events, lines(name), "every event is told as it came");
        assert_eq!(end["bytes"]["stdout"], fs::metadata(sample(name)).unwrap().len());
        assert_eq!(story.events.last().unwrap()["end"], end["bytes"]["stdout"]);
        assert_eq!((end["sha256"]["stdout"].clone(), end["sha256"]["stderr"].is_string()), (Value::Null, true));
        let recorded = lines(name).into_iter().find(|event| event["type"] == "result");
        for field in ["is_error", "num_turns", "duration_ms", "total_cost_usd", "usage", "session_id"] {
            assert_eq!(
                end["result"][field],
                recorded.as_ref().map_or(Value::Null, |event| event[field].clone()),
                "{field}"
            );
        }
        assert_eq!(end["result"]["text"], recorded.map_or(Value::Null, |event| event["result"].clone()));
        assert_eq!(story.errors.len(), usize::from(reason == "claude_error"), "{:?}", story.errors);
        if reason == "claude_error" {
            assert_eq!(story.errors[0]["code"], -32013);
        }
        if name == "auth401" {
            let message = end["message"].as_str().unwrap();
            assert!(message.contains("not signed in") && message.contains("ANTHROPIC_API_KEY"), "{message}");
        }
    }
}

/// The time that Claude has for its exit, in tests that wait for its end.
const EXIT: (&str, &str) = ("CC_EXECUTOR_CLAUDE_EXIT_MS", "1500");

/// A `result` of one turn.
fn result(text: &str, cost: f64) -> String {
    json!({
        "type": "result", "subtype": "success", "is_error": false, "result": text, "num_turns": 2, "duration_ms": 500,
        "total_cost_usd": cost, "session_id": "s-1",
        "usage": { "input_tokens": 3, "service_tier": "standard", "cache": { "read": 5 } },
    })
    .to_string()
}

/// What the CLI prints when a background task begins, ends, and wakes it (2.1.330).
const TASK_STARTED: [&str; 2] = [
    r#"{"type":"system","subtype":"background_tasks_changed","tasks":[{"task_id":"b1","task_type":"local_bash"}]}"#,
    r#"{"type":"system","subtype":"task_started","task_id":"b1","is_backgrounded":true,"task_type":"local_bash"}"#,
];
const TASK_ENDED: [&str; 3] = [
    r#"{"type":"system","subtype":"task_updated","task_id":"b1","patch":{"status":"completed"}}"#,
    r#"{"type":"system","subtype":"task_notification","task_id":"b1","status":"completed"}"#,
    r#"{"type":"system","subtype":"background_tasks_changed","tasks":[]}"#,
];
const INIT: &str = r#"{"type":"system","subtype":"init"}"#;
const OF_SUBAGENT: &str =
    r#"{"type":"user","parent_tool_use_id":"7","message":{"content":[{"type":"text","text":"interrupted"}]}}"#;

fn status_and_reason(story: &Recording) -> (&str, &str) {
    (story.end["status"].as_str().unwrap(), story.end["reason"].as_str().unwrap())
}

#[test]
fn claude_that_does_not_exit_after_its_result_is_ended() {
    let service = with(&[("CC_EXECUTOR_CLAUDE_EXIT_MS", "3000")]);
    let mark = procs::mark();
    for (line, status, reason) in
        [(DONE, "COMPLETED", "exit"), (r#"{"is_error":true,"result":"x","type":"result"}"#, "FAILED", "claude_error")]
    {
        let mut client = service.connect();
        let began_at = Instant::now();
        let command = format!("{} sleep {mark}", print(&[line]));
        // Its time-outs are over with its last word.
        let story = client.ask_claude(json!({ "command": command, "timeoutMs": 2_500, "stallTimeoutMs": 2_500 }));
        assert!(began_at.elapsed() >= Duration::from_secs(3), "it had its time to exit: {:?}", began_at.elapsed());
        let end = &story.end;
        assert_eq!(status_and_reason(&story), (status, reason), "{end}");
        assert_eq!(
            (&end["exit_code"], &end["signal"], &end["cancel"]["verified"]),
            (&json!(null), &json!(null), &json!(true))
        );
        assert_eq!(procs::with_argument(&mark), Vec::<u32>::new());
    }
}

#[test]
fn claude_that_closes_its_output_without_exiting_is_ended() {
    let service = with(&[EXIT]);
    let mark = procs::mark();
    let task = print(&TASK_STARTED);
    for (said, status, reason) in [
        (String::new(), "FAILED", "claude_error"),
        (format!("printf %s '{DONE}'; "), "COMPLETED", "exit"),
        // Nothing can be said any more of a task that is open.
        (format!("{task} printf %s '{DONE}'; "), "COMPLETED", "exit"),
    ] {
        let mut client = service.connect();
        let command = format!("{said}exec >&- 2>&-; sleep {mark}");
        // Without a heartbeat, so that a wait without end is noticed.
        let story = client.ask_claude(json!({ "command": command, "heartbeatMs": 60_000 }));
        let end = &story.end;
        assert_eq!(status_and_reason(&story), (status, reason), "{end}");
        assert_eq!((&end["exit_code"], &end["cancel"]["verified"]), (&json!(null), &json!(true)));
        assert_eq!(end["result"].is_object(), status == "COMPLETED");
        assert_eq!(procs::with_argument(&mark), Vec::<u32>::new());
    }
}

#[test]
fn last_result_of_several_turns_ends_the_run() {
    let service = with(&[EXIT]);
    // The task is open for longer than the time for the exit, and so is the tool of the second turn.
    let command = format!(
        "{} sleep 6; {} sleep 3; {} exit 0",
        print(&[&[INIT, &said("interim")], &TASK_STARTED[..], &[&result("interim", 0.25)]].concat()),
        print(&[&TASK_ENDED[..], &[INIT, TOOL]].concat()),
        print(&[ANSWER, &said("final"), &result("final", 0.75)]),
    );
    let story = service.connect().ask_claude(json!({ "command": command }));
    let end = &story.end;
    assert_eq!((status_and_reason(&story), &end["exit_code"]), (("COMPLETED", "exit"), &json!(0)), "{end}");
    assert_eq!(story.text(), "interim\na\nb\nfinal\n");
    let expected = json!({
        "text": "final", "is_error": false, "num_turns": 4, "duration_ms": 1000, "total_cost_usd": 0.75,
        "usage": { "input_tokens": 6, "service_tier": "standard", "cache": { "read": 10 } }, "session_id": "s-1",
    });
    assert_eq!(end["result"], expected);
}

#[test]
fn turn_after_a_result_needs_a_result_of_its_own() {
    let service = with(&[EXIT]);
    let mut client = service.connect();
    let cut = &DONE[..DONE.len() / 2];
    let table: [(&[&str], &str, &str, &str); 9] = [
        // The CLI prints the results of several turns one after the other, so a cut one may be of another turn.
        (&[DONE], cut, "FAILED", "claude_error"),
        (&[DONE, INIT, TOOL], cut, "FAILED", "claude_error"),
        (&[DONE, &said("more")], "", "FAILED", "claude_error"),
        (&[DONE, TASK_STARTED[1]], "", "FAILED", "claude_error"),
        (&[DONE, INIT, DONE], "", "COMPLETED", "exit"),
        (&[DONE, DONE], "", "COMPLETED", "exit"),
        // These say nothing of another turn: the end of a task, and a subagent that is being ended.
        (&[DONE, TASK_ENDED[0], TASK_ENDED[1], TASK_ENDED[2]], "", "COMPLETED", "exit"),
        (&[DONE, OF_SUBAGENT], "", "COMPLETED", "exit"),
        (&[DONE, r#"{"type":"system","subtype":"of tomorrow"}"#, "no event"], "goodbye", "COMPLETED", "exit"),
    ];
    for (lines, unfinished, status, reason) in table {
        let command = format!("{} printf %s '{unfinished}'; exit 0", print(lines));
        let story = client.ask_claude(json!({ "command": command }));
        assert_eq!(status_and_reason(&story), (status, reason), "{lines:?} {unfinished:?}: {}", story.end);
        assert_eq!(story.end["result"].is_object(), status == "COMPLETED", "{}", story.end);
        assert_eq!(story.end["exit_code"], 0);
    }
}

#[test]
fn time_outs_apply_to_turns_after_a_result() {
    let mark = procs::mark();
    let command = format!("{} sleep {mark}", print(&[DONE, INIT, TOOL]));
    let story = with(&[EXIT]).connect().ask_claude(json!({ "command": command, "timeoutMs": 4_000 }));
    assert_eq!(status_and_reason(&story), ("FAILED", "timeout"), "{}", story.end);
    assert_eq!(procs::with_argument(&mark), Vec::<u32>::new());
}

#[test]
fn each_event_restarts_the_exit_deadline() {
    let more = print(&[INIT, &said("more"), TOOL, ANSWER, DONE]);
    let service = with(&[("CC_EXECUTOR_CLAUDE_EXIT_MS", "5000")]);
    let command = format!("{} for n in {{1..14}}; do sleep 0.5; {more} done; exit 3", print(&[DONE]));
    let story = service.connect().ask_claude(json!({ "command": command }));
    let end = &story.end;
    assert_eq!((status_and_reason(&story), &end["exit_code"]), (("FAILED", "exit"), &json!(3)), "{end}");
    assert_eq!((&end["result"]["num_turns"], &end["result"]["text"]), (&json!(2 * 15), &json!("done")));
}

#[test]
fn exit_deadline_pauses_while_output_is_not_read() {
    let service = with(&[EXIT]);
    // Paused for longer than the time for the exit: it goes on where it was.
    let mut client = service.connect();
    let gate = std::env::temp_dir().join(format!("cc-executor-gate-{}-exit", std::process::id()));
    let command = format!(
        "{} until [ -e {} ]; do sleep 0.01; done; {} exit 0",
        print(&[&said("first"), DONE]),
        gate.display(),
        print(&[INIT, &said("second"), DONE])
    );
    client.call("execute", json!({ "command": command, "executor": "claude", "heartbeatMs": 1_000 })).unwrap();
    let mut story = Recording::of_claude();
    client.follow(&mut story, |story| {
        story.updates.last().is_some_and(|update| update["activity"].is_null() && update["turns"] == 1)
    });
    client.call("control", json!({ "type": "PAUSE" })).unwrap();
    client.follow(&mut story, |story| story.with_status("PAUSED").len() == 4);
    fs::write(&gate, "").unwrap();
    client.call("control", json!({ "type": "RESUME" })).unwrap();
    client.follow(&mut story, |_| false);
    fs::remove_file(&gate).unwrap();
    assert_eq!(
        (status_and_reason(&story), story.text().as_str()),
        (("COMPLETED", "exit"), "first\nsecond\n"),
        "{}",
        story.end
    );

    // More events than are kept, and nobody takes them: what it says behind these is not known yet.
    let make = r#"python3 -c "
line = '{\"type\":\"stream_event\",\"event\":\"' + 'x' * 1000 + '\"}'
for n in range(40000): print(line)
"; "#;
    let command = format!(
        "{} {make} {} exit 0",
        print(&[&said("first"), DONE]),
        print(&[&said("second"), &result("second", 1.0)])
    );
    let asked = json!({ "command": command, "executor": "claude", "onDisconnect": "detach" });
    let id = client.call("execute", asked).unwrap()["executionId"].as_str().unwrap().to_owned();
    let mut story = Recording::of_claude();
    client.follow(&mut story, |story| story.stdout == b"first\n");
    client.vanish();
    service.wait_for_event("execution.detached", 1);
    let mut stranger = service.connect();
    wait_until("nothing is read for twice the time for the exit", PATIENCE, || {
        let status = stranger.call("status", json!({ "executionId": id })).unwrap();
        status["sinceOutputMs"].as_u64() > Some(3_000)
    });
    assert_eq!(service.count("process.ending"), 0, "it is held back, not silent");
    let mut client = service.connect();
    client.attach(&id, &story).unwrap();
    client.follow(&mut story, |_| false);
    assert_eq!(
        (status_and_reason(&story), story.text().as_str()),
        (("COMPLETED", "exit"), "first\nsecond\n"),
        "{}",
        story.end
    );
    assert_eq!(story.end["result"]["text"], "second");
}

#[test]
fn legacy_claude_may_continue_after_its_result() {
    let stub = Stub::start(move |request, stream| match request.path.as_str() {
        "/health" => respond(stream, 200, r#"{"status":"ok"}"#),
        "/execute/claude-stream" => {
            let _ = stream.write_all(&chunked_head("application/x-ndjson"));
            let mut send = |lines: &[&str]| {
                let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
                let _ = stream.write_all(&chunk(lines.as_bytes()));
            };
            match request.body["question"].as_str().unwrap() {
                "works on" => {
                    send(&[&said("interim"), TASK_STARTED[1], &result("interim", 0.25)]);
                    // The task takes longer than the time for the exit.
                    thread::sleep(Duration::from_secs(6));
                    send(&[TASK_ENDED[1], INIT, &said("final"), &result("final", 0.5)]);
                }
                "is cut" => send(&[DONE, INIT, &said("more")]),
                // Its stream goes on without an event until it is dropped.
                "never ends" => send(&[&said("interim"), DONE]),
                other => panic!("{other}"),
            }
            if request.body["question"] == "never ends" {
                let _ = std::io::copy(stream, &mut std::io::sink());
            } else {
                let _ = stream.write_all(&chunk(b""));
            }
        }
        path => panic!("{path}"),
    });
    let gateway = Service::with(&["serve", "--claude-api-url", &stub.url()], &[EXIT]);
    gateway.wait_for_event("backend.up", 1);
    let mut client = gateway.connect();
    let story = client.ask_claude(json!({ "command": "works on" }));
    assert_eq!(
        (status_and_reason(&story), story.text().as_str()),
        (("COMPLETED", "exit"), "interim\nfinal\n"),
        "{}",
        story.end
    );
    assert_eq!((&story.end["result"]["text"], &story.end["result"]["num_turns"]), (&json!("final"), &json!(4)));
    let story = client.ask_claude(json!({ "command": "is cut" }));
    assert_eq!(status_and_reason(&story), ("FAILED", "claude_error"), "{}", story.end);
    let story = client.ask_claude(json!({ "command": "never ends" }));
    assert_eq!(
        (status_and_reason(&story), story.text().as_str()),
        (("COMPLETED", "exit"), "interim\n"),
        "{}",
        story.end
    );
}

#[test]
fn cancel_and_timeout_override_the_result_of_claude() {
    let service = service();
    let mut client = service.connect();
    let mark = procs::mark();
    let command = format!("trap '{}; exit 0' TERM; sleep {mark} & wait", cat("cancelled"));
    client.call("execute", json!({ "command": command, "executor": "claude" })).unwrap();
    client.status("RUNNING");
    // It has read its prompt when it has a child.
    procs::wait_for(&mark, 1, PATIENCE);
    client.call("control", json!({ "type": "CANCEL" })).unwrap();
    let mut story = Recording::of_claude();
    client.follow(&mut story, |_| false);
    assert_eq!(
        (&story.end["status"], &story.end["reason"]),
        (&json!("CANCELLED"), &json!("canceled")),
        "{}",
        story.end
    );
    assert_eq!((&story.end["result"]["is_error"], &story.end["exit_code"]), (&json!(false), &json!(0)));
    let story = client.ask_claude(json!({ "command": format!("sleep {mark}"), "timeoutMs": 200 }));
    assert_eq!(story.end["reason"], "timeout");
}

#[test]
fn line_of_16_mib_and_non_event_lines_arrive_complete() {
    let service = service();
    let mut client = service.connect();
    let make = r#"python3 -c "
import json, sys
out = sys.stdout
text = ''.join(chr(0x20ac + n % 50) for n in range(2000000))
line = json.dumps({'type': 'assistant', 'message': {'content': [{'type': 'text', 'text': text}]}}, ensure_ascii=False)
line = line + ' ' * (16 * 1024 * 1024 - 1 - len(line.encode()))
out.write(line + '\n')
out.write('no event\n')
out.write('{\"type\": \"of tomorrow\", \"a\": [1, 2]}\n')
out.write('x' * (17 * 1024 * 1024) + '\n')
out.write('{\"type\": \"result\", \"is_error\": false, \"result\": \"\"}')
""#;
    let story = client.ask_claude(json!({ "command": make, "events": true }));
    assert_eq!(story.end["status"], "COMPLETED", "{}", story.end);
    let mut expected: String = (0..2_000_000u32).map(|n| char::from_u32(0x20ac + n % 50).unwrap()).collect();
    expected.push_str("\nno event\n");
    expected.push_str(&"x".repeat(17 << 20));
    expected.push('\n');
    assert!(story.text() == expected, "{} bytes instead of {}", story.stdout.len(), expected.len());
    let events: Vec<_> = story.events.iter().map(|params| &params["event"]).collect();
    assert_eq!(events.len(), 3);
    assert_eq!(events[0]["type"], "assistant");
    assert!(events[0]["omitted"].as_u64().unwrap() > 1 << 20, "{}", events[0]);
    assert_eq!(events[1], &json!({ "type": "of tomorrow", "a": [1, 2] }));
}

#[test]
fn status_shows_activity_and_turns() {
    let service = service();
    let mut client = service.connect();
    let gates: Vec<_> =
        (0..2).map(|n| std::env::temp_dir().join(format!("cc-executor-gate-{}-{n}", std::process::id()))).collect();
    let wait = |gate: &PathBuf| format!("until [ -e {} ]; do sleep 0.01; done; ", gate.display());
    let command = format!(
        "{} {} {} {} {}",
        print(&[r#"{"type":"system","subtype":"init"}"#, TOOL]),
        wait(&gates[0]),
        print(&[ANSWER, &said("two")]),
        wait(&gates[1]),
        print(&[DONE])
    );
    client.call("execute", json!({ "command": command, "executor": "claude", "heartbeatMs": 60_000 })).unwrap();
    let mut story = Recording::of_claude();
    let doing =
        |story: &Recording| story.updates.last().map(|update| (update["activity"].clone(), update["turns"].clone()));
    client.follow(&mut story, |story| doing(story) == Some((json!("tool: Bash"), json!(1))));
    assert_eq!(
        doing(&Recording { updates: story.updates[..1].to_vec(), ..Recording::default() }),
        Some((json!("thinking"), json!(0)))
    );
    let listed = service.get("/executions");
    assert_eq!(listed["executions"][0]["activity"], "tool: Bash", "{listed}");
    fs::write(&gates[0], "").unwrap();
    client.follow(&mut story, |story| doing(story) == Some((json!("thinking"), json!(2))));
    assert_eq!(client.call("status", json!({})).unwrap()["turns"], 2);
    fs::write(&gates[1], "").unwrap();
    client.follow(&mut story, |_| false);
    assert_eq!(story.text(), "a\nb\ntwo\n");
    gates.iter().for_each(|gate| drop(fs::remove_file(gate)));
}

#[test]
fn reattaching_over_any_gateway_delivers_each_event_once() {
    let backend = Service::with(&["backend", "--executors", STAND_IN], &[]);
    let texts: Vec<String> = (0..200).map(|n| format!("text {n} {}", "é".repeat(n * 10))).collect();
    let command: String = texts.iter().map(|text| print(&[&said(text), TOOL, ANSWER]) + "sleep 0.002; ").collect();
    let command = format!("{command}{}", print(&[DONE]));
    let expected: String = texts.iter().map(|text| format!("{text}\na\nb\n")).collect();
    let mut story = Recording::of_claude();
    let started = || {
        let gateway = Service::gateway(&backend.url());
        gateway.wait_for_event("backend.up", 1);
        gateway
    };
    let mut gateway = started();
    let mut client = gateway.connect();
    let asked = json!({ "command": command, "executor": "claude", "onDisconnect": "detach", "framing": "line" });
    let id = client.call("execute", asked).unwrap()["executionId"].as_str().unwrap().to_owned();
    for round in 1..=8 {
        let so_far = round * expected.len() / 10;
        // A text of which only a part arrived comes again whole.
        let mut whole = (0, 0);
        while story.stdout.len() < so_far {
            let before = story.stdout.len();
            let over = client.follow(&mut story, |story| story.stdout.len() > before);
            assert!(!over, "{}", story.end);
            if story.of_claude.unwrap() > whole.1 {
                whole = (story.stdout.len(), story.of_claude.unwrap());
            }
        }
        if whole.1 == story.of_claude.unwrap() {
            story.stdout.truncate(whole.0);
        }
        if round == 4 {
            gateway.signal(Signal::KILL);
            gateway = started();
        } else {
            client.vanish();
        }
        client = gateway.connect();
        client.attach(&id, &story).unwrap();
    }
    client.follow(&mut story, |_| false);
    assert_eq!(story.end["status"], "COMPLETED", "{}", story.end);
    assert!(story.text() == expected, "{} bytes instead of {}", story.stdout.len(), expected.len());
    assert_eq!(story.gaps, Vec::<Value>::new());
}

#[test]
fn events_without_text_do_not_block_a_detachable_execution() {
    let service = service();
    let mut client = service.connect();
    let make = r#"python3 -c "
line = '{\"type\":\"stream_event\",\"event\":\"' + 'x' * 1000 + '\"}'
for n in range(60000): print(line)
"; "#;
    let command = format!("{make}{}", print(&[DONE]));
    let story = client.ask_claude(json!({ "command": command, "onDisconnect": "detach", "timeoutMs": 60_000 }));
    assert_eq!((story.end["status"].as_str(), story.stdout.len()), (Some("COMPLETED"), 0), "{}", story.end);
    assert!(story.end["bytes"]["stdout"].as_u64().unwrap() > 60_000_000);
}

#[test]
fn first_event_after_a_gap_is_complete() {
    let service = service();
    let mut client = service.connect();
    let make = r#"python3 -c "
import json
for n in range(500000):
    print(json.dumps({'type': 'assistant', 'message': {'content': [{'type': 'text', 'text': 'text %d' % n}]}}))
"; "#;
    let command = format!(
        "{} until [ -e /proc/$$/x ] || [ $SECONDS -gt 0 ]; do :; done; {make}{}",
        print(&[&said("first")]),
        print(&[DONE])
    );
    let asked = json!({ "command": command, "executor": "claude", "onDisconnect": "detach", "overflow": "drop" });
    let id = client.call("execute", asked).unwrap()["executionId"].as_str().unwrap().to_owned();
    let mut story = Recording::of_claude();
    client.follow(&mut story, |story| story.stdout == b"first\n");
    client.vanish();
    service.wait_for_event("process.finished", 1);
    let mut client = service.connect();
    assert_eq!(client.attach(&id, &story).unwrap()["claude"], true);
    client.follow(&mut story, |_| false);
    let [gap] = &story.gaps[..] else { panic!("one gap: {:?}", story.gaps) };
    let text = story.text();
    let numbers: Vec<u32> =
        text.lines().skip(1).map(|line| line.strip_prefix("text ").unwrap().parse().unwrap()).collect();
    assert_eq!(numbers.last(), Some(&499_999));
    assert!(numbers.windows(2).all(|two| two[1] == two[0] + 1), "what is there is there in order");
    // So much of the stream is gone, and not a byte more than that.
    let begins: u64 = (0..numbers[0]).map(|n| said(&format!("text {n}")).len() as u64 + 8).sum();
    assert_eq!(gap["to"].as_u64().unwrap() - gap["from"].as_u64().unwrap(), begins, "{gap}");
    assert_eq!((&gap["reason"], &story.end["status"]), (&json!("dropped"), &json!("COMPLETED")));
}

#[test]
fn claude_gets_options_as_arguments_prompt_on_stdin_and_a_filtered_environment() {
    let service = with(&[
        ("ANTHROPIC_API_KEY", ""),
        ("ANTHROPIC_BASE_URL", "http://127.0.0.1:1"),
        ("AWS_SECRET_ACCESS_KEY", "hidden"),
        ("CC_EXECUTOR_CLAUDE_TOOLS", "Bash,Read"),
        ("IS_SANDBOX", "1"),
    ]);
    let mut client = service.connect();
    let padding = format!(": '{}';", "long ".repeat(190_000));
    let command = format!("{padding} printf '%s\\n' \"$@\" >&2; env >&2; {}", print(&[DONE]));
    let story = client.ask_claude(json!({
        "command": command,
        "claude": {
            "model": "$(touch;/tmp/never-by-claude)", "permissionMode": "bypassPermissions", "maxTurns": 3,
            "allowedTools": ["Bash(git log:*)", "Read"], "resume": "s-1",
        },
    }));
    assert_eq!(story.end["status"], "COMPLETED", "{}", story.end);
    let heard = String::from_utf8(story.stderr).unwrap();
    let arguments: Vec<_> = heard.lines().take(11).collect();
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
    for (name, there) in [
        ("ANTHROPIC_BASE_URL=http://127.0.0.1:1", true),
        ("ANTHROPIC_API_KEY", false),
        ("AWS_SECRET", false),
        ("CC_EXECUTOR", false),
    ] {
        assert_eq!(heard.lines().any(|line| line.starts_with(name)), there, "{name}");
    }
    let refused = client
        .call("execute", json!({ "command": "x", "executor": "claude", "claude": { "allowedTools": ["WebFetch"] } }))
        .unwrap_err();
    assert_eq!((&refused["code"], &refused["data"]["param"]), (&json!(-32002), &json!("allowedTools")), "{refused}");
}

#[test]
fn invalid_claude_parameters_and_start_failures_are_reported() {
    let service = service();
    let mut client = service.connect();
    for (params, code, param) in [
        (json!({ "command": "x", "executor": "claude", "stdin": true }), -32602, "stdin"),
        (json!({ "command": "x", "executor": "claude", "pty": { "rows": 1, "cols": 1 } }), -32602, "pty"),
        (json!({ "command": "x", "executor": "shell", "claude": {} }), -32602, "claude"),
        (json!({ "command": "x", "claude": {} }), -32602, "claude"),
        (json!({ "command": "x", "executor": "shell", "events": true }), -32602, "events"),
        (json!({ "command": "x", "executor": "claude", "claude": { "maxTurns": 0 } }), -32602, "maxTurns"),
        (json!({ "command": "x", "executor": "claude", "claude": { "model": "a b" } }), -32602, "model"),
        (
            json!({ "command": "x", "executor": "claude", "claude": { "allowedTools": ["--x"] } }),
            -32602,
            "allowedTools",
        ),
        (json!({ "command": "x".repeat(131_072) }), -32602, "command"),
    ] {
        let error = client.call("execute", params).unwrap_err();
        assert_eq!((&error["code"], &error["data"]["param"]), (&json!(code), &json!(param)), "{error}");
    }
    let missing = Service::with(&["serve", "--executors", r#"{"claude":["/nonexistent/claude"]}"#], &[]);
    let story = missing.connect().ask_claude(json!({ "command": "x" }));
    assert_eq!((&story.end["reason"], &story.end["exit_code"]), (&json!("not_started"), &json!(127)));
    assert!(
        story.end["message"].as_str().unwrap().contains("npm install -g @anthropic-ai/claude-code"),
        "{}",
        story.end
    );
    let story = client.ask_claude(json!({ "command": "echo Error: no such option >&2; exit 3" }));
    assert_eq!((&story.end["reason"], &story.end["exit_code"]), (&json!("claude_error"), &json!(3)));
    assert!(story.end["message"].as_str().unwrap().contains("no such option"), "{}", story.end);
}

#[test]
fn run_prints_text_to_stdout_and_tools_and_summary_to_stderr() {
    let service = service();
    let command = format!(
        "{} echo to stderr >&2; {}",
        print(&[r#"{"type":"system"}"#, &said("Look:"), TOOL, ANSWER]),
        print(&[&said("Two files."), DONE])
    );
    let output = |arguments: &[&str]| {
        let mut run = binary();
        run.args(["run", "--url", &service.url(), "--executor", "claude"]).args(arguments);
        let output = run.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (text(output.stdout), text(output.stderr), output.status.code())
    };
    let (stdout, stderr, code) = output(&["--reconnect", "--", &command]);
    assert_eq!((stdout.as_str(), code), ("Look:\na\nb\nTwo files.\n", Some(0)));
    let mut lines: Vec<_> = stderr.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["2 turns, 0.0 s, $0.5000, session s-1", "Bash ls", "to stderr"]);
    let (_, stderr, code) = output(&["--", &format!("{}; exit 1", cat("auth401"))]);
    assert!(stderr.contains("not signed in"), "{stderr}");
    assert_eq!(code, Some(1));
    let (stdout, _, code) = output(&["--json", "--", &command]);
    assert_eq!(code, Some(0));
    assert!(stdout.lines().any(|line| line.contains(r#""method":"event""#)), "{stdout}");
}

#[test]
fn run_shows_each_tool_as_one_dim_line_on_a_terminal() {
    let service = service();
    let prompt = format!("{} {}", print(&[&said("Look:"), TOOL, ANSWER]), print(&[&said("Two files."), DONE]));
    let run = "exec \"$RUN\" run --url \"$URL\" --executor claude -- \"$PROMPT\"";
    let program = binary().get_program().to_str().unwrap().to_owned();
    let story = service.connect().run(json!({
        "command": run, "pty": { "rows": 24, "cols": 200 },
        "env": { "RUN": program, "URL": service.url(), "PROMPT": prompt },
    }));
    assert_eq!(story.end["exit_code"], 0, "{}", story.end);
    let shown = story.text();
    for line in ["Look:\r\n", "\x1b[2mBash ls\x1b[0m\r\n", "a\r\nb\r\n", "Two files.\r\n"] {
        assert_eq!(shown.matches(line).count(), 1, "{line:?}: {shown:?}");
    }
    assert!(shown.ends_with("\x1b[2m2 turns, 0.0 s, $0.5000, session s-1\x1b[0m\r\n"), "{shown:?}");
}

#[test]
fn claude_stream_route_returns_events_and_ending() {
    let backend = Service::with(&["backend", "--executors", STAND_IN], &[]);
    let ask = |body: Value| {
        let answer = backend.post("/execute/claude-stream", &body);
        let lines: Vec<Value> = answer.1.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (answer.0, lines)
    };
    let (status, events) = ask(json!({ "question": format!("{}; echo plain; echo err >&2", cat("success")) }));
    let (recorded, more) = events.split_at(lines("success").len());
    assert_eq!((status, recorded), (200, &lines("success")[..]));
    let kinds: Vec<_> = more.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!((kinds.len(), kinds.last()), (3, Some(&"complete")), "{kinds:?}");
    let last = more.last().unwrap();
    assert_eq!(
        (&last["status"], &last["exit_code"], &last["result"]["num_turns"]),
        (&json!("success"), &json!(0), &json!(2))
    );
    assert!(last["execution_id"].is_string());
    let (_, events) = ask(json!({ "question": format!("{}; exit 1", cat("auth401")) }));
    assert_eq!(
        (&events.last().unwrap()["status"], &events.last().unwrap()["reason"]),
        (&json!("error"), &json!("claude_error"))
    );
    let (status, events) = ask(json!({ "question": "x", "executor": "shell" }));
    assert_eq!((status, &events[0]["data"]["param"]), (400, &json!("executor")));
}

#[test]
fn claude_stream_route_takes_the_options_of_execute() {
    let recorded = lines("cancelled").len();
    let backend = Service::with(&["backend", "--executors", STAND_IN], &[]);
    let ask = |backend: &Service, body: Value| {
        let (status, body) = backend.post("/execute/claude-stream", &body);
        let lines: Vec<Value> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (status, lines)
    };
    let said = |lines: &[Value]| -> String {
        let heard = lines.iter().filter(|line| line["type"] == "output" && line["stream"] == "stderr");
        heard.map(|line| line["content"].as_str().expect("text")).collect()
    };
    let command = format!("printf '%s\\n' \"$@\" >&2; {}", print(&[DONE]));
    let claude =
        json!({ "model": "haiku", "permissionMode": "plan", "maxTurns": 3, "allowedTools": ["Read"], "resume": "s-1" });
    let (status, lines) = ask(&backend, json!({ "question": command, "claude": claude }));
    assert_eq!((status, &lines.last().unwrap()["status"]), (200, &json!("success")));
    assert_eq!(
        said(&lines),
        "-p\n--output-format\nstream-json\n--verbose\n--model=haiku\n--permission-mode=plan\n--max-turns=3\n--resume=s-1\n--allowedTools\nRead\n"
    );

    // Each byte in a read of its own, as far as the pipe and the scheduler let it be.
    let bytes = "é€😀\n".bytes().map(|byte| format!("printf '\\{byte:o}' >&2; sleep 0.02; ")).collect::<String>();
    let (_, lines) = ask(&backend, json!({ "question": format!("{bytes}{}", print(&[DONE])) }));
    assert_eq!(said(&lines), "é€😀\n");

    let refused = json!({ "question": "x", "env": { "ANTHROPIC_BASE_URL": "http://127.0.0.1:1" } });
    let (status, lines) = ask(&backend, refused);
    assert_eq!((status, &lines[0]["code"], &lines[0]["data"]["param"]), (403, &json!(-32002), &json!("env")));

    let missing = Service::with(&["backend", "--executors", r#"{"claude":["/nonexistent/claude"]}"#], &[]);
    let (_, lines) = ask(&missing, json!({ "question": "x" }));
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["status"], &last["reason"], &last["exit_code"]),
        (&json!("error"), &json!("not_started"), &json!(127))
    );
    assert!(last["message"].as_str().unwrap().contains("npm install -g @anthropic-ai/claude-code"), "{last}");

    let (mark, id) = (procs::mark(), "6f1d3a52-0c9e-4b57-8f43-4d1f6f0f7c11");
    let command = format!("trap '{}; exit 0' TERM; sleep {mark} & wait", cat("cancelled"));
    let lines = thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&backend, json!({ "question": command, "executionId": id })).1);
        procs::wait_for(&mark, 1, PATIENCE);
        assert_eq!(backend.delete(&format!("/executions/{id}"))["verified"], true);
        asked.join().unwrap()
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

#[test]
fn legacy_image_runs_claude() {
    let stub = Stub::start(|request, stream| match request.path.as_str() {
        "/health" => respond(stream, 200, r#"{"status":"ok"}"#),
        "/execute/claude-stream" => {
            assert_eq!(request.body.as_object().unwrap().keys().collect::<Vec<_>>(), ["question"]);
            let mut body = fs::read_to_string(sample(request.body["question"].as_str().unwrap())).unwrap();
            body.push_str("{\"type\":\"complete\",\"status\":\"success\",\"exit_code\":0}\n");
            respond(stream, 200, &body);
        }
        path => panic!("{path}"),
    });
    let service = Service::gateway(&stub.url());
    service.wait_for_event("backend.up", 1);
    let mut client: Client = service.connect();
    for (name, status, reason) in
        [("success", "COMPLETED", "exit"), ("auth401", "FAILED", "claude_error"), ("sigint", "FAILED", "claude_error")]
    {
        let story = client.ask_claude(json!({ "command": name }));
        assert_eq!((&story.end["status"], &story.end["reason"]), (&json!(status), &json!(reason)), "{}", story.end);
        assert_eq!(story.end["result"].is_object(), name != "sigint");
        if name == "success" {
            assert_eq!(story.text(), "RESULT:::168\nThe result is RESULT:::168 \n");
        }
    }
}

/// A backend that knows no ids sends no heartbeat. However long its Claude works, what it says then is delivered whole.
#[test]
fn long_silent_legacy_claude_run_keeps_its_output_and_result() {
    const TEXT: usize = 1 << 20;
    let (go_on, waits) = std::sync::mpsc::channel::<()>();
    let waits = std::sync::Mutex::new(waits);
    let stub = Stub::start(move |request, stream| match request.path.as_str() {
        "/health" => respond(stream, 200, r#"{"status":"ok"}"#),
        "/execute/claude-stream" => {
            let _ = stream.write_all(&chunked_head("application/x-ndjson"));
            let _ = stream.write_all(&chunk(format!("{INIT}\n").as_bytes()));
            let _ = waits.lock().unwrap().recv();
            let events = [said(&"x".repeat(TEXT)), DONE.to_owned()].map(|event| chunk(format!("{event}\n").as_bytes()));
            let _ = stream.write_all(&[events.concat(), chunk(b"")].concat());
        }
        path => panic!("{path}"),
    });
    let service = Service::gateway(&stub.url());
    service.wait_for_event("backend.up", 1);
    let mut client = service.connect();
    client.execute(json!({ "command": "works long", "executor": "claude", "heartbeatMs": 1_000 }));
    let mut story = Recording::of_claude();
    // More heartbeats of the gateway than a backend that knows ids may miss.
    assert!(!client.follow(&mut story, |story| story.updates.len() > 8));
    go_on.send(()).unwrap();
    client.follow(&mut story, |_| false);
    assert_eq!(status_and_reason(&story), ("COMPLETED", "exit"), "{}", story.end);
    assert_eq!((story.stdout.len(), &story.end["result"]["text"]), (TEXT + 1, &json!("done")));
}
