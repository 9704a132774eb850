//! However an execution is given up, its processes are gone: the leader, its children, and those who
//! left its process group.

use std::{
    fs,
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{
    PATIENCE, procs, scale,
    service::{Service, kill},
    wait_until,
};

/// How many executions at a time are given up.
const LANES: usize = 5;

/// A leader, a child, a grandchild, and one in a session of its own.
fn tree(mark: &str) -> String {
    format!("sleep {mark} & (sleep {mark} & wait) & setsid sleep {mark} & exec sleep {mark}")
}

const TREE: usize = 4;

/// Runs `way` 10 times (100 in `make stress`), five at a time.
fn many_times(way: impl Fn(&str) + Sync) {
    std::thread::scope(|scope| {
        for lane in 0..LANES {
            let way = &way;
            scope.spawn(move || {
                for round in 0..scale(10, 100) / LANES {
                    let mark = procs::mark();
                    way(&mark);
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
        let answer = client.call("control", json!({ "type": "CANCEL" })).unwrap();
        assert_eq!(answer["status"], "CANCELLING");
        let story = client.story();
        assert_eq!((story.end["status"].as_str(), story.end["reason"].as_str()), (Some("CANCELLED"), Some("canceled")));
        assert_eq!(story.end["cancel"]["verified"], true, "{}", story.end);
        assert_eq!(story.end["cancel"]["survivors"], 0);
        assert!(procs::with_argument(mark).is_empty(), "gone before it is said");
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
        client.vanish();
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
    client.call("control", json!({ "type": "CANCEL", "graceMs": 300 })).unwrap();
    let story = client.story();
    assert!(
        at.elapsed() >= Duration::from_millis(300) && at.elapsed() < Duration::from_millis(1_300),
        "{:?}",
        at.elapsed()
    );
    let cancel = &story.end["cancel"];
    assert_eq!(
        (cancel["verified"].as_bool(), cancel["escalated"].as_bool(), cancel["graceMs"].as_u64()),
        (Some(true), Some(true), Some(300))
    );
    assert_eq!(story.statuses, ["RUNNING", "CANCELLING", "CANCELLED"]);
    assert!(procs::with_argument(&mark).is_empty());
}

#[test]
fn second_cancel_shortens_the_grace_period() {
    let service = Service::start();
    let mark = procs::mark();
    let mut client = service.connect();
    client.execute(json!({ "command": format!("trap '' TERM; while :; do sleep {mark}; done") }));
    procs::wait_for(&mark, 1, PATIENCE);
    client.call("control", json!({ "type": "CANCEL", "graceMs": 60_000 })).unwrap();
    let at = Instant::now();
    client.call("control", json!({ "type": "CANCEL", "graceMs": 0 })).unwrap();
    assert_eq!(client.story().end["status"], "CANCELLED");
    assert!(at.elapsed() < PATIENCE);
}

#[test]
fn output_of_leftover_processes_is_read_before_they_are_ended() {
    let service = Service::start();
    let mark = procs::mark();
    let mut client = service.connect();
    let command =
        format!("(sleep 0.3; echo late; exec sleep {mark}) & setsid sleep {mark} >/dev/null 2>&1 & echo first");
    let story = client.run(json!({ "command": command }));
    assert_eq!(String::from_utf8_lossy(&story.stdout), "first\nlate\n");
    assert_eq!((story.end["status"].as_str(), story.end["exit_code"].as_i64()), (Some("COMPLETED"), Some(0)));
    assert_eq!(story.end["leftovers"], 2, "{}", story.end);
    assert!(procs::with_argument(&mark).is_empty());
}

#[test]
fn signal_reaches_the_process_group() {
    let service = Service::start();
    let mut client = service.connect();
    client.execute(json!({ "command": "trap 'echo caught; exit 7' USR1; echo ready; while :; do sleep 0.01; done" }));
    client.seen("output");
    client.call("control", json!({ "type": "SIGNAL", "signal": "SIGUSR1" })).unwrap();
    let story = client.story();
    assert_eq!((story.stdout.as_slice(), story.end["exit_code"].as_i64()), (&b"ready\ncaught\n"[..], Some(7)));
    let late = client.call("control", json!({ "type": "SIGNAL", "signal": "SIGUSR1" })).unwrap_err();
    assert_eq!(late["code"], -32003);
}

#[test]
fn timeout_is_a_failure_even_if_the_command_exits_with_0() {
    let service = Service::start();
    let mut client = service.connect();
    let story = client.run(json!({ "command": "trap 'exit 0' TERM; while :; do sleep 0.01; done", "timeoutMs": 200 }));
    assert_eq!((story.end["status"].as_str(), story.end["reason"].as_str()), (Some("FAILED"), Some("timeout")));
    assert_eq!(story.errors[0]["code"], -32012);
    assert_eq!(story.end["cancel"]["verified"], true);
}

#[test]
fn other_sessions_can_cancel_and_query_by_id() {
    let backend = Service::backend();
    let (here, there) = (Service::gateway(&backend.url()), Service::gateway(&backend.url()));
    for other in [&here, &there] {
        other.wait_for_event("backend.up", 1);
        let mut owner = here.connect();
        let id = owner.execute(json!({ "command": "sleep 1000" }));
        let mut stranger = other.connect();
        let status = stranger.call("status", json!({ "executionId": id })).unwrap();
        assert_eq!((status["executionId"].as_str(), status["status"].as_str()), (Some(id.as_str()), Some("RUNNING")));
        let answer = stranger.call("control", json!({ "type": "CANCEL", "executionId": id })).unwrap();
        assert_eq!(answer["status"], "CANCELLING");
        assert_eq!(owner.story().end["reason"], "canceled");
        let ended = |status: &Value| status["status"] == "CANCELLED";
        wait_until("the end is known", PATIENCE, || {
            ended(&stranger.call("status", json!({ "executionId": id })).unwrap())
        });
        let unknown =
            stranger.call("status", json!({ "executionId": "00000000-0000-4000-8000-000000000000" })).unwrap_err();
        assert_eq!(unknown["code"], -32006);
    }
}

#[test]
fn command_that_kills_its_shim_leaves_no_process() {
    let service = Service::start();
    let mark = procs::mark();
    let mut bystander = service.connect();
    bystander.execute(json!({ "command": "sleep 0.5; echo untouched" }));
    let mut client = service.connect();
    let story = client.run(json!({
        "command": format!("setsid sleep {mark} & (sleep {mark} & sleep {mark}) & kill -TERM $PPID; kill -INT $PPID; sleep 0.1; kill -KILL $PPID; sleep {mark}")
    }));
    assert_eq!((story.end["status"].as_str(), story.end["reason"].as_str()), (Some("FAILED"), Some("backend_lost")));
    assert_eq!((&story.end["cancel"]["verified"], &story.end["cancel"]["survivors"]), (&json!(true), &json!(0)));
    assert!(procs::with_argument(&mark).is_empty(), "gone before it is said");
    service.wait_for_event("shim.lost", 1);
    let other = bystander.story();
    assert_eq!((other.stdout.as_slice(), other.end["status"].as_str()), (&b"untouched\n"[..], Some("COMPLETED")));
}

/// Three levels, one in a session of its own, one that ignores TERM.
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
                    let stubborn = format!("(trap '' TERM; while :; do sleep {mark}; done)");
                    let command = format!("bash -c '(sleep {mark} & sleep {mark} & wait) & wait' & setsid sleep {mark} & {stubborn} & wait");
                    client.execute(json!({ "command": command }));
                    procs::wait_for(&mark, 4, PATIENCE);
                    let at = Instant::now();
                    client.call("control", json!({ "type": "CANCEL", "graceMs": 300 })).unwrap();
                    let story = client.story();
                    let took = at.elapsed();
                    assert!(procs::with_argument(&mark).is_empty(), "gone before it is said");
                    let cancel = &story.end["cancel"];
                    let expected = json!({ "verified": true, "survivors": 0, "graceMs": 300, "escalated": true, "evidence": "echild" });
                    assert_eq!((story.end["status"].as_str(), cancel), (Some("CANCELLED"), &expected));
                    assert!(took >= GRACE && took < GRACE + Duration::from_millis(500), "lane {lane}, round {round}: {took:?}");
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
    // The command, its child, and its shim, which has to live.
    let command = "cat /proc/$$/oom_score_adj; (cat /proc/self/oom_score_adj); cat /proc/$PPID/oom_score_adj";
    for pty in [json!(null), json!({ "rows": 24, "cols": 80 })] {
        let mut params = json!({ "command": command });
        if !pty.is_null() {
            params["pty"] = pty;
        }
        let story = service.connect().run(params);
        let said: Vec<i32> = story.text().split_whitespace().map(|word| word.parse().unwrap()).collect();
        assert_eq!(said, [own.max(500), own.max(500), own]);
    }
    assert_eq!(score(&service.pid().to_string()).unwrap(), own);
}
