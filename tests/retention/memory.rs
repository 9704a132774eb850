//! The memory of ended executions.

use serde_json::json;

use super::{assert_whole, attach_and_record, run_true};
use crate::common::{scale, service::Service};

#[test]
fn retained_execution_counts_its_fixed_memory() {
    const TIMES: usize = 200;
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_MAX_KEPT_BYTES", "1000000")]);
    let mut client = service.connect();
    let ids: Vec<_> = (0..TIMES)
        .map(|_| {
            let id = client.execute(json!({ "command": "echo x" }));
            client.record();
            id
        })
        .collect();
    assert_eq!(attach_and_record(&mut client, &ids[0]).gaps.len(), 1, "an output of 2 bytes occupies some thousands");
    assert_whole(&attach_and_record(&mut client, &ids[TIMES - 1]), 2);
}

#[test]
fn request_is_freed_after_the_execution_ends() {
    // With these numbers, even half of the requests would exceed the limit below.
    let times = scale(85, 200);
    let backend = Service::with(&["backend"], &[("CC_EXECUTOR_MAX_KEPT_BYTES", "1000000")]);
    // Each variable is as long as execve(2) allows, less a little.
    let value = "x".repeat(120_000);
    let env: serde_json::Map<_, _> = (0..8).map(|n| (format!("LARGE_{n}"), json!(value))).collect();
    run_true(&backend, 8, &json!({ "env": env }));
    let before = backend.rss_kib();
    run_true(&backend, times, &json!({ "env": env }));
    let growth = backend.rss_kib().saturating_sub(before);
    assert!(growth < 40 * 1024, "{times} requests of 0.96 MB left {growth} KiB");
}

#[test]
fn ended_execution_takes_a_few_hundred_bytes() {
    let times = scale(1_000, 2_000);
    let backend = Service::backend();
    run_true(&backend, 500, &json!({}));
    let before = backend.rss_kib();
    run_true(&backend, times, &json!({}));
    let growth = backend.rss_kib().saturating_sub(before) * 1024 / times as u64;
    assert!(growth < 1_000, "{growth} bytes each");
}
