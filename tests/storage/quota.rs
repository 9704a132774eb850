//! The quota of one execution, and the limit of all.

use std::{fs, os::unix::fs::MetadataExt};

use cc_executor_actors::{
    outcome::Status,
    rpc::code,
    stream::{GapReason, Stream},
};
use serde_json::json;

use super::{Keeper, attach_and_record, detach, listed, wait_for_end};
use crate::common::{PATIENCE, recording::Recording, sha256, wait_until, wait_until_stable};

const MIB: u64 = 1 << 20;

fn numbers(lines: u64) -> (String, Vec<u8>) {
    let text: String = (1..=lines).map(|line| format!("{line}\n")).collect();
    (format!("seq 1 {lines}"), text.into_bytes())
}

#[test]
fn at_its_quota_a_waiting_execution_waits_for_its_client() {
    let keeper = Keeper::new(&["--max-output-bytes", "1048576"]);
    let service = keeper.start();
    let (command, expected) = numbers(1_000_000);
    let id = detach(&service, &command, json!({ "overflow": "wait" }));
    let written = || listed(&service, &id)["offsets"]["stdout"].as_u64().unwrap_or(0);
    let held = wait_until_stable("the offsets", MIB, std::time::Duration::from_millis(500), written);
    assert!(held < 3 * MIB, "{held}");
    assert!(listed(&service, &id)["ending"].is_null());
    let recording = attach_and_record(&mut service.connect(), &id);
    assert!(recording.gaps.is_empty() && recording.stdout == expected, "{:?}", recording.gaps);
    assert_eq!(recording.status(), Status::Completed);
    // What its client has is given up, but for the margin.
    let data = fs::metadata(keeper.entry(&id).join("stdout")).unwrap();
    assert_eq!(data.len(), expected.len() as u64);
    assert!(data.blocks() * 512 < 7 * MIB, "{} bytes on disk", data.blocks() * 512);
}

#[test]
fn at_its_quota_a_dropping_execution_tells_the_gap() {
    let keeper = Keeper::new(&["--max-output-bytes", "1048576"]);
    let service = keeper.start();
    let (command, expected) = numbers(2_000_000);
    let id = detach(&service, &command, json!({ "overflow": "drop" }));
    let ending = wait_for_end(&service, &id)["ending"].clone();
    assert_eq!(ending["sha256"]["stdout"], sha256(&expected), "dropped bytes are digested");
    let recording = attach_and_record(&mut service.connect(), &id);
    let [gap] = &recording.gaps[..] else { panic!("one gap, not {:?}", recording.gaps) };
    assert_eq!((gap.r#type, gap.reason), (Stream::Stdout, GapReason::Dropped));
    assert!(recording.stdout[gap.to as usize..] == expected[gap.to as usize..]);
    let kept = expected.len() as u64 - gap.to;
    assert!((MIB - 64 * 1024..=MIB).contains(&kept), "{kept}");
    let data = fs::metadata(keeper.entry(&id).join("stdout")).unwrap();
    assert!(data.blocks() * 512 <= MIB + 64 * 1024, "{} bytes on disk", data.blocks() * 512);
    // The same after a restart, from what is on disk.
    drop(service);
    let service = keeper.start();
    let again = attach_and_record(&mut service.connect(), &id);
    assert!(
        again.gaps == recording.gaps && again.stdout == recording.stdout && again.end["sha256"] == ending["sha256"]
    );
}

#[test]
fn fetched_output_makes_room_on_disk_and_unfetched_does_not() {
    let keeper = Keeper::new(&["--max-state-bytes", "4194304"]);
    let service = keeper.start();
    let write = |n: u64| format!("head -c {n} /dev/zero | tr '\\0' x");
    let first = detach(&service, &write(3 * MIB), json!({}));
    wait_for_end(&service, &first);
    let mut client = service.connect();
    // It fills the rest, and waits, because nobody has fetched anything.
    let second = detach(&service, &write(3 * MIB), json!({}));
    let written = || listed(&service, &second)["offsets"]["stdout"].as_u64().unwrap_or(0);
    let held = wait_until_stable("the offsets", MIB - 64 * 1024, std::time::Duration::from_millis(500), written);
    assert!(held < 3 * MIB, "{held}");
    let refused = client.call("execute", json!({ "command": "echo x", "onDisconnect": "detach" })).unwrap_err();
    let data = refused.data.as_ref().unwrap();
    assert_eq!(
        (refused.code, &data["limit"], &data["scope"]),
        (code::FULL, &json!(4 * MIB), &json!("client")),
        "{refused}"
    );
    assert!(refused.message.contains("--max-state-bytes"), "{refused}");
    assert_eq!(client.run(json!({ "command": "echo not detachable" })).status(), Status::Completed);
    let recording = attach_and_record(&mut client, &first);
    assert_eq!((recording.gaps.len(), recording.stdout.len() as u64), (0, 3 * MIB));
    // Its client has all of it, so it is evicted for the one that waits.
    assert_eq!(wait_for_end(&service, &second)["ending"]["status"], "COMPLETED");
    wait_until("the files of the fetched execution are removed", PATIENCE, || !keeper.entry(&first).exists());
    let recording = attach_and_record(&mut client, &second);
    assert_eq!((recording.gaps.len(), recording.stdout.len() as u64), (0, 3 * MIB));
    client.attach(&first, &Recording::default()).unwrap();
    let evicted = client.record();
    assert_eq!((evicted.status(), evicted.gaps[0].to), (Status::Completed, 3 * MIB), "its ending is still known");
}
