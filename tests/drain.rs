//! A service is told to end: what runs may finish, what cannot is told so, and nothing is left.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::json;

use crate::common::{
    PATIENCE,
    client::{Client, Recording},
    procs,
    service::Service,
};

fn status_of(service: &Service, path: &str) -> u16 {
    let mut stream = TcpStream::connect(service.address).expect("it still listens");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", service.address).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status")
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
            // Every fourth ignores TERM, every fifth has left its group.
            let trap = if n % 4 == 0 { "trap '' TERM; " } else { "" };
            let away = if n % 5 == 0 { format!("setsid sleep {mark} & ") } else { String::new() };
            client.execute(json!({ "command": format!("{trap}{away}echo ready; sleep {mark}; sleep {mark}") }));
            client.seen("output");
            client
        })
        .collect();
    let asked_at = Instant::now();
    service.signal(Signal::TERM);
    for client in &mut clients {
        let story = client.story();
        assert_eq!((&story.end["status"], &story.end["reason"]), (&json!("CANCELLED"), &json!("drained")));
        assert_eq!(story.end["cancel"]["verified"], true, "{}", story.end);
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
    quick.seen("output");
    let mut slow = service.connect();
    slow.execute(json!({ "command": format!("exec sleep {mark}"), "onDisconnect": "detach" }));
    let mut waits = service.connect();
    assert_eq!(waits.call("execute", json!({ "command": "true" })).unwrap()["status"], "queued");
    let idle = service.connect();
    let asked_at = Instant::now();
    service.signal(Signal::INT);
    let mut idle = idle;
    assert_eq!(idle.close_code(), 1001);
    let story = waits.story();
    assert_eq!((&story.end["status"], &story.end["reason"]), (&json!("CANCELLED"), &json!("drained")));
    assert!(asked_at.elapsed() < Duration::from_secs(1), "at once: {:?}", asked_at.elapsed());
    assert_eq!((status_of(&service, "/ready"), status_of(&service, "/health")), (503, 200));
    assert_eq!(Client::upgrade(service.address, &[]).err(), Some(503));
    assert_eq!(quick.call("execute", json!({ "command": "true" })).unwrap_err()["code"], -32008);
    let story = quick.story();
    assert_eq!((story.stdout.as_slice(), &story.end["status"]), (&b"ready\ndone\n"[..], &json!("COMPLETED")));
    assert_eq!(quick.close_code(), 1001);
    // With the embedded backend nobody can attach later: it is treated as the others.
    let story = slow.story();
    let after = asked_at.elapsed();
    assert_eq!(story.end["reason"], "drained");
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
    for gateway in [&first, &second] {
        gateway.wait_for_event("backend.up", 1);
    }
    let mut client = first.connect();
    let command = "echo before; sleep 1.5; echo after";
    let id = client.execute(json!({ "command": command, "onDisconnect": "detach" }));
    let mut story = Recording::default();
    client.follow(&mut story, |story| !story.stdout.is_empty());
    let asked_at = Instant::now();
    first.signal(Signal::TERM);
    assert_eq!(client.close_code(), 1001);
    assert_eq!(first.wait(PATIENCE).code(), Some(0));
    assert!(asked_at.elapsed() < Duration::from_secs(3), "nothing held it: {:?}", asked_at.elapsed());
    let mut client = second.connect();
    client.attach(&id, &story).unwrap();
    client.follow(&mut story, |_| false);
    assert_eq!((story.stdout.as_slice(), &story.end["status"]), (&b"before\nafter\n"[..], &json!("COMPLETED")));
}

#[test]
fn sigterm_drains_a_backend() {
    let mut backend = Service::with(&["backend"], &[("CC_EXECUTOR_DRAIN_MS", "3000")]);
    let gateway = Service::gateway(&backend.url());
    gateway.wait_for_event("backend.up", 1);
    let mark = procs::mark();
    let mut quick = gateway.connect();
    quick.execute(json!({ "command": "echo ready; sleep 0.5; echo done" }));
    quick.seen("output");
    let mut slow = gateway.connect();
    slow.execute(json!({ "command": format!("setsid sleep {mark} & exec sleep {mark}") }));
    let mut left = gateway.connect();
    left.execute(json!({ "command": format!("exec sleep {mark}"), "onDisconnect": "detach" }));
    left.vanish();
    backend.wait_for_event("execution.detached", 1);
    backend.signal(Signal::TERM);
    backend.wait_for_event("service.stopping", 1);
    let mut late = gateway.connect();
    assert_eq!(late.call("execute", json!({ "command": "true" })).unwrap_err()["code"], -32008);
    assert_eq!(quick.story().end["status"], "COMPLETED");
    let story = slow.story();
    assert_eq!((&story.end["reason"], &story.end["cancel"]["verified"]), (&json!("drained"), &json!(true)));
    assert_eq!(backend.wait(PATIENCE).code(), Some(0));
    assert!(procs::with_argument(&mark).is_empty());
    assert_eq!(late.call("ping", json!({})), Ok(json!({})), "the sessions live");
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
