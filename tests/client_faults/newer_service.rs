//! A service that is newer than the client: its messages have values of which the client does not know.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use serde_json::json;

use crate::common::{
    service::{Service, binary, run_to_exit},
    tampering_proxy::{Direction, TamperingProxy},
};

/// A proxy that makes a service newer, and the number of messages that it has changed in each of these ways: a status
/// that is not final, a reason of an end, and the evidence of a cancellation.
fn newer(service: &Service) -> (TamperingProxy, Arc<[AtomicUsize; 3]>) {
    let n_changed = Arc::new([(); 3].map(|()| AtomicUsize::new(0)));
    let count = Arc::clone(&n_changed);
    let proxy = TamperingProxy::start(service.address, move |direction, _, message| {
        if direction == Direction::ToClient {
            let is_status = message["method"] == "statusUpdate";
            let params = if is_status { &mut message["params"] } else { &mut message["result"] };
            if params.get("status").is_some() {
                params["later"] = json!({ "unknown": [1] });
                let change = if params["reason"].is_null() {
                    (params["status"], params["backend"]) = (json!("LATER"), json!("later"));
                    0
                } else if params["reason"] == "exit" {
                    params["reason"] = json!("later");
                    1
                } else {
                    params["cancel"]["evidence"] = json!("later");
                    2
                };
                count[change].fetch_add(1, Ordering::SeqCst);
            }
        }
        true
    });
    (proxy, n_changed)
}

fn assert_all_changed(n_changed: &[AtomicUsize; 3], changes: &[usize]) {
    for change in changes {
        assert!(n_changed[*change].load(Ordering::SeqCst) > 0, "change {change} was not made: {n_changed:?}");
    }
}

#[test]
fn run_follows_a_newer_service_to_its_end() {
    let service = Service::start();
    let (proxy, n_changed) = newer(&service);
    for (command, expected) in [("echo out; exit 3", 3), ("echo out", 0)] {
        let (stdout, stderr, code) = run_to_exit(binary().args(["run", "--url", &proxy.url(), "--", command]));
        assert_eq!((stdout.as_str(), stderr.as_str(), code), ("out\n", "", expected));
    }
    assert_all_changed(&n_changed, &[0, 1]);
}

#[test]
fn cancel_waits_for_the_end_at_a_newer_service() {
    let service = Service::start();
    let (proxy, n_changed) = newer(&service);
    let mut holder = service.connect();
    // It ends some time after TERM, so that a status before the end is read, too.
    let id =
        holder.execute(json!({ "command": "trap 'sleep 0.3; exit' TERM; echo ready; while :; do sleep 0.01; done" }));
    holder.notification("output");
    let (stdout, stderr, code) = run_to_exit(binary().args(["cancel", "--url", &proxy.url(), &id]));
    assert_eq!((stdout.as_str(), stderr.as_str(), code), ("CANCELLED canceled, every process gone\n", "", 0));
    assert_all_changed(&n_changed, &[0, 2]);
}

/// The client does not take an unreadable final status for a status of a running execution.
#[test]
fn cancel_rejects_an_end_that_it_cannot_read() {
    let service = Service::start();
    let proxy = TamperingProxy::start(service.address, |direction, _, message| {
        if direction == Direction::ToClient && message["result"]["reason"].is_string() {
            message["result"]["exit_code"] = json!("later");
        }
        true
    });
    let mut holder = service.connect();
    let id = holder.execute(json!({ "command": "exec sleep 100" }));
    let (stdout, stderr, code) = run_to_exit(binary().args(["cancel", "--url", &proxy.url(), &id]));
    assert_eq!((stdout.as_str(), stderr.lines().count(), code), ("", 1, 70), "{stderr}");
    assert!(stderr.contains("a message that is not valid"), "{stderr}");
}
