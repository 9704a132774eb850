//! What observers may take: their number, the memory of each, and how long one may read nothing.

use std::time::Duration;

use cc_executor_actors::{backend_api::MULTIPLEXED, outcome::Status, rpc::code};
use serde_json::{Value, json};

use super::{observe, observer, wait_for_observers};
use crate::common::{
    PATIENCE, client::Client, http, procs, recording::Recording, scale, service::Service, wait_until, wait_until_stable,
};

#[test]
fn limit_of_observers_refuses_more() {
    let backend = Service::with(&["backend", "--max-observers", "2"], &[]);
    let gateway = Service::gateway(&backend.url());
    let mut holder = gateway.connect();
    let id = holder.execute(json!({ "command": "exec sleep 1000" }));
    let first = observer(&gateway, &id);
    let _second = observer(&gateway, &id);
    let mut third = gateway.connect();
    let error = observe(&mut third, &id).unwrap_err();
    let data = json!({ "limit": 2, "used": 2, "scope": "client", "retryAfterMs": 1_000 });
    assert_eq!((error.code, error.data.as_ref()), (code::FULL, Some(&data)), "{error}");
    assert!(error.message.contains("--max-observers"), "{error}");
    let request = format!("GET /executions/{id}/stream?observe=true");
    let response = http::exchange(backend.address, &request, &[], "");
    assert!(response.status == 429 && response.head.contains("retry-after: 1"), "{}", response.head);
    assert_eq!(serde_json::from_str::<Value>(&response.body).unwrap()["data"], data);
    first.close();
    wait_until("there is room", PATIENCE, || observe(&mut third, &id).is_ok());
    // The limit is that of one execution.
    let mut other = gateway.connect();
    let another = other.execute(json!({ "command": "exec sleep 1000" }));
    let _of_another = observer(&gateway, &another);
}

#[test]
fn observer_that_does_not_read_is_sent_away_and_its_client_is_not() {
    let backend = Service::with(&["backend", "--ring-bytes", "65536", "--consumer-stall-ms", "2000"], &[]);
    let gateway = Service::gateway(&backend.url());
    let mut holder = gateway.connect();
    let id = holder.execute(json!({ "command": "exec yes" }));
    let request = format!("GET /executions/{id}/stream?observe=true");
    let mut silent = http::send(backend.address, &request, &[("Accept", MULTIPLEXED)], "");
    assert_eq!(http::read_status(&mut silent), 200);
    wait_for_observers(&backend, &id, 1);
    let mut n_bytes = 0;
    wait_until("the observer is sent away", 3 * PATIENCE, || {
        // Polls of the execution, as a gateway sends them, do not keep it.
        let observers = backend.get(&format!("/executions/{id}"))["observers"].as_u64().unwrap_or(0);
        n_bytes += holder.notification("output")["content"].as_str().unwrap_or_default().len();
        observers == 0
    });
    assert!(n_bytes > 0 && backend.count("execution.detached") == 0);
    holder.cancel();
    assert_eq!(read_to_ending(&mut holder), Status::Cancelled);
}

/// Reads to the final status, and drops everything else.
fn read_to_ending(client: &mut Client) -> Status {
    loop {
        let update = client.notification("statusUpdate");
        if update["reason"].is_string() {
            return serde_json::from_value(update["status"].clone()).expect("a status");
        }
    }
}

#[test]
fn observers_that_read_nothing_slow_nobody_and_cost_less_than_a_megabyte_each() {
    const ROUND: usize = 30_000_000;
    const ROUNDS: usize = 3;
    let n_observers = scale(10, 50);
    let backend = Service::backend();
    let gateway = Service::gateway_with(&backend.url(), &[("CC_EXECUTOR_CLIENT_STALL_MS", "600000")]);
    let mut holder = gateway.connect();
    let mark = procs::mark();
    let command = format!("while read x; do head -c {ROUND} /dev/zero | tr '\\0' x; done; : {mark}");
    let id = holder.execute(json!({ "command": command, "stdin": true }));
    let mut n_bytes = 0;
    let mut round = |holder: &mut Client| {
        holder.call("input", json!({ "data": "go\n" })).unwrap();
        let until = n_bytes + ROUND;
        let mut recording = Recording::default();
        recording.stdout.resize(n_bytes, b'x');
        holder.record_until(&mut recording, |recording| recording.stdout.len() == until);
        assert!(recording.gaps.is_empty(), "{:?}", recording.gaps);
        n_bytes = until;
    };
    // As without observers, but for memory that is allocated once.
    let sessions: Vec<_> = (0..n_observers).map(|_| gateway.connect()).collect();
    for _ in 0..ROUNDS {
        round(&mut holder);
    }
    let memory = || backend.rss_kib() + gateway.rss_kib();
    let settled = || wait_until_stable("the memory", 1, Duration::from_millis(500), memory);
    let before = settled();
    let mut silent = sessions;
    for client in &mut silent {
        client.request("attach", json!({ "executionId": id, "observe": true }));
    }
    wait_for_observers(&backend, &id, n_observers as u64);
    for _ in 0..ROUNDS {
        round(&mut holder);
    }
    assert_eq!(backend.get(&format!("/executions/{id}"))["observers"], n_observers, "none has read, and all are there");
    let each = settled().saturating_sub(before) / n_observers as u64;
    assert!(each < 1_000, "{each} KiB each");
    holder.cancel();
    assert_eq!(read_to_ending(&mut holder), Status::Cancelled);
}
