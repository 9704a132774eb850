//! The state directory: the output of executions that may detach is on disk, all of it, and survives the backend.

mod disk;
mod quota;
mod restart;
mod seals;

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Instant};

use cc_executor_actors::outcome::{Reason, Status};
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    client::Client,
    recording::Recording,
    scale,
    service::{Service, run_to_exit},
    sha256, wait_until,
};

/// A service with a state directory of its own, below one that is removed in the end.
struct Keeper {
    root: tempfile::TempDir,
    arguments: Vec<String>,
}

impl Keeper {
    fn new(arguments: &[&str]) -> Keeper {
        let root = tempfile::tempdir().unwrap();
        Keeper { root, arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect() }
    }

    fn directory(&self) -> std::path::PathBuf {
        self.root.path().join("state")
    }

    fn start(&self) -> Service {
        let directory = self.directory();
        let mut arguments = vec!["serve", "--state-dir", directory.to_str().unwrap()];
        arguments.extend(self.arguments.iter().map(String::as_str));
        Service::with(&arguments, &[])
    }

    fn entry(&self, id: &str) -> std::path::PathBuf {
        self.directory().join("executions").join(id)
    }
}

/// Starts a command whose client leaves at once.
fn detach(service: &Service, command: &str, more: Value) -> String {
    let mut client = service.connect();
    let mut execute = json!({ "command": command, "onDisconnect": "detach", "detachMs": 600_000 });
    execute.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let id = client.execute(execute);
    client.disconnect();
    id
}

/// The state of an execution in the list.
fn listed(service: &Service, id: &str) -> Value {
    let page = service.get("/executions");
    let executions = page["executions"].as_array().unwrap();
    executions.iter().find(|execution| execution["executionId"] == id).cloned().unwrap_or(Value::Null)
}

fn wait_for_end(service: &Service, id: &str) -> Value {
    let mut state = Value::Null;
    wait_until("the execution ends", 3 * PATIENCE, || {
        state = listed(service, id);
        !state["ending"].is_null()
    });
    state
}

fn attach_and_record(client: &mut Client, id: &str) -> Recording {
    client.attach(id, &Recording::default()).unwrap();
    client.record()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_detached_command_ends_by_itself_and_all_of_its_output_is_there() {
    let lines = scale(3_000_000, 30_000_000);
    let keeper = Keeper::new(&[]);
    let service = keeper.start();
    let id = detach(&service, &format!("seq 1 {lines}; echo done >&2; exit 3"), json!({}));
    let ending = wait_for_end(&service, &id)["ending"].clone();
    assert_eq!(
        (&ending["status"], &ending["exit_code"], &ending["storage"]),
        (&json!("FAILED"), &json!(3), &json!("disk"))
    );
    let stored = fs::read(keeper.entry(&id).join("stdout")).unwrap();
    assert_eq!(json!(sha256(&stored)), ending["sha256"]["stdout"]);
    let recording = attach_and_record(&mut service.connect(), &id);
    assert!(recording.gaps.is_empty() && recording.stdout == stored && recording.stderr == b"done\n");
    assert!(recording.stdout.ends_with(format!("\n{lines}\n").as_bytes()));
    assert_eq!(recording.end["sha256"], ending["sha256"]);
}

/// The same work with a client that reads and with none, several times by turns: the best times count.
#[test]
fn without_a_client_a_command_is_as_fast_as_with_one_that_reads() {
    let lines = scale(3_000_000, 30_000_000);
    let keeper = Keeper::new(&[]);
    let service = keeper.start();
    let (mut followed, mut alone) = (f64::MAX, f64::MAX);
    for _ in 0..scale(2, 4) {
        let command = format!("seq 1 {lines}");
        let began = Instant::now();
        let recording = service.connect().run(json!({ "command": command, "onDisconnect": "detach" }));
        assert_eq!(recording.status(), Status::Completed);
        followed = followed.min(began.elapsed().as_secs_f64());
        let id = detach(&service, &command, json!({}));
        let elapsed_ms = wait_for_end(&service, &id)["ending"]["elapsedMs"].as_f64().unwrap();
        alone = alone.min(elapsed_ms / 1_000.0);
    }
    assert!(alone < 1.5 * followed, "alone {alone} s, followed {followed} s");
}

#[test]
fn the_files_are_private_and_hold_no_secret() {
    let keeper = Keeper::new(&[]);
    let service = keeper.start();
    let id =
        detach(&service, "echo $SECRET | wc -c; pwd", json!({ "env": { "SECRET": "hunter2-hunter2" }, "cwd": "/" }));
    wait_for_end(&service, &id);
    let entry = keeper.entry(&id);
    assert_eq!((mode(&keeper.directory()), mode(&entry)), (0o700, 0o700));
    for file in ["spec.json", "end.json", "stdout", "stderr"] {
        assert_eq!(mode(&entry.join(file)), 0o600, "{file}");
    }
    assert_eq!(mode(&keeper.root.path().join("state.key")), 0o600);
    assert_eq!(fs::read(entry.join("stdout")).unwrap(), b"16\n/\n");
    let spec: Value = serde_json::from_slice(&fs::read(entry.join("spec.json")).unwrap()).unwrap();
    let record = &spec["record"];
    assert_eq!((&record["command"], &record["cwd"]), (&json!("echo $SECRET | wc -c; pwd"), &json!("/")));
    assert_eq!(record["env"]["SECRET"].as_str().unwrap().len(), 64);
    let all = fs::read_to_string(entry.join("spec.json")).unwrap();
    assert!(!all.contains("hunter2") && !all.contains(&sha256(b"hunter2-hunter2")), "{all}");
}

#[test]
fn what_may_not_detach_leaves_no_files() {
    let keeper = Keeper::new(&[]);
    let service = keeper.start();
    let recording = service.connect().run(json!({ "command": "echo x" }));
    assert_eq!((recording.status(), recording.end.get("storage")), (Status::Completed, None));
    assert_eq!(fs::read_dir(keeper.directory().join("executions")).unwrap().count(), 0);
}

#[test]
fn an_execution_that_is_canceled_in_the_queue_has_an_end_on_disk() {
    let keeper = Keeper::new(&["--max-executions", "1"]);
    let service = keeper.start();
    let mut first = service.connect();
    first.execute(json!({ "command": "sleep 1000" }));
    let mut client = service.connect();
    let id = client.queue(json!({ "command": "echo never", "onDisconnect": "detach" }));
    client.cancel();
    assert_eq!(client.record().ending(), (Status::Cancelled, Reason::Canceled));
    let end: Value = serde_json::from_slice(&fs::read(keeper.entry(&id).join("end.json")).unwrap()).unwrap();
    assert_eq!(end["record"]["outcome"]["status"], "CANCELLED");
}

#[test]
fn two_backends_never_share_a_directory() {
    let keeper = Keeper::new(&[]);
    let service = keeper.start();
    let directory = keeper.directory();
    let mut second = crate::common::service::binary();
    second.args(["backend", "--bind", "127.0.0.1:0", "--state-dir", directory.to_str().unwrap()]);
    let (_, stderr, code) = run_to_exit(&mut second);
    assert_eq!(code, 64, "{stderr}");
    let pid = format!("process {}", service.pid());
    assert!(stderr.contains(directory.to_str().unwrap()) && stderr.contains(&pid), "{stderr}");
    let mut missing = crate::common::service::binary();
    missing.args(["backend", "--bind", "127.0.0.1:0", "--state-dir", "/proc/nothing"]);
    let (_, stderr, code) = run_to_exit(&mut missing);
    assert!(code == 64 && stderr.contains("/proc/nothing"), "{code}: {stderr}");
}

#[test]
fn the_retention_of_files_can_be_set_and_removes_them() {
    let keeper = Keeper::new(&["--retention-ms", "300"]);
    let service = keeper.start();
    let id = detach(&service, "echo x", json!({}));
    let entry = keeper.entry(&id);
    wait_until("the files are written", PATIENCE, || entry.join("end.json").exists());
    wait_until("the files are removed", PATIENCE, || !entry.exists());
    wait_until("the execution is forgotten", PATIENCE, || listed(&service, &id).is_null());
}
