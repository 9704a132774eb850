//! Fifty observers and a consumer get the same bytes.

use std::thread;

use cc_executor_actors::outcome::Status;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{observer, wait_for_observers};
use crate::common::{
    client::{Client, Frame},
    scale,
    service::Service,
};

const OBSERVERS: usize = 50;

/// The digest of standard output, its length, and the digest that the final status states.
#[derive(PartialEq, Eq, Debug)]
struct Followed {
    sha256: String,
    n_bytes: u64,
    stated: String,
    status: Status,
}

/// Reads an execution to its end. It keeps no output, because fifty sessions would need gigabytes.
fn follow(client: &mut Client) -> Followed {
    let (mut digest, mut n_bytes) = (Sha256::new(), 0);
    loop {
        let message = match client.recv() {
            Frame::Text(message) => message,
            Frame::Ping(_) | Frame::Pong(_) => continue,
            other => panic!("the end did not come: {other:?}"),
        };
        let params = &message["params"];
        match message["method"].as_str() {
            Some("output") => {
                let content = params["content"].as_str().expect("it is text");
                digest.update(content);
                n_bytes += content.len() as u64;
                assert_eq!(params["end"], n_bytes);
            }
            Some("statusUpdate") if params["reason"].is_string() => {
                return Followed {
                    sha256: format!("{:x}", digest.finalize()),
                    n_bytes,
                    stated: params["sha256"]["stdout"].as_str().expect("a digest").to_owned(),
                    status: serde_json::from_value(params["status"].clone()).expect("a status"),
                };
            }
            Some("gap" | "detached") => panic!("{message}"),
            _ => {}
        }
    }
}

#[test]
fn fifty_observers_and_the_client_get_the_same_bytes() {
    let n_bytes = scale(2_000_000, 200_000_000);
    let root = tempfile::tempdir().unwrap();
    let state_dir = root.path().join("state");
    let backend = Service::with(&["backend", "--state-dir", state_dir.to_str().unwrap()], &[]);
    let gateway = Service::gateway_with(&backend.url(), &[("CC_EXECUTOR_CLIENT_STALL_MS", "600000")]);
    let mut holder = gateway.connect();
    let command = format!("read x; exec seq -f %09.0f {}", n_bytes / 10);
    let id = holder.execute(json!({ "command": command, "stdin": true, "onDisconnect": "detach" }));
    let mut sessions: Vec<_> = (0..OBSERVERS).map(|_| observer(&gateway, &id)).collect();
    wait_for_observers(&backend, &id, OBSERVERS as u64);
    holder.call("input", json!({ "data": "go\n" })).unwrap();
    sessions.push(holder);
    let followed: Vec<_> = thread::scope(|scope| {
        let readers: Vec<_> = sessions.iter_mut().map(|client| scope.spawn(|| follow(client))).collect();
        readers.into_iter().map(|reader| reader.join().expect("it does not panic")).collect()
    });
    let first = &followed[0];
    assert_eq!((first.n_bytes, first.status), (n_bytes as u64, Status::Completed));
    assert_eq!(first.sha256, first.stated);
    assert!(followed.len() == OBSERVERS + 1 && followed.iter().all(|other| other == first), "{followed:?}");
}
