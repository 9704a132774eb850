//! Ended executions are remembered for the retention time, and their output is kept or evicted by rules.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use cc_executor_actors::{
    outcome::{Reason, Status},
    rpc::code,
    stream::{GapReason, Stream},
};
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    client::Client,
    client::code_and_param,
    recording::{LOST, Recording},
    scale,
    service::Service,
    sha256,
    temp::TempPath,
    wait_until,
};

/// A command that writes this many bytes.
fn writes(n_bytes: usize) -> String {
    format!("head -c {n_bytes} /dev/zero | tr '\\0' x")
}

/// Runs `true` this many times, with these further parameters, over several connections.
fn run_true(backend: &Service, times: usize, more: &Value) {
    const LANES: usize = 4;
    let left = AtomicUsize::new(times);
    thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                while left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                    let mut request = more.clone();
                    request["question"] = json!("true");
                    assert_eq!(backend.post("/execute/stream", &request), (200, String::new()));
                }
            });
        }
    });
}

/// Runs a detachable command to its end, with a client that acknowledges nothing.
fn run_unacknowledged(service: &Service, command: &str) -> String {
    let mut client = service.connect();
    client.answers_pings = false;
    let id = client.execute(json!({ "command": command, "onDisconnect": "detach" }));
    assert_eq!(client.record().status(), Status::Completed);
    client.disconnect();
    id
}

fn attach_and_record(client: &mut Client, id: &str) -> Recording {
    client.attach(id, &Recording::default()).unwrap();
    client.record()
}

/// Checks that the recording has all of the output, and that its digest is that of the ending.
fn assert_whole(recording: &Recording, n_bytes: usize) {
    assert_eq!((recording.gaps.as_slice(), recording.stdout.len()), (&[][..], n_bytes));
    assert_eq!(recording.end["sha256"]["stdout"], sha256(&recording.stdout));
}

#[test]
fn many_later_executions_keep_endings_and_readers() {
    /// The number of executions that the backend lists, the newest.
    const LISTED: usize = 4_096;
    const BYTES: usize = 50_000_000;
    let backend = Service::with(&["backend"], &[("CC_EXECUTOR_RING_BYTES", "60000000")]);
    let gateway = Service::gateway_with(&backend.url(), &[("CC_EXECUTOR_CLIENT_STALL_MS", "600000")]);
    let runs = TempPath::new("runs");
    let id = "44444444-4444-4444-8444-444444444444";
    let execute = json!({
        "command": format!("echo ran >> {}; exit 3", runs.display()), "executionId": id, "onDisconnect": "detach",
    });
    let mut client = gateway.connect();
    client.execute(execute.clone());
    client.disconnect();
    backend.wait_for_event("process.finished", 1);
    let mut reader = gateway.connect();
    reader.execute(json!({ "command": writes(BYTES), "onDisconnect": "detach" }));
    let mut slow = Recording::default();
    reader.record_until(&mut slow, |recording| !recording.stdout.is_empty());
    backend.wait_for_event("process.finished", 2);
    let n_later = 4_200;
    run_true(&backend, n_later, &json!({}));
    let mut client = gateway.connect();
    let recording = client.run(execute.clone());
    assert_eq!((recording.end["exit_code"].as_i64(), recording.reason()), (Some(3), Reason::Exit));
    assert_eq!(std::fs::read_to_string(&*runs).unwrap(), "ran\n", "the command does not run twice");
    assert_eq!(backend.get(&format!("/executions/{id}"))["ending"]["exit_code"], 3);
    let mut other = execute;
    other["cwd"] = json!("/tmp");
    let error = client.call("execute", other).unwrap_err();
    assert_eq!(code_and_param(&error), (code::PARAMS, Some("cwd")));
    let n_listed = backend.get("/executions")["executions"].as_array().unwrap().len();
    assert_eq!(n_listed, LISTED, "the newest are listed");
    reader.record_rest(&mut slow);
    assert_whole(&slow, BYTES);
}

#[test]
fn attach_after_eviction_gets_a_gap_and_the_true_ending() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_MAX_KEPT_BYTES", "0")]);
    let mut client = service.connect();
    let execute = json!({
        "command": "echo out; echo err >&2; exit 7", "executionId": "55555555-5555-4555-8555-555555555555",
    });
    let id = client.execute(execute.clone());
    let first = client.record();
    for method in ["attach", "execute"] {
        let params = if method == "attach" { json!({ "executionId": id }) } else { execute.clone() };
        client.call(method, params).unwrap();
        let recording = client.record();
        let gaps: Vec<_> = recording.gaps.iter().map(|gap| (gap.r#type, gap.to)).collect();
        assert_eq!(gaps, [(Stream::Stdout, 4), (Stream::Stderr, 4)], "{method}");
        assert!(recording.gaps.iter().all(|gap| gap.reason == GapReason::Overwritten));
        for field in ["status", "reason", "exit_code", "signal", "message", "elapsedMs", "bytes", "sha256", "leftovers"]
        {
            assert_eq!(recording.end[field], first.end[field], "{method}: {field}");
        }
    }
    client.call("attach", json!({ "executionId": id, "offsets": { "stdout": 4, "stderr": 4 } })).unwrap();
    assert_eq!(client.record().gaps, [], "the client had everything");
    let beyond = client.call("attach", json!({ "executionId": id, "offsets": { "stdout": 5 } })).unwrap_err();
    assert_eq!((beyond.code, &beyond.data.unwrap()["max"]), (code::PARAMS, &json!(4)));
    assert_eq!(client.call("status", json!({ "executionId": id })).unwrap()["exit_code"], 7);
}

#[test]
fn unfetched_output_beyond_the_limit_refuses_detachable_executions() {
    const BYTES: usize = 2_000_000;
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_MAX_KEPT_BYTES", "3000000")]);
    let ids = [run_unacknowledged(&service, &writes(BYTES)), run_unacknowledged(&service, &writes(BYTES))];
    let mut client = service.connect();
    let detachable = json!({ "command": "echo more", "onDisconnect": "detach" });
    let error = client.call("execute", detachable.clone()).unwrap_err();
    let data = error.data.as_ref().unwrap();
    assert_eq!((error.code, &data["max"]), (code::FULL, &json!(3_000_000)), "{error}");
    let held = data["held"].as_u64().unwrap();
    assert!((2 * BYTES as u64..2 * BYTES as u64 + 500_000).contains(&held), "{error}");
    assert!(error.message.contains("attach"), "the message says what to do: {error}");
    assert_eq!(client.run(json!({ "command": "echo not detachable" })).status(), Status::Completed);
    for id in &ids {
        assert_whole(&attach_and_record(&mut client, id), BYTES);
    }
    wait_until("the fetched output makes room", PATIENCE, || client.call("execute", detachable.clone()).is_ok());
    assert_eq!(client.record().stdout, b"more\n");
}

#[test]
fn unfetched_output_of_concurrent_executions_is_kept_beyond_the_limit() {
    const BYTES: usize = 2_000_000;
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_MAX_KEPT_BYTES", "3000000")]);
    let mut begun: Vec<_> = (0..4)
        .map(|_| {
            let mut client = service.connect();
            client.answers_pings = false;
            let command = format!("read x; {}", writes(BYTES));
            let id = client.execute(json!({ "command": command, "stdin": true, "onDisconnect": "detach" }));
            (client, id)
        })
        .collect();
    for (client, _) in &mut begun {
        client.call("input", json!({ "data": "go\n" })).unwrap();
        client.record();
    }
    let mut client = service.connect();
    for (_, id) in &begun {
        assert_whole(&attach_and_record(&mut client, id), BYTES);
    }
}

#[test]
fn fetched_output_is_evicted_first_oldest_first() {
    const BYTES: usize = 1_000_000;
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_MAX_KEPT_BYTES", "3500000")]);
    let unfetched = run_unacknowledged(&service, &writes(BYTES));
    let mut client = service.connect();
    let mut fetched = Vec::new();
    for detach in [false, true, false] {
        let mut execute = json!({ "command": writes(BYTES) });
        if detach {
            execute["onDisconnect"] = json!("detach");
        }
        fetched.push(client.execute(execute));
        client.record();
    }
    let lost = |recording: &Recording| recording.stdout.iter().filter(|byte| **byte == LOST).count();
    assert_eq!(lost(&attach_and_record(&mut client, &fetched[0])), BYTES, "the oldest is evicted");
    assert_eq!(lost(&attach_and_record(&mut client, &fetched[1])), 0);
    assert_whole(&attach_and_record(&mut client, &unfetched), BYTES);
}

#[test]
fn retained_execution_counts_its_fixed_memory() {
    const TIMES: usize = 200;
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_MAX_KEPT_BYTES", "1000000")]);
    let mut client = service.connect();
    let ids: Vec<_> = (0..TIMES)
        .map(|_| {
            let id = client.execute(json!({ "command": "echo x" }));
            client.record();
            id
        })
        .collect();
    assert_eq!(attach_and_record(&mut client, &ids[0]).gaps.len(), 1, "an output of 2 bytes occupies some thousands");
    assert_whole(&attach_and_record(&mut client, &ids[TIMES - 1]), 2);
}

#[test]
fn request_is_freed_after_the_execution_ends() {
    // With these numbers, even half of the requests would exceed the limit below.
    let times = scale(85, 200);
    let backend = Service::with(&["backend"], &[("CC_EXECUTOR_MAX_KEPT_BYTES", "1000000")]);
    // Each variable is as long as execve(2) allows, less a little.
    let value = "x".repeat(120_000);
    let env: serde_json::Map<_, _> = (0..8).map(|n| (format!("LARGE_{n}"), json!(value))).collect();
    run_true(&backend, 8, &json!({ "env": env }));
    let before = backend.rss_kib();
    run_true(&backend, times, &json!({ "env": env }));
    let growth = backend.rss_kib().saturating_sub(before);
    assert!(growth < 40 * 1024, "{times} requests of 0.96 MB left {growth} KiB");
}

#[test]
fn ended_execution_takes_a_few_hundred_bytes() {
    let times = scale(1_000, 2_000);
    let backend = Service::backend();
    run_true(&backend, 500, &json!({}));
    let before = backend.rss_kib();
    run_true(&backend, times, &json!({}));
    let growth = backend.rss_kib().saturating_sub(before) * 1024 / times as u64;
    assert!(growth < 1_000, "{growth} bytes each");
}

#[test]
fn limit_of_remembered_executions_refuses_new_ones() {
    const RETENTION: Duration = Duration::from_secs(4);
    let retention = RETENTION.as_millis().to_string();
    let backend = Service::with(&["backend", "--max-ended", "5"], &[("CC_EXECUTOR_RETENTION_MS", retention.as_str())]);
    let id = "66666666-6666-4666-8666-666666666666";
    assert_eq!(backend.post("/execute/stream", &json!({ "question": "echo first", "executionId": id })).0, 200);
    run_true(&backend, 4, &json!({}));
    let (status, body) = backend.post("/execute/stream", &json!({ "question": "true" }));
    let error: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &error["code"], &error["data"]["maxEnded"]), (429, &json!(code::FULL), &json!(5)), "{error}");
    assert!(error["message"].as_str().unwrap().contains("--max-ended"), "the message says what to do: {error}");
    assert_eq!(backend.get("/ready")["code"], code::FULL);
    assert_eq!(backend.get(&format!("/executions/{id}"))["status"], "COMPLETED", "the refusal has evicted nothing");
    assert_eq!(
        backend.post("/execute/stream", &json!({ "question": "echo first", "executionId": id })),
        (200, "first\n".to_owned()),
        "a known execution needs no slot"
    );
    wait_until("the retention is over", PATIENCE, || {
        backend.post("/execute/stream", &json!({ "question": "true" })).0 == 200
    });
}

/// Adds one when dropped.
struct AddOneOnDrop<'a>(&'a AtomicUsize);

impl Drop for AddOneOnDrop<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn attach_during_eviction_gets_all_of_the_output_or_one_gap() {
    const BYTES: usize = 100_000;
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_MAX_KEPT_BYTES", "150000")]);
    let newest = std::sync::Mutex::new(Vec::new());
    let n_finished = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                // On drop, because the readers wait for it even if this thread panics.
                let _guard = AddOneOnDrop(&n_finished);
                let mut client = service.connect();
                for _ in 0..scale(20, 100) {
                    let id = client.execute(json!({ "command": writes(BYTES) }));
                    newest.lock().unwrap().push(id);
                    client.record();
                }
            });
            scope.spawn(|| {
                let mut client = service.connect();
                while n_finished.load(Ordering::Relaxed) < 2 {
                    // Not the newest, because its own client is still attached.
                    let id = { newest.lock().unwrap().iter().rev().nth(2).cloned() };
                    let Some(id) = id else { continue };
                    // The other reader may take it over at once.
                    if client.attach(&id, &Recording::default()).is_err() {
                        continue;
                    }
                    let recording = client.record();
                    if recording.detached.is_some() {
                        continue;
                    }
                    assert_eq!((recording.status(), recording.stdout.len()), (Status::Completed, BYTES));
                    let n_lost = recording.stdout.iter().filter(|byte| **byte == LOST).count();
                    assert!(
                        n_lost == 0 || n_lost == BYTES,
                        "the output of an attached reader is not evicted: {n_lost}"
                    );
                }
            });
        }
    });
}
