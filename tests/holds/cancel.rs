//! A cancel before the first event of the backend.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cc_executor_actors::outcome::Status;
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    http_proxy::{Exchange, HttpProxy},
    procs,
    recording::Recording,
    service::Service,
    wait_until,
};

/// Cancels an execution while the response to the gateway's POST is held back. The cancel is sent when `until` returns, and
/// the response is forwarded when the backend has answered the cancel. Returns the result of `execute`, too.
fn cancel_before_the_first_event(
    command: &str,
    until: impl Fn(&Service) + Send + Sync + 'static,
) -> (Recording, Value) {
    let backend = Arc::new(Service::backend());
    let (target, watched) = (backend.address, Arc::clone(&backend));
    let (ready, canceled) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (is_ready, is_canceled) = (Arc::clone(&ready), Arc::clone(&canceled));
    let proxy = HttpProxy::start(move |exchange: Exchange| {
        if exchange.method == "DELETE" {
            let held = exchange.hold_response(target);
            is_canceled.store(true, Ordering::SeqCst);
            return held.forward();
        }
        if !exchange.is_execute() {
            return exchange.forward(target);
        }
        let held = exchange.hold_response(target);
        until(&watched);
        is_ready.store(true, Ordering::SeqCst);
        wait_until("the cancel is answered", PATIENCE, || is_canceled.load(Ordering::SeqCst));
        held.forward();
    });
    let gateway = Service::gateway(&proxy.url());
    let mut client = gateway.connect();
    let execute = client.request("execute", json!({ "command": command }));
    wait_until("the response is held back", PATIENCE, || ready.load(Ordering::SeqCst));
    let canceled = client.cancel_with_grace(3000);
    assert_eq!(canceled["status"], "CANCELLING");
    let result = client.response(execute).unwrap();
    let recording = client.record();
    drop(backend);
    (recording, result)
}

#[test]
fn cancel_before_the_first_event_of_an_ended_command_gives_its_own_ending() {
    let (recording, _) = cancel_before_the_first_event("echo done; exit 3", |backend| {
        backend.wait_for_event("process.finished", 1);
    });
    assert_eq!((recording.status(), &recording.end["exit_code"]), (Status::Failed, &json!(3)), "{}", recording.end);
    assert_eq!((recording.stdout.as_slice(), &recording.end["bytes"]["stdout"]), (&b"done\n"[..], &json!(5)));
}

#[test]
fn cancel_before_the_first_event_of_a_running_command_gives_its_output_and_ending() {
    let mark = procs::mark();
    let sleeps = mark.clone();
    let command = format!("trap 'echo bye; exit 9' TERM; echo hi; sleep {mark} & wait");
    let (recording, result) =
        cancel_before_the_first_event(&command, move |_| drop(procs::wait_for(&sleeps, 1, PATIENCE)));
    assert_eq!((recording.status(), &recording.end["exit_code"]), (Status::Cancelled, &json!(9)), "{}", recording.end);
    assert_eq!((recording.stdout.as_slice(), &result["status"]), (&b"hi\nbye\n"[..], &json!("started")));
    assert_eq!(
        (&recording.end["cancel"]["verified"], &recording.end["cancel"]["graceMs"]),
        (&json!(true), &json!(3000))
    );
    assert!(procs::with_argument(&mark).is_empty());
}

#[test]
fn cancel_after_a_broken_request_gives_the_commands_own_ending() {
    let backend = Service::backend();
    let (target, is_canceled) = (backend.address, AtomicBool::new(false));
    let is_held = Arc::new(AtomicBool::new(false));
    let held_back = Arc::clone(&is_held);
    // Keeps the backend's connections open.
    let kept = Mutex::new(Vec::new());
    let proxy = HttpProxy::start(move |exchange: Exchange| {
        if exchange.method == "DELETE" {
            is_canceled.store(true, Ordering::SeqCst);
            return exchange.forward(target);
        }
        if !exchange.is_execute() {
            return exchange.forward(target);
        }
        let held = exchange.hold_response(target);
        held_back.store(true, Ordering::SeqCst);
        wait_until("the cancel came", PATIENCE, || is_canceled.load(Ordering::SeqCst));
        kept.lock().unwrap().push(held.cut());
    });
    let gateway = Service::gateway(&proxy.url());
    let mut client = gateway.connect();
    client.request("execute", json!({ "command": "exit 3" }));
    backend.wait_for_event("process.finished", 1);
    wait_until("the response is held back", PATIENCE, || is_held.load(Ordering::SeqCst));
    client.cancel();
    let recording = client.record();
    assert_eq!((recording.status(), &recording.end["exit_code"]), (Status::Failed, &json!(3)), "{}", recording.end);
}

#[test]
fn cancel_of_an_unanswered_request_is_bounded() {
    // A backend that answers only health requests.
    let backend = Service::backend();
    let target = backend.address;
    let posted = Arc::new(AtomicBool::new(false));
    let is_posted = Arc::clone(&posted);
    let unanswered = Mutex::new(Vec::new());
    let proxy = HttpProxy::start(move |exchange: Exchange| {
        if exchange.path == "/health" {
            return exchange.forward(target);
        }
        is_posted.fetch_or(exchange.is_execute(), Ordering::SeqCst);
        unanswered.lock().unwrap().push(exchange);
    });
    let gateway = Service::gateway(&proxy.url());
    let mut client = gateway.connect();
    client.request("execute", json!({ "command": "true" }));
    wait_until("the POST came", PATIENCE, || posted.load(Ordering::SeqCst));
    let asked_at = Instant::now();
    client.cancel();
    let recording = client.record();
    assert!(asked_at.elapsed() < Duration::from_secs(12), "{:?}", asked_at.elapsed());
    assert_eq!((recording.status(), &recording.end["cancel"]["verified"]), (Status::Cancelled, &json!(false)));
}
