//! Limits on sessions and executions, and the queue of executions.

use std::net::{SocketAddr, TcpStream};

use cc_executor_actors::{
    outcome::{Reason, Status},
    rpc::code,
};
use serde_json::json;

use crate::common::{
    PATIENCE,
    client::{Client, Frame},
    procs,
    recording::Recording,
    service::Service,
    temp::TempPath,
    wait_until,
};

/// A backend that runs one execution at a time, with a queue of this length.
fn narrow(max_queued: &str) -> Service {
    Service::with(&["backend"], &[("CC_EXECUTOR_MAX_EXECUTIONS", "1"), ("CC_EXECUTOR_MAX_QUEUED", max_queued)])
}

fn positions(recording: &Recording) -> Vec<u64> {
    let mut positions: Vec<_> =
        recording.with_status(Status::Queued).iter().map(|update| update.position.unwrap()).collect();
    positions.dedup();
    positions
}

#[test]
fn queue_is_first_in_first_out_across_gateways() {
    let backend = narrow("10");
    let gateways = [Service::gateway(&backend.url()), Service::gateway(&backend.url())];
    let mut running = gateways[0].connect();
    running.execute(json!({ "command": "read x", "stdin": true }));
    let order = TempPath::new("order");
    let mut waiting: Vec<_> = (0..6)
        .map(|n| {
            let mut client = gateways[n % 2].connect();
            client.queue(json!({ "command": format!("echo {n} >> {}", order.display()), "timeoutMs": 5_000 }));
            client
        })
        .collect();
    running.call("input", json!({ "data": "go\n" })).unwrap();
    assert_eq!(running.record().status(), Status::Completed);
    for (n, client) in waiting.iter_mut().enumerate() {
        let recording = client.record();
        assert_eq!(recording.status(), Status::Completed);
        let seen = positions(&recording);
        assert_eq!(seen[0], n as u64 + 1);
        assert!(seen.windows(2).all(|pair| pair[1] < pair[0]), "positions only decrease: {seen:?}");
        assert_eq!(recording.statuses.iter().filter(|status| **status == Status::Running).count(), 1);
    }
    assert_eq!(std::fs::read_to_string(&*order).unwrap(), "0\n1\n2\n3\n4\n5\n");
}

#[test]
fn queued_execution_accepts_only_cancel_and_sends_heartbeats() {
    let backend = narrow("2");
    let gateway = Service::gateway(&backend.url());
    let mark = procs::mark();
    let mut running = gateway.connect();
    running.execute(json!({ "command": format!("exec sleep {mark}") }));
    let mut first = gateway.connect();
    let id = first.queue(json!({ "command": "echo first", "stdin": true, "heartbeatMs": 1_000, "timeoutMs": 500 }));
    let mut second = gateway.connect();
    second.queue(json!({ "command": "echo second" }));
    let mut third = gateway.connect();
    assert_eq!(
        third.call("execute", json!({ "command": "echo third" })).unwrap_err().code,
        code::FULL,
        "the queue is full"
    );
    for (method, params) in [
        ("control", json!({ "type": "PAUSE" })),
        ("control", json!({ "type": "SIGNAL", "signal": "SIGINT" })),
        ("input", json!({ "data": "x" })),
    ] {
        assert_eq!(first.call(method, params.clone()).unwrap_err().code, code::NOT_RUNNING, "{params}");
    }
    // The time-out is suspended in the queue, and heartbeats are sent.
    let mut recording = Recording::default();
    first.record_until(&mut recording, |recording| recording.with_status(Status::Queued).len() == 3);
    assert_eq!(recording.with_status(Status::Queued)[2].deadline_ms, Some(500));
    assert_eq!(third.call("status", json!({ "executionId": id })).unwrap()["position"], 1);
    first.cancel();
    first.record_rest(&mut recording);
    assert_eq!(recording.ending(), (Status::Cancelled, Reason::Canceled));
    assert_eq!((&recording.end["cancel"]["verified"], &recording.end["bytes"]["stdout"]), (&json!(true), &json!(0)));
    assert!(!recording.statuses.contains(&Status::Running));
    // The second moves up, and its client's disconnect frees its slot.
    let mut moved = Recording::default();
    second.record_until(&mut moved, |recording| positions(recording).last() == Some(&1));
    third.queue(json!({ "command": "echo third" }));
    second.disconnect();
    let mut recording = Recording::default();
    third.record_until(&mut recording, |recording| positions(recording).last() == Some(&1));
    running.cancel();
    third.record_rest(&mut recording);
    assert_eq!(recording.stdout, b"third\n");
    assert_eq!(running.record().reason(), Reason::Canceled);
}

#[test]
fn detachable_execution_keeps_its_queue_position_without_a_client() {
    let backend = narrow("2");
    let gateway = Service::gateway(&backend.url());
    let mut running = gateway.connect();
    running.execute(json!({ "command": "read x", "stdin": true }));
    let mut client = gateway.connect();
    let id = client.queue(json!({ "command": "echo its turn came", "onDisconnect": "detach" }));
    client.disconnect();
    backend.wait_for_event("execution.detached", 1);
    let mut other = gateway.connect();
    let attached = other.call("attach", json!({ "executionId": id })).unwrap();
    assert_eq!(attached["status"], "QUEUED");
    other.disconnect();
    backend.wait_for_event("execution.detached", 2);
    running.call("input", json!({ "eof": true })).unwrap();
    running.record();
    backend.wait_for_event("process.finished", 2);
    let mut client = gateway.connect();
    client.attach(&id, &Recording::default()).unwrap();
    assert_eq!(client.record().stdout, b"its turn came\n");
}

/// A connection from this loopback address.
fn connect_from(source: [u8; 4], target: SocketAddr) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from((source, 0))).unwrap();
    connect(&socket, &target).unwrap();
    TcpStream::from(socket)
}

#[test]
fn sessions_per_address_are_limited() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_MAX_SESSIONS_PER_ADDRESS", "2")]);
    let held: Vec<_> = (0..2).map(|_| service.connect()).collect();
    let mut refused = Client::upgrade(service.address, &[]).unwrap();
    let Frame::Text(error) = refused.recv() else { panic!("an error") };
    assert_eq!((&error["method"], error["params"]["code"].as_i64()), (&json!("error"), Some(code::SESSION_LIMIT)));
    assert_eq!(refused.close_code(), 1013);
    let mut other = Client::upgrade_on(connect_from([127, 0, 0, 2], service.address), service.address, &[]).unwrap();
    assert!(matches!(other.recv(), Frame::Text(message) if message["method"] == "connected"));
    drop(held);
    wait_until("a slot is free again", PATIENCE, || {
        let mut client = Client::upgrade(service.address, &[]).unwrap();
        matches!(client.recv(), Frame::Text(message) if message["method"] == "connected")
    });
}
