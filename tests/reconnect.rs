//! After a broken connection a client attaches again, and neither the execution, nor a byte, nor the ending is lost.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use cc_executor_actors::{
    outcome::{Reason, Status},
    protocol::notification::DetachReason,
    rpc::code,
    stream::GapReason,
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    client::{Client, code_and_param},
    client_process::ClientProcess,
    procs,
    proxy::{CutKind, Proxy},
    random,
    recording::{LOST, Recording},
    scale,
    service::{Service, binary, output_of, run_to_exit},
    sha256,
    stub::{Stub, respond},
    temp::TempPath,
};

/// A file of numbered lines.
struct Lines {
    path: TempPath,
    sha256: String,
}

impl Lines {
    fn new(n_bytes: usize) -> Lines {
        let mut text = Vec::with_capacity(n_bytes + 100);
        let mut n = 0u64;
        while text.len() < n_bytes {
            text.extend_from_slice(
                format!("{n:>20} the quick brown fox jumps over the lazy dog {:x}\n", n * n).as_bytes(),
            );
            n += 1;
        }
        text.truncate(n_bytes);
        Lines { path: TempPath::with_content("lines", &text), sha256: sha256(&text) }
    }

    fn cat(&self) -> String {
        format!("cat {}", self.path.display())
    }
}

#[test]
fn connection_cut_during_large_output_loses_no_byte() {
    let n_bytes = scale(20_000_000, 200_000_000);
    let service = Service::start();
    let lines = Lines::new(n_bytes);
    let rounds = Mutex::new(0..scale(4, 50) as u64);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(round) = { rounds.lock().unwrap().next() } {
                    let kind = if round % 2 == 0 { CutKind::Reset } else { CutKind::Fin };
                    let at = random(round + 1)(n_bytes as u64);
                    let proxy = Proxy::start(service.address, move |n| (n == 0).then_some((at + 1, kind)));
                    let mut run = binary();
                    run.args(["run", "--url", &proxy.url(), "--reconnect", "--", &lines.cat()]);
                    let output = output_of(&mut run);
                    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
                    assert_eq!(output.status.code(), Some(0), "round {round}, cut at {at}: {stderr}");
                    assert!(
                        stderr.contains("trying to reconnect") || proxy.n_connections() > 1,
                        "the connection was cut: {stderr}"
                    );
                    assert_eq!(sha256(&output.stdout), lines.sha256, "round {round}, cut at {at}");
                }
            });
        }
    });
}

#[test]
fn killed_gateway_loses_no_byte_of_twenty_executions() {
    const EXECUTIONS: usize = 20;
    let backend = Service::backend();
    let lines = Lines::new(10_000_000);
    let mut gateway = Service::gateway(&backend.url());
    let mut begun: Vec<(Client, String, Recording)> = (0..EXECUTIONS)
        .map(|_| {
            let mut client = gateway.connect();
            let id = client.execute(json!({ "command": lines.cat(), "onDisconnect": "detach" }));
            (client, id, Recording::default())
        })
        .collect();
    let mut next = random(7);
    for (client, _, recording) in &mut begun {
        let so_far = next(9_000_000) as usize;
        client.record_until(recording, |recording| recording.stdout.len() >= so_far);
    }
    gateway.signal(Signal::KILL);
    gateway.wait(PATIENCE);
    let second = Service::gateway(&backend.url());
    for (_, id, recording) in &mut begun {
        let mut client = second.connect();
        client.attach(id, recording).unwrap();
        client.record_rest(recording);
        assert_eq!((recording.status(), recording.gaps.len()), (Status::Completed, 0), "{}", recording.end);
        assert_eq!(
            (sha256(&recording.stdout).as_str(), recording.end["sha256"]["stdout"].as_str()),
            (lines.sha256.as_str(), Some(lines.sha256.as_str()))
        );
    }
}

#[test]
fn second_consumer_takes_over_and_first_session_continues() {
    let service = Service::start();
    let mut first = service.connect();
    let command = "echo one; read x; echo $x";
    let id = first.execute(json!({ "command": command, "stdin": true, "onDisconnect": "detach" }));
    let mut recording = Recording::default();
    first.record_until(&mut recording, |recording| recording.stdout == b"one\n");
    let mut second = service.connect();
    assert_eq!(second.call("attach", json!({ "executionId": id })).unwrap()["status"], "RUNNING");
    first.record_rest(&mut recording);
    let detached = recording.detached.take().expect("the first client gets detached");
    assert_eq!((detached.reason, detached.offsets.stdout), (DetachReason::TakenOver, 4));
    assert_eq!(first.run(json!({ "command": "echo another" })).stdout, b"another\n");
    assert_eq!(
        first.call("attach", json!({ "executionId": id, "offsets": { "stdout": 5 } })).unwrap_err().code,
        code::PARAMS
    );
    assert_eq!(
        second.call("attach", json!({ "executionId": id })).unwrap()["status"],
        "RUNNING",
        "its own execution: no replay"
    );
    let other = second.call("attach", json!({ "executionId": "00000000-0000-4000-8000-000000000000" })).unwrap_err();
    assert_eq!(other.code, code::ALREADY_RUNNING);
    assert_eq!(second.call("input", json!({ "data": "two\n" })).unwrap()["accepted"], 4);
    let recording = second.record();
    assert_eq!((recording.stdout.as_slice(), recording.status()), (&b"one\ntwo\n"[..], Status::Completed));
    // An attach after the end replays everything.
    first.attach(&id, &Recording::default()).unwrap();
    assert_eq!(first.record().stdout, b"one\ntwo\n");
    first.close();
    second.close();
}

#[test]
fn execute_with_the_same_id_attaches_and_never_runs_twice() {
    let service = Service::start();
    let mark = procs::mark();
    let id = "33333333-3333-4333-8333-333333333333";
    let execute =
        json!({ "command": format!("echo once; exec sleep {mark}"), "executionId": id, "onDisconnect": "detach" });
    let mut first = service.connect();
    first.execute(execute.clone());
    let mut second = service.connect();
    second.execute(execute.clone());
    let mut recording = Recording::default();
    second.record_until(&mut recording, |recording| recording.stdout == b"once\n");
    assert_eq!(procs::wait_for(&mark, 1, PATIENCE).len(), 1);
    assert_eq!(first.notification("detached")["reason"], "taken_over");
    for (name, value) in [("command", json!("echo twice")), ("cwd", json!("/tmp")), ("timeoutMs", json!(5_000))] {
        let mut other = execute.clone();
        other[name] = value;
        let error = first.call("execute", other).unwrap_err();
        assert_eq!(code_and_param(&error), (code::PARAMS, Some(name)));
    }
    second.cancel();
    assert_eq!(second.record().status(), Status::Cancelled);
    // After the end, the same id gives the recorded ending.
    assert_eq!(first.run(execute).reason(), Reason::Canceled);
    assert!(procs::with_argument(&mark).is_empty());
}

#[test]
fn detached_execution_blocks_at_a_full_ring_and_loses_no_byte() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_RING_BYTES", "65536")]);
    let lines = Lines::new(3_000_000);
    let mut client = service.connect();
    let id = client.execute(json!({ "command": lines.cat(), "onDisconnect": "detach" }));
    client.disconnect();
    service.wait_for_event("execution.detached", 1);
    let mut client = service.connect();
    // The command is blocked, so it runs as long as no client attaches.
    assert_eq!(client.call("status", json!({ "executionId": id })).unwrap()["status"], "RUNNING");
    client.attach(&id, &Recording::default()).unwrap();
    let recording = client.record();
    assert_eq!((sha256(&recording.stdout), recording.gaps.len()), (lines.sha256.clone(), 0));
}

#[test]
fn reattaching_gateway_acknowledges_nothing_for_its_client() {
    let backend = Service::backend();
    let proxy = Proxy::start(backend.address, |_| Some((3_500_000, CutKind::Reset)));
    let gateway = Service::gateway(&proxy.url());
    let lines = Lines::new(6_000_000);
    let mut client = gateway.connect();
    client.answers_pings = false;
    let id = client.execute(json!({ "command": lines.cat(), "onDisconnect": "detach" }));
    client.record_until(&mut Recording::default(), |recording| recording.stdout.len() >= 4 << 20);
    backend.wait_for_event("execution.attached", 1);
    // The client has answered no ping, so the gateway has acknowledged nothing, and the backend still has all of the output.
    let other = Service::gateway(&backend.url());
    let mut second = other.connect();
    second.attach(&id, &Recording::default()).unwrap();
    let recording = second.record();
    assert_eq!((sha256(&recording.stdout), recording.gaps.len()), (lines.sha256.clone(), 0));
    client.disconnect();
}

#[test]
fn overflow_drop_reports_a_gap_and_never_blocks_the_command() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_RING_BYTES", "65536")]);
    let lines = Lines::new(3_000_000);
    let mut client = service.connect();
    let id = client.execute(json!({ "command": lines.cat(), "onDisconnect": "detach", "overflow": "drop" }));
    client.disconnect();
    service.wait_for_event("process.finished", 1);
    let mut client = service.connect();
    client.attach(&id, &Recording::default()).unwrap();
    let recording = client.record();
    assert_eq!((recording.stdout.len(), recording.end["bytes"]["stdout"].as_u64()), (3_000_000, Some(3_000_000)));
    assert_eq!((recording.gaps.len(), recording.gaps[0].reason, recording.gaps[0].from), (1, GapReason::Dropped, 0));
    let kept = recording.stdout.iter().filter(|byte| **byte != LOST).count();
    assert_eq!(kept as u64, 3_000_000 - recording.gaps[0].to);
    assert!(kept >= 65_536, "{kept}");
}

#[test]
fn non_detachable_execution_keeps_its_last_bytes_and_reports_the_gap() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_RING_BYTES", "65536")]);
    let lines = Lines::new(3_000_000);
    let mut client = service.connect();
    let id = client.execute(json!({ "command": lines.cat() }));
    let whole = client.record();
    assert_eq!(sha256(&whole.stdout), lines.sha256);
    client.attach(&id, &Recording::default()).unwrap();
    let recording = client.record();
    assert_eq!((recording.gaps.len(), recording.gaps[0].reason), (1, GapReason::Overwritten));
    let from = recording.gaps[0].to as usize;
    assert!(from < 3_000_000 && recording.stdout[from..] == whole.stdout[from..]);
}

#[test]
fn execution_detached_for_too_long_ends_as_disconnected() {
    let service = Service::start();
    let mark = procs::mark();
    let mut client = service.connect();
    let command = format!("setsid sleep {mark} & exec sleep {mark}");
    let id = client.execute(json!({ "command": command, "onDisconnect": "detach", "detachMs": 300 }));
    procs::wait_for(&mark, 2, PATIENCE);
    let left_at = Instant::now();
    client.disconnect();
    procs::wait_for(&mark, 0, PATIENCE);
    assert!(left_at.elapsed() >= Duration::from_millis(300), "{:?}", left_at.elapsed());
    let mut client = service.connect();
    client.attach(&id, &Recording::default()).unwrap();
    let recording = client.record();
    assert_eq!(recording.ending(), (Status::Cancelled, Reason::Disconnected));
    assert_eq!(recording.end["cancel"]["verified"], true);
}

#[test]
fn legacy_image_refuses_detach_and_attach() {
    let stub = Stub::start(|request, stream| match request.path.as_str() {
        "/health" => respond(stream, 200, r#"{"status":"ok"}"#),
        _ => respond(stream, 500, "{}"),
    });
    let service = Service::gateway(&stub.url());
    let mut client = service.connect();
    for (method, params) in [
        ("execute", json!({ "command": "x", "onDisconnect": "detach" })),
        ("attach", json!({ "executionId": "00000000-0000-4000-8000-000000000000" })),
    ] {
        let error = client.call(method, params).unwrap_err();
        assert_eq!(error.code, code::NOT_ALLOWED, "{method}: {error}");
    }
}

#[test]
fn run_attach_ps_and_cancel_work_together() {
    let service = Service::start();
    let output = |arguments: &[&str]| run_to_exit(&mut service.client_command(arguments));
    let (id, _, code) = output(&["run", "--detach", "--", "echo here; sleep 0.3; echo there; exit 3"]);
    assert_eq!(code, 0);
    let id = id.trim();
    assert!(output(&["ps"]).0.lines().any(|line| line.starts_with(&id[..8]) && line.contains("RUNNING")));
    assert_eq!(output(&["attach", id]), ("here\nthere\n".to_owned(), String::new(), 3));
    assert_eq!(output(&["attach", id]).0, "here\nthere\n", "again");
    assert_eq!(output(&["cancel", id]), ("had already ended: FAILED exit 3\n".to_owned(), String::new(), 0));
    let mark = procs::mark();
    let (id, ..) = output(&["run", "--detach", "--", &format!("exec sleep {mark}")]);
    procs::wait_for(&mark, 1, PATIENCE);
    let (stdout, _, code) = output(&["cancel", id.trim()]);
    assert_eq!((stdout.as_str(), code), ("CANCELLED canceled, every process gone\n", 0));
    assert!(procs::with_argument(&mark).is_empty());
    assert_eq!(output(&["attach", id.trim()]).2, 143);
    assert_eq!(output(&["attach", "00000000-0000-4000-8000-000000000000"]).2, 69);
    let (json, _, _) = output(&["ps", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["executions"].as_array().unwrap().len(), 2);
}

#[test]
fn run_reconnects_to_a_replaced_gateway() {
    let backend = Service::backend();
    let mut first = Service::gateway(&backend.url());
    let address = first.address.to_string();
    let command = "for i in 1 2 3; do echo $i; sleep 0.5; done";
    let run = ClientProcess::start(&mut first.run_command(&["--reconnect=20", "--", command]));
    backend.wait_for_event("process.started", 1);
    first.signal(Signal::TERM);
    assert_eq!(first.wait(PATIENCE).code(), Some(0));
    let mut command = binary();
    command.args(["serve", "--claude-api-url", &backend.url(), "--bind", &address]);
    let _second = Service::spawn(command);
    let (stdout, stderr, code) = run.finish(PATIENCE);
    assert_eq!((stdout.as_str(), code), ("1\n2\n3\n", 0), "{stderr}");
}

#[test]
fn a_program_that_dies_with_unread_frames_in_its_library_finds_no_gap() {
    let service = Service::with(&["serve", "--ring-bytes", "1048576"], &[]);
    let lines = Lines::new(6_000_000);
    let mut below = random(7);
    for _ in 0..scale(5, 40) {
        let mut library = service.connect();
        let id = library.execute(json!({ "command": lines.cat(), "onDisconnect": "detach", "detachMs": 60_000 }));
        let mut received = Recording::default();
        let enough = 2_000_000 + below(2_000_000) as usize;
        library.record_until(&mut received, |received| received.stdout.len() >= enough);
        // The library has answered all pings; the program has taken less.
        let n_taken = received.stdout.len() - 300_000 + below(300_000) as usize;
        library.shut_down();
        let mut taken = Recording::default();
        taken.stdout.extend_from_slice(&received.stdout[..n_taken]);
        let mut program = service.connect();
        program.attach(&id, &taken).unwrap();
        program.record_rest(&mut taken);
        assert!(taken.gaps.is_empty(), "{:?} after {n_taken} bytes", taken.gaps);
        assert_eq!(sha256(&taken.stdout), lines.sha256);
        program.close();
    }
}

#[test]
fn after_the_first_ack_pongs_acknowledge_nothing() {
    let service = Service::with(&["serve", "--ring-bytes", "1048576"], &[]);
    let n_bytes = 4_000_000;
    let lines = Lines::new(n_bytes);
    let mut client = service.connect();
    let params = json!({ "command": lines.cat(), "onDisconnect": "detach", "detachMs": 60_000, "heartbeatMs": 1_000 });
    let id = client.execute(params);
    client.call("ack", json!({ "offsets": {} })).unwrap();
    let beyond = client.call("ack", json!({ "offsets": { "stdout": u64::MAX } })).unwrap_err();
    assert_eq!(code_and_param(&beyond), (code::PARAMS, Some("offsets")));
    let mut recording = Recording::default();
    // The ring is full: the command waits although every ping is answered.
    let is_waiting = |recording: &Recording| {
        recording.updates.iter().rev().take(2).filter(|update| update.since_output_ms >= 900).count() == 2
    };
    client.record_until(&mut recording, is_waiting);
    assert!(recording.stdout.len() < 1_300_000, "{} bytes", recording.stdout.len());
    while recording.end.is_null() {
        let before = recording.stdout.len();
        if before < n_bytes {
            // With its id, because it may have ended by now.
            client.call("ack", json!({ "executionId": id, "offsets": recording.offsets() })).unwrap();
        }
        client.record_until(&mut recording, |recording| recording.stdout.len() >= before + 500_000);
    }
    assert_eq!(sha256(&recording.stdout), lines.sha256);
    client.call("ack", json!({ "executionId": id, "offsets": recording.offsets() })).unwrap();
    let unknown = client.call("ack", json!({ "executionId": id, "offsets": {} })).unwrap_err();
    assert_eq!(unknown.code, code::NOT_RUNNING);
    client.close();
}
