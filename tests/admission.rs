//! Who gets in, who waits, and for how long: sessions, executions, and the queue before them.

use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    client::{Client, Frame, Recording},
    procs,
    service::Service,
    wait_until,
};

/// A backend that runs one execution at a time, and has so many wait.
fn narrow(max_queued: &str) -> Service {
    Service::with(&["backend"], &[("CC_EXECUTOR_MAX_EXECUTIONS", "1"), ("CC_EXECUTOR_MAX_QUEUED", max_queued)])
}

fn gateway(backend: &Service) -> Service {
    let gateway = Service::gateway(&backend.url());
    gateway.wait_for_event("backend.up", 1);
    gateway
}

fn queue(client: &mut Client, params: Value) -> String {
    let result = client.call("execute", params).expect("it is accepted");
    assert_eq!(result["status"], "queued", "{result}");
    result["executionId"].as_str().unwrap().to_owned()
}

fn positions(story: &Recording) -> Vec<u64> {
    let mut positions: Vec<_> =
        story.with_status("QUEUED").iter().map(|update| update["position"].as_u64().unwrap()).collect();
    positions.dedup();
    positions
}

#[test]
fn queue_is_first_in_first_out_across_gateways() {
    let backend = narrow("10");
    let gateways = [gateway(&backend), gateway(&backend)];
    let mut running = gateways[0].connect();
    running.execute(json!({ "command": "read x", "stdin": true }));
    let order = std::env::temp_dir().join(format!("cc-executor-order-{}", std::process::id()));
    let _ = std::fs::remove_file(&order);
    let mut waiting: Vec<_> = (0..6)
        .map(|n| {
            let mut client = gateways[n % 2].connect();
            queue(&mut client, json!({ "command": format!("echo {n} >> {}", order.display()), "timeoutMs": 5_000 }));
            client
        })
        .collect();
    running.call("input", json!({ "data": "go\n" })).unwrap();
    assert_eq!(running.story().end["status"], "COMPLETED");
    for (n, client) in waiting.iter_mut().enumerate() {
        let story = client.story();
        assert_eq!(story.end["status"], "COMPLETED");
        let seen = positions(&story);
        assert_eq!(seen[0], n as u64 + 1);
        assert!(seen.windows(2).all(|pair| pair[1] < pair[0]), "it only moves up: {seen:?}");
        assert_eq!(story.statuses.iter().filter(|status| *status == "RUNNING").count(), 1);
    }
    assert_eq!(std::fs::read_to_string(&order).unwrap(), "0\n1\n2\n3\n4\n5\n");
    let _ = std::fs::remove_file(&order);
}

#[test]
fn queued_execution_accepts_only_cancel_and_sends_heartbeats() {
    let backend = narrow("2");
    let gateway = gateway(&backend);
    let mark = procs::mark();
    let mut running = gateway.connect();
    running.execute(json!({ "command": format!("exec sleep {mark}") }));
    let mut first = gateway.connect();
    let id =
        queue(&mut first, json!({ "command": "echo first", "stdin": true, "heartbeatMs": 1_000, "timeoutMs": 500 }));
    let mut second = gateway.connect();
    queue(&mut second, json!({ "command": "echo second" }));
    let mut third = gateway.connect();
    assert_eq!(
        third.call("execute", json!({ "command": "echo third" })).unwrap_err()["code"],
        -32009,
        "the queue is full"
    );
    for (method, params) in [
        ("control", json!({ "type": "PAUSE" })),
        ("control", json!({ "type": "SIGNAL", "signal": "SIGINT" })),
        ("input", json!({ "data": "x" })),
    ] {
        assert_eq!(first.call(method, params.clone()).unwrap_err()["code"], -32003, "{params}");
    }
    // Its time-out does not run while it waits, and its heartbeat does.
    let mut story = Recording::default();
    first.follow(&mut story, |story| story.with_status("QUEUED").len() == 3);
    assert_eq!(story.with_status("QUEUED")[2]["deadlineMs"], 500);
    assert_eq!(third.call("status", json!({ "executionId": id })).unwrap()["position"], 1);
    first.call("control", json!({ "type": "CANCEL" })).unwrap();
    first.follow(&mut story, |_| false);
    assert_eq!((&story.end["status"], &story.end["reason"]), (&json!("CANCELLED"), &json!("canceled")));
    assert_eq!((&story.end["cancel"]["verified"], &story.end["bytes"]["stdout"]), (&json!(true), &json!(0)));
    assert!(!story.statuses.iter().any(|status| status == "RUNNING"));
    // The next moves up, and its client's leaving frees its place.
    let mut moved = Recording::default();
    second.follow(&mut moved, |story| positions(story).last() == Some(&1));
    queue(&mut third, json!({ "command": "echo third" }));
    second.vanish();
    let mut story = Recording::default();
    third.follow(&mut story, |story| positions(story).last() == Some(&1));
    running.call("control", json!({ "type": "CANCEL" })).unwrap();
    third.follow(&mut story, |_| false);
    assert_eq!(story.stdout, b"third\n");
    assert_eq!(running.story().end["reason"], "canceled");
}

#[test]
fn detachable_execution_keeps_its_queue_position_without_a_client() {
    let backend = narrow("2");
    let gateway = gateway(&backend);
    let mut running = gateway.connect();
    running.execute(json!({ "command": "read x", "stdin": true }));
    let mut client = gateway.connect();
    let id = queue(&mut client, json!({ "command": "echo its turn came", "onDisconnect": "detach" }));
    client.vanish();
    backend.wait_for_event("execution.detached", 1);
    let mut other = gateway.connect();
    let attached = other.call("attach", json!({ "executionId": id })).unwrap();
    assert_eq!(attached["status"], "QUEUED");
    other.vanish();
    backend.wait_for_event("execution.detached", 2);
    running.call("input", json!({ "eof": true })).unwrap();
    running.story();
    backend.wait_for_event("process.finished", 2);
    let mut client = gateway.connect();
    client.attach(&id, &Recording::default()).unwrap();
    assert_eq!(client.story().stdout, b"its turn came\n");
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
    assert_eq!((&error["method"], error["params"]["code"].as_i64()), (&json!("error"), Some(-32001)));
    assert_eq!(refused.close_code(), 1013);
    let mut other = Client::upgrade_on(connect_from([127, 0, 0, 2], service.address), service.address, &[]).unwrap();
    assert!(matches!(other.recv(), Frame::Text(message) if message["method"] == "connected"));
    drop(held);
    wait_until("a place is given back", PATIENCE, || {
        let mut client = Client::upgrade(service.address, &[]).unwrap();
        matches!(client.recv(), Frame::Text(message) if message["method"] == "connected")
    });
}
