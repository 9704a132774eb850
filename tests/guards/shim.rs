//! Commands that stop, kill or limit their shim.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use cc_executor_actors::{
    outcome::{Reason, Status},
    rpc::code,
};
use rustix::process::Signal;
use serde_json::json;

use super::begin;
use crate::common::{
    PATIENCE,
    client::Client,
    containment::{Mode, assert_verified, is_subreaper, shim_of},
    procs, scale,
    service::{Service, kill},
    temp::directory,
    wait_until, wait_until_stable,
};

/// The evidence of an ending for which the guards were attacked.
const EVIDENCE: &[&str] = &["echild", "swept", "pid_namespace"];

#[test]
fn stopped_shim_does_not_delay_a_time_out() {
    Mode::for_all_at_once(|mode| {
        let service = mode.service(&[]);
        let mark = procs::mark();
        let at = Instant::now();
        let recording =
            service.connect().run(json!({ "command": format!("kill -STOP $PPID; sleep {mark}"), "timeoutMs": 3000 }));
        assert_eq!(recording.ending(), (Status::Failed, Reason::Timeout));
        assert!(at.elapsed() < Duration::from_secs(4), "{:?}", at.elapsed());
        assert_verified(&recording.end, EVIDENCE);
        assert!(procs::with_argument(&mark).is_empty());
    });
}

#[test]
fn stopped_shim_delays_neither_cancel_nor_the_release_of_its_slot() {
    Mode::for_all_at_once(|mode| {
        let service = mode.service(&["--max-executions", "4"]);
        let mut held: Vec<(Client, String)> = (0..4)
            .map(|_| {
                let (mut client, mark) = (service.connect(), procs::mark());
                client.execute(json!({ "command": format!("kill -STOP $PPID; sleep {mark}") }));
                procs::wait_for(&mark, 1, PATIENCE);
                (client, mark)
            })
            .collect();
        for (client, mark) in &mut held {
            // Again, because the service may have resumed it by now.
            kill(shim_of(procs::wait_for(mark, 1, PATIENCE)[0]), Signal::STOP);
            let at = Instant::now();
            client.cancel_with_grace(200);
            let recording = client.record();
            assert!(at.elapsed() < Duration::from_millis(2_200), "{:?}", at.elapsed());
            assert_eq!(recording.status(), Status::Cancelled);
            assert_verified(&recording.end, EVIDENCE);
            assert!(procs::with_argument(mark).is_empty());
        }
        let recording = service.connect().run(json!({ "command": "echo all slots are free" }));
        assert_eq!(recording.text(), "all slots are free\n");
    });
}

/// Whether a process is a shim or the subreaper.
fn is_guard(pid: u32) -> bool {
    is_subreaper(pid) || procs::name(pid).is_some_and(|name| name == "cc-shim")
}

#[test]
fn no_process_outlives_the_service_with_stopped_shims() {
    Mode::for_all_at_once(|mode| {
        for signal in [Signal::TERM, Signal::KILL] {
            let mut service = mode.service(&["--drain-ms", "2000"]);
            let mut clients = Vec::new();
            let stop = "kill -STOP $1";
            // In a PID namespace the parent of the shim is 0, which would be the attacker's own process group.
            let stop_both = "s=$(cut -d' ' -f4 /proc/$1/stat); [ $s = 0 ] || kill -STOP $s; kill -STOP $1";
            let stop_all = "kill -STOP $1 $2";
            let marks: Vec<_> = [stop, stop_both, stop_all, "true"].map(|attack| (attack, procs::mark())).into();
            for (attack, mark) in &marks {
                let mut client = service.connect();
                // The attacker gets the mark when the attack is over, because one after the end of the service would stop
                // guards that nothing resumes.
                let attacker = format!("setsid sh -c \"$ATTACK; exec sleep {mark}\" - $PPID $$");
                client.execute(json!({
                    "command": format!("sleep {mark} & setsid sleep {mark} & {attacker} & wait"),
                    "env": { "ATTACK": attack },
                }));
                procs::wait_for(mark, 3, PATIENCE);
                clients.push(client);
            }
            let descendants = procs::descendants(service.pid());
            assert!(descendants.len() > marks.len(), "a subreaper, shims and commands: {descendants:?}");
            // Again, because the service may have resumed those that the commands have stopped.
            for guard in descendants.iter().filter(|pid| is_guard(**pid)) {
                kill(*guard, Signal::STOP);
            }
            service.signal(signal);
            let _ = service.wait(Duration::from_secs(5));
            wait_until("no process of the service is left", Duration::from_secs(2), || {
                marks.iter().all(|(_, mark)| procs::with_argument(mark).is_empty())
                    && descendants.iter().all(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true))
            });
        }
    });
}

/// The shim is stopped before it can report that the command runs.
#[test]
fn requests_are_answered_if_the_shim_is_stopped_at_once() {
    Mode::for_all_at_once(|mode| {
        let executors = json!({ "stopper": ["dash", "-c", "kill -STOP $PPID; exec sleep $0"] }).to_string();
        let service = mode.service(&["--executors", &executors]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let service = &service;
                scope.spawn(move || {
                    for _ in 0..scale(5, 60) {
                        let (mut client, mark) = (service.connect(), procs::mark());
                        let at = Instant::now();
                        begin(&mut client, json!({ "command": mark, "executor": "stopper" }));
                        assert!(at.elapsed() < Duration::from_secs(6), "{:?}", at.elapsed());
                        let canceled = client.call("control", json!({ "type": "CANCEL", "graceMs": 0 }));
                        assert!(canceled.is_ok(), "{canceled:?}");
                        let recording = client.record();
                        assert_eq!(recording.status(), Status::Cancelled, "{}", recording.end);
                        assert_verified(&recording.end, EVIDENCE);
                        assert!(procs::with_argument(&mark).is_empty());
                    }
                });
            }
        });
    });
}

/// The shim must wait, and find its children, without opening a file, because the command has limited its descriptors. A
/// poll(2) of more descriptors than the limit fails; with 0 every poll does.
#[test]
fn shim_without_free_descriptors_ends_escaped_descendants() {
    Mode::for_each(|mode| {
        for limit in [3, 0] {
            let service = mode.service(&[]);
            let (mut client, mark) = (service.connect(), procs::mark());
            let lower = format!("prlimit --pid $PPID --nofile={limit}:{limit}");
            client.execute(json!({ "command": format!("{lower}; setsid sleep {mark} & echo ready; sleep {mark}") }));
            procs::wait_for(&mark, 2, PATIENCE);
            client.cancel_with_grace(500);
            let recording = client.record();
            assert_eq!(recording.status(), Status::Cancelled);
            // The shim itself has seen the end: it was not lost.
            assert_verified(&recording.end, &["echild"]);
            assert!(procs::with_argument(&mark).is_empty(), "gone before the ending is sent");
        }
    });
}

/// The service must prove that the processes are gone without opening a file, because its own descriptors are used up.
#[test]
fn tree_of_a_killed_shim_is_ended_without_free_descriptors() {
    let service = Service::start();
    let (mut client, mark) = (service.connect(), procs::mark());
    client.execute(json!({ "command": format!("setsid sleep {mark} & (sleep {mark} & sleep {mark}) & wait") }));
    let process = procs::wait_for(&mark, 3, PATIENCE)[0];
    let shim = shim_of(process);
    // No peer can take the last descriptors, so the limit comes to them.
    let is_free = |n: &u64| !Path::new(&format!("/proc/{}/fd/{n}", service.pid())).exists();
    let limit = (0..).find(is_free).expect("a number is free");
    let output = Command::new("prlimit")
        .args([format!("--pid={}", service.pid()), format!("--nofile={limit}:{limit}")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    kill(shim, Signal::KILL);
    let recording = client.record();
    assert_eq!(recording.ending(), (Status::Failed, Reason::BackendLost));
    assert_verified(&recording.end, &["swept", "cgroup_empty"]);
    assert!(procs::with_argument(&mark).is_empty(), "gone before the ending is sent");
}

#[test]
fn program_that_kills_its_shim_at_once_is_not_reported_as_not_started() {
    Mode::for_each(|mode| {
        let executors = json!({ "killer": ["dash", "-c", "kill -9 $PPID; exec sleep $0"] }).to_string();
        let service = mode.service(&["--executors", &executors]);
        // A command cannot kill a shim that it cannot signal, so it runs until its time-out.
        let (expected, timeout_ms) =
            if mode.shim_is_reachable() { (Reason::BackendLost, 20_000) } else { (Reason::Timeout, 300) };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let service = &service;
                scope.spawn(move || {
                    for _ in 0..scale(8, 60) {
                        let (mut client, mark) = (service.connect(), procs::mark());
                        begin(&mut client, json!({ "command": mark, "executor": "killer", "timeoutMs": timeout_ms }));
                        let recording = client.record();
                        assert_eq!(recording.reason(), expected, "{}", recording.end);
                        assert_verified(&recording.end, EVIDENCE);
                        assert!(procs::with_argument(&mark).is_empty(), "gone before the ending is sent");
                    }
                });
            }
        });
    });
}

#[test]
fn killed_shim_frees_its_slot_with_full_ring_and_no_consumer() {
    Mode::for_each(|mode| {
        let service = mode.service(&["--max-executions", "1", "--ring-bytes", "65536"]);
        let (mut client, mark) = (service.connect(), procs::mark());
        let id = client.execute(json!({
            "command": format!("sleep {mark} & seq 1 1000000 & wait"), "onDisconnect": "detach", "detachMs": 600_000
        }));
        let process = procs::wait_for(&mark, 1, PATIENCE)[0];
        client.disconnect();
        let mut other = service.connect();
        wait_until_stable("the bytes in the full ring", 65_536, Duration::from_millis(100), || {
            other.call("status", json!({ "executionId": id })).unwrap()["offsets"]["stdout"].as_u64().unwrap_or(0)
        });
        kill(shim_of(process), Signal::KILL);
        let at = Instant::now();
        begin(&mut other, json!({ "command": "echo free" }));
        assert_eq!(other.record().text(), "free\n");
        assert!(at.elapsed() < Duration::from_secs(2), "{:?}", at.elapsed());
        let status = other.call("status", json!({ "executionId": id })).unwrap();
        assert_eq!((&status["status"], &status["reason"]), (&json!("FAILED"), &json!("backend_lost")));
    });
}

/// A process in vfork cannot be stopped.
#[test]
fn processes_in_vfork_delay_neither_pause_nor_cancel() {
    const PROGRAM: &str = "#include <unistd.h>\n\
        int main() { for (int n = 0; n < 200; n++) if (!fork()) { if (!vfork()) { pause(); _exit(0); } pause(); }\n\
        write(1, \"ready\\n\", 6); pause(); }";
    let directory = directory("vfork");
    let program = directory.join("vfork");
    fs::write(directory.join("vfork.c"), PROGRAM).unwrap();
    let built = Command::new("cc").arg("-o").arg(&program).arg(directory.join("vfork.c")).status();
    assert!(built.is_ok_and(|status| status.success()), "Rust needs a linker, so there is a C compiler");
    Mode::for_each(|mode| {
        let service = mode.service(&[]);
        let mut client = service.connect();
        client.execute(json!({ "command": program.to_str().unwrap() }));
        client.wait_for("output");
        wait_until("all processes run", PATIENCE, || procs::descendants(service.pid()).len() > 400);
        let paused = client.call("control", json!({ "type": "PAUSE" }));
        match mode {
            Mode::Cgroup => {
                assert_eq!(paused.unwrap()["status"], "PAUSED");
                client.wait_for_status(Status::Paused);
            }
            _ => {
                let error = paused.unwrap_err();
                assert_eq!(error.code, code::NOT_RUNNING, "{error}");
                assert!(error.message.contains("cannot be stopped now"), "{error}");
            }
        }
        let at = Instant::now();
        client.cancel_with_grace(0);
        let recording = client.record();
        assert!(at.elapsed() < Duration::from_secs(1), "{:?}", at.elapsed());
        assert_eq!(recording.status(), Status::Cancelled);
        assert_verified(&recording.end, &["echild"]);
        wait_until("no process of the command is left", PATIENCE, || procs::descendants(service.pid()).len() < 3);
    });
    let _ = fs::remove_dir_all(directory);
}
