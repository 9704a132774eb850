//! A request is repeated only at the backend's instance for which it was made, and health responses do not end executions.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use cc_executor_actors::{
    outcome::{Reason, Status},
    rpc::code,
};
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    http_proxy::{Exchange, HttpProxy},
    procs,
    service::Service,
    temp::TempPath,
    wait_until,
};

#[test]
fn unexpected_health_response_does_not_end_executions() {
    let backend = Service::backend();
    let n_unexpected = Arc::new(AtomicUsize::new(0));
    let (left, target) = (Arc::clone(&n_unexpected), backend.address);
    let proxy = HttpProxy::start(move |exchange: Exchange| {
        let decrement = |left: usize| left.checked_sub(1);
        if exchange.path == "/health" && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, decrement).is_ok() {
            return exchange.answer(200, r#"{"status":"healthy","service":"claude-api"}"#);
        }
        exchange.forward(target);
    });
    let gateway = Service::gateway(&proxy.url());
    let mut client = gateway.connect();
    let id = client.execute(json!({ "command": format!("echo x; exec sleep {}", procs::mark()), "cwd": "/" }));
    // Twice, because the gateway has handled the first response when it requests the second.
    for _ in 0..2 {
        n_unexpected.store(1, Ordering::SeqCst);
        wait_until("the gateway got the response", PATIENCE, || n_unexpected.load(Ordering::SeqCst) == 0);
    }
    assert_eq!(gateway.connect().call("status", json!({ "executionId": id })).unwrap()["status"], "RUNNING");
    assert_eq!(client.cancel()["status"], "CANCELLING");
    let recording = client.record();
    assert_eq!((recording.status(), &recording.end["cancel"]["verified"]), (Status::Cancelled, &json!(true)));
    assert_eq!(
        client.run(json!({ "command": "pwd", "cwd": "/" })).stdout,
        b"/\n",
        "the backend still counts as native"
    );
    gateway.wait_for_event("backend.down", 1);
}

#[test]
fn backend_counts_as_legacy_image_only_if_its_health_says_so() {
    let backend = Service::backend();
    let (forwards, target) = (Arc::new(AtomicBool::new(false)), backend.address);
    let is_forwarding = Arc::clone(&forwards);
    let n_requests = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&n_requests);
    let proxy = HttpProxy::start(move |exchange: Exchange| {
        if exchange.path != "/health" || is_forwarding.load(Ordering::SeqCst) {
            return exchange.forward(target);
        }
        let answers = [r#"{"detail":"starting"}"#, r#"["status"]"#, r#"{"status":1}"#, "not JSON"];
        exchange.answer(200, answers[count.fetch_add(1, Ordering::SeqCst) % answers.len()]);
    });
    let gateway = Service::gateway_without_backend(&proxy.url());
    wait_until("the gateway got each response", PATIENCE, || n_requests.load(Ordering::SeqCst) > 4);
    assert_eq!(gateway.connect().connected.unwrap().executors, None, "the backend is unknown");
    assert_eq!(gateway.count("backend.up"), 0);
    forwards.store(true, Ordering::SeqCst);
    gateway.wait_for_event("backend.up", 1);
    assert_eq!(gateway.connect().run(json!({ "command": "pwd", "cwd": "/" })).stdout, b"/\n");
}

/// A file to which a command appends a line each time it runs.
struct RunCounter(Arc<TempPath>);

impl RunCounter {
    fn new() -> RunCounter {
        RunCounter(Arc::new(TempPath::new("runs")))
    }

    fn command(&self) -> String {
        format!("echo run >> {}; echo out", self.0.display())
    }

    fn count(&self) -> usize {
        fs::read_to_string(&**self.0).unwrap_or_default().lines().count()
    }
}

#[test]
fn broken_request_is_not_repeated_at_a_restarted_backend() {
    let backends = [Service::backend(), Service::backend()];
    let runs = RunCounter::new();
    let (target, posts) = (Mutex::new(backends[0].address), AtomicUsize::new(0));
    let second = backends[1].address;
    let file = Arc::clone(&runs.0);
    let proxy = HttpProxy::start(move |exchange: Exchange| {
        let address = *target.lock().unwrap();
        if !exchange.is_execute() || posts.fetch_add(1, Ordering::SeqCst) > 0 {
            return exchange.forward(address);
        }
        let held = exchange.hold_response(address);
        // Until the line is complete, because the command ends when its connection is cut.
        wait_until("the command has run", PATIENCE, || {
            fs::read_to_string(&**file).is_ok_and(|runs| runs.ends_with('\n'))
        });
        // From now on the other backend answers at the proxy's address, as after a restart.
        *target.lock().unwrap() = second;
        held.cut();
    });
    let gateway = Service::gateway(&proxy.url());
    let mut client = gateway.connect();
    let id = client.request("execute", json!({ "command": runs.command() }));
    let result = client.response(id).unwrap();
    let recording = client.record();
    backends[0].wait_for_event("process.finished", 1);
    assert_eq!(runs.count(), 1, "{}", recording.end);
    assert_eq!((&result["status"], recording.reason()), (&json!("failed"), Reason::BackendLost), "{}", recording.end);
    let message = recording.end["message"].as_str().unwrap_or_default();
    assert!(message.contains("restarted"), "{message}");
    // The next execution runs at the second backend.
    assert_eq!(client.run(json!({ "command": runs.command() })).stdout, b"out\n");
    assert_eq!(runs.count(), 2);
}

#[test]
fn request_refused_by_a_restarted_backend_runs_there_once() {
    let backends = [Service::backend(), Service::backend()];
    let runs = RunCounter::new();
    let n_posts = Arc::new(AtomicUsize::new(0));
    let (addresses, count) = (backends.each_ref().map(|backend| backend.address), Arc::clone(&n_posts));
    let restarted = Arc::new(AtomicBool::new(false));
    let is_new = Arc::clone(&restarted);
    let proxy = HttpProxy::start(move |exchange: Exchange| {
        count.fetch_add(usize::from(exchange.is_execute()), Ordering::SeqCst);
        // The health requests reach the old backend until the first POST, so that the gateway learns of the restart by the
        // refusal of that.
        let is_new = is_new.load(Ordering::SeqCst) && (exchange.path != "/health" || count.load(Ordering::SeqCst) > 0);
        exchange.forward(addresses[usize::from(is_new)]);
    });
    let gateway = Service::gateway(&proxy.url());
    let mut client = gateway.connect();
    restarted.store(true, Ordering::SeqCst);
    let recording = client.run(json!({ "command": runs.command() }));
    assert_eq!(
        (recording.stdout.as_slice(), recording.status()),
        (&b"out\n"[..], Status::Completed),
        "{}",
        recording.end
    );
    assert_eq!((runs.count(), n_posts.load(Ordering::SeqCst)), (1, 2), "the first POST was refused");
    assert_eq!((backends[0].count("process.started"), backends[1].count("process.started")), (0, 1));
}

/// The connection of a gateway's first POST is cut, before the request was forwarded or after.
fn cut_first_request(after: bool) {
    let backend = Service::backend();
    let runs = RunCounter::new();
    let (target, posts) = (backend.address, Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&posts);
    // Keeps the backend's connection open.
    let kept = Mutex::new(None);
    let proxy = HttpProxy::start(move |exchange: Exchange| {
        if !exchange.is_execute() || count.fetch_add(1, Ordering::SeqCst) > 0 {
            return exchange.forward(target);
        }
        if after {
            *kept.lock().unwrap() = Some(exchange.hold_response(target).cut());
        } else {
            exchange.cut();
        }
    });
    let gateway = Service::gateway(&proxy.url());
    let mut client = gateway.connect();
    let recording = client.run(json!({ "command": format!("{}; sleep 0.3; echo end", runs.command()) }));
    assert_eq!(
        (recording.stdout.as_slice(), recording.status()),
        (&b"out\nend\n"[..], Status::Completed),
        "{}",
        recording.end
    );
    assert_eq!((runs.count(), posts.load(Ordering::SeqCst)), (1, 2));
    assert_eq!(backend.get("/executions")["executions"][0]["hold"], 1, "the repeated request keeps its hold");
}

#[test]
fn repeated_request_at_the_same_backend_runs_once() {
    cut_first_request(false);
    cut_first_request(true);
}

#[test]
fn responses_name_the_instance_of_the_backend() {
    let backend = Service::backend();
    let gateway = Service::gateway(&backend.url());
    let instance = backend.get("/health")["instance"].clone();
    assert_eq!(instance.as_str().map(str::len), Some(36), "{instance}");
    assert_ne!(Service::backend().get("/health")["instance"], instance);
    let mut client = gateway.connect();
    let result = client.call("execute", json!({ "command": "read x", "stdin": true })).unwrap();
    assert_eq!(result["instance"], instance, "{result}");
    let id = result["executionId"].clone();
    let mut second = gateway.connect();
    assert_eq!(second.call("attach", json!({ "executionId": id })).unwrap()["instance"], instance);
    let snapshot = backend.get(&format!("/executions/{}", id.as_str().unwrap()));
    assert_eq!((&snapshot["instance"], &snapshot["hold"]), (&instance, &json!(2)), "{snapshot}");
    second.call("input", json!({ "data": "\n" })).unwrap();
    assert_eq!(second.record().status(), Status::Completed);
    let unknown = json!({ "executionId": "00000000-0000-4000-8000-000000000000" });
    assert_eq!(client.notification("detached")["reason"], "taken_over");
    for method in ["attach", "status"] {
        let error = client.call(method, unknown.clone()).unwrap_err();
        assert_eq!((error.code, &error.data.unwrap()["instance"]), (code::UNKNOWN_EXECUTION, &instance), "{method}");
    }
    let body = json!({ "question": "true", "instance": "00000000-0000-4000-8000-000000000000" });
    let (status, answer) = backend.post("/execute/stream", &body);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((status, &answer["data"]["instance"]), (409, &instance), "{answer}");
    let body = json!({ "question": "echo it ran", "instance": instance });
    assert_eq!(backend.post("/execute/stream", &body), (200, "it ran\n".to_owned()));
}
