//! What an observer gets, and what the holder of the execution and the command see of it.

use cc_executor_actors::{
    outcome::{Reason, Status},
    stream::GapReason,
};
use rustix::process::Signal;
use serde_json::json;

use super::{observe, observer, wait_for_observers};
use crate::common::{
    PATIENCE, procs,
    proxy::{CutKind, Proxy},
    recording::{LOST, Recording},
    service::Service,
    sha256, wait_until,
};

#[test]
fn observer_gets_everything_and_takes_nothing_over() {
    let backend = Service::backend();
    let gateway = Service::gateway(&backend.url());
    let mut holder = gateway.connect();
    // It may not detach.
    let id = holder.execute(json!({ "command": "echo one; read x; echo $x; exit 3", "stdin": true }));
    let mut held = Recording::default();
    holder.record_until(&mut held, |held| held.stdout == b"one\n");
    let mut client = observer(&gateway, &id);
    let mut observed = Recording::default();
    client.record_until(&mut observed, |observed| observed.stdout == b"one\n");
    let state = backend.get(&format!("/executions/{id}"));
    assert_eq!((&state["attached"], &state["observers"], &state["hold"]), (&json!(true), &json!(1), &json!(1)));
    holder.call("control", json!({ "type": "PAUSE" })).unwrap();
    client.record_until(&mut observed, |observed| observed.statuses.last() == Some(&Status::Paused));
    holder.call("control", json!({ "type": "RESUME" })).unwrap();
    assert_eq!(holder.call("input", json!({ "data": "two\n" })).unwrap()["accepted"], 4);
    holder.record_rest(&mut held);
    client.record_rest(&mut observed);
    assert_eq!((held.detached, observed.detached), (None, None));
    assert_eq!((held.stdout.as_slice(), observed.stdout.as_slice()), (&b"one\ntwo\n"[..], &b"one\ntwo\n"[..]));
    assert_eq!((observed.status(), &observed.end), (Status::Failed, &held.end));
    // After the end it is replayed, to observers and to others.
    observe(&mut client, &id).unwrap();
    assert_eq!(client.record().end, held.end);
    client.attach(&id, &Recording::default()).unwrap();
    assert_eq!(client.record().stdout, held.stdout);
    client.close();
}

#[test]
fn execution_goes_on_when_an_observer_leaves() {
    let backend = Service::backend();
    let (first, second) = (Service::gateway(&backend.url()), Service::gateway(&backend.url()));
    let mut holder = first.connect();
    let id = holder.execute(json!({ "command": "read x; echo $x", "stdin": true }));
    let closed = observer(&second, &id);
    let broken = observer(&second, &id);
    let mut drained = observer(&second, &id);
    wait_for_observers(&backend, &id, 3);
    closed.close();
    wait_for_observers(&backend, &id, 2);
    broken.disconnect();
    wait_for_observers(&backend, &id, 1);
    let released = second.wait_for_event("execution.released", 2);
    assert!(released.iter().all(|line| line["observed"] == true), "{released:?}");
    second.signal(Signal::TERM);
    assert_eq!(drained.close_code(), 1001);
    wait_for_observers(&backend, &id, 0);
    holder.call("input", json!({ "data": "still here\n" })).unwrap();
    let held = holder.record();
    assert_eq!((held.stdout.as_slice(), held.status()), (&b"still here\n"[..], Status::Completed));
    assert_eq!(second.count("execution.finished"), 0);
}

#[test]
fn observers_do_not_keep_an_execution_that_its_client_leaves() {
    let backend = Service::backend();
    let gateway = Service::gateway(&backend.url());
    for more in [json!({}), json!({ "onDisconnect": "detach", "detachMs": 300 })] {
        let mark = procs::mark();
        let mut holder = gateway.connect();
        let mut params = more.clone();
        params["command"] = json!(format!("echo here; exec sleep {mark}"));
        let id = holder.execute(params);
        let mut client = observer(&gateway, &id);
        procs::wait_for(&mark, 1, PATIENCE);
        holder.disconnect();
        let observed = client.record();
        assert_eq!(observed.ending(), (Status::Cancelled, Reason::Disconnected), "{more}");
        assert_eq!((observed.stdout.as_slice(), &observed.end["cancel"]["verified"]), (&b"here\n"[..], &json!(true)));
        assert!(procs::with_argument(&mark).is_empty());
    }
}

#[test]
fn slow_observer_is_told_its_gap_and_the_client_has_none() {
    const BYTES: usize = 60_000_000;
    let service = Service::with(&["serve", "--ring-bytes", "65536"], &[]);
    let mut holder = service.connect();
    let command = format!("read x; seq -f %09.0f {}", BYTES / 10);
    let id = holder.execute(json!({ "command": command, "stdin": true }));
    let mut client = observer(&service, &id);
    holder.call("input", json!({ "data": "go\n" })).unwrap();
    // The observer reads nothing before the holder has everything.
    let held = holder.record();
    assert_eq!((held.stdout.len(), held.gaps.len(), held.status()), (BYTES, 0, Status::Completed));
    let observed = client.record();
    assert_eq!((observed.stdout.len(), &observed.end), (BYTES, &held.end));
    assert!(!observed.gaps.is_empty() && observed.gaps.iter().all(|gap| gap.reason == GapReason::Overwritten));
    let differs = |(got, written): (&u8, &u8)| *got != LOST && got != written;
    assert!(!observed.stdout.iter().zip(&held.stdout).any(differs), "what it gets is right");
    assert!(observed.stdout.ends_with(&held.stdout[BYTES - 10_000..]), "it gets the end");
}

#[test]
fn observer_acknowledges_nothing() {
    const BYTES: usize = 3_000_000;
    let service = Service::with(&["serve", "--ring-bytes", "65536"], &[]);
    let mut holder = service.connect();
    let command = format!("read x; seq -f %09.0f {}", BYTES / 10);
    let id = holder.execute(json!({ "command": command, "stdin": true, "onDisconnect": "detach" }));
    let mut client = observer(&service, &id);
    holder.call("input", json!({ "data": "go\n" })).unwrap();
    holder.disconnect();
    let mut observed = Recording::default();
    client.record_until(&mut observed, |observed| observed.stdout.len() >= 65_536);
    // It has what the ring holds, and answers pings. The command waits for a client that acknowledges.
    assert!(observed.stdout.len() < BYTES / 2, "{}", observed.stdout.len());
    wait_until("the holder is gone", PATIENCE, || service.get("/executions")["executions"][0]["attached"] == false);
    let mut holder = service.connect();
    holder.attach(&id, &Recording::default()).unwrap();
    let held = holder.record();
    assert_eq!((held.stdout.len(), held.gaps.len()), (BYTES, 0), "{:?}", held.gaps);
    client.record_rest(&mut observed);
    assert_eq!((observed.detached, observed.status()), (None, Status::Completed));
}

#[test]
fn broken_connection_between_gateway_and_backend_costs_an_observer_nothing() {
    const BYTES: usize = 10_000_000;
    let backend = Service::with(&["backend", "--ring-bytes", "20000000"], &[]);
    let proxy = Proxy::start(backend.address, |_| Some((3_500_000, CutKind::Reset)));
    let (direct, behind_proxy) = (Service::gateway(&backend.url()), Service::gateway(&proxy.url()));
    let mut holder = direct.connect();
    // It may not detach, and still an observer finds it again.
    let command = format!("read x; seq -f %09.0f {}", BYTES / 10);
    let id = holder.execute(json!({ "command": command, "stdin": true }));
    let mut client = observer(&behind_proxy, &id);
    holder.call("input", json!({ "data": "go\n" })).unwrap();
    let held = holder.record();
    let observed = client.record();
    assert_eq!((observed.gaps.len(), sha256(&observed.stdout)), (0, sha256(&held.stdout)));
    assert_eq!((observed.end["sha256"]["stdout"].as_str(), held.stdout.len()), (Some(&*sha256(&held.stdout)), BYTES));
    assert!(backend.count("execution.observed") >= 3, "it was cut");
    assert_eq!(backend.count("execution.attached"), 0);
}

#[test]
fn output_of_an_ended_execution_that_is_gone_is_a_gap_and_the_ending_is_true() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_MAX_KEPT_BYTES", "0")]);
    let mut holder = service.connect();
    let id = holder.execute(json!({ "command": "echo out; exit 7" }));
    let held = holder.record();
    let mut client = observer(&service, &id);
    let observed = client.record();
    assert_eq!((observed.gaps.len(), observed.gaps[0].to, &observed.end), (1, 4, &held.end));
    // The next hold is the second one: an observer makes none.
    wait_until("the ending is recorded", PATIENCE, || {
        service.get("/executions")["executions"][0]["status"] == "FAILED"
    });
    assert_eq!(service.get("/executions")["executions"][0]["hold"], 1);
}
