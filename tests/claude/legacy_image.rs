//! Claude in a legacy image behind the gateway.

use std::{
    fs,
    io::Write,
    sync::{Mutex, mpsc},
    thread,
    time::Duration,
};

use cc_executor_actors::outcome::{Reason, Status};
use serde_json::json;

use super::script::{INIT, RESULT, SHORT_EXIT_DEADLINE, TASK_ENDED, TASK_STARTED, result_event, sample, text_event};
use crate::common::{
    PATIENCE,
    recording::Recording,
    service::Service,
    stub::{Stub, chunk, chunked_head, respond},
};

/// The route of a legacy image that runs Claude.
const ROUTE: &str = "/execute/claude-stream";

#[test]
fn legacy_image_runs_claude() {
    let stub = Stub::legacy(ROUTE, |request, stream| {
        assert_eq!(request.body.as_object().unwrap().keys().collect::<Vec<_>>(), ["question"]);
        let mut body = fs::read_to_string(sample(request.body["question"].as_str().unwrap())).unwrap();
        body.push_str("{\"type\":\"complete\",\"status\":\"success\",\"exit_code\":0}\n");
        respond(stream, 200, &body);
    });
    let service = Service::gateway(&stub.url());
    let mut client = service.connect();
    for (name, status, reason) in [
        ("success", Status::Completed, Reason::Exit),
        ("auth401", Status::Failed, Reason::ClaudeError),
        ("sigint", Status::Failed, Reason::ClaudeError),
    ] {
        let recording = client.run_claude(json!({ "command": name }));
        assert_eq!(recording.ending(), (status, reason), "{}", recording.end);
        assert_eq!(recording.end["result"].is_object(), name != "sigint");
        if name == "success" {
            assert_eq!(recording.text(), "RESULT:::168\nThe result is RESULT:::168 \n");
        }
    }
}

#[test]
fn legacy_claude_may_continue_after_its_result() {
    let stub = Stub::legacy(ROUTE, move |request, stream| {
        let _ = stream.write_all(&chunked_head("application/x-ndjson"));
        let mut send = |lines: &[&str]| {
            let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let _ = stream.write_all(&chunk(lines.as_bytes()));
        };
        match request.body["question"].as_str().unwrap() {
            "works on" => {
                send(&[&text_event("interim"), TASK_STARTED[1], &result_event("interim", 0.25)]);
                // The task takes longer than the deadline for the exit.
                thread::sleep(Duration::from_secs(6));
                send(&[TASK_ENDED[1], INIT, &text_event("final"), &result_event("final", 0.5)]);
            }
            "is cut" => send(&[RESULT, INIT, &text_event("more")]),
            // The stream continues without an event until the gateway drops it.
            "never ends" => send(&[&text_event("interim"), RESULT]),
            other => panic!("{other}"),
        }
        if request.body["question"] == "never ends" {
            let _ = std::io::copy(stream, &mut std::io::sink());
        } else {
            let _ = stream.write_all(&chunk(b""));
        }
    });
    let gateway = Service::gateway_with(&stub.url(), &[SHORT_EXIT_DEADLINE]);
    let mut client = gateway.connect();
    let recording = client.run_claude(json!({ "command": "works on" }));
    assert_eq!(
        (recording.ending(), recording.text().as_str()),
        ((Status::Completed, Reason::Exit), "interim\nfinal\n"),
        "{}",
        recording.end
    );
    assert_eq!((&recording.end["result"]["text"], &recording.end["result"]["num_turns"]), (&json!("final"), &json!(4)));
    let recording = client.run_claude(json!({ "command": "is cut" }));
    assert_eq!(recording.ending(), (Status::Failed, Reason::ClaudeError), "{}", recording.end);
    let recording = client.run_claude(json!({ "command": "never ends" }));
    assert_eq!(
        (recording.ending(), recording.text().as_str()),
        ((Status::Completed, Reason::Exit), "interim\n"),
        "{}",
        recording.end
    );
}

/// A legacy image sends no heartbeat, so silence must not end the execution.
#[test]
fn long_silent_legacy_claude_run_keeps_its_output_and_result() {
    const TEXT: usize = 1 << 20;
    let (resume, resumed) = mpsc::channel::<()>();
    let resumed = Mutex::new(resumed);
    let stub = Stub::legacy(ROUTE, move |_, stream| {
        let _ = stream.write_all(&chunked_head("application/x-ndjson"));
        let _ = stream.write_all(&chunk(format!("{INIT}\n").as_bytes()));
        let _ = resumed.lock().unwrap().recv_timeout(PATIENCE);
        let events =
            [text_event(&"x".repeat(TEXT)), RESULT.to_owned()].map(|event| chunk(format!("{event}\n").as_bytes()));
        let _ = stream.write_all(&[events.concat(), chunk(b"")].concat());
    });
    let service = Service::gateway(&stub.url());
    let mut client = service.connect();
    client.execute(json!({ "command": "works long", "executor": "claude", "heartbeatMs": 1_000 }));
    let mut recording = Recording::of_claude();
    // More heartbeats than a native backend may miss.
    assert!(!client.record_until(&mut recording, |recording| recording.updates.len() > 8));
    resume.send(()).unwrap();
    client.record_rest(&mut recording);
    assert_eq!(recording.ending(), (Status::Completed, Reason::Exit), "{}", recording.end);
    assert_eq!((recording.stdout.len(), &recording.end["result"]["text"]), (TEXT + 1, &json!("done")));
}
