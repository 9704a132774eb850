//! Files that were altered or damaged lead to no false ending.

use std::{fs, io::Write};

use cc_executor_actors::{
    outcome::{Reason, Status},
    rpc::code,
};
use serde_json::{Value, json};

use super::{Keeper, attach_and_record, detach, listed, wait_for_end};
use crate::common::{PATIENCE, procs, wait_until};

/// Runs a command that fails, alters its files, and returns what the next backend says of it.
fn after_altering(alter: impl FnOnce(&std::path::Path)) -> (Keeper, crate::common::service::Service, String) {
    let keeper = Keeper::new(&[]);
    let service = keeper.start();
    let id = detach(&service, "echo output; exit 3", json!({}));
    wait_for_end(&service, &id);
    drop(service);
    alter(&keeper.entry(&id));
    let service = keeper.start();
    (keeper, service, id)
}

#[test]
fn an_altered_ending_is_not_believed() {
    let (_keeper, service, id) = after_altering(|entry| {
        let text = fs::read_to_string(entry.join("end.json")).unwrap();
        let altered = text.replace("\"FAILED\"", "\"COMPLETED\"").replace("\"exit_code\":3", "\"exit_code\":0");
        assert_ne!(altered, text);
        fs::write(entry.join("end.json"), altered).unwrap();
    });
    let recording = attach_and_record(&mut service.connect(), &id);
    assert_eq!(recording.ending(), (Status::Failed, Reason::BackendLost));
    assert_eq!((&recording.end["storage"], &recording.end["exit_code"]), (&json!("altered"), &Value::Null));
    assert_eq!(recording.stdout, b"output\n");
    assert_eq!(listed(&service, &id)["storage"], "altered");
}

#[test]
fn altered_output_is_reported_beside_the_true_ending() {
    let (_keeper, service, id) = after_altering(|entry| {
        fs::OpenOptions::new().append(true).open(entry.join("stdout")).unwrap().write_all(b"more").unwrap();
    });
    let recording = attach_and_record(&mut service.connect(), &id);
    assert_eq!((recording.ending(), &recording.end["exit_code"]), ((Status::Failed, Reason::Exit), &json!(3)));
    assert_eq!(recording.end["storage"], "altered");
}

#[test]
fn a_record_of_another_execution_is_no_record_of_this_one() {
    let keeper = Keeper::new(&[]);
    let service = keeper.start();
    let good = detach(&service, "echo output", json!({}));
    let bad = detach(&service, "echo output; exit 3", json!({}));
    wait_for_end(&service, &good);
    wait_for_end(&service, &bad);
    drop(service);
    fs::copy(keeper.entry(&good).join("end.json"), keeper.entry(&bad).join("end.json")).unwrap();
    let service = keeper.start();
    assert_eq!(listed(&service, &good)["ending"]["status"], "COMPLETED");
    let state = listed(&service, &bad);
    assert_eq!((&state["ending"]["status"], &state["storage"]), (&json!("FAILED"), &json!("altered")));
}

#[test]
fn a_damaged_entry_is_moved_aside_and_the_others_are_read() {
    let keeper = Keeper::new(&[]);
    let service = keeper.start();
    let ids: Vec<_> = (0..4).map(|n| detach(&service, &format!("echo {n}"), json!({}))).collect();
    ids.iter().for_each(|id| drop(wait_for_end(&service, id)));
    drop(service);
    fs::write(keeper.entry(&ids[0]).join("spec.json"), "{").unwrap();
    fs::remove_file(keeper.entry(&ids[1]).join("stdout")).unwrap();
    let spec = fs::read_to_string(keeper.entry(&ids[2]).join("spec.json")).unwrap();
    fs::write(keeper.entry(&ids[2]).join("spec.json"), spec.replace("uid:", "uid:1")).unwrap();
    fs::create_dir(keeper.directory().join("executions/not-an-id")).unwrap();
    let service = keeper.start();
    assert_eq!(service.events("storage.damaged").len(), 3);
    assert_eq!(listed(&service, &ids[3])["ending"]["status"], "COMPLETED");
    for id in &ids[..3] {
        assert!(keeper.directory().join("damaged").join(id).is_dir() && !keeper.entry(id).exists());
        let error = service.connect().call("attach", json!({ "executionId": id })).unwrap_err();
        assert_eq!(error.code, code::UNKNOWN_EXECUTION);
    }
}

#[test]
fn output_that_was_altered_before_the_backend_was_killed_shows() {
    let keeper = Keeper::new(&[]);
    let service = keeper.start();
    let mark = procs::mark();
    let id = detach(&service, &format!("head -c 70000000 /dev/zero; sleep {mark}"), json!({}));
    wait_until("a checkpoint is written", PATIENCE, || keeper.entry(&id).join("checkpoint.json").exists());
    drop(service);
    wait_until("no process is left", PATIENCE, || procs::with_argument(&mark).is_empty());
    let stdout = fs::OpenOptions::new().write(true).open(keeper.entry(&id).join("stdout")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&stdout, b"x", 1_000).unwrap();
    let service = keeper.start();
    let recording = attach_and_record(&mut service.connect(), &id);
    assert_eq!(
        (recording.ending(), &recording.end["storage"]),
        ((Status::Failed, Reason::BackendLost), &json!("altered"))
    );
}

#[test]
fn files_that_are_no_files_neither_stop_the_start_nor_are_followed() {
    let keeper = Keeper::new(&["--max-output-bytes", "1048576"]);
    let service = keeper.start();
    let run = |command: &str| {
        let id = detach(&service, command, json!({ "overflow": "drop" }));
        wait_for_end(&service, &id);
        id
    };
    let ids: Vec<_> = (0..4).map(|_| run("echo x")).collect();
    let given_up = run("seq 1 1000000");
    drop(service);
    let fifo = |path: &std::path::Path| {
        fs::remove_file(path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    fifo(&keeper.entry(&ids[0]).join("spec.json"));
    fifo(&keeper.entry(&ids[1]).join("stdout"));
    fs::remove_file(keeper.entry(&ids[2]).join("end.json")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", keeper.entry(&ids[2]).join("end.json")).unwrap();
    fs::write(keeper.entry(&ids[3]).join("end.json"), "").unwrap();
    // Its beginning had been given up, and now the rest is gone, too.
    fs::write(keeper.entry(&given_up).join("stdout"), "").unwrap();
    let service = keeper.start();
    assert!(listed(&service, &ids[0]).is_null() && listed(&service, &ids[1]).is_null());
    for id in &ids[2..] {
        assert_eq!(wait_for_end(&service, id)["ending"]["reason"], "backend_lost", "{id}");
    }
    let state = listed(&service, &given_up);
    assert_eq!((&state["storage"], &state["ending"]["status"]), (&json!("altered"), &json!("COMPLETED")));
    assert!(service.connect().call("execute", json!({ "command": "echo x", "onDisconnect": "detach" })).is_ok());
}

#[test]
fn a_directory_without_its_key_is_refused() {
    let keeper = Keeper::new(&[]);
    let service = keeper.start();
    let id = detach(&service, "echo x", json!({}));
    wait_for_end(&service, &id);
    drop(service);
    fs::remove_file(keeper.root.path().join("state.key")).unwrap();
    let directory = keeper.directory();
    let mut command = crate::common::service::binary();
    command.args(["backend", "--bind", "127.0.0.1:0", "--state-dir", directory.to_str().unwrap()]);
    let (_, stderr, code) = crate::common::service::run_to_exit(&mut command);
    assert!(code == 64 && stderr.contains("state.key") && keeper.entry(&id).exists(), "{code}: {stderr}");
}
