//! Which output of ended executions is evicted, and which is kept for a client that has not fetched it.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use cc_executor_actors::{
    outcome::Status,
    rpc::code,
    stream::{GapReason, Stream},
};
use serde_json::json;

use super::{assert_whole, attach_and_record, run_unacknowledged, writes};
use crate::common::{
    PATIENCE,
    recording::{LOST, Recording},
    scale,
    service::Service,
    sha256, wait_until,
};

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
        for field in
            ["status", "reason", "exit_code", "signal", "message", "elapsedMs", "bytes", "sha256", "leftovers", "usage"]
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
    assert_eq!((error.code, &data["limit"]), (code::FULL, &json!(3_000_000)), "{error}");
    let held = data["used"].as_u64().unwrap();
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
fn unread_output_is_evicted_last() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_MAX_KEPT_BYTES", "6000000")]);
    let mut client = service.connect();
    let id = client.execute(json!({ "command": "echo once; sleep 0.2; seq 100000", "onDisconnect": "detach" }));
    let mut recording = Recording::default();
    client.record_until(&mut recording, |recording| recording.stdout == b"once\n");
    client.disconnect();
    service.wait_for_event("process.finished", 1);
    let mut client = service.connect();
    for _ in 0..4 {
        client.run(json!({ "command": "head -c 2000000 /dev/zero | tr '\\0' x" }));
    }
    client.attach(&id, &recording).unwrap();
    // The connection breaks again during the replay.
    client.record_until(&mut recording, |recording| recording.stdout.len() > 1_000);
    client.disconnect();
    let mut client = service.connect();
    for _ in 0..4 {
        client.run(json!({ "command": "head -c 2000000 /dev/zero | tr '\\0' x", "onDisconnect": "detach" }));
    }
    client.attach(&id, &recording).unwrap();
    client.record_rest(&mut recording);
    assert!(recording.gaps.is_empty(), "the newer outputs had been delivered: {:?}", recording.gaps);
    assert_eq!(Some(sha256(&recording.stdout).as_str()), recording.end["sha256"]["stdout"].as_str());
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
    let newest = Mutex::new(Vec::new());
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
