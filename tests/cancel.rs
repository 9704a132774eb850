//! However an execution is ended, all of its processes are gone, also those that left its process group.

use std::{
    fs,
    process::Stdio,
    time::{Duration, Instant},
};

use cc_executor_actors::{
    outcome::{Reason, Status},
    rpc::code,
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{
    PATIENCE, procs, scale,
    service::{Service, kill},
    wait_until,
};

/// The number of executions that are ended at the same time.
const LANES: usize = 5;

/// A leader, a child, a grandchild, and a process in a session of its own.
fn tree(mark: &str) -> String {
    format!("sleep {mark} & (sleep {mark} & wait) & setsid sleep {mark} & exec sleep {mark}")
}

const TREE: usize = 4;

/// Calls `end_execution` 10 times (100 in `make stress`), five at a time, each time with the mark of the processes that must
/// be gone a second later.
fn many_times(end_execution: impl Fn(&str) + Sync) {
    std::thread::scope(|scope| {
        for lane in 0..LANES {
            let end_execution = &end_execution;
            scope.spawn(move || {
                for round in 0..scale(10, 100) / LANES {
                    let mark = procs::mark();
                    end_execution(&mark);
                    let at = Instant::now();
                    procs::wait_for(&mark, 0, Duration::from_secs(1));
                    assert!(at.elapsed() < Duration::from_secs(1), "lane {lane}, round {round}");
                }
            });
        }
    });
}

#[test]
fn cancel_ends_escaped_descendants() {
    let service = Service::start();
    many_times(|mark| {
        let mut client = service.connect();
        client.execute(json!({ "command": tree(mark) }));
        procs::wait_for(mark, TREE, PATIENCE);
        let answer = client.cancel();
        assert_eq!(answer["status"], "CANCELLING");
        let recording = client.record();
        assert_eq!(recording.ending(), (Status::Cancelled, Reason::Canceled));
        assert_eq!(recording.end["cancel"]["verified"], true, "{}", recording.end);
        assert_eq!(recording.end["cancel"]["survivors"], 0);
        assert!(procs::with_argument(mark).is_empty(), "gone before the ending is sent");
        client.close();
    });
}

#[test]
fn closing_the_socket_ends_escaped_descendants() {
    let service = Service::start();
    many_times(|mark| {
        let mut client = service.connect();
        client.execute(json!({ "command": tree(mark) }));
        procs::wait_for(mark, TREE, PATIENCE);
        client.disconnect();
    });
}

#[test]
fn ctrl_c_in_run_ends_escaped_descendants() {
    let service = Service::start();
    many_times(|mark| {
        let mut run = service.run_command(&["--", &tree(mark)]).stderr(Stdio::null()).spawn().unwrap();
        procs::wait_for(mark, TREE, PATIENCE);
        kill(run.id(), Signal::INT);
        assert_eq!(run.wait().unwrap().code(), Some(130));
    });
}

#[test]
fn killing_the_client_ends_escaped_descendants() {
    let service = Service::start();
    many_times(|mark| {
        let mut run = service.run_command(&["--", &tree(mark)]).stderr(Stdio::null()).spawn().unwrap();
        procs::wait_for(mark, TREE, PATIENCE);
        run.kill().unwrap();
        run.wait().unwrap();
    });
}

#[test]
fn command_that_ignores_term_is_killed_after_the_grace_period() {
    let service = Service::start();
    let mark = procs::mark();
    let mut client = service.connect();
    client.execute(json!({ "command": format!("trap '' TERM; setsid sleep {mark} & while :; do sleep {mark}; done") }));
    procs::wait_for(&mark, 2, PATIENCE);
    let at = Instant::now();
    client.cancel_with_grace(300);
    let recording = client.record();
    assert!(
        at.elapsed() >= Duration::from_millis(300) && at.elapsed() < Duration::from_millis(1_300),
        "{:?}",
        at.elapsed()
    );
    let cancel = &recording.end["cancel"];
    assert_eq!(
        (cancel["verified"].as_bool(), cancel["escalated"].as_bool(), cancel["graceMs"].as_u64()),
        (Some(true), Some(true), Some(300))
    );
    assert_eq!(recording.statuses, [Status::Running, Status::Cancelling, Status::Cancelled]);
    assert!(procs::with_argument(&mark).is_empty());
}

#[test]
fn second_cancel_shortens_the_grace_period() {
    let service = Service::start();
    let mark = procs::mark();
    let mut client = service.connect();
    client.execute(json!({ "command": format!("trap '' TERM; while :; do sleep {mark}; done") }));
    procs::wait_for(&mark, 1, PATIENCE);
    client.cancel_with_grace(60_000);
    let at = Instant::now();
    client.cancel_with_grace(0);
    assert_eq!(client.record().status(), Status::Cancelled);
    assert!(at.elapsed() < PATIENCE);
}

#[test]
fn output_of_leftover_processes_is_read_before_they_are_ended() {
    let service = Service::start();
    let mark = procs::mark();
    let mut client = service.connect();
    let command =
        format!("(sleep 0.3; echo late; exec sleep {mark}) & setsid sleep {mark} >/dev/null 2>&1 & echo first");
    let recording = client.run(json!({ "command": command }));
    assert_eq!(String::from_utf8_lossy(&recording.stdout), "first\nlate\n");
    assert_eq!((recording.status(), recording.end["exit_code"].as_i64()), (Status::Completed, Some(0)));
    assert_eq!(recording.end["leftovers"], 2, "{}", recording.end);
    assert!(procs::with_argument(&mark).is_empty());
}

#[test]
fn signal_reaches_the_process_group() {
    let service = Service::start();
    let mut client = service.connect();
    client.execute(json!({ "command": "trap 'echo caught; exit 7' USR1; echo ready; while :; do sleep 0.01; done" }));
    client.wait_for("output");
    client.call("control", json!({ "type": "SIGNAL", "signal": "SIGUSR1" })).unwrap();
    let recording = client.record();
    assert_eq!((recording.stdout.as_slice(), recording.end["exit_code"].as_i64()), (&b"ready\ncaught\n"[..], Some(7)));
    let late = client.call("control", json!({ "type": "SIGNAL", "signal": "SIGUSR1" })).unwrap_err();
    assert_eq!(late.code, code::NOT_RUNNING);
}

#[test]
fn timeout_is_a_failure_even_if_the_command_exits_with_0() {
    let service = Service::start();
    let mut client = service.connect();
    let recording =
        client.run(json!({ "command": "trap 'exit 0' TERM; while :; do sleep 0.01; done", "timeoutMs": 200 }));
    assert_eq!(recording.ending(), (Status::Failed, Reason::Timeout));
    assert_eq!(recording.errors[0].code, code::LIMIT);
    assert_eq!(recording.end["cancel"]["verified"], true);
}

#[test]
fn other_sessions_can_cancel_and_query_by_id() {
    let backend = Service::backend();
    let (first, second) = (Service::gateway(&backend.url()), Service::gateway(&backend.url()));
    for other in [&first, &second] {
        let mut owner = first.connect();
        let id = owner.execute(json!({ "command": "sleep 1000" }));
        let mut stranger = other.connect();
        let status = stranger.call("status", json!({ "executionId": id })).unwrap();
        assert_eq!((status["executionId"].as_str(), status["status"].as_str()), (Some(id.as_str()), Some("RUNNING")));
        let answer = stranger.call("control", json!({ "type": "CANCEL", "executionId": id })).unwrap();
        assert_eq!(answer["status"], "CANCELLING");
        assert_eq!(owner.record().reason(), Reason::Canceled);
        let ended = |status: &Value| status["status"] == "CANCELLED";
        wait_until("the ending is known", PATIENCE, || {
            ended(&stranger.call("status", json!({ "executionId": id })).unwrap())
        });
        let unknown =
            stranger.call("status", json!({ "executionId": "00000000-0000-4000-8000-000000000000" })).unwrap_err();
        assert_eq!(unknown.code, code::UNKNOWN_EXECUTION);
    }
}

#[test]
fn command_that_kills_its_shim_leaves_no_process() {
    let service = Service::start();
    let mark = procs::mark();
    let mut bystander = service.connect();
    bystander.execute(json!({ "command": "sleep 0.5; echo untouched" }));
    let mut client = service.connect();
    let recording = client.run(json!({
        "command": format!("setsid sleep {mark} & (sleep {mark} & sleep {mark}) & kill -TERM $PPID; kill -INT $PPID; sleep 0.1; kill -KILL $PPID; sleep {mark}")
    }));
    assert_eq!(recording.ending(), (Status::Failed, Reason::BackendLost));
    assert_eq!(
        (&recording.end["cancel"]["verified"], &recording.end["cancel"]["survivors"]),
        (&json!(true), &json!(0))
    );
    assert!(procs::with_argument(&mark).is_empty(), "gone before the ending is sent");
    service.wait_for_event("shim.lost", 1);
    let other = bystander.record();
    assert_eq!((other.stdout.as_slice(), other.status()), (&b"untouched\n"[..], Status::Completed));
}

/// The tree has three levels, a process in a session of its own, and one that ignores TERM.
#[test]
fn cancel_of_a_tree_that_ignores_term_is_verified_soon_after_the_grace_period() {
    const GRACE: Duration = Duration::from_millis(300);
    let service = Service::start();
    std::thread::scope(|scope| {
        for lane in 0..4 {
            let service = &service;
            scope.spawn(move || {
                for round in 0..scale(3, 50) {
                    let mark = procs::mark();
                    let mut client = service.connect();
                    let ignores_term = format!("(trap '' TERM; while :; do sleep {mark}; done)");
                    let command = format!("bash -c '(sleep {mark} & sleep {mark} & wait) & wait' & setsid sleep {mark} & {ignores_term} & wait");
                    client.execute(json!({ "command": command }));
                    procs::wait_for(&mark, 4, PATIENCE);
                    let at = Instant::now();
                    client.cancel_with_grace(300);
                    let recording = client.record();
                    let took = at.elapsed();
                    assert!(procs::with_argument(&mark).is_empty(), "gone before the ending is sent");
                    let cancel = &recording.end["cancel"];
                    let expected = json!({ "verified": true, "survivors": 0, "graceMs": 300, "escalated": true, "evidence": "echild" });
                    assert_eq!((recording.status(), cancel), (Status::Cancelled, &expected));
                    // Far less than the patience with a process that cannot be killed, also on a busy machine.
                    assert!(took >= GRACE && took < GRACE + Duration::from_secs(2), "lane {lane}, round {round}: {took:?}");
                    client.close();
                }
            });
        }
    });
}

#[test]
fn oom_score_of_commands_is_raised_and_of_shims_is_not() {
    let score = |pid: &str| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse::<i32>();
    let own = score("self").unwrap();
    let service = Service::start();
    // The command, its child, and its shim, which the kernel must not choose.
    let command = "cat /proc/$$/oom_score_adj; (cat /proc/self/oom_score_adj); cat /proc/$PPID/oom_score_adj";
    for pty in [json!(null), json!({ "rows": 24, "cols": 80 })] {
        let mut params = json!({ "command": command });
        if !pty.is_null() {
            params["pty"] = pty;
        }
        let recording = service.connect().run(params);
        let scores: Vec<i32> = recording.text().split_whitespace().map(|score| score.parse().unwrap()).collect();
        assert_eq!(scores, [own.max(500), own.max(500), own]);
    }
    assert_eq!(score(&service.pid().to_string()).unwrap(), own);
}
