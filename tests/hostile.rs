//! Commands made of random hostile fragments, each ended in a random way. Nothing is left of any, no ending is invented,
//! and nothing is claimed that is not so.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    client::{Client, Frame, Recording},
    hostile::Mode,
    procs, random, scale,
    service::Service,
    wait_until,
};

/// What a command may do before it waits. MARK is an argument of every process that it leaves.
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

/// How a command is ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Interruption {
    Cancel,
    TimeOut,
    Disconnect,
    Itself,
}

/// A command, and the exit code that it has where nobody ends it.
fn command(next: &mut impl FnMut(u64) -> u64, mark: &str, way: Interruption) -> (String, u64) {
    let n = 1 + next(4);
    let mut lines: Vec<String> = (0..n)
        .map(|_| FRAGMENTS[usize::try_from(next(FRAGMENTS.len() as u64)).unwrap()].replace("MARK", mark))
        .collect();
    let code = next(100);
    lines.push(if way == Interruption::Itself { format!("exit {code}") } else { format!("sleep {mark}") });
    (lines.join("\n"), code)
}

/// What the ending may say, whatever was done: it is one of the true ones.
fn assert_true(way: Interruption, code: u64, end: &Value, source: &str) {
    let (status, reason) = (end["status"].as_str().unwrap(), end["reason"].as_str().unwrap());
    let guard_lost = reason == "backend_lost";
    let told = json!({ "way": format!("{way:?}"), "end": end, "command": source });
    match way {
        _ if guard_lost => assert_eq!(status, "FAILED", "{told}"),
        Interruption::Cancel => assert_eq!((status, reason), ("CANCELLED", "canceled"), "{told}"),
        Interruption::TimeOut => assert_eq!((status, reason), ("FAILED", "timeout"), "{told}"),
        // A shell that stopped itself, or that cannot fork, runs into the time-out instead.
        Interruption::Itself if reason == "timeout" => assert_eq!(status, "FAILED", "{told}"),
        Interruption::Itself => {
            assert_eq!(reason, "exit", "{told}");
            assert_eq!((status == "COMPLETED", end["exit_code"].as_u64()), (code == 0, Some(code)), "{told}");
        }
        Interruption::Disconnect => {}
    }
    if !end["cancel"].is_null() || way != Interruption::Itself {
        assert_eq!(end["cancel"]["verified"], true, "{told}");
    }
}

/// Reads a session to the end of its execution, and gives that.
fn ending(client: &mut Client) -> Value {
    let mut story = Recording::default();
    client.follow(&mut story, |_| false);
    story.end
}

fn one(service: &Service, next: &mut impl FnMut(u64) -> u64) {
    let mark = procs::mark();
    let way = [Interruption::Cancel, Interruption::TimeOut, Interruption::Disconnect, Interruption::Itself]
        [usize::try_from(next(4)).unwrap()];
    let (source, code) = command(next, &mark, way);
    let mut client = service.connect();
    let timeout_ms = match way {
        Interruption::TimeOut => 100 + next(400),
        _ => 4_000,
    };
    let answer = client.call("execute", json!({ "command": source, "timeoutMs": timeout_ms })).unwrap();
    let grace_ms = [0, 100, 300][usize::try_from(next(3)).unwrap()];
    // Anywhere in its life: as soon as it runs, or a moment later, as measured by what the machine does meanwhile.
    for _ in 0..next(3) {
        client.call("ping", json!({})).unwrap();
    }
    match way {
        Interruption::Cancel => {
            // It may have ended by its guard's loss: then there is nothing to cancel.
            let _ = client.call("control", json!({ "type": "CANCEL", "graceMs": grace_ms }));
        }
        Interruption::Disconnect => client.vanish_now(),
        Interruption::TimeOut | Interruption::Itself => {}
    }
    if way == Interruption::Disconnect {
        let id = answer["executionId"].as_str().unwrap().to_owned();
        let mut other = service.connect();
        let mut end = Value::Null;
        wait_until("it has ended", PATIENCE, || {
            end = other.call("status", json!({ "executionId": id })).unwrap();
            ["CANCELLED", "FAILED", "COMPLETED"].contains(&end["status"].as_str().unwrap_or_default())
        });
        assert_true(way, code, &end, &source);
    } else {
        assert_true(way, code, &ending(&mut client), &source);
    }
    wait_until(&format!("nothing is left of {source}"), Duration::from_secs(2), || {
        procs::with_argument(&mark).is_empty()
    });
}

/// The rounds of one mode, in lanes that run at a time. Each lane has a service of its own, which is killed now and then.
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
                        killed_with(&mut service, &mut next, mode);
                    } else {
                        one(&service, &mut next);
                    }
                }
            });
        }
    });
}

/// The service is killed, or told to end, while such a command runs.
fn killed_with(service: &mut Service, next: &mut impl FnMut(u64) -> u64, mode: Mode) {
    let mark = procs::mark();
    let (source, _) = command(next, &mark, Interruption::Cancel);
    let mut client = service.connect();
    client.call("execute", json!({ "command": source })).unwrap();
    for _ in 0..next(3) {
        client.call("ping", json!({})).unwrap();
    }
    let below = procs::below(service.pid());
    service.signal(if next(2) == 0 { Signal::KILL } else { Signal::TERM });
    let _ = service.wait(Duration::from_secs(10));
    let is_left =
        |pid: &&u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    wait_until(&format!("nothing is left of the service and {source}"), Duration::from_secs(2), || {
        procs::with_argument(&mark).is_empty() && below.iter().filter(is_left).count() == 0
    });
    while !matches!(client.recv(), Frame::End) {}
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
