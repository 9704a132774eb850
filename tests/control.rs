//! Control requests to a running command: pause, resume, input, resize; and the time-outs, which a pause suspends.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use cc_executor_actors::{
    outcome::{Reason, Scope, Status},
    protocol::notification::BackendHealth,
    rpc::{ErrorObject, code},
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    client::Client,
    merged, procs,
    recording::Recording,
    service::{Service, kill},
    sha256,
    stub::{Stub, chunk, chunked_head},
    wait_until, wait_until_stable,
};

fn control(client: &mut Client, kind: &str) -> Result<Value, ErrorObject> {
    client.call("control", json!({ "type": kind }))
}

fn record_until_stdout(client: &mut Client, recording: &mut Recording, part: &str) {
    client.record_until(recording, |recording| String::from_utf8_lossy(&recording.stdout).contains(part));
}

/// The bytes of the execution's output that the backend has read so far.
fn bytes_read(client: &mut Client) -> u64 {
    client.call("status", json!({})).unwrap()["offsets"]["stdout"].as_u64().expect("an offset")
}

#[test]
fn pause_stops_the_whole_tree_and_resume_continues_it() {
    let service = Service::start();
    let mark = procs::mark();
    let mut client = service.connect();
    // Three levels, with a process in a session of its own, and one whose parent has exited.
    let command =
        format!("sleep {mark} & (setsid sleep {mark} & sleep {mark} & wait) & (sleep {mark} &) ; exec sleep {mark}");
    client.execute(json!({ "command": command }));
    let all = procs::wait_for(&mark, 5, PATIENCE);
    assert_eq!(control(&mut client, "PAUSE").unwrap()["status"], "PAUSED");
    assert!(
        all.iter().all(|pid| procs::state(*pid) == Some('T')),
        "{:?}",
        all.iter().map(|pid| procs::state(*pid)).collect::<Vec<_>>()
    );
    assert_eq!(client.wait_for_status(Status::Paused).scope, Some(Scope::Process));
    assert_eq!(control(&mut client, "PAUSE").unwrap()["status"], "PAUSED", "a repeated request succeeds");
    assert_eq!(control(&mut client, "RESUME").unwrap()["status"], "RUNNING");
    assert!(all.iter().all(|pid| procs::state(*pid) != Some('T')));
    client.wait_for_status(Status::Running);
    assert_eq!(control(&mut client, "RESUME").unwrap()["status"], "RUNNING", "a repeated request succeeds");
    control(&mut client, "PAUSE").unwrap();
    let at = Instant::now();
    control(&mut client, "CANCEL").unwrap();
    let recording = client.record();
    assert!(at.elapsed() < Duration::from_secs(1), "TERM ends a paused command: {:?}", at.elapsed());
    assert_eq!((recording.reason(), &recording.end["cancel"]["verified"]), (Reason::Canceled, &json!(true)));
    assert_eq!(recording.end["signal"], "SIGTERM");
    assert!(procs::with_argument(&mark).is_empty());
}

#[test]
fn pause_stops_a_tree_that_keeps_forking() {
    let service = Service::start();
    let mut client = service.connect();
    client.execute(json!({ "command": "while :; do (true); echo x; done" }));
    client.wait_for("output");
    for _ in 0..20 {
        control(&mut client, "PAUSE").unwrap();
        assert_eq!(client.call("ping", json!({})), Ok(json!({})));
        // Output that was in the pipe when the tree stopped may still be read.
        let paused_at = wait_until_stable("the bytes read", 0, Duration::from_millis(20), || bytes_read(&mut client));
        control(&mut client, "RESUME").unwrap();
        wait_until("the command continues", PATIENCE, || bytes_read(&mut client) > paused_at);
    }
    control(&mut client, "CANCEL").unwrap();
    assert_eq!(client.record().end["cancel"]["verified"], true);
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
        assert_eq!(procs::state(pid), Some('T'));
        control(&mut client, "RESUME").unwrap();
        assert_ne!(procs::state(pid), Some('T'));
    }
    kill(pid, Signal::TERM);
    client.call("input", json!({ "data": "exit 7\n" })).unwrap();
    let recording = client.record();
    let text = String::from_utf8_lossy(&recording.stdout).into_owned();
    assert!(text.contains("after-143") && !text.contains("Stopped"), "{text:?}");
    assert_eq!(recording.end["exit_code"], 7);
}

#[test]
fn time_outs_are_suspended_while_paused() {
    let service = Service::start();
    let mut client = service.connect();
    let command = "echo ready; for i in 1 2 3 4; do sleep 0.1; echo $i; done";
    client.execute(json!({ "command": command, "timeoutMs": 2_500, "stallTimeoutMs": 2_000, "heartbeatMs": 1_000 }));
    client.wait_for("output");
    control(&mut client, "PAUSE").unwrap();
    // Three heartbeats take longer than either time-out.
    let mut recording = Recording::default();
    client.record_until(&mut recording, |recording| recording.with_status(Status::Paused).len() == 4);
    let left: Vec<_> =
        recording.with_status(Status::Paused).into_iter().map(|update| update.deadline_ms.unwrap()).collect();
    assert!(left.iter().all(|ms| ms.abs_diff(left[0]) <= 2), "{left:?}");
    control(&mut client, "RESUME").unwrap();
    client.record_rest(&mut recording);
    assert_eq!(
        (recording.status(), recording.end["exit_code"].as_i64()),
        (Status::Completed, Some(0)),
        "{}",
        recording.end
    );
    assert!(recording.end["elapsedMs"].as_u64().unwrap() > 2_500);
}

#[test]
fn stall_timeout_ends_a_silent_command_and_not_a_blocked_one() {
    let service = Service::start();
    let mut client = service.connect();
    // Longer than a shell needs to start on a busy machine.
    let stall_ms = 2_000;
    let recording = client.run(json!({ "command": "echo x; sleep 1000", "stallTimeoutMs": stall_ms }));
    assert_eq!(recording.ending(), (Status::Failed, Reason::Stalled));
    assert_eq!((recording.errors[0].code, recording.stdout.as_slice()), (code::LIMIT, &b"x\n"[..]));
    let command = "for i in {1..12}; do echo $i; sleep 0.2; done";
    let recording = client.run(json!({ "command": command, "stallTimeoutMs": stall_ms }));
    assert_eq!(recording.status(), Status::Completed, "each line restarts the stall time-out: {}", recording.end);
    assert!(recording.end["elapsedMs"].as_u64() > Some(stall_ms));

    // The client does not read for longer than the stall time-out, so the command is blocked on a full pipe.
    client.request("execute", json!({ "command": "exec head -c 60000000 /dev/zero", "stallTimeoutMs": stall_ms }));
    let pid = service.wait_for_event("process.started", 3).pop().unwrap()["pid"].as_u64().unwrap() as u32;
    let blocked_for = Duration::from_millis(2 * stall_ms);
    wait_until_stable("the bytes that the blocked command writes", 1_000_000, blocked_for, || {
        procs::bytes_written(pid)
    });
    let recording = client.record();
    assert_eq!((recording.status(), recording.stdout.len()), (Status::Completed, 60_000_000), "{}", recording.end);
}

#[test]
fn pty_streams_resizes_and_takes_input() {
    let service = Service::start();
    let mut client = service.connect();
    let slowly = "python3 -c 'import time\nfor i in range(4): print(i); time.sleep(0.3)'";
    client.execute(json!({ "command": slowly, "pty": { "rows": 30, "cols": 100 } }));
    let mut recording = Recording::default();
    record_until_stdout(&mut client, &mut recording, "0\r\n");
    assert!(recording.end.is_null(), "the first line comes while it runs");
    client.record_rest(&mut recording);
    assert_eq!(String::from_utf8_lossy(&recording.stdout), "0\r\n1\r\n2\r\n3\r\n");
    assert!(recording.n_messages >= 4, "{} messages", recording.n_messages);

    client.execute(
        json!({ "command": "stty size; read x; stty size; cat; echo over", "pty": { "rows": 30, "cols": 100 } }),
    );
    let mut recording = Recording::default();
    record_until_stdout(&mut client, &mut recording, "30 100\r\n");
    assert_eq!(client.call("resize", json!({ "rows": 11, "cols": 22 })), Ok(json!({})));
    client.call("input", json!({ "data": "\n" })).unwrap();
    record_until_stdout(&mut client, &mut recording, "11 22\r\n");
    client.call("input", json!({ "data": "typed\n", "eof": true })).unwrap();
    client.record_rest(&mut recording);
    assert!(
        String::from_utf8_lossy(&recording.stdout).ends_with("over\r\n"),
        "{:?}",
        String::from_utf8_lossy(&recording.stdout)
    );
    assert_eq!(recording.status(), Status::Completed);
    for (command, code) in [("/no/such/program", 127), ("/etc/passwd", 126)] {
        let service = Service::with(&["serve", "--executors", &format!(r#"{{"x":["{command}"]}}"#)], &[]);
        let mut client = service.connect();
        client.request("execute", json!({ "command": "x", "executor": "x", "pty": { "rows": 1, "cols": 1 } }));
        let recording = client.record();
        assert_eq!((recording.reason(), recording.end["exit_code"].as_i64()), (Reason::NotStarted, Some(code)));
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
    client.cancel_with_grace(200);
    assert_eq!(client.record().end["cancel"]["verified"], true);
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
    let recording = client.record();
    assert!(String::from_utf8_lossy(&recording.stdout).starts_with(&sha256(&sent)));

    client.execute(json!({ "command": "exec 0<&-; echo closed; sleep 1000", "stdin": true }));
    let mut recording = Recording::default();
    record_until_stdout(&mut client, &mut recording, "closed");
    let error = client.call("input", json!({ "data": "refused" })).unwrap_err();
    assert_eq!(error.code, code::NOT_RUNNING, "{error}");
    control(&mut client, "CANCEL").unwrap();
    client.record();

    // The command does not read: waiting input is limited, and answered when the command ends.
    client.execute(json!({ "command": "echo ready; sleep 1000", "stdin": true }));
    client.wait_for("output");
    let waiting: Vec<_> = (0..4).map(|_| client.request("input", json!({ "data": "x".repeat(300_000) }))).collect();
    assert_eq!(client.response(waiting[3]).unwrap_err().code, code::FULL, "more than 1 MiB would wait");
    control(&mut client, "CANCEL").unwrap();
    for id in &waiting[..3] {
        assert_eq!(client.response(*id).unwrap_err().code, code::NOT_RUNNING);
    }
    assert_eq!(client.record().status(), Status::Cancelled);

    client.execute(json!({ "command": "cat; sleep 1000" }));
    for (method, params) in [("input", json!({ "data": "x" })), ("resize", json!({ "rows": 1, "cols": 1 }))] {
        assert_eq!(client.call(method, params).unwrap_err().code, code::NOT_ALLOWED, "{method}");
    }
    client.close();
}

/// Reads to the next update that states this health of the backend.
fn wait_for_backend(client: &mut Client, health: BackendHealth) {
    while client.wait_for_status(Status::Running).backend != health {}
}

#[test]
fn stopped_backend_is_silent_after_three_heartbeats_and_lost_after_six() {
    let backend = Service::backend();
    let gateway = Service::gateway(&backend.url());
    let mut client = gateway.connect();
    client.execute(json!({ "command": "sleep 1000", "heartbeatMs": 1_000 }));
    client.wait_for_status(Status::Running);
    backend.signal(Signal::STOP);
    let stopped_at = Instant::now();
    wait_for_backend(&mut client, BackendHealth::Silent);
    let silent_after = stopped_at.elapsed();
    assert!((2_500..5_500).contains(&silent_after.as_millis()), "{silent_after:?}");
    let recording = client.record();
    let lost_after = stopped_at.elapsed();
    assert_eq!(recording.ending(), (Status::Failed, Reason::BackendLost));
    assert!((4_500..9_000).contains(&lost_after.as_millis()), "{lost_after:?}");
    backend.signal(Signal::CONT);
    let line = &backend.wait_for_event("process.finished", 1)[0];
    assert_eq!(line["reason"], "disconnected", "the resumed backend ends the execution");
}

#[test]
fn resumed_backend_is_alive_again() {
    let backend = Service::backend();
    let gateway = Service::gateway(&backend.url());
    let mut client = gateway.connect();
    client.execute(json!({ "command": "sleep 5.5; echo awake", "heartbeatMs": 1_000 }));
    backend.signal(Signal::STOP);
    wait_for_backend(&mut client, BackendHealth::Silent);
    backend.signal(Signal::CONT);
    wait_for_backend(&mut client, BackendHealth::Alive);
    let recording = client.record();
    assert_eq!((recording.stdout.as_slice(), recording.status()), (&b"awake\n"[..], Status::Completed));
}

#[test]
fn pause_with_a_legacy_image_holds_back_only_delivery() {
    let stub = Stub::legacy("/execute/stream", |_, stream| {
        let _ = stream.write_all(&chunked_head("text/plain"));
        for n in 0..40 {
            if stream.write_all(&chunk(format!("{n}\n").as_bytes())).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        let _ = stream.write_all(&chunk(b""));
    });
    let service = Service::gateway(&stub.url());
    let mut client = service.connect();
    client.execute(json!({ "command": "x", "heartbeatMs": 1_000, "timeoutMs": 1_800, "stallTimeoutMs": 1_500 }));
    client.wait_for("output");
    assert_eq!(control(&mut client, "PAUSE").unwrap()["status"], "PAUSED");
    let mut recording = Recording::default();
    client.record_until(&mut recording, |recording| recording.with_status(Status::Paused).len() == 3);
    let paused = recording.with_status(Status::Paused);
    assert_eq!(paused[0].scope, Some(Scope::Delivery));
    assert_eq!(paused[1].offsets, paused[2].offsets, "no output is delivered");
    assert_eq!(control(&mut client, "SIGNAL").unwrap_err().code, code::PARAMS);
    control(&mut client, "RESUME").unwrap();
    client.record_rest(&mut recording);
    assert_eq!(recording.status(), Status::Completed, "the time-outs were suspended: {}", recording.end);
}

#[test]
fn keep_sets_the_time_of_the_next_absence_only() {
    let service = Service::start();
    let keep = |client: &mut Client, ms: Option<u64>| {
        client.call(
            "control",
            json!(merged(json!({ "type": "KEEP" }), &ms.map_or(json!({}), |ms| json!({ "detachMs": ms })))),
        )
    };
    let mark = procs::mark();
    let mut client = service.connect();
    let command = format!("exec sleep {mark}");
    let id = client.execute(json!({ "command": command, "onDisconnect": "detach", "detachMs": 300 }));
    procs::wait_for(&mark, 1, PATIENCE);
    let refused = keep(&mut client, Some(3_600_001)).unwrap_err();
    assert_eq!((refused.code, refused.data.unwrap()["param"].as_str()), (code::PARAMS, Some("detachMs")));
    assert_eq!(keep(&mut client, None).unwrap()["status"], "RUNNING");
    client.disconnect();
    service.wait_for_event("execution.detached", 1);
    assert_eq!(service.events("execution.detached")[0]["detach_ms"], 3_600_000);
    let mut client = service.connect();
    client.call("attach", json!({ "executionId": id })).unwrap();
    keep(&mut client, Some(60_000)).unwrap();
    keep(&mut client, Some(0)).unwrap();
    client.disconnect();
    assert_eq!(service.wait_for_event("execution.detached", 2)[1]["detach_ms"], 300);
    procs::wait_for(&mark, 0, PATIENCE);

    let mut client = service.connect();
    client.execute(json!({ "command": "sleep 1000" }));
    assert_eq!(keep(&mut client, None).unwrap_err().code, code::NOT_ALLOWED);
    client.disconnect();
}
