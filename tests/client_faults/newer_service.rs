//! A service that is newer than the client: its messages have values of which the client does not know.

use serde_json::json;

use crate::common::{
    service::{Service, binary, run_to_exit},
    tampering_proxy::{Direction, TamperingProxy},
};

fn newer(service: &Service) -> TamperingProxy {
    TamperingProxy::start(service.address, |direction, _, message| {
        if direction == Direction::ToClient {
            let is_status = message["method"] == "statusUpdate";
            let params = if is_status { &mut message["params"] } else { &mut message["result"] };
            if params.get("status").is_some() {
                params["later"] = json!({ "unknown": [1] });
                if params["reason"].is_null() {
                    (params["status"], params["backend"]) = (json!("LATER"), json!("later"));
                } else if params["reason"] == "exit" {
                    params["reason"] = json!("later");
                } else {
                    params["cancel"]["evidence"] = json!("later");
                }
            }
        }
        true
    })
}

#[test]
fn run_follows_a_newer_service_to_its_end() {
    let service = Service::start();
    let proxy = newer(&service);
    for (command, expected) in [("echo out; exit 3", 3), ("echo out", 0)] {
        let (stdout, stderr, code) = run_to_exit(binary().args(["run", "--url", &proxy.url(), "--", command]));
        assert_eq!((stdout.as_str(), stderr.as_str(), code), ("out\n", "", expected));
    }
}

#[test]
fn cancel_waits_for_the_end_at_a_newer_service() {
    let service = Service::start();
    let proxy = newer(&service);
    let mut holder = service.connect();
    let id = holder.execute(json!({ "command": "exec sleep 100" }));
    let (stdout, stderr, code) = run_to_exit(binary().args(["cancel", "--url", &proxy.url(), &id]));
    assert_eq!((stdout.as_str(), stderr.as_str(), code), ("CANCELLED canceled, every process gone\n", "", 0));
}
