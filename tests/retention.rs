//! Ended executions are remembered for the retention time, and their output is kept or evicted by rules.

mod ended;
mod eviction;
mod memory;

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use cc_executor_actors::outcome::Status;
use serde_json::{Value, json};

use crate::common::{client::Client, recording::Recording, service::Service, sha256};

/// A command that writes this many bytes.
fn writes(n_bytes: usize) -> String {
    format!("head -c {n_bytes} /dev/zero | tr '\\0' x")
}

/// Runs `true` this many times, with these further parameters, over several connections.
fn run_true(backend: &Service, times: usize, more: &Value) {
    const LANES: usize = 4;
    let left = AtomicUsize::new(times);
    thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                while left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                    let mut request = more.clone();
                    request["question"] = json!("true");
                    assert_eq!(backend.post("/execute/stream", &request), (200, String::new()));
                }
            });
        }
    });
}

/// Runs a detachable command to its end, with a client that acknowledges nothing.
fn run_unacknowledged(service: &Service, command: &str) -> String {
    let mut client = service.connect();
    client.answers_pings = false;
    let id = client.execute(json!({ "command": command, "onDisconnect": "detach" }));
    assert_eq!(client.record().status(), Status::Completed);
    client.disconnect();
    id
}

fn attach_and_record(client: &mut Client, id: &str) -> Recording {
    client.attach(id, &Recording::default()).unwrap();
    client.record()
}

/// Checks that the recording has all of the output, and that its digest is that of the ending.
fn assert_whole(recording: &Recording, n_bytes: usize) {
    assert_eq!((recording.gaps.as_slice(), recording.stdout.len()), (&[][..], n_bytes));
    assert_eq!(recording.end["sha256"]["stdout"], sha256(&recording.stdout));
}
