//! What an execution used, and whether memory ran out: as the kernel counted it.

mod memory;

use std::{fs, path::Path};

use cc_executor_actors::outcome::{Reason, Usage};
use serde_json::{Value, json};

use crate::common::{containment::Mode, left_out, recording::Recording, service::Service, temp::TempPath};

/// A Python program that uses so much processor time, in seconds. It starts with the time that Python needed to start.
fn burn(seconds: f64) -> String {
    format!("python3 -c 'import time\nwhile time.process_time() < {seconds}: pass'")
}

fn usage_of(recording: &Recording) -> Usage {
    recording.outcome.as_ref().and_then(|outcome| outcome.usage).expect("the usage is known")
}

/// A field of `time -v`, in its own unit.
fn reported(report: &str, name: &str) -> f64 {
    let line = report.lines().find_map(|line| line.trim().strip_prefix(name)).expect("time reports it");
    line.trim_start_matches(':').trim().parse().expect("a number")
}

fn assert_near(ours: f64, theirs: f64, what: &str) {
    assert!((ours - theirs).abs() <= theirs * 0.2, "{what}: {ours}, and by /usr/bin/time {theirs}");
}

#[test]
fn usage_is_that_of_usr_bin_time() {
    if !Path::new("/usr/bin/time").exists() {
        return left_out("usage beside that of /usr/bin/time", "/usr/bin/time (the package time)");
    }
    let cpu_bound = format!("{0} & {0} & wait", burn(0.6));
    // The child takes its memory while the parent has its own.
    let memory_bound = "python3 -c 'import subprocess
kept = bytes([1]) * 100_000_000
subprocess.run([\"python3\", \"-c\", \"for n in range(20): bytes([1]) * 150_000_000\"])'";
    Mode::for_each(|mode| {
        let service = mode.service(&[]);
        for command in [cpu_bound.as_str(), memory_bound] {
            let report = TempPath::with_content("time", "");
            report.set_mode(0o666);
            let timed = "exec /usr/bin/time -v -o \"$REPORT\" bash -c \"$COMMAND\"";
            let env = json!({ "REPORT": report.as_str(), "COMMAND": command });
            let recording = service.connect().run(json!({ "command": timed, "env": env }));
            assert_eq!(recording.reason(), Reason::Exit, "{}", recording.end);
            let usage = usage_of(&recording);
            let report = fs::read_to_string(&*report).unwrap();
            let seconds = |name: &str| reported(&report, name) * 1_000.0;
            let (user, system) = (seconds("User time (seconds)"), seconds("System time (seconds)"));
            assert_near((usage.cpu_user_ms + usage.cpu_system_ms) as f64, user + system, "processor time");
            assert_near(usage.cpu_user_ms as f64, user, "user time");
            let size = reported(&report, "Maximum resident set size (kbytes)") * 1_024.0;
            assert_near(usage.max_process_rss_bytes as f64, size, "the largest process");
            if command == memory_bound {
                assert!(usage.max_process_rss_bytes < 250_000_000, "it is not the sum: {usage:?}");
                assert!(usage.peak_tree_bytes.is_none_or(|peak| peak > 250_000_000), "the peak is: {usage:?}");
            }
            assert!(mode == Mode::Cgroup || usage.peak_tree_bytes.is_none(), "no cgroup of its own: {usage:?}");
        }
    });
}

/// Orphans count, because the shim reaps them. Children of a process that ignores SIGCHLD are reaped by nobody, and the
/// kernel adds their time to nothing.
#[test]
fn orphans_count_and_children_of_who_ignores_sigchld_do_not() {
    let service = Service::start();
    // Its parent ends at once, and `cat` waits for its end.
    let orphan = format!("(setsid {} &) | cat", burn(0.5));
    let usage = usage_of(&service.connect().run(json!({ "command": orphan })));
    assert!(usage.cpu_user_ms + usage.cpu_system_ms > 350, "{usage:?}");

    let program = "import os, signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nread, write = os.pipe()\nif os.fork() == 0:\n    \
         while os.times().user < 0.5: pass\n    os._exit(0)\nos.close(write)\nos.read(read, 1)";
    let recording = service.connect().run(json!({ "command": program, "executor": "python" }));
    assert_eq!(recording.reason(), Reason::Exit, "{}", recording.end);
    let usage = usage_of(&recording);
    assert!(usage.cpu_user_ms + usage.cpu_system_ms < 350, "{usage:?}");
}

#[test]
fn log_and_state_have_the_usage() {
    let backend = Service::backend();
    let id = "77777777-7777-4777-8777-777777777777";
    backend.post("/execute/stream", &json!({ "question": burn(0.2), "executionId": id }));
    let line = &backend.wait_for_event("process.finished", 1)[0];
    let usage = &backend.get(&format!("/executions/{id}"))["ending"]["usage"];
    for (name, logged) in [
        ("cpuUserMs", "cpu_user_ms"),
        ("cpuSystemMs", "cpu_system_ms"),
        ("maxProcessRssBytes", "max_process_rss_bytes"),
        ("peakTreeBytes", "peak_tree_bytes"),
    ] {
        assert_eq!(line[logged], usage[name], "{name}: {line} {usage}");
    }
    assert!(usage["cpuUserMs"].as_u64().unwrap() + usage["cpuSystemMs"].as_u64().unwrap() >= 190, "{usage}");
    assert!(usage["maxProcessRssBytes"].as_u64().unwrap() > 1_000_000, "{usage}");
}

#[test]
fn usage_is_null_where_nobody_has_seen_the_end() {
    let service = Service::start();
    for (command, reason) in [("kill -9 $PPID; sleep 100", "backend_lost"), ("true", "not_started")] {
        let cwd = if reason == "not_started" { "/no/such/directory" } else { "/" };
        let mut client = service.connect();
        let _ = client.call("execute", json!({ "command": command, "cwd": cwd }));
        let end = client.record().end;
        assert_eq!((&end["reason"], end.get("usage")), (&json!(reason), Some(&Value::Null)), "{end}");
    }
}
