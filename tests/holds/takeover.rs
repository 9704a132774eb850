//! A second consumer takes an execution over, and the first one never takes it back.

use std::{io::Read, net::TcpStream, time::Duration};

use cc_executor_actors::{backend_api::MULTIPLEXED, outcome::Status, protocol::notification::DetachReason};
use serde_json::{Value, json};

use crate::common::{
    PATIENCE, http, merged, procs, recording::Recording, service::Service, wait_until, wait_until_stable,
};

/// More bytes than all socket buffers between a command and its client hold.
const MUCH: usize = 150_000_000;

/// A client stops reading, a second one attaches, and the first continues to read after the backend has cut its gateway's
/// connection.
fn take_over_from_a_stalled_client(options: &Value, env: &[(&str, &str)]) {
    let backend = Service::with(&["backend"], env);
    let gateway = Service::gateway(&backend.url());
    let command = format!("head -c {MUCH} /dev/zero | tr '\\0' x; exec sleep {}", procs::mark());
    let mut first = gateway.connect();
    let id = first.execute(merged(json!({ "command": command }), options));
    // The command is blocked, or has written everything.
    wait_until_stable("the bytes that the backend reads", 1_000_000, Duration::from_millis(200), || {
        backend.get(&format!("/executions/{id}"))["offsets"]["stdout"].as_u64().unwrap_or(0)
    });
    let mut second = gateway.connect();
    assert_eq!(second.call("attach", json!({ "executionId": id })).unwrap()["status"], "RUNNING");
    let mut recording = Recording::default();
    let is_over = second.record_until(&mut recording, |recording| recording.stdout.len() == MUCH);
    assert!(!is_over, "{:?}", recording.detached);
    backend.wait_for_event("socket.shut_down", 1);
    let mut before = Recording::default();
    first.record_until(&mut before, |recording| recording.stdout.len() == MUCH);
    let detached = before.detached.unwrap_or_else(|| panic!("{} {:?}", before.end, before.errors));
    assert_eq!((detached.reason, detached.offsets.stdout), (DetachReason::TakenOver, before.stdout.len() as u64));
    assert!(before.errors.is_empty(), "{:?}", before.errors);
    // Output that was dropped before the takeover is reported as a gap; later output belongs to the other client.
    let drops = options["overflow"] == "drop";
    assert!(before.gaps.is_empty() || drops, "{:?}", before.gaps);
    assert!(before.stdout.len() < MUCH, "the rest belongs to the second client");
    assert_eq!(first.call("ping", json!({})), Ok(json!({})), "its session continues");
    // The second client keeps the execution.
    second.cancel();
    second.record_rest(&mut recording);
    assert_eq!((recording.detached, recording.status()), (None, Status::Cancelled), "{}", recording.end);
    assert_eq!(recording.end["bytes"]["stdout"], MUCH);
}

#[test]
fn client_that_reads_again_after_a_takeover_gets_detached() {
    take_over_from_a_stalled_client(&json!({}), &[]);
}

#[test]
fn gateway_does_not_take_back_a_detachable_execution() {
    take_over_from_a_stalled_client(&json!({ "onDisconnect": "detach", "overflow": "drop" }), &[]);
}

#[test]
fn gateway_does_not_take_back_an_execution_with_a_large_ring() {
    take_over_from_a_stalled_client(&json!({ "onDisconnect": "detach" }), &[("CC_EXECUTOR_RING_BYTES", "67108864")]);
}

/// Sends a request to the backend as a gateway does. Returns the status, and the connection with the rest of the response.
fn ask(backend: &Service, request: &str, body: &str) -> (u16, TcpStream) {
    let headers = [http::JSON, http::CLOSE, ("Accept", MULTIPLEXED)];
    let mut stream = http::send(backend.address, request, &headers, body);
    (http::read_status(&mut stream), stream)
}

fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn backend_answers_an_old_hold_with_taken_over() {
    let backend = Service::backend();
    let id = "44444444-4444-4444-8444-444444444444";
    let body = json!({ "question": "echo x; sleep 1000", "executionId": id, "onDisconnect": "detach" }).to_string();
    let (status, first) = ask(&backend, "POST /execute/stream", &body);
    assert_eq!(status, 200);
    let show = || backend.get(&format!("/executions/{id}"));
    wait_until("the command has written", PATIENCE, || show()["offsets"]["stdout"] == 2);
    assert_eq!(show()["hold"], 1);
    let (status, second) = ask(&backend, &format!("GET /executions/{id}/stream"), "");
    assert_eq!((status, &show()["hold"]), (200, &json!(2)));
    assert!(rest(first).contains("taken_over"));
    // The first gateway reattaches under its old hold: it gets `taken_over`, and the second one stays attached.
    let (status, back) = ask(&backend, &format!("GET /executions/{id}/stream?stdout=2&arrived=false&hold=1"), "");
    let body = rest(back);
    assert_eq!(status, 200, "{body}");
    assert!(body.contains(r#"{"taken_over":true}"#) && !body.contains("started"), "{body}");
    assert_eq!((&show()["hold"], &show()["attached"]), (&json!(2), &json!(true)));
    // Its acknowledgements and its cancel are refused.
    assert_eq!(ask(&backend, &format!("POST /executions/{id}/ack?stdout=2&hold=1"), "{}").0, 409);
    let (status, refusal) = ask(&backend, &format!("DELETE /executions/{id}?grace_ms=0&hold=1"), "");
    assert_eq!(status, 409, "{}", rest(refusal));
    assert_eq!(show()["status"], "RUNNING");
    assert_eq!(ask(&backend, &format!("POST /executions/{id}/ack?stdout=2&hold=2"), "{}").0, 200);
    // The holder may reattach any number of times.
    let (status, again) = ask(&backend, &format!("GET /executions/{id}/stream?stdout=2&arrived=false&hold=2"), "");
    assert_eq!((status, &show()["hold"]), (200, &json!(2)));
    drop(second);
    let (status, once_more) = ask(&backend, &format!("GET /executions/{id}/stream?stdout=2&arrived=false&hold=2"), "");
    assert_eq!((status, &show()["hold"], &show()["attached"]), (200, &json!(2), &json!(true)));
    assert!(!rest(again).contains("taken_over"));
    assert_eq!(ask(&backend, &format!("GET /executions/{id}/stream?hold=7"), "").0, 400, "a hold that was never given");
    // A request without a hold is not bound to one.
    assert_eq!(ask(&backend, &format!("DELETE /executions/{id}?grace_ms=0"), "").0, 200);
    let body = rest(once_more);
    assert!(body.contains(r#""hold":2"#) && body.contains("CANCELLED"), "{body}");
}

#[test]
fn cancel_with_another_request_id_is_refused() {
    let backend = Service::backend();
    let id = "55555555-5555-4555-8555-555555555555";
    let body = |request: u64| {
        json!({
            "question": "sleep 1000", "executionId": id,
            "requestId": format!("00000000-0000-4000-8000-{request:012}"),
        })
        .to_string()
    };
    let cancel = |request: u64| {
        let path = format!("/executions/{id}?grace_ms=0&request_id=00000000-0000-4000-8000-{request:012}");
        ask(&backend, &format!("DELETE {path}"), "").0
    };
    let (status, _first) = ask(&backend, "POST /execute/stream", &body(1));
    assert_eq!(status, 200);
    assert_eq!(cancel(2), 409, "request 2 has not come, and the execution belongs to request 1");
    // The same request again keeps its hold.
    let (status, _again) = ask(&backend, "POST /execute/stream", &body(1));
    assert_eq!((status, &backend.get(&format!("/executions/{id}"))["hold"]), (200, &json!(1)));
    let (status, _second) = ask(&backend, "POST /execute/stream", &body(2));
    assert_eq!((status, &backend.get(&format!("/executions/{id}"))["hold"]), (200, &json!(2)));
    assert_eq!(cancel(1), 409);
    let (status, late) = ask(&backend, "POST /execute/stream", &body(1));
    let body = rest(late);
    assert!(status == 200 && body.contains(r#"{"taken_over":true}"#), "{body}");
    assert_eq!(cancel(2), 200);
}
