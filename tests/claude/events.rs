//! Events of Claude become text, progress and `event` messages.

use std::fs;

use cc_executor_actors::{
    outcome::{Reason, Status},
    protocol::notification::StatusUpdate,
    rpc::code,
    stream::GapReason,
};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::script::{
    RESULT, STAND_IN, TOOL_RESULT, TOOL_USE, cat_sample, print_lines, sample, sample_events, service, text_event,
};
use crate::common::{recording::Recording, service::Service, temp::TempPath};

#[test]
fn recorded_runs_give_their_recorded_text_events_and_ending() {
    let service = service();
    let mut client = service.connect();
    let result = "The result is RESULT:::168 \n";
    let unreachable = "API Error: Connection refused — a firewall or proxy may be blocking it (ECONNREFUSED)\n";
    let interrupted = "Calling mcp__demo__slow\nThe user doesn't want to proceed with this tool use. The tool use was rejected (eg. if it was a file edit, the new_string was NOT written to the file). STOP what you are doing and wait for the user to tell you how to proceed.\n";
    let table: [(&str, &str, Status, Reason, String); 12] = [
        ("success", "exit 0", Status::Completed, Reason::Exit, format!("RESULT:::168\n{result}")),
        ("success", "exit 1", Status::Failed, Reason::Exit, format!("RESULT:::168\n{result}")),
        ("success", "kill -9 $$", Status::Failed, Reason::Signal, format!("RESULT:::168\n{result}")),
        ("multiline", "exit 0", Status::Completed, Reason::Exit, format!("1\n2\n3\n4\n5\nerr\n{result}")),
        ("partial", "exit 0", Status::Completed, Reason::Exit, format!("RESULT:::168\n{result}")),
        (
            "toolerror",
            "exit 0",
            Status::Completed,
            Reason::Exit,
            format!("Exit code 2\nls: cannot access '/nonexistent': No such file or directory\n{result}"),
        ),
        ("cancelled", "exit 0", Status::Completed, Reason::Exit, format!("Exit code 137\n{result}")),
        (
            "auth401",
            "exit 1",
            Status::Failed,
            Reason::ClaudeError,
            "Invalid API key · Fix external API key\n".to_owned(),
        ),
        (
            "auth401",
            "exit 0",
            Status::Failed,
            Reason::ClaudeError,
            "Invalid API key · Fix external API key\n".to_owned(),
        ),
        ("api-unreachable", "exit 1", Status::Failed, Reason::ClaudeError, unreachable.to_owned()),
        ("sigint", "exit 0", Status::Failed, Reason::ClaudeError, interrupted.to_owned()),
        ("sigint", "exit 130", Status::Failed, Reason::ClaudeError, interrupted.to_owned()),
    ];
    for (name, exit, status, reason, text) in table {
        let recording =
            client.run_claude(json!({ "command": format!("{}; {exit}", cat_sample(name)), "events": true }));
        let end = &recording.end;
        assert_eq!(recording.ending(), (status, reason), "{name} {exit}: {end}");
        assert_eq!(recording.text(), text, "{name}");
        let events: Vec<_> = recording.events.iter().map(|params| params["event"].clone()).collect();
        assert_eq!(events, sample_events(name), "every event is sent as it came");
        assert_eq!(end["bytes"]["stdout"], fs::metadata(sample(name)).unwrap().len());
        assert_eq!(recording.events.last().unwrap()["end"], end["bytes"]["stdout"]);
        assert_eq!((end["sha256"]["stdout"].clone(), end["sha256"]["stderr"].is_string()), (Value::Null, true));
        let recorded = sample_events(name).into_iter().find(|event| event["type"] == "result");
        for field in ["is_error", "num_turns", "duration_ms", "total_cost_usd", "usage", "session_id"] {
            assert_eq!(
                end["result"][field],
                recorded.as_ref().map_or(Value::Null, |event| event[field].clone()),
                "{field}"
            );
        }
        assert_eq!(end["result"]["text"], recorded.map_or(Value::Null, |event| event["result"].clone()));
        assert_eq!(recording.errors.len(), usize::from(reason == Reason::ClaudeError), "{:?}", recording.errors);
        if reason == Reason::ClaudeError {
            assert_eq!(recording.errors[0].code, code::CLAUDE);
        }
        if name == "auth401" {
            let message = end["message"].as_str().unwrap();
            assert!(message.contains("not signed in") && message.contains("ANTHROPIC_API_KEY"), "{message}");
        }
    }
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
    let recording = client.run_claude(json!({ "command": make, "events": true }));
    assert_eq!(recording.status(), Status::Completed, "{}", recording.end);
    let mut expected: String = (0..2_000_000u32).map(|n| char::from_u32(0x20ac + n % 50).unwrap()).collect();
    expected.push_str("\nno event\n");
    expected.push_str(&"x".repeat(17 << 20));
    expected.push('\n');
    assert!(recording.text() == expected, "{} bytes instead of {}", recording.stdout.len(), expected.len());
    let events: Vec<_> = recording.events.iter().map(|params| &params["event"]).collect();
    assert_eq!(events.len(), 3);
    assert_eq!(events[0]["type"], "assistant");
    assert!(events[0]["omitted"].as_u64().unwrap() > 1 << 20, "{}", events[0]);
    assert_eq!(events[1], &json!({ "type": "of tomorrow", "a": [1, 2] }));
}

#[test]
fn status_shows_activity_and_turns() {
    let service = service();
    let mut client = service.connect();
    let gates = [TempPath::new("gate"), TempPath::new("gate")];
    let wait = |gate: &TempPath| format!("until [ -e {} ]; do sleep 0.01; done; ", gate.display());
    let command = format!(
        "{} {} {} {} {}",
        print_lines(&[r#"{"type":"system","subtype":"init"}"#, TOOL_USE]),
        wait(&gates[0]),
        print_lines(&[TOOL_RESULT, &text_event("two")]),
        wait(&gates[1]),
        print_lines(&[RESULT])
    );
    client.call("execute", json!({ "command": command, "executor": "claude", "heartbeatMs": 60_000 })).unwrap();
    let mut recording = Recording::of_claude();
    let progress = |update: &StatusUpdate| (update.activity.clone(), update.turns);
    let tool = (Some("tool: Bash".to_owned()), Some(1));
    let is_last = |recording: &Recording, expected| recording.updates.last().map(progress) == Some(expected);
    client.record_until(&mut recording, |recording| is_last(recording, tool.clone()));
    assert_eq!(progress(&recording.updates[0]), (Some("thinking".to_owned()), Some(0)));
    let listed = service.get("/executions");
    assert_eq!(listed["executions"][0]["activity"], "tool: Bash", "{listed}");
    fs::write(&*gates[0], "").unwrap();
    client.record_until(&mut recording, |recording| is_last(recording, (Some("thinking".to_owned()), Some(2))));
    assert_eq!(client.call("status", json!({})).unwrap()["turns"], 2);
    fs::write(&*gates[1], "").unwrap();
    client.record_rest(&mut recording);
    assert_eq!(recording.text(), "a\nb\ntwo\n");
}

#[test]
fn reattaching_over_any_gateway_delivers_each_event_once() {
    let backend = Service::with(&["backend", "--executors", STAND_IN], &[]);
    let texts: Vec<String> = (0..200).map(|n| format!("text {n} {}", "é".repeat(n * 10))).collect();
    let command: String =
        texts.iter().map(|text| print_lines(&[&text_event(text), TOOL_USE, TOOL_RESULT]) + "sleep 0.002; ").collect();
    let command = format!("{command}{}", print_lines(&[RESULT]));
    let expected: String = texts.iter().map(|text| format!("{text}\na\nb\n")).collect();
    let mut recording = Recording::of_claude();
    let mut gateway = Service::gateway(&backend.url());
    let mut client = gateway.connect();
    let id = client
        .execute(json!({ "command": command, "executor": "claude", "onDisconnect": "detach", "framing": "line" }));
    for round in 1..=8 {
        let so_far = round * expected.len() / 10;
        // The length of the text up to the last complete event, and the offset after that event. An incomplete event comes
        // again after the attach.
        let mut complete = (0, 0);
        while recording.stdout.len() < so_far {
            let before = recording.stdout.len();
            let is_over = client.record_until(&mut recording, |recording| recording.stdout.len() > before);
            assert!(!is_over, "{}", recording.end);
            if recording.event_offset.unwrap() > complete.1 {
                complete = (recording.stdout.len(), recording.event_offset.unwrap());
            }
        }
        if complete.1 == recording.event_offset.unwrap() {
            recording.stdout.truncate(complete.0);
        }
        if round == 4 {
            gateway.signal(Signal::KILL);
            gateway = Service::gateway(&backend.url());
        } else {
            client.disconnect();
        }
        client = gateway.connect();
        client.attach(&id, &recording).unwrap();
    }
    client.record_rest(&mut recording);
    assert_eq!(recording.status(), Status::Completed, "{}", recording.end);
    assert!(recording.text() == expected, "{} bytes instead of {}", recording.stdout.len(), expected.len());
    assert!(recording.gaps.is_empty(), "{:?}", recording.gaps);
}

#[test]
fn events_without_text_do_not_block_a_detachable_execution() {
    let service = service();
    let mut client = service.connect();
    let make = r#"python3 -c "
line = '{\"type\":\"stream_event\",\"event\":\"' + 'x' * 1000 + '\"}'
for n in range(60000): print(line)
"; "#;
    let command = format!("{make}{}", print_lines(&[RESULT]));
    let recording = client.run_claude(json!({ "command": command, "onDisconnect": "detach", "timeoutMs": 60_000 }));
    assert_eq!((recording.status(), recording.stdout.len()), (Status::Completed, 0), "{}", recording.end);
    assert!(recording.end["bytes"]["stdout"].as_u64().unwrap() > 60_000_000);
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
        print_lines(&[&text_event("first")]),
        print_lines(&[RESULT])
    );
    let id = client
        .execute(json!({ "command": command, "executor": "claude", "onDisconnect": "detach", "overflow": "drop" }));
    let mut recording = Recording::of_claude();
    client.record_until(&mut recording, |recording| recording.stdout == b"first\n");
    client.disconnect();
    service.wait_for_event("process.finished", 1);
    let mut client = service.connect();
    assert_eq!(client.attach(&id, &recording).unwrap()["claude"], true);
    client.record_rest(&mut recording);
    let [gap] = &recording.gaps[..] else { panic!("one gap: {:?}", recording.gaps) };
    let text = recording.text();
    let numbers: Vec<u32> =
        text.lines().skip(1).map(|line| line.strip_prefix("text ").unwrap().parse().unwrap()).collect();
    assert_eq!(numbers.last(), Some(&499_999));
    assert!(numbers.windows(2).all(|two| two[1] == two[0] + 1), "the lines after the gap are in order");
    // The gap covers exactly the events before the first line after it.
    let n_missing: u64 = (0..numbers[0]).map(|n| text_event(&format!("text {n}")).len() as u64 + 8).sum();
    assert_eq!(gap.to - gap.from, n_missing, "{gap:?}");
    assert_eq!((gap.reason, recording.status()), (GapReason::Dropped, Status::Completed));
}
