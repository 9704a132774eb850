//! Shutdown by a signal: short commands finish, the others are canceled, clients are told, and no process is left.

use std::time::{Duration, Instant};

use cc_executor_actors::{
    outcome::{Reason, Status},
    rpc::code,
};
use rustix::process::Signal;
use serde_json::json;

use crate::common::{PATIENCE, client::Client, http, procs, recording::Recording, service::Service};

fn status_of(service: &Service, path: &str) -> u16 {
    http::exchange(service.address, &format!("GET {path}"), &[], "").status
}

#[test]
fn drain_reports_the_ending_to_200_sessions_within_ten_seconds() {
    const SESSIONS: usize = 200;
    let mut service = Service::with(
        &["serve"],
        &[("CC_EXECUTOR_MAX_EXECUTIONS", "200"), ("CC_EXECUTOR_MAX_SESSIONS_PER_ADDRESS", "500")],
    );
    let mark = procs::mark();
    let mut clients: Vec<_> = (0..SESSIONS)
        .map(|n| {
            let mut client = service.connect();
            // Every fourth ignores TERM, every fifth has a process outside its group.
            let trap = if n % 4 == 0 { "trap '' TERM; " } else { "" };
            let away = if n % 5 == 0 { format!("setsid sleep {mark} & ") } else { String::new() };
            client.execute(json!({ "command": format!("{trap}{away}echo ready; sleep {mark}; sleep {mark}") }));
            client.wait_for("output");
            client
        })
        .collect();
    let asked_at = Instant::now();
    service.signal(Signal::TERM);
    for client in &mut clients {
        let recording = client.record();
        assert_eq!(recording.ending(), (Status::Cancelled, Reason::Drained));
        assert_eq!(recording.end["cancel"]["verified"], true, "{}", recording.end);
        assert_eq!(client.close_code(), 1001);
    }
    assert_eq!(service.wait(PATIENCE).code(), Some(0));
    assert!(asked_at.elapsed() < Duration::from_secs(10), "{:?}", asked_at.elapsed());
    assert!(procs::with_argument(&mark).is_empty());
    assert_eq!(service.count("drain.incomplete"), 0);
    assert!(service.log().iter().all(|line| line["level"] != "ERROR"));
}

#[test]
fn drain_lets_short_commands_finish_cancels_queued_ones_and_refuses_clients() {
    let mut service =
        Service::with(&["serve"], &[("CC_EXECUTOR_DRAIN_MS", "4000"), ("CC_EXECUTOR_MAX_EXECUTIONS", "2")]);
    let mark = procs::mark();
    let mut quick = service.connect();
    quick.execute(json!({ "command": "echo ready; sleep 1.5; echo done" }));
    quick.wait_for("output");
    let mut slow = service.connect();
    slow.execute(json!({ "command": format!("exec sleep {mark}"), "onDisconnect": "detach" }));
    let mut waits = service.connect();
    assert_eq!(waits.call("execute", json!({ "command": "true" })).unwrap()["status"], "queued");
    let mut idle = service.connect();
    let asked_at = Instant::now();
    service.signal(Signal::INT);
    assert_eq!(idle.close_code(), 1001);
    let recording = waits.record();
    assert_eq!(recording.ending(), (Status::Cancelled, Reason::Drained));
    assert!(asked_at.elapsed() < Duration::from_secs(1), "at once: {:?}", asked_at.elapsed());
    assert_eq!((status_of(&service, "/ready"), status_of(&service, "/health")), (503, 200));
    assert_eq!(Client::upgrade(service.address, &[]).err(), Some(503));
    assert_eq!(quick.call("execute", json!({ "command": "true" })).unwrap_err().code, code::DRAINING);
    let recording = quick.record();
    assert_eq!((recording.stdout.as_slice(), recording.status()), (&b"ready\ndone\n"[..], Status::Completed));
    assert_eq!(quick.close_code(), 1001);
    // With an embedded backend no client can attach later, so a detachable execution is canceled, too.
    let recording = slow.record();
    let after = asked_at.elapsed();
    assert_eq!(recording.reason(), Reason::Drained);
    assert!((2_900..4_000).contains(&after.as_millis()), "after three quarters: {after:?}");
    assert_eq!(service.wait(PATIENCE).code(), Some(0));
    assert!(asked_at.elapsed() < Duration::from_millis(4_500));
    assert!(procs::with_argument(&mark).is_empty());
}

#[test]
fn detachable_execution_survives_the_drain_of_its_gateway() {
    let backend = Service::backend();
    let mut first = Service::gateway(&backend.url());
    let second = Service::gateway(&backend.url());
    let mut client = first.connect();
    let command = "echo before; sleep 1.5; echo after";
    let id = client.execute(json!({ "command": command, "onDisconnect": "detach" }));
    let mut recording = Recording::default();
    client.record_until(&mut recording, |recording| !recording.stdout.is_empty());
    let asked_at = Instant::now();
    first.signal(Signal::TERM);
    assert_eq!(client.close_code(), 1001);
    assert_eq!(first.wait(PATIENCE).code(), Some(0));
    assert!(asked_at.elapsed() < Duration::from_secs(3), "nothing delayed the exit: {:?}", asked_at.elapsed());
    let mut client = second.connect();
    client.attach(&id, &recording).unwrap();
    client.record_rest(&mut recording);
    assert_eq!((recording.stdout.as_slice(), recording.status()), (&b"before\nafter\n"[..], Status::Completed));
}

#[test]
fn sigterm_drains_a_backend() {
    let mut backend = Service::with(&["backend"], &[("CC_EXECUTOR_DRAIN_MS", "3000")]);
    let gateway = Service::gateway(&backend.url());
    let mark = procs::mark();
    let mut quick = gateway.connect();
    quick.execute(json!({ "command": "echo ready; sleep 0.5; echo done" }));
    quick.wait_for("output");
    let mut slow = gateway.connect();
    slow.execute(json!({ "command": format!("setsid sleep {mark} & exec sleep {mark}") }));
    let mut left = gateway.connect();
    left.execute(json!({ "command": format!("exec sleep {mark}"), "onDisconnect": "detach" }));
    left.disconnect();
    backend.wait_for_event("execution.detached", 1);
    backend.signal(Signal::TERM);
    backend.wait_for_event("service.stopping", 1);
    let mut late = gateway.connect();
    assert_eq!(late.call("execute", json!({ "command": "true" })).unwrap_err().code, code::DRAINING);
    assert_eq!(quick.record().status(), Status::Completed);
    let recording = slow.record();
    assert_eq!((recording.reason(), &recording.end["cancel"]["verified"]), (Reason::Drained, &json!(true)));
    assert_eq!(backend.wait(PATIENCE).code(), Some(0));
    assert!(procs::with_argument(&mark).is_empty());
    assert_eq!(late.call("ping", json!({})), Ok(json!({})), "the sessions continue");
}

#[test]
fn second_sigterm_ends_at_once_and_leaves_no_process() {
    let mut service = Service::start();
    let mark = procs::mark();
    let mut client = service.connect();
    client.execute(json!({ "command": format!("trap '' TERM; setsid sleep {mark} & sleep {mark}; sleep {mark}") }));
    procs::wait_for(&mark, 2, PATIENCE);
    let asked_at = Instant::now();
    service.signal(Signal::TERM);
    service.wait_for_event("service.stopping", 1);
    service.signal(Signal::TERM);
    assert_eq!(service.wait(PATIENCE).code(), Some(0));
    assert!(asked_at.elapsed() < Duration::from_secs(2), "{:?}", asked_at.elapsed());
    procs::wait_for(&mark, 0, PATIENCE);
}

#[test]
fn an_incomplete_drain_says_what_was_cut_short() {
    let mut service = Service::with(&["serve", "--drain-ms", "100"], &[]);
    // It reads nothing, so it does not answer the close frame.
    let _client = service.connect();
    service.signal(Signal::TERM);
    assert_eq!(service.wait(PATIENCE).code(), Some(0));
    service.wait_for_event("drain.incomplete", 1);
    let log = service.log();
    let line = log.iter().find(|line| line["event"] == "drain.incomplete").unwrap();
    let message = line["message"].as_str().unwrap();
    assert!(message.contains("sessions cut off: 1, executions killed: 0") && message.contains("--drain-ms"), "{line}");
}
