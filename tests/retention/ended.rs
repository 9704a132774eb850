//! How long the ending of an execution can be asked for.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use cc_executor_actors::{
    outcome::{Reason, Status},
    rpc::code,
};
use serde_json::{Value, json};

use super::{assert_whole, run_true, writes};
use crate::common::{
    PATIENCE, client::code_and_param, recording::Recording, service::Service, sha256, temp::TempPath, wait_until,
};

#[test]
fn many_later_executions_keep_endings_and_readers() {
    /// The number of executions on a page of the list.
    const LISTED: usize = 200;
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
    assert_eq!(fs::read_to_string(&*runs).unwrap(), "ran\n", "the command does not run twice");
    assert_eq!(backend.get(&format!("/executions/{id}"))["ending"]["exit_code"], 3);
    let mut other = execute;
    other["cwd"] = json!("/tmp");
    let error = client.call("execute", other).unwrap_err();
    assert_eq!(code_and_param(&error), (code::PARAMS, Some("cwd")));
    let page = backend.get("/executions");
    assert_eq!(page["executions"].as_array().unwrap().len(), LISTED, "the newest are listed");
    assert!(page["next"].is_string(), "more follow");
    reader.record_rest(&mut slow);
    assert_whole(&slow, BYTES);
}

#[test]
fn limit_of_remembered_executions_refuses_new_ones() {
    const RETENTION: Duration = Duration::from_secs(4);
    let retention = RETENTION.as_millis().to_string();
    let backend = Service::with(&["backend", "--max-ended", "3"], &[("CC_EXECUTOR_RETENTION_MS", retention.as_str())]);
    let id = "66666666-6666-4666-8666-666666666666";
    assert_eq!(backend.post("/execute/stream", &json!({ "question": "echo first", "executionId": id })).0, 200);
    run_true(&backend, 2, &json!({}));
    let (status, body) = backend.post("/execute/stream", &json!({ "question": "true" }));
    let error: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &error["code"], &error["data"]["limit"]), (429, &json!(code::FULL), &json!(3)), "{error}");
    let retry_ms = error["data"]["retryAfterMs"].as_u64().unwrap();
    assert!(retry_ms <= RETENTION.as_millis() as u64, "when the oldest is forgotten: {error}");
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

#[test]
fn ended_executions_are_kept_for_the_retention_within_the_memory_limit() {
    let service =
        Service::with(&["serve"], &[("CC_EXECUTOR_RETENTION_MS", "5000"), ("CC_EXECUTOR_MAX_KEPT_BYTES", "3000000")]);
    let mut client = service.connect();
    let ids: Vec<_> = (0..3)
        .map(|_| {
            let id = client.execute(json!({ "command": "head -c 2000000 /dev/zero | tr '\\0' x" }));
            client.record();
            id
        })
        .collect();
    client.attach(&ids[2], &Recording::default()).unwrap();
    assert_eq!(client.record().gaps.len(), 0, "the newest is complete");
    client.attach(&ids[0], &Recording::default()).unwrap();
    let recording = client.record();
    assert_eq!(
        (recording.gaps.len(), recording.status()),
        (1, Status::Completed),
        "the output of the oldest is evicted, its ending is not"
    );
    wait_until("all are forgotten", PATIENCE, || {
        service.get("/executions")["executions"].as_array().is_some_and(Vec::is_empty)
    });
    for id in &ids {
        assert_eq!(client.call("attach", json!({ "executionId": id })).unwrap_err().code, code::UNKNOWN_EXECUTION);
    }
}

#[test]
fn retention_begins_when_the_last_consumer_leaves() {
    const RETENTION: Duration = Duration::from_secs(3);
    let backend =
        Service::with(&["backend"], &[("CC_EXECUTOR_RETENTION_MS", "3000"), ("CC_EXECUTOR_RING_BYTES", "100000000")]);
    let gateway = Service::gateway(&backend.url());
    let mut client = gateway.connect();
    let id = client.execute(json!({ "command": "seq 11000000", "onDisconnect": "detach" }));
    backend.wait_for_event("process.finished", 1);
    // The output is larger than all socket buffers, so that the client stays attached.
    let ended_at = Instant::now();
    let mut recording = Recording::default();
    wait_until("the retention would be over", PATIENCE, || {
        let so_far = recording.stdout.len() + 50_000;
        client.record_until(&mut recording, |recording| recording.stdout.len() > so_far);
        thread::sleep(Duration::from_millis(100));
        ended_at.elapsed() > RETENTION + Duration::from_secs(1)
    });
    client.disconnect();
    wait_until("no client is attached", PATIENCE, || backend.get(&format!("/executions/{id}"))["attached"] != true);
    let mut client = gateway.connect();
    client.attach(&id, &recording).unwrap();
    client.record_rest(&mut recording);
    assert_eq!(Some(sha256(&recording.stdout).as_str()), recording.end["sha256"]["stdout"].as_str());
}
