//! What is asked of a command while it runs: to stand still, to read, to take a size; and its clocks.

use std::{
    fs,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    client::{Client, Recording},
    procs,
    service::{Service, kill},
    stub::{Stub, chunk, chunked_head, respond},
    wait_until,
};

/// The state of a process as /proc shows it: T is stopped.
fn state(pid: u32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('?')
}

fn control(client: &mut Client, kind: &str) -> Result<Value, Value> {
    client.call("control", json!({ "type": kind }))
}

fn until(client: &mut Client, story: &mut Recording, part: &str) {
    client.follow(story, |story| String::from_utf8_lossy(&story.stdout).contains(part));
}

#[test]
fn pause_stops_the_whole_tree_and_resume_continues_it() {
    let service = Service::start();
    let mark = procs::mark();
    let mut client = service.connect();
    // Three levels, one in a session of its own, one whose parent is gone.
    let command =
        format!("sleep {mark} & (setsid sleep {mark} & sleep {mark} & wait) & (sleep {mark} &) ; exec sleep {mark}");
    client.execute(json!({ "command": command }));
    let all = procs::wait_for(&mark, 5, PATIENCE);
    assert_eq!(control(&mut client, "PAUSE").unwrap()["status"], "PAUSED");
    assert!(all.iter().all(|pid| state(*pid) == 'T'), "{:?}", all.iter().map(|pid| state(*pid)).collect::<Vec<_>>());
    assert_eq!(client.status("PAUSED")["scope"], "process");
    assert_eq!(control(&mut client, "PAUSE").unwrap()["status"], "PAUSED", "twice is a success");
    assert_eq!(control(&mut client, "RESUME").unwrap()["status"], "RUNNING");
    assert!(all.iter().all(|pid| state(*pid) != 'T'));
    client.status("RUNNING");
    assert_eq!(control(&mut client, "RESUME").unwrap()["status"], "RUNNING", "twice is a success");
    control(&mut client, "PAUSE").unwrap();
    let at = Instant::now();
    control(&mut client, "CANCEL").unwrap();
    let story = client.story();
    assert!(at.elapsed() < Duration::from_secs(1), "TERM arrives although it stood still: {:?}", at.elapsed());
    assert_eq!((&story.end["reason"], &story.end["cancel"]["verified"]), (&json!("canceled"), &json!(true)));
    assert_eq!(story.end["signal"], "SIGTERM");
    assert!(procs::with_argument(&mark).is_empty());
}

#[test]
fn pause_stops_a_tree_that_keeps_forking() {
    let service = Service::start();
    let mut client = service.connect();
    client.execute(json!({ "command": "while :; do (true); echo x; done" }));
    client.seen("output");
    for _ in 0..20 {
        control(&mut client, "PAUSE").unwrap();
        let before = client.call("status", json!({})).unwrap()["offsets"]["stdout"].clone();
        assert_eq!(client.call("ping", json!({})), Ok(json!({})));
        // What was in the pipe when it stopped may still come; then nothing does.
        let mut last = before;
        wait_until("nothing more is written", PATIENCE, || {
            std::thread::sleep(Duration::from_millis(20));
            let now = client.call("status", json!({})).unwrap()["offsets"]["stdout"].clone();
            std::mem::replace(&mut last, now.clone()) == now
        });
        control(&mut client, "RESUME").unwrap();
        let paused_at = last.as_u64().unwrap();
        wait_until("it goes on", PATIENCE, || {
            client.call("status", json!({})).unwrap()["offsets"]["stdout"].as_u64().unwrap() > paused_at
        });
    }
    control(&mut client, "CANCEL").unwrap();
    assert_eq!(client.story().end["cancel"]["verified"], true);
}

#[test]
fn job_control_shell_does_not_notice_a_pause() {
    let service = Service::start();
    let mark = procs::mark();
    let mut client = service.connect();
    let pty = json!({ "rows": 24, "cols": 80 });
    client.execute(json!({ "command": "PS1='$ ' exec bash --norc --noprofile -i", "pty": pty }));
    client.call("input", json!({ "data": format!("sleep {mark}; echo after-$?\n") })).unwrap();
    let pid = procs::wait_for(&mark, 1, PATIENCE)[0];
    for _ in 0..10 {
        control(&mut client, "PAUSE").unwrap();
        assert_eq!(state(pid), 'T');
        control(&mut client, "RESUME").unwrap();
        assert_ne!(state(pid), 'T');
    }
    kill(pid, Signal::TERM);
    client.call("input", json!({ "data": "exit 7\n" })).unwrap();
    let story = client.story();
    let text = String::from_utf8_lossy(&story.stdout).into_owned();
    assert!(text.contains("after-143") && !text.contains("Stopped"), "{text:?}");
    assert_eq!(story.end["exit_code"], 7);
}

#[test]
fn time_outs_are_suspended_while_paused() {
    let service = Service::start();
    let mut client = service.connect();
    let command = "echo ready; for i in 1 2 3 4; do sleep 0.1; echo $i; done";
    client.execute(json!({ "command": command, "timeoutMs": 2_500, "stallTimeoutMs": 2_000, "heartbeatMs": 1_000 }));
    client.seen("output");
    control(&mut client, "PAUSE").unwrap();
    // Three heartbeats: longer than either time-out.
    let mut story = Recording::default();
    client.follow(&mut story, |story| story.with_status("PAUSED").len() == 4);
    let left: Vec<_> =
        story.with_status("PAUSED").into_iter().map(|update| update["deadlineMs"].as_u64().unwrap()).collect();
    assert!(left.iter().all(|ms| ms.abs_diff(left[0]) <= 2), "{left:?}");
    control(&mut client, "RESUME").unwrap();
    client.follow(&mut story, |_| false);
    assert_eq!(
        (story.end["status"].as_str(), story.end["exit_code"].as_i64()),
        (Some("COMPLETED"), Some(0)),
        "{}",
        story.end
    );
    assert!(story.end["elapsedMs"].as_u64().unwrap() > 2_500);
}

#[test]
fn stall_timeout_ends_a_silent_command_and_not_a_blocked_one() {
    let service = Service::start();
    let mut client = service.connect();
    // Longer than a shell needs to start, or is kept from the processor, on a machine that is busy.
    let stall_ms = 2_000;
    let story = client.run(json!({ "command": "echo x; sleep 1000", "stallTimeoutMs": stall_ms }));
    assert_eq!((&story.end["status"], &story.end["reason"]), (&json!("FAILED"), &json!("stalled")));
    assert_eq!((story.errors[0]["code"].as_i64(), story.stdout.as_slice()), (Some(-32012), &b"x\n"[..]));
    let command = "for i in {1..12}; do echo $i; sleep 0.2; done";
    let story = client.run(json!({ "command": command, "stallTimeoutMs": stall_ms }));
    assert_eq!(story.end["status"], "COMPLETED", "each line starts the time anew: {}", story.end);
    assert!(story.end["elapsedMs"].as_u64() > Some(stall_ms));

    // A client that does not read for longer than that: the command is blocked on a full pipe.
    client.request("execute", json!({ "command": "exec head -c 60000000 /dev/zero", "stallTimeoutMs": stall_ms }));
    service.wait_for_event("process.started", 3);
    let pid = service.log().iter().rfind(|line| line["event"] == "process.started").unwrap()["pid"].clone();
    let wchar = || {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse::<u64>().ok()).unwrap_or(0)
    };
    let (mut before, mut since) = (0, Instant::now());
    wait_until("it is held back for longer than the stall time", PATIENCE, || {
        let now = wchar();
        if now != before || now < 1_000_000 {
            (before, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_millis(2 * stall_ms)
    });
    let story = client.story();
    assert_eq!((story.end["status"].as_str(), story.stdout.len()), (Some("COMPLETED"), 60_000_000), "{}", story.end);
}

#[test]
fn pty_streams_resizes_and_takes_input() {
    let service = Service::start();
    let mut client = service.connect();
    let slowly = "python3 -c 'import time\nfor i in range(4): print(i); time.sleep(0.3)'";
    client.execute(json!({ "command": slowly, "pty": { "rows": 30, "cols": 100 } }));
    let mut story = Recording::default();
    until(&mut client, &mut story, "0\r\n");
    assert!(story.end.is_null(), "the first line comes while it runs");
    client.follow(&mut story, |_| false);
    assert_eq!(String::from_utf8_lossy(&story.stdout), "0\r\n1\r\n2\r\n3\r\n");
    assert!(story.n_messages >= 4, "{} messages", story.n_messages);

    client.execute(
        json!({ "command": "stty size; read x; stty size; cat; echo over", "pty": { "rows": 30, "cols": 100 } }),
    );
    let mut story = Recording::default();
    until(&mut client, &mut story, "30 100\r\n");
    assert_eq!(client.call("resize", json!({ "rows": 11, "cols": 22 })), Ok(json!({})));
    client.call("input", json!({ "data": "\n" })).unwrap();
    until(&mut client, &mut story, "11 22\r\n");
    client.call("input", json!({ "data": "typed\n", "eof": true })).unwrap();
    client.follow(&mut story, |_| false);
    assert!(
        String::from_utf8_lossy(&story.stdout).ends_with("over\r\n"),
        "{:?}",
        String::from_utf8_lossy(&story.stdout)
    );
    assert_eq!(story.end["status"], "COMPLETED");
    for (command, code) in [("/no/such/program", 127), ("/etc/passwd", 126)] {
        let service = Service::with(&["serve", "--executors", &format!(r#"{{"x":["{command}"]}}"#)], &[]);
        let mut client = service.connect();
        client.request("execute", json!({ "command": "x", "executor": "x", "pty": { "rows": 1, "cols": 1 } }));
        let story = client.story();
        assert_eq!((&story.end["reason"], story.end["exit_code"].as_i64()), (&json!("not_started"), Some(code)));
    }
}

#[test]
fn cancel_leaves_no_process_of_an_interactive_shell() {
    let service = Service::start();
    let mark = procs::mark();
    let mut client = service.connect();
    client.execute(json!({ "command": "exec bash --norc -i", "pty": { "rows": 24, "cols": 80 } }));
    let jobs = format!("sleep {mark} & nohup sleep {mark} >/dev/null & setsid sleep {mark} &\n");
    client.call("input", json!({ "data": jobs })).unwrap();
    procs::wait_for(&mark, 3, PATIENCE);
    client.call("control", json!({ "type": "CANCEL", "graceMs": 200 })).unwrap();
    assert_eq!(client.story().end["cancel"]["verified"], true);
    assert!(procs::with_argument(&mark).is_empty());
}

#[test]
fn input_arrives_in_order_and_is_refused_when_stdin_is_closed() {
    let service = Service::start();
    let mut client = service.connect();
    client.execute(json!({ "command": "sha256sum", "stdin": true }));
    let mut sent = Vec::new();
    for n in 0..200u32 {
        let piece: String = (0..2_000).map(|at| char::from(b'a' + ((n + at) % 26) as u8)).collect();
        client.notify("input", json!({ "data": piece }));
        sent.extend_from_slice(piece.as_bytes());
    }
    assert_eq!(client.call("input", json!({ "dataBase64": "AP8=", "eof": true })).unwrap()["accepted"], 2);
    sent.extend_from_slice(&[0, 0xff]);
    let story = client.story();
    use sha2::Digest;
    assert!(String::from_utf8_lossy(&story.stdout).starts_with(&format!("{:x}", sha2::Sha256::digest(&sent))));

    client.execute(json!({ "command": "exec 0<&-; echo closed; sleep 1000", "stdin": true }));
    let mut story = Recording::default();
    until(&mut client, &mut story, "closed");
    let error = client.call("input", json!({ "data": "nobody reads this" })).unwrap_err();
    assert_eq!(error["code"], -32003, "{error}");
    control(&mut client, "CANCEL").unwrap();
    client.story();

    // Nobody reads: what waits is bounded, and answered when the command ends.
    client.execute(json!({ "command": "echo ready; sleep 1000", "stdin": true }));
    client.seen("output");
    let waiting: Vec<_> = (0..4).map(|_| client.request("input", json!({ "data": "x".repeat(300_000) }))).collect();
    assert_eq!(client.response(waiting[3]).unwrap_err()["code"], -32009, "more than 1 MiB would wait");
    control(&mut client, "CANCEL").unwrap();
    for id in &waiting[..3] {
        assert_eq!(client.response(*id).unwrap_err()["code"], -32003);
    }
    assert_eq!(client.story().end["status"], "CANCELLED");

    client.execute(json!({ "command": "cat; sleep 1000" }));
    for (method, params) in [("input", json!({ "data": "x" })), ("resize", json!({ "rows": 1, "cols": 1 }))] {
        assert_eq!(client.call(method, params).unwrap_err()["code"], -32002, "{method}");
    }
    client.close();
}

#[test]
fn stopped_backend_is_silent_after_three_heartbeats_and_lost_after_six() {
    let backend = Service::backend();
    let gateway = Service::gateway(&backend.url());
    gateway.wait_for_event("backend.up", 1);
    let mut client = gateway.connect();
    client.execute(json!({ "command": "sleep 1000", "heartbeatMs": 1_000 }));
    client.status("RUNNING");
    backend.signal(Signal::STOP);
    let stopped_at = Instant::now();
    let silent_after = loop {
        let beat = client.notification("statusUpdate");
        if beat["backend"] == "silent" {
            break stopped_at.elapsed();
        }
    };
    assert!((2_500..5_500).contains(&silent_after.as_millis()), "{silent_after:?}");
    let story = client.story();
    let lost_after = stopped_at.elapsed();
    assert_eq!((&story.end["status"], &story.end["reason"]), (&json!("FAILED"), &json!("backend_lost")));
    assert!((4_500..9_000).contains(&lost_after.as_millis()), "{lost_after:?}");
    backend.signal(Signal::CONT);
    backend.wait_for_event("process.finished", 1);
    let line = backend.log().into_iter().find(|line| line["event"] == "process.finished").unwrap();
    assert_eq!(line["reason"], "disconnected", "and it is ended when the backend wakes up");
}

#[test]
fn resumed_backend_is_alive_again() {
    let backend = Service::backend();
    let gateway = Service::gateway(&backend.url());
    gateway.wait_for_event("backend.up", 1);
    let mut client = gateway.connect();
    client.execute(json!({ "command": "sleep 5.5; echo awake", "heartbeatMs": 1_000 }));
    backend.signal(Signal::STOP);
    while client.notification("statusUpdate")["backend"] != "silent" {}
    backend.signal(Signal::CONT);
    while client.notification("statusUpdate")["backend"] != "alive" {}
    let story = client.story();
    assert_eq!((story.stdout.as_slice(), story.end["status"].as_str()), (&b"awake\n"[..], Some("COMPLETED")));
}

#[test]
fn pause_with_a_legacy_image_holds_back_only_delivery() {
    let stub = Stub::start(|request, stream| {
        use std::io::Write;
        match request.path.as_str() {
            "/health" => respond(stream, 200, r#"{"status":"ok"}"#),
            _ => {
                let _ = stream.write_all(&chunked_head("text/plain"));
                for n in 0..40 {
                    if stream.write_all(&chunk(format!("{n}\n").as_bytes())).is_err() {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(25));
                }
                let _ = stream.write_all(&chunk(b""));
            }
        }
    });
    let service = Service::gateway(&stub.url());
    service.wait_for_event("backend.up", 1);
    let mut client = service.connect();
    client.execute(json!({ "command": "x", "heartbeatMs": 1_000, "timeoutMs": 1_800, "stallTimeoutMs": 1_500 }));
    client.seen("output");
    assert_eq!(control(&mut client, "PAUSE").unwrap()["status"], "PAUSED");
    let mut story = Recording::default();
    client.follow(&mut story, |story| story.with_status("PAUSED").len() == 3);
    let paused = story.with_status("PAUSED");
    assert_eq!(paused[0]["scope"], "delivery");
    assert_eq!(paused[1]["offsets"], paused[2]["offsets"], "nothing is delivered");
    assert_eq!(control(&mut client, "SIGNAL").unwrap_err()["code"], -32602);
    control(&mut client, "RESUME").unwrap();
    client.follow(&mut story, |_| false);
    assert_eq!(story.end["status"], "COMPLETED", "its time-outs stood still: {}", story.end);
}
