//! What a client that takes all that it may leaves to the others, and in which order they are served.

use std::{
    fs,
    time::{Duration, Instant},
};

use cc_executor_actors::rpc::code;
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    backend_caller::{BackendCaller, backend_with_token},
    scale,
    service::Service,
    temp::TempPath,
    wait_until,
};

/// Checks that the data of a refusal names the client's share or the service's limit.
fn assert_over(error: &Value, scope: &str, limit: u64) {
    assert_eq!(error["code"], code::FULL, "{error}");
    assert_eq!((&error["data"]["scope"], &error["data"]["limit"]), (&json!(scope), &json!(limit)), "{error}");
    assert!(error["data"]["used"].is_u64() && error["data"].get("retryAfterMs").is_some(), "{error}");
}

#[test]
fn client_that_fills_running_places_and_queue_leaves_room_for_another() {
    let (running, queued) = (scale(8, 64), scale(8, 256));
    let arguments = ["--max-executions", &running.to_string(), "--max-queued", &queued.to_string()];
    let backend = backend_with_token(&arguments);
    let (alice, bob) = (BackendCaller::client(&backend, "alice"), BackendCaller::client(&backend, "bob"));
    for _ in 0..running + queued {
        alice.detach("sleep 1000", &[]);
    }
    let (status, error, head) = alice.refusal(&json!({ "question": "true" }));
    assert_over(&error, "client", queued as u64);
    assert!(status == 429 && head.contains("retry-after: "), "{status} {head}");
    let began = Instant::now();
    assert_eq!(bob.run(&json!({ "question": "echo here" })).body, "here\n");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let operator = BackendCaller::operator(&backend);
    assert_eq!(operator.ask("GET /ready"), (200, json!({ "ready": true })), "another client finds room");
    let others: Vec<_> = (0..running / 4).map(|_| bob.detach("sleep 1000", &[])).collect();
    let is_running = |id: &String| bob.ask(&format!("GET /executions/{id}")).1["status"] == "RUNNING";
    wait_until("the reserve runs", PATIENCE, || others.iter().all(is_running));
    let carol = BackendCaller::client(&backend, "carol");
    let waiting = carol.detach("true", &[]);
    assert_eq!(carol.ask(&format!("GET /executions/{waiting}")).1["status"], "QUEUED", "the reserve is used up");
}

#[test]
fn clients_are_served_in_turn_and_a_clients_sessions_within_its_turn() {
    let backend = backend_with_token(&["--max-executions", "1"]);
    let (alice, bob) = (BackendCaller::client(&backend, "alice"), BackendCaller::client(&backend, "bob"));
    let operator = BackendCaller::operator(&backend);
    let gate = alice.detach("sleep 1000", &[]);
    let order = TempPath::new("order");
    let echo = |word: &str| format!("echo {word} >> {}", order.display());
    let session = |n: u8| format!("{n}{n}{n}{n}{n}{n}{n}{n}-1111-4111-8111-111111111111");
    let queue = |caller: BackendCaller<'_>, word: &str, n: u8| {
        caller.detach(&echo(word), &[("cc-executor-session", &session(n))])
    };
    let ids = [
        queue(alice, "a1", 1),
        queue(alice, "a2", 1),
        queue(alice, "a3", 1),
        queue(alice, "b1", 2),
        queue(bob, "c1", 3),
        queue(bob, "d1", 4),
    ];
    let position = |id: &String| operator.ask(&format!("GET /executions/{id}")).1["position"].as_u64().unwrap();
    wait_until("the positions are told", PATIENCE, || ids.each_ref().map(position) == [1, 5, 6, 3, 2, 4]);
    operator.ask(&format!("DELETE /executions/{gate}"));
    wait_until("all ran", PATIENCE, || fs::read_to_string(&*order).is_ok_and(|text| text.lines().count() == 6));
    assert_eq!(fs::read_to_string(&*order).unwrap(), "a1\nc1\nb1\nd1\na2\na3\n");
}

#[test]
fn unfetched_output_stays_for_its_retention_whatever_another_client_leaves() {
    const BYTES: usize = 3_000_000;
    // Each of the executions leaves 8.2 MB: its whole buffer.
    let (times, limit) = (scale(8, 40), scale(50_000_000, 268_435_456));
    let limit = limit.to_string();
    let backend = backend_with_token(&["--max-kept-bytes", &limit]);
    let (alice, bob) = (BackendCaller::client(&backend, "alice"), BackendCaller::client(&backend, "bob"));
    let writes = |n_bytes: usize| format!("head -c {n_bytes} /dev/zero | tr '\\0' x");
    let detach = |caller: BackendCaller<'_>, command: &str| {
        let id = caller.detach(command, &[]);
        let has_ended = || caller.ask(&format!("GET /executions/{id}")).1["status"] == "COMPLETED";
        wait_until("it has ended", PATIENCE, has_ended);
        id
    };
    let kept = detach(bob, &writes(BYTES));
    let both = format!("{} & {} >&2; wait", writes(4_100_000), writes(4_100_000));
    let execute = json!({ "question": "true", "onDisconnect": "detach" });
    let mut refused = None;
    for _ in 0..times {
        if alice.run(&execute).status != 200 {
            refused = Some(alice.refusal(&execute));
            break;
        }
        detach(alice, &both);
    }
    let (status, error, _) = refused.expect("its share is used up");
    let limit: u64 = limit.parse().unwrap();
    assert_over(&error, "client", limit - limit / 4);
    assert!(status == 429 && error["message"].as_str().unwrap().contains("--max-kept-bytes"), "{status} {error}");
    assert_eq!(alice.run(&json!({ "question": "echo not detachable" })).status, 200);
    assert_eq!(bob.run(&execute).status, 200);
    let stream = bob.exchange(&format!("GET /executions/{kept}/stream"), &[], "");
    assert_eq!(stream.body.len(), BYTES, "the other client's output is complete");
}

#[test]
fn fetched_output_of_the_client_with_most_is_evicted_first() {
    const BYTES: usize = 1_000_000;
    let backend = backend_with_token(&["--max-kept-bytes", "4000000"]);
    let (alice, bob) = (BackendCaller::client(&backend, "alice"), BackendCaller::client(&backend, "bob"));
    let execute =
        |id: &str| json!({ "question": format!("head -c {BYTES} /dev/zero | tr '\\0' x"), "executionId": id });
    let id = |n: usize| format!("{n:08}-1111-4111-8111-111111111111");
    assert_eq!(bob.run(&execute(&id(0))).body.len(), BYTES);
    for n in 1..6 {
        assert_eq!(alice.run(&execute(&id(n))).body.len(), BYTES);
    }
    let is_kept = |caller: BackendCaller<'_>, n: usize| {
        let stream = caller.exchange(&format!("GET /executions/{}/stream", id(n)), &[], "");
        stream.body.bytes().filter(|byte| *byte == b'x').count() == BYTES
    };
    assert!(is_kept(bob, 0), "the oldest, of a client that has less than its share");
    assert!(!is_kept(alice, 1) && is_kept(alice, 5));
}

#[test]
fn client_that_fills_the_remembered_executions_erases_nothing_and_leaves_room() {
    const ENTRIES: usize = 12;
    let backend = backend_with_token(&["--max-ended", &ENTRIES.to_string()]);
    let (alice, bob) = (BackendCaller::client(&backend, "alice"), BackendCaller::client(&backend, "bob"));
    let id = "66666666-6666-4666-8666-666666666666";
    assert_eq!(bob.run(&json!({ "question": "echo of bob", "executionId": id })).status, 200);
    let share = ENTRIES - ENTRIES / 4;
    for _ in 0..share {
        assert_eq!(alice.run(&json!({ "question": "true" })).status, 200);
    }
    let (status, error, head) = alice.refusal(&json!({ "question": "true" }));
    assert_over(&error, "client", share as u64);
    assert!(status == 429 && head.contains("retry-after: "), "{status} {head}");
    assert!(error["message"].as_str().unwrap().contains("--max-ended"), "{error}");
    for _ in 0..ENTRIES - share - 1 {
        let response = bob.run(&json!({ "question": "true" }));
        assert_eq!(response.status, 200, "{}", response.body);
    }
    assert_eq!(bob.ask(&format!("GET /executions/{id}")).1["status"], "COMPLETED");
    assert_eq!(bob.run(&json!({ "question": "echo of bob", "executionId": id })).body, "of bob\n");
}

#[test]
fn queue_refuses_for_the_service_when_others_fill_the_reserve() {
    let backend = backend_with_token(&["--max-executions", "4", "--max-queued", "4"]);
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| BackendCaller::client(&backend, name));
    for _ in 0..8 {
        alice.detach("sleep 1000", &[]);
    }
    for _ in 0..2 {
        bob.detach("sleep 1000", &[]);
    }
    let (status, error, head) = carol.refusal(&json!({ "question": "true" }));
    assert_over(&error, "service", 4);
    assert!(status == 503 && head.contains("retry-after: 1\r\n"), "{status} {head}");
    let (status, ready) = BackendCaller::operator(&backend).ask("GET /ready");
    assert_eq!((status, &ready["code"]), (503, &json!(code::FULL)), "{ready}");
}

#[test]
fn full_service_names_the_share_to_a_client_of_a_gateway() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_MAX_EXECUTIONS", "1"), ("CC_EXECUTOR_MAX_QUEUED", "0")]);
    let mut first = service.connect();
    first.execute(json!({ "command": "sleep 1000" }));
    let error = service.connect().call("execute", json!({ "command": "true" })).unwrap_err();
    let data = error.data.as_ref().unwrap();
    assert_eq!((error.code, &data["scope"], &data["limit"]), (code::FULL, &json!("client"), &json!(1)), "{error}");
    assert_eq!((&data["used"], &data["retryAfterMs"]), (&json!(1), &json!(1_000)));
}
