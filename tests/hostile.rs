//! Commands of random hostile fragments, each ended in a random way: no process is left, and every ending is one of those
//! that are possible.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{PATIENCE, containment::Mode, procs, random, scale, service::Service, wait_until};

/// The fragments of which commands are made. MARK is an argument of every process that they leave.
const FRAGMENTS: &[&str] = &[
    "kill -STOP $PPID",
    "kill -KILL $PPID",
    "kill -TERM $PPID; kill -INT $PPID; kill -HUP $PPID",
    "kill -STOP $(cut -d' ' -f4 /proc/$PPID/stat)",
    "kill -CONT $PPID",
    "prlimit --pid $PPID --nofile=3:3",
    "prlimit --pid $PPID --nproc=1:1",
    "prlimit --pid $PPID --as=1000000:1000000",
    "prlimit --pid $PPID --cpu=1:1",
    "prlimit --pid $PPID --sigpending=0:0",
    "prlimit --pid $(cut -d' ' -f4 /proc/$PPID/stat) --nofile=4:4",
    "setsid sleep MARK &",
    "(setsid sleep MARK & sleep MARK &) &",
    "(trap '' TERM HUP INT; exec sleep MARK) &",
    "(exec >/dev/null 2>&1 </dev/null; setsid sleep MARK &)",
    "exec 1>&-",
    "exec 2>&-",
    "exec 5>&1 6>&2; sleep MARK 7>&1 &",
    "python3 -c 'import fcntl, os; fcntl.fcntl(1, 1031, 1 << 20); os.execlp(\"sleep\", \"sleep\", \"MARK\")' &",
    "unshare -p -f sleep MARK 2>/dev/null &",
    "unshare -m -n setsid sleep MARK 2>/dev/null &",
    "kill -STOP $$",
    "(kill -STOP $BASHPID; sleep MARK) &",
    "(while :; do (true & true &); done) 2>/dev/null & hog=$!; (sleep 0.3; kill -9 $hog) &",
    "for n in 1 2 3 4 5 6 7 8; do (setsid sleep MARK &); done",
    "renice 19 $PPID >/dev/null",
    "taskset -p 1 $PPID >/dev/null",
    "echo -17 >/proc/$PPID/oom_score_adj 2>/dev/null",
    "exec 9</proc/$PPID/cmdline; cat /proc/$PPID/environ >/dev/null 2>&1",
    "head -c 300000 /dev/zero | tr '\\0' x",
];

/// What ends a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Interruption {
    Cancel,
    TimeOut,
    Disconnect,
    Itself,
}

/// A random command, and the exit code that it has if it is not interrupted.
fn command(next: &mut impl FnMut(u64) -> u64, mark: &str, interruption: Interruption) -> (String, u64) {
    let n = 1 + next(4);
    let mut lines: Vec<String> = (0..n)
        .map(|_| FRAGMENTS[usize::try_from(next(FRAGMENTS.len() as u64)).unwrap()].replace("MARK", mark))
        .collect();
    let code = next(100);
    lines.push(if interruption == Interruption::Itself { format!("exit {code}") } else { format!("sleep {mark}") });
    (lines.join("\n"), code)
}

/// Checks that the ending is possible after this interruption.
fn assert_plausible(interruption: Interruption, code: u64, end: &Value, source: &str) {
    let (status, reason) = (end["status"].as_str().unwrap(), end["reason"].as_str().unwrap());
    let guard_lost = reason == "backend_lost";
    let context = json!({ "interruption": format!("{interruption:?}"), "end": end, "command": source });
    match interruption {
        _ if guard_lost => assert_eq!(status, "FAILED", "{context}"),
        Interruption::Cancel => assert_eq!((status, reason), ("CANCELLED", "canceled"), "{context}"),
        Interruption::TimeOut => assert_eq!((status, reason), ("FAILED", "timeout"), "{context}"),
        // A shell that stopped itself, or that cannot fork, times out instead.
        Interruption::Itself if reason == "timeout" => assert_eq!(status, "FAILED", "{context}"),
        Interruption::Itself => {
            assert_eq!(reason, "exit", "{context}");
            assert_eq!((status == "COMPLETED", end["exit_code"].as_u64()), (code == 0, Some(code)), "{context}");
        }
        Interruption::Disconnect => {}
    }
    if !end["cancel"].is_null() || interruption != Interruption::Itself {
        assert_eq!(end["cancel"]["verified"], true, "{context}");
    }
}

fn run_round(service: &Service, next: &mut impl FnMut(u64) -> u64) {
    let mark = procs::mark();
    let interruption = [Interruption::Cancel, Interruption::TimeOut, Interruption::Disconnect, Interruption::Itself]
        [usize::try_from(next(4)).unwrap()];
    let (source, code) = command(next, &mark, interruption);
    let mut client = service.connect();
    let timeout_ms = match interruption {
        Interruption::TimeOut => 100 + next(400),
        _ => 4_000,
    };
    let answer = client.call("execute", json!({ "command": source, "timeoutMs": timeout_ms })).unwrap();
    let grace_ms = [0, 100, 300][usize::try_from(next(3)).unwrap()];
    // The pings delay the interruption by a time that depends on the machine's load.
    for _ in 0..next(3) {
        client.call("ping", json!({})).unwrap();
    }
    match interruption {
        Interruption::Cancel => {
            // Refused if the execution has already ended by the loss of a guard.
            let _ = client.call("control", json!({ "type": "CANCEL", "graceMs": grace_ms }));
        }
        Interruption::Disconnect => client.shut_down(),
        Interruption::TimeOut | Interruption::Itself => {}
    }
    if interruption == Interruption::Disconnect {
        let id = answer["executionId"].as_str().unwrap().to_owned();
        let mut other = service.connect();
        let mut end = Value::Null;
        wait_until("the execution has ended", PATIENCE, || {
            end = other.call("status", json!({ "executionId": id })).unwrap();
            ["CANCELLED", "FAILED", "COMPLETED"].contains(&end["status"].as_str().unwrap_or_default())
        });
        assert_plausible(interruption, code, &end, &source);
    } else {
        assert_plausible(interruption, code, &client.record().end, &source);
    }
    wait_until(&format!("no process is left of {source}"), Duration::from_secs(2), || {
        procs::with_argument(&mark).is_empty()
    });
}

/// Runs `n` rounds in one mode, in four lanes at once. Each lane has a service, which some rounds kill or shut down.
fn rounds(mode: Mode, n: usize, seed: u64) {
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        for lane in 0..4u64 {
            let done = &done;
            scope.spawn(move || {
                let mut next = random(seed * 100 + lane + 1);
                let mut service = mode.service(&["--drain-ms", "1000"]);
                while done.fetch_add(1, Ordering::Relaxed) < n {
                    if next(8) == 0 {
                        end_service_with(&mut service, &mut next, mode);
                    } else {
                        run_round(&service, &mut next);
                    }
                }
            });
        }
    });
}

/// Kills the service, or sends it SIGTERM, while a random command runs.
fn end_service_with(service: &mut Service, next: &mut impl FnMut(u64) -> u64, mode: Mode) {
    let mark = procs::mark();
    let (source, _) = command(next, &mark, Interruption::Cancel);
    let mut client = service.connect();
    client.call("execute", json!({ "command": source })).unwrap();
    for _ in 0..next(3) {
        client.call("ping", json!({})).unwrap();
    }
    let descendants = procs::descendants(service.pid());
    service.signal(if next(2) == 0 { Signal::KILL } else { Signal::TERM });
    let _ = service.wait(Duration::from_secs(10));
    let is_alive = |pid: &u32| procs::state(*pid).is_some_and(|state| state != 'Z');
    wait_until(&format!("no process is left of the service and of {source}"), Duration::from_secs(2), || {
        procs::with_argument(&mark).is_empty() && !descendants.iter().any(is_alive)
    });
    client.read_to_end();
    *service = mode.service(&["--drain-ms", "1000"]);
}

#[test]
fn random_hostile_commands_leave_no_process_and_end_truthfully() {
    let modes = Mode::all();
    let n = scale(100, 1_000) / modes.len();
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    for (at, mode) in modes.into_iter().enumerate() {
        eprintln!("containment: {mode:?}");
        rounds(mode, n, seed + at as u64);
    }
}
