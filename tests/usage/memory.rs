//! Memory that runs out, in a cgroup with a limit: of the version that counts memory on this machine.

use cc_executor_actors::outcome::{Reason, Status};
use serde_json::{Value, json};

use super::usage_of;
use crate::common::{
    PATIENCE, left_out, memory_cgroup::MemoryCgroup, procs, recording::Recording, service::Service, wait_until,
};

const LIMIT: u64 = 300 << 20;

/// Takes more memory than [`LIMIT`].
const HOG: &str = "python3 -c 'kept = [bytes([1]) * (1 << 23) for n in range(100)]'";

fn service_in(cgroup: &MemoryCgroup, containment: &str) -> Service {
    Service::spawn(cgroup.command(&["serve", "--bind", "127.0.0.1:0", "--containment", containment]))
}

fn run(service: &Service, command: &str) -> Recording {
    service.connect().run(json!({ "command": command }))
}

fn message(recording: &Recording) -> &str {
    recording.end["message"].as_str().unwrap_or_default()
}

#[test]
fn hog_in_a_cgroup_of_its_own_is_oom_and_another_kill_is_signal() {
    let Some(cgroup) = MemoryCgroup::with_limit("oom in a cgroup of its own", LIMIT) else { return };
    let service = service_in(&cgroup, "cgroup");
    let hog = run(&service, HOG);
    assert_eq!(hog.ending(), (Status::Failed, Reason::Oom), "{}", hog.end);
    assert_eq!((&hog.end["exit_code"], &hog.end["signal"]), (&Value::Null, &json!("SIGKILL")));
    assert_eq!(message(&hog), "memory ran out: the kernel killed a process of the command");
    let peak = usage_of(&hog).peak_tree_bytes.expect("its own cgroup counts it");
    // The kernel takes pages in advance, some beyond the limit.
    assert!((LIMIT / 2..LIMIT + (16 << 20)).contains(&peak), "{peak}");

    // The counter of the execution before must not be the one of this execution.
    let killed = run(&service, "kill -9 $$");
    assert_eq!(killed.ending(), (Status::Failed, Reason::Signal), "{}", killed.end);
    assert_eq!(killed.end["message"], Value::Null);
    let small = usage_of(&killed).peak_tree_bytes.expect("its own cgroup counts it");
    assert!(small < 20_000_000, "{small}");

    let survived = run(&service, &format!("{HOG}; exit 3"));
    assert_eq!((survived.reason(), &survived.end["exit_code"]), (Reason::Exit, &json!(3)), "{}", survived.end);
    assert_eq!(message(&survived), "memory ran out: the kernel killed a process of the command");

    let output = service.run(&["--stats", "--", HOG]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(137), "{stderr}");
    assert!(stderr.contains("memory ran out") && stderr.contains(", tree at most "), "{stderr}");
}

#[test]
fn hog_without_a_cgroup_of_its_own_may_have_lacked_memory() {
    let Some(cgroup) = MemoryCgroup::with_limit("oom in the cgroup of the service", LIMIT) else { return };
    let service = service_in(&cgroup, "none");
    for _ in 0..2 {
        let hog = run(&service, HOG);
        assert_eq!(hog.ending(), (Status::Failed, Reason::Signal), "{}", hog.end);
        assert_eq!(hog.end["signal"], "SIGKILL");
        assert!(message(&hog).starts_with("memory may have run out"), "{}", hog.end);
        assert_eq!(usage_of(&hog).peak_tree_bytes, None);
        // The counter of the service has moved before this execution, not in it.
        let killed = run(&service, "kill -9 $$");
        assert_eq!((killed.reason(), &killed.end["message"]), (Reason::Signal, &Value::Null), "{}", killed.end);
    }
}

#[test]
fn memory_cgroups_are_removed_with_their_owners() {
    let Some(cgroup) = MemoryCgroup::with_limit("the removal of memory cgroups", LIMIT) else { return };
    // No process has this id (proc(5), pid_max).
    cgroup.make_backend("cc-executor.4194305-1");
    let mut service = service_in(&cgroup, "cgroup");
    let backends = cgroup.backends();
    assert_eq!(backends.len(), 1, "that of the dead backend is gone: {backends:?}");
    assert!(backends[0].starts_with(&format!("cc-executor.{}-", service.pid())), "{backends:?}");

    let (mut client, mark) = (service.connect(), procs::mark());
    client.execute(json!({ "command": format!("sleep {mark}") }));
    procs::wait_for(&mark, 1, PATIENCE);
    assert_eq!(cgroup.n_executions(), 1);
    client.cancel_with_grace(0);
    assert_eq!(client.record().status(), Status::Cancelled);
    wait_until("the cgroup of the execution is gone", PATIENCE, || cgroup.n_executions() == 0);

    // Without its shim the subreaper removes it.
    let mut client = service.connect();
    let _ = client.call("execute", json!({ "command": "kill -9 $PPID; sleep 100" }));
    assert_eq!(client.record().reason(), Reason::BackendLost);
    wait_until("the cgroup of the lost execution is gone", PATIENCE, || cgroup.n_executions() == 0);

    service.signal(rustix::process::Signal::TERM);
    service.wait(PATIENCE);
    // By the subreaper, which ends after the service.
    wait_until("the cgroup of the service is gone", PATIENCE, || cgroup.backends().is_empty());
}

/// So that its parent can count the memory of its executions: a cgroup with processes cannot pass a controller on.
#[test]
fn cgroups_are_made_beside_a_service_in_a_delegated_group() {
    let cgroup = match MemoryCgroup::delegated() {
        Ok(cgroup) => cgroup,
        Err(error) => return left_out("a delegated cgroup", &error),
    };
    let service = service_in(&cgroup, "cgroup");
    let backends = cgroup.backends();
    assert!(backends[0].starts_with(&format!("cc-executor.{}-", service.pid())), "{backends:?}");
    assert_eq!(run(&service, "echo in").text(), "in\n");
}
