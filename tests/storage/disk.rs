//! Disks that are full or hang.

use std::{
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use cc_executor_actors::outcome::{Reason, Status};
use serde_json::json;

use super::{attach_and_record, detach, listed};
use crate::common::{
    PATIENCE, left_out, scale,
    service::{BINARY, Service, binary_under},
    sha256, wait_until,
};

fn tool(command: &[&str]) -> Output {
    Command::new(command[0]).args(&command[1..]).output().expect("the tool runs")
}

fn succeeds(command: &[&str]) -> bool {
    Command::new(command[0]).args(&command[1..]).output().is_ok_and(|output| output.status.success())
}

/// A service whose state directory is on a small file system in memory, which only it sees.
fn on_small_disk(size: &str) -> Option<Service> {
    if !succeeds(&["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]) {
        left_out("a full disk", "unshare -m and mount need root");
        return None;
    }
    let mut command = binary_under("unshare");
    let script = format!(
        "mount -t tmpfs -o size={size} none /mnt && exec {BINARY} serve --bind 127.0.0.1:0 --state-dir /mnt/state"
    );
    command.args(["-m", "sh", "-c", &script]);
    Some(Service::spawn(command))
}

#[test]
fn on_a_full_disk_an_execution_completes_in_memory_and_says_so() {
    let Some(service) = on_small_disk("2m") else { return };
    let mut client = service.connect();
    let expected: Vec<u8> = (1..=600_000).flat_map(|line| format!("{line}\n").into_bytes()).collect();
    let recording = client.run(json!({ "command": "seq 1 600000", "onDisconnect": "detach" }));
    assert_eq!((recording.status(), &recording.end["storage"]), (Status::Completed, &json!("failed")));
    assert!(recording.stdout == expected && recording.gaps.is_empty());
    assert_eq!(recording.end["sha256"]["stdout"], sha256(&expected));
    assert_eq!(service.events("storage.failed").len(), 1);
    // There is room again for the next one, because the files of the first one were removed or are small.
    wait_until("the next one finds room", PATIENCE, || {
        let next = client.run(json!({ "command": "echo next", "onDisconnect": "detach" }));
        assert_eq!((next.status(), next.stdout.as_slice()), (Status::Completed, &b"next\n"[..]));
        next.end["storage"] == "disk"
    });
    // Not one that keeps its output in memory.
    let other = client.run(json!({ "command": "echo other" }));
    assert_eq!((other.status(), other.end.get("storage")), (Status::Completed, None));
}

#[test]
fn without_a_client_the_ring_holds_the_command_back_after_the_disk_has_failed() {
    let Some(service) = on_small_disk("2m") else { return };
    let expected: Vec<u8> = (1..=2_000_000).flat_map(|line| format!("{line}\n").into_bytes()).collect();
    let id = detach(&service, "seq 1 2000000", json!({}));
    service.wait_for_event("storage.failed", 1);
    wait_until("the status says it", PATIENCE, || listed(&service, &id)["storage"] == "failed");
    let recording = attach_and_record(&mut service.connect(), &id);
    assert_eq!((recording.status(), recording.gaps.len()), (Status::Completed, 0));
    assert!(recording.stdout == expected);
}

/// A file system on a loop device that can be frozen. It is thawed and unmounted when dropped.
struct FreezableDisk {
    root: tempfile::TempDir,
    frozen: bool,
}

impl FreezableDisk {
    fn mount(size: u64) -> Option<FreezableDisk> {
        let root = tempfile::tempdir().unwrap();
        let disk = FreezableDisk { root, frozen: false };
        let image = disk.root.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(size).unwrap();
        std::fs::create_dir(disk.path()).unwrap();
        let (image, path) = (image.to_str().unwrap().to_owned(), disk.path().to_str().unwrap().to_owned());
        if succeeds(&["mkfs.ext4", "-q", &image]) && succeeds(&["mount", "-o", "loop", &image, &path]) {
            return Some(disk);
        }
        left_out("a disk that hangs", "mkfs.ext4, loop devices and mount need root");
        None
    }

    fn path(&self) -> std::path::PathBuf {
        self.root.path().join("disk")
    }

    fn freeze(&mut self) {
        assert!(tool(&["fsfreeze", "-f", self.path().to_str().unwrap()]).status.success());
        self.frozen = true;
    }

    fn thaw(&mut self) {
        if std::mem::take(&mut self.frozen) {
            assert!(tool(&["fsfreeze", "-u", self.path().to_str().unwrap()]).status.success());
        }
    }
}

impl Drop for FreezableDisk {
    fn drop(&mut self) {
        self.thaw();
        let path: &Path = &self.path();
        // Lazily, because the service may still end.
        let _ = tool(&["umount", "-l", path.to_str().unwrap()]);
    }
}

#[test]
fn a_disk_that_hangs_holds_up_only_the_output_that_goes_there() {
    let Some(mut disk) = FreezableDisk::mount(256 << 20) else { return };
    let state = disk.path().join("state");
    // Few, so that the executions whose end waits for the disk would take all places.
    let arguments = ["serve", "--state-dir", state.to_str().unwrap(), "--max-executions", "4"];
    let mut service = Service::with(&arguments, &[]);
    let mut stored = service.connect();
    let id = stored.execute(json!({
        "command": "seq 1 100000; read go; seq 100001 2000000", "stdin": true, "onDisconnect": "detach", "heartbeatMs": 1000,
    }));
    let mut recording = crate::common::recording::Recording::default();
    stored.record_until(&mut recording, |recording| recording.stdout.ends_with(b"\n100000\n"));
    disk.freeze();
    let since = Instant::now();
    stored.call("input", json!({ "data": "go\n" })).unwrap();
    let frozen_for = Duration::from_secs(scale(3, 20) as u64);
    while since.elapsed() < frozen_for {
        let mut other = service.connect();
        let began = Instant::now();
        let echo = other.run(json!({ "command": "echo x" }));
        assert_eq!((echo.status(), echo.stdout.as_slice()), (Status::Completed, &b"x\n"[..]));
        other.execute(json!({ "command": "sleep 1000" }));
        other.cancel_with_grace(0);
        assert_eq!(other.record().ending(), (Status::Cancelled, Reason::Canceled));
        // A new one that may detach starts, too, and can be canceled; its end waits for the disk.
        let mut detachable = service.connect();
        let waiting = detachable.execute(json!({ "command": "sleep 1000", "onDisconnect": "detach" }));
        detachable.cancel_with_grace(0);
        detachable.disconnect();
        assert_eq!(listed(&service, &waiting)["executionId"], waiting);
        assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
        // A heartbeat of the execution whose disk hangs comes each second.
        let update = stored.notification("statusUpdate");
        assert_eq!((&update["status"], &update["backend"]), (&json!("RUNNING"), &json!("alive")), "{update}");
    }
    assert!(listed(&service, &id)["ending"].is_null(), "its output waits");
    disk.thaw();
    stored.record_rest(&mut recording);
    let expected: Vec<u8> = (1..=2_000_000).flat_map(|line| format!("{line}\n").into_bytes()).collect();
    assert!(recording.stdout == expected && recording.gaps.is_empty(), "nothing is missing");
    assert_eq!((recording.status(), &recording.end["storage"]), (Status::Completed, &json!("disk")));
    assert_eq!(std::fs::read(state.join("executions").join(&id).join("stdout")).unwrap(), expected);
    // A service stops, too, while the disk hangs. The kernel keeps its process until the disk answers.
    stored.execute(json!({ "command": "sleep 0.2; seq 1 100000; sleep 1000", "onDisconnect": "detach" }));
    disk.freeze();
    service.signal(rustix::process::Signal::TERM);
    service.wait_for_event("service.stopped", 1);
    disk.thaw();
    service.wait(PATIENCE);
}

#[test]
fn after_a_full_disk_and_a_kill_what_is_missing_is_said() {
    let Some(disk) = FreezableDisk::mount(8 << 20) else { return };
    let state = disk.path().join("state");
    let start = || Service::with(&["serve", "--state-dir", state.to_str().unwrap()], &[]);
    let service = start();
    let mut client = service.connect();
    let id = client.execute(json!({
        "command": "echo error >&2; read go; seq 1 3000000; sleep 1000", "stdin": true, "onDisconnect": "detach",
    }));
    let mut recording = crate::common::recording::Recording::default();
    // Standard error is on disk before the disk is full.
    client.record_until(&mut recording, |recording| recording.stderr == b"error\n");
    client.call("input", json!({ "data": "go\n" })).unwrap();
    client.record_until(&mut recording, |recording| recording.stdout.ends_with(b"\n3000000\n"));
    let entry = state.join("executions").join(&id);
    wait_until("the entry is marked", PATIENCE, || entry.join("failed.json").exists());
    drop(service);
    let service = start();
    wait_until("the output is digested", PATIENCE, || listed(&service, &id)["ending"]["sha256"]["stdout"] != "pending");
    let state = listed(&service, &id);
    let n_kept = state["ending"]["bytes"]["stdout"].as_u64().unwrap();
    assert_eq!((&state["storage"], &state["ending"]["reason"]), (&json!("failed"), &json!("backend_lost")), "{state}");
    assert!(n_kept > 0 && n_kept < recording.stdout.len() as u64, "{n_kept}");
    assert!(state["ending"]["message"].as_str().unwrap().contains("the disk had not taken"), "{state}");
    let attached = attach_and_record(&mut service.connect(), &id);
    assert_eq!(
        (attached.ending(), attached.stderr.as_slice()),
        ((Status::Failed, Reason::BackendLost), &b"error\n"[..])
    );
    assert!(attached.stdout == recording.stdout[..attached.stdout.len()] && attached.stdout.len() as u64 == n_kept);
}

#[test]
fn output_that_a_full_disk_has_cut_is_never_printed_as_whole() {
    let Some(disk) = FreezableDisk::mount(8 << 20) else { return };
    let state = disk.path().join("state");
    let start = || Service::with(&["serve", "--state-dir", state.to_str().unwrap()], &[]);
    let service = start();
    let mut client = service.connect();
    client.answers_pings = false;
    let id = client.execute(json!({
        "command": "echo error >&2; read go; seq 1 1000000", "stdin": true, "onDisconnect": "detach",
    }));
    let mut whole = crate::common::recording::Recording::default();
    client.record_until(&mut whole, |recording| recording.stderr == b"error\n");
    client.call("input", json!({ "data": "go\n" })).unwrap();
    client.record_rest(&mut whole);
    assert_eq!((whole.status(), &whole.end["storage"]), (Status::Completed, &json!("failed")));
    client.disconnect();
    let entry = state.join("executions").join(&id);
    wait_until("its end is settled", PATIENCE, || entry.join("end.json").exists() || !entry.exists());
    if !entry.exists() {
        return left_out("a cut output after a restart", "the file system had no room for the record of the end");
    }
    drop(service);
    let service = start();
    let written = whole.stdout.len();
    for arguments in [&["output", &id][..], &["output", "--tail", "5", &id], &["output", "--lines", "2", &id]] {
        let (stdout, stderr, code) = crate::common::service::run_to_exit(&mut service.client_command(arguments));
        assert_eq!(code, 70, "{arguments:?}: {stderr}");
        assert!(stderr.contains(&format!("to {written} of this output are not there")), "{stderr}");
        assert!(whole.stdout.starts_with(stdout.as_bytes()), "{arguments:?}");
    }
    let attached = attach_and_record(&mut service.connect(), &id);
    assert_eq!((attached.status(), attached.gaps.last().unwrap().to), (Status::Completed, written as u64));
    assert_eq!(attached.stderr, b"error\n");
}
