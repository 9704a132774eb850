//! No byte is lost, whatever happens to the connection, and damage is reported.

use std::{sync::Mutex, time::Duration};

use serde_json::{Value, json};

use super::in_both_languages;
use crate::common::{
    PATIENCE,
    client_package::ClientPackage,
    procs,
    proxy::{CutKind, Proxy},
    random, scale,
    service::Service,
    sha256,
    tampering_proxy::{Direction, TamperingProxy},
    temp::TempPath,
    wait_until,
};

in_both_languages!(
    random_cuts_lose_no_byte,
    a_program_that_reads_nothing_for_a_while_loses_nothing,
    changed_output_is_a_digest_mismatch,
    missing_output_is_a_digest_mismatch,
    lost_output_is_reported,
    output_that_is_dropped_on_request_is_no_error,
    output_beyond_the_limit_is_reported,
);

/// The memory that a streaming client may use, in KiB: the runtimes take most of it.
const MAX_MEMORY: u64 = 300 * 1024;

/// A file of bytes that are not UTF-8.
fn noise(n_bytes: usize) -> (TempPath, String) {
    let mut next = random(n_bytes as u64);
    let bytes: Vec<u8> = std::iter::repeat_with(|| next(u64::MAX).to_le_bytes()).flatten().take(n_bytes).collect();
    (TempPath::with_content("noise", &bytes), sha256(&bytes))
}

/// A file of numbered lines.
fn lines(n_bytes: usize) -> (TempPath, String) {
    let mut text: Vec<u8> =
        (0..).flat_map(|n| format!("{n} the quick brown fox\n").into_bytes()).take(n_bytes).collect();
    text.truncate(n_bytes);
    (TempPath::with_content("lines", &text), sha256(&text))
}

fn random_cuts_lose_no_byte(package: &ClientPackage) {
    let (n_cuts, n_bytes) = (scale(12, 200), scale(12_000_000, 200_000_000));
    let service = Service::start();
    let (file, digest) = lines(n_bytes);
    let next = Mutex::new(random(n_cuts as u64));
    let proxy = Proxy::start(service.address, move |n| {
        // Half of the output on average, so that every cut happens.
        let below = (n_bytes / n_cuts) as u64;
        let at = next.lock().unwrap()(below);
        let kind = match n % 50 {
            // The client notices silence after three heartbeats, so this takes seconds.
            7 => CutKind::Silent,
            odd if odd % 2 == 1 => CutKind::Reset,
            _ => CutKind::Fin,
        };
        // The first connection is established: without one a client gives up at once.
        (n < n_cuts).then_some((if n == 0 { at.max(5_000) } else { at }, kind))
    });
    let command = format!("cat {}", file.display());
    let report = package.run(&json!({ "do": "start", "url": proxy.url(), "command": command, "reconnectMs": 60_000 }));
    assert_eq!((&report["sha256"], &report["bytes"]), (&json!(digest), &json!(n_bytes)), "{report}");
    assert_eq!((&report["status"], &report["gaps"]), (&json!("COMPLETED"), &json!([])), "{report}");
    assert!(proxy.n_connections() > n_cuts, "{} connections", proxy.n_connections());
    assert!(report["memory"].as_u64().unwrap() < MAX_MEMORY, "{report}");
}

fn a_program_that_reads_nothing_for_a_while_loses_nothing(package: &ClientPackage) {
    let service = Service::with(&["serve", "--client-stall-ms", "1000"], &[]);
    let (file, digest) = noise(20_000_000);
    let command = format!("cat {}", file.display());
    let scenario = json!({ "do": "start", "url": service.url(), "command": command, "pauseMs": 4_000 });
    let report = package.run(&scenario);
    assert_eq!((&report["sha256"], &report["status"]), (&json!(digest), &json!("COMPLETED")), "{report}");
    assert!(report["memory"].as_u64().unwrap() < MAX_MEMORY, "{report}");
    // The service gave up a client that read nothing, so the rest came over another session.
    assert!(service.count("session.opened") > 1);
}

/// Starts a command through a proxy that tampers with its output, and checks that the client reports it and that nothing
/// keeps running.
fn assert_mismatch(
    package: &ClientPackage,
    said: &str,
    ends: &[&str],
    tamper: impl Fn(&mut Value) -> bool + Send + Sync + 'static,
) {
    let service = Service::start();
    let proxy = TamperingProxy::start(service.address, move |direction, _, message| {
        direction != Direction::ToClient || message["method"] != "output" || tamper(message)
    });
    let mark = procs::mark();
    for end in ends {
        let command = format!("echo one; sleep 0.3; echo two; sleep 0.3; echo three{}", end.replace("MARK", &mark));
        let report = package.run(&json!({ "do": "start", "url": proxy.url(), "command": command }));
        assert_eq!(report["error"], "DigestMismatch", "{report}");
        assert!(report["message"].as_str().unwrap().contains(said), "{report}");
        assert!(report["executionId"].is_string(), "{report}");
        procs::wait_for(&mark, 0, PATIENCE);
    }
}

fn changed_output_is_a_digest_mismatch(package: &ClientPackage) {
    assert_mismatch(package, "SHA-256", &[""], |message| {
        if message["params"]["content"] == "two\n" {
            message["params"]["content"] = json!("owt\n");
        }
        true
    });
}

fn missing_output_is_a_digest_mismatch(package: &ClientPackage) {
    // Noticed with the next message, so the command is ended.
    assert_mismatch(package, "lost or repeated", &["", "; exec sleep MARK"], |message| {
        message["params"]["content"] != "two\n"
    });
}

fn lost_output_is_reported(package: &ClientPackage) {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_RING_BYTES", "65536")]);
    let (file, _) = noise(3_000_000);
    let mut client = service.connect();
    let id = client.execute(json!({ "command": format!("cat {}", file.display()) }));
    client.record();
    let report = package.run(&json!({ "do": "attach", "url": service.url(), "id": id }));
    assert_eq!((&report["error"], &report["executionId"]), (&json!("OutputLost"), &json!(id)), "{report}");
    let lost = report["gaps"][0][1].as_u64().unwrap();
    assert_eq!((&report["gaps"][0][0], &report["gaps"][0][2]), (&json!(0), &json!("overwritten")), "{report}");
    let report = package.run(&json!({ "do": "attach", "url": service.url(), "id": id, "allowGaps": true }));
    assert_eq!(report["bytes"].as_u64().unwrap() + lost, 3_000_000, "{report}");
    assert_eq!(report["status"], "COMPLETED", "{report}");
}

fn output_that_is_dropped_on_request_is_no_error(package: &ClientPackage) {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_RING_BYTES", "65536")]);
    let (file, _) = noise(30_000_000);
    let command = format!("echo begin; sleep 0.2; cat {}", file.display());
    let report = package
        .run(&json!({ "do": "start", "url": service.url(), "command": command, "overflow": "drop", "pauseMs": 3_000 }));
    let lost: u64 =
        report["gaps"].as_array().unwrap().iter().map(|gap| gap[1].as_u64().unwrap() - gap[0].as_u64().unwrap()).sum();
    assert!(lost > 0, "{report}");
    assert_eq!(report["bytes"].as_u64().unwrap() + lost, 30_000_006, "{report}");
    assert_eq!(report["status"], "COMPLETED", "{report}");
}

fn output_beyond_the_limit_is_reported(package: &ClientPackage) {
    let service = Service::start();
    let scenario = json!({ "do": "run", "url": service.url(), "command": "seq 100000; exit 3", "limit": 1000 });
    let report = package.run(&scenario);
    assert_eq!(report["error"], "OutputTooLong", "{report}");
    let result = &report["result"];
    assert_eq!((&result["bytes"], &result["omitted"]), (&json!(1000), &json!(588_895 - 1000)), "{report}");
    assert_eq!(result["exitCode"], 3, "{report}");
    wait_until("the session is closed", Duration::from_secs(5), || service.count("session.closed") > 0);
}
