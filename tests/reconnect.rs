//! A connection breaks, and nothing is lost: not the execution, not a byte, not the ending.

use std::{
    process::Stdio,
    sync::Mutex,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::common::{
    PATIENCE,
    client::{Client, LOST, Recording},
    procs,
    proxy::{CutKind, Proxy},
    random, scale,
    service::Service,
    stub::{Stub, respond},
    wait_until,
};

fn hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// A file with as many bytes, all lines different.
struct Lines(std::path::PathBuf, String);

impl Lines {
    fn of(n_bytes: usize, name: &str) -> Lines {
        let mut text = Vec::with_capacity(n_bytes + 100);
        let mut n = 0u64;
        while text.len() < n_bytes {
            text.extend_from_slice(
                format!("{n:>20} the quick brown fox jumps over the lazy dog {:x}\n", n * n).as_bytes(),
            );
            n += 1;
        }
        text.truncate(n_bytes);
        let path = std::env::temp_dir().join(format!("cc-executor-{name}-{}", std::process::id()));
        std::fs::write(&path, &text).unwrap();
        Lines(path, hex(&text))
    }

    fn cat(&self) -> String {
        format!("cat {}", self.0.display())
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn connection_cut_during_large_output_loses_no_byte() {
    let n_bytes = scale(20_000_000, 200_000_000);
    let service = Service::start();
    let lines = Lines::of(n_bytes, "much");
    let rounds = Mutex::new(0..scale(4, 50) as u64);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(round) = { rounds.lock().unwrap().next() } {
                    let how = if round % 2 == 0 { CutKind::Reset } else { CutKind::Fin };
                    let at = random(round + 1)(n_bytes as u64);
                    let proxy = Proxy::start(service.address, move |n| (n == 0).then_some((at + 1, how)));
                    let mut run = crate::common::service::binary();
                    let url = format!("ws://{}", proxy.address);
                    let output = run.args(["run", "--url", &url, "--reconnect", "--", &lines.cat()]).output().unwrap();
                    let said = String::from_utf8_lossy(&output.stderr).into_owned();
                    assert_eq!(output.status.code(), Some(0), "round {round}, cut at {at}: {said}");
                    assert!(said.contains("trying to come back") || proxy.n_connections() > 1, "it was cut: {said}");
                    assert_eq!(hex(&output.stdout), lines.1, "round {round}, cut at {at}");
                }
            });
        }
    });
}

#[test]
fn killed_gateway_loses_no_byte_of_twenty_executions() {
    const EXECUTIONS: usize = 20;
    let backend = Service::backend();
    let lines = Lines::of(10_000_000, "gateway");
    let mut gateway = Service::gateway(&backend.url());
    gateway.wait_for_event("backend.up", 1);
    let mut begun: Vec<(Client, String, Recording)> = (0..EXECUTIONS)
        .map(|_| {
            let mut client = gateway.connect();
            let id = client.execute(json!({ "command": lines.cat(), "onDisconnect": "detach" }));
            (client, id, Recording::default())
        })
        .collect();
    let mut next = random(7);
    for (client, _, story) in &mut begun {
        let so_far = next(9_000_000) as usize;
        client.follow(story, |story| story.stdout.len() >= so_far);
    }
    gateway.signal(Signal::KILL);
    gateway.wait(PATIENCE);
    let second = Service::gateway(&backend.url());
    second.wait_for_event("backend.up", 1);
    for (_, id, story) in &mut begun {
        let mut client = second.connect();
        client.attach(id, story).unwrap();
        client.follow(story, |_| false);
        assert_eq!((story.end["status"].as_str(), story.gaps.len()), (Some("COMPLETED"), 0), "{}", story.end);
        assert_eq!(
            (hex(&story.stdout).as_str(), story.end["sha256"]["stdout"].as_str()),
            (lines.1.as_str(), Some(lines.1.as_str()))
        );
    }
}

#[test]
fn second_consumer_takes_over_and_first_session_continues() {
    let service = Service::start();
    let mut first = service.connect();
    let command = "echo one; read x; echo $x";
    let id = first.execute(json!({ "command": command, "stdin": true, "onDisconnect": "detach" }));
    let mut story = Recording::default();
    first.follow(&mut story, |story| story.stdout == b"one\n");
    let mut second = service.connect();
    assert_eq!(second.call("attach", json!({ "executionId": id })).unwrap()["status"], "RUNNING");
    first.follow(&mut story, |_| false);
    let detached = story.detached.take().expect("the first is told");
    assert_eq!((&detached["reason"], &detached["offsets"]["stdout"]), (&json!("taken_over"), &json!(4)));
    assert_eq!(first.run(json!({ "command": "echo another" })).stdout, b"another\n");
    assert_eq!(
        first.call("attach", json!({ "executionId": id, "offsets": { "stdout": 5 } })).unwrap_err()["code"],
        -32602
    );
    assert_eq!(second.call("attach", json!({ "executionId": id })).unwrap()["status"], "RUNNING", "its own: no replay");
    let other = second.call("attach", json!({ "executionId": "00000000-0000-4000-8000-000000000000" })).unwrap_err();
    assert_eq!(other["code"], -32005);
    assert_eq!(second.call("input", json!({ "data": "two\n" })).unwrap()["accepted"], 4);
    let story = second.story();
    assert_eq!((story.stdout.as_slice(), story.end["status"].as_str()), (&b"one\ntwo\n"[..], Some("COMPLETED")));
    // And back, after the end: everything again.
    first.attach(&id, &Recording::default()).unwrap();
    assert_eq!(first.story().stdout, b"one\ntwo\n");
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
    let mut story = Recording::default();
    second.follow(&mut story, |story| story.stdout == b"once\n");
    assert_eq!(procs::wait_for(&mark, 1, PATIENCE).len(), 1);
    assert_eq!(first.notification("detached")["reason"], "taken_over");
    for (name, value) in [("command", json!("echo twice")), ("cwd", json!("/tmp")), ("timeoutMs", json!(5_000))] {
        let mut other = execute.clone();
        other[name] = value;
        let error = first.call("execute", other).unwrap_err();
        assert_eq!((&error["code"], &error["data"]["param"]), (&json!(-32602), &json!(name)));
    }
    second.call("control", json!({ "type": "CANCEL" })).unwrap();
    assert_eq!(second.story().end["status"], "CANCELLED");
    // Ended: its end.
    assert_eq!(first.run(execute).end["reason"], "canceled");
    assert!(procs::with_argument(&mark).is_empty());
}

#[test]
fn detached_execution_blocks_at_a_full_ring_and_loses_no_byte() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_RING_BYTES", "65536")]);
    let lines = Lines::of(3_000_000, "full");
    let mut client = service.connect();
    let id = client.execute(json!({ "command": lines.cat(), "onDisconnect": "detach" }));
    client.vanish();
    service.wait_for_event("execution.detached", 1);
    let mut client = service.connect();
    // The command waits: it is still there, however long it has had.
    assert_eq!(client.call("status", json!({ "executionId": id })).unwrap()["status"], "RUNNING");
    client.attach(&id, &Recording::default()).unwrap();
    let story = client.story();
    assert_eq!((hex(&story.stdout), story.gaps.len()), (lines.1.clone(), 0));
}

#[test]
fn reattaching_gateway_acknowledges_nothing_for_its_client() {
    let backend = Service::backend();
    let wire = Proxy::start(backend.address, |_| Some((3_500_000, CutKind::Reset)));
    let gateway = Service::gateway(&format!("http://{}", wire.address));
    gateway.wait_for_event("backend.up", 1);
    let lines = Lines::of(6_000_000, "receipt");
    let mut client = gateway.connect();
    client.answers_pings = false;
    let id = client.execute(json!({ "command": lines.cat(), "onDisconnect": "detach" }));
    client.follow(&mut Recording::default(), |story| story.stdout.len() >= 4 << 20);
    backend.wait_for_event("execution.attached", 1);
    // It has said of nothing that it arrived, so all is still there for who comes next.
    let other = Service::gateway(&backend.url());
    other.wait_for_event("backend.up", 1);
    let mut second = other.connect();
    second.attach(&id, &Recording::default()).unwrap();
    let story = second.story();
    assert_eq!((hex(&story.stdout), story.gaps.len()), (lines.1.clone(), 0));
    client.vanish();
}

#[test]
fn overflow_drop_reports_a_gap_and_never_blocks_the_command() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_RING_BYTES", "65536")]);
    let lines = Lines::of(3_000_000, "drop");
    let mut client = service.connect();
    let id = client.execute(json!({ "command": lines.cat(), "onDisconnect": "detach", "overflow": "drop" }));
    client.vanish();
    service.wait_for_event("process.finished", 1);
    let mut client = service.connect();
    client.attach(&id, &Recording::default()).unwrap();
    let story = client.story();
    assert_eq!((story.stdout.len(), story.end["bytes"]["stdout"].as_u64()), (3_000_000, Some(3_000_000)));
    assert_eq!((story.gaps.len(), &story.gaps[0]["reason"], &story.gaps[0]["from"]), (1, &json!("dropped"), &json!(0)));
    let kept = story.stdout.iter().filter(|byte| **byte != LOST).count();
    assert_eq!(kept as u64, 3_000_000 - story.gaps[0]["to"].as_u64().unwrap());
    assert!(kept >= 65_536, "{kept}");
}

#[test]
fn non_detachable_execution_keeps_its_last_bytes_and_reports_the_gap() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_RING_BYTES", "65536")]);
    let lines = Lines::of(3_000_000, "kept");
    let mut client = service.connect();
    let id = client.execute(json!({ "command": lines.cat() }));
    let whole = client.story();
    assert_eq!(hex(&whole.stdout), lines.1);
    client.attach(&id, &Recording::default()).unwrap();
    let story = client.story();
    assert_eq!((story.gaps.len(), &story.gaps[0]["reason"]), (1, &json!("overwritten")));
    let from = story.gaps[0]["to"].as_u64().unwrap() as usize;
    assert!(from < 3_000_000 && story.stdout[from..] == whole.stdout[from..]);
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
    client.vanish();
    procs::wait_for(&mark, 0, PATIENCE);
    assert!(left_at.elapsed() >= Duration::from_millis(300), "{:?}", left_at.elapsed());
    let mut client = service.connect();
    client.attach(&id, &Recording::default()).unwrap();
    let story = client.story();
    assert_eq!((&story.end["status"], &story.end["reason"]), (&json!("CANCELLED"), &json!("disconnected")));
    assert_eq!(story.end["cancel"]["verified"], true);
}

#[test]
fn ended_executions_are_kept_for_the_retention_within_the_memory_limit() {
    let service =
        Service::with(&["serve"], &[("CC_EXECUTOR_RETENTION_MS", "5000"), ("CC_EXECUTOR_MAX_KEPT_BYTES", "3000000")]);
    let mut client = service.connect();
    let ids: Vec<_> = (0..3)
        .map(|_| {
            let id = client.execute(json!({ "command": "head -c 2000000 /dev/zero | tr '\\0' x" }));
            client.story();
            id
        })
        .collect();
    client.attach(&ids[2], &Recording::default()).unwrap();
    assert_eq!(client.story().gaps.len(), 0, "the newest is whole");
    client.attach(&ids[0], &Recording::default()).unwrap();
    let story = client.story();
    assert_eq!(
        (story.gaps.len(), story.end["status"].as_str()),
        (1, Some("COMPLETED")),
        "the oldest gave way, its end did not"
    );
    wait_until("all are forgotten", PATIENCE, || {
        service.get("/executions")["executions"].as_array().is_some_and(Vec::is_empty)
    });
    for id in &ids {
        assert_eq!(client.call("attach", json!({ "executionId": id })).unwrap_err()["code"], -32006);
    }
}

#[test]
fn unread_output_is_evicted_last() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_MAX_KEPT_BYTES", "6000000")]);
    let mut client = service.connect();
    let id = client.execute(json!({ "command": "echo once; sleep 0.2; seq 100000", "onDisconnect": "detach" }));
    let mut story = Recording::default();
    client.follow(&mut story, |story| story.stdout == b"once\n");
    client.vanish();
    service.wait_for_event("process.finished", 1);
    let mut client = service.connect();
    for _ in 0..4 {
        client.run(json!({ "command": "head -c 2000000 /dev/zero | tr '\\0' x" }));
    }
    client.attach(&id, &story).unwrap();
    // All of it is under way, and the connection breaks again.
    client.follow(&mut story, |story| story.stdout.len() > 1_000);
    client.vanish();
    let mut client = service.connect();
    for _ in 0..4 {
        client.run(json!({ "command": "head -c 2000000 /dev/zero | tr '\\0' x", "onDisconnect": "detach" }));
    }
    client.attach(&id, &story).unwrap();
    client.follow(&mut story, |_| false);
    assert_eq!(story.gaps, Vec::<Value>::new(), "the newer ones had been delivered");
    assert_eq!(Some(hex(&story.stdout).as_str()), story.end["sha256"]["stdout"].as_str());
}

#[test]
fn retention_begins_when_the_last_consumer_leaves() {
    const RETENTION: Duration = Duration::from_secs(3);
    let backend =
        Service::with(&["backend"], &[("CC_EXECUTOR_RETENTION_MS", "3000"), ("CC_EXECUTOR_RING_BYTES", "100000000")]);
    let gateway = Service::gateway(&backend.url());
    gateway.wait_for_event("backend.up", 1);
    let mut client = gateway.connect();
    let id = client.execute(json!({ "command": "seq 11000000", "onDisconnect": "detach" }));
    backend.wait_for_event("process.finished", 1);
    // More than any socket holds is on its way, so that it goes on being followed.
    let ended_at = Instant::now();
    let mut story = Recording::default();
    wait_until("the retention would be over", PATIENCE, || {
        let so_far = story.stdout.len() + 50_000;
        client.follow(&mut story, |story| story.stdout.len() > so_far);
        std::thread::sleep(Duration::from_millis(100));
        ended_at.elapsed() > RETENTION + Duration::from_secs(1)
    });
    client.vanish();
    wait_until("nobody follows it", PATIENCE, || backend.get(&format!("/executions/{id}"))["attached"] != true);
    let mut client = gateway.connect();
    client.attach(&id, &story).unwrap();
    client.follow(&mut story, |_| false);
    assert_eq!(Some(hex(&story.stdout).as_str()), story.end["sha256"]["stdout"].as_str());
}

#[test]
fn legacy_image_refuses_detach_and_attach() {
    let stub = Stub::start(|request, stream| match request.path.as_str() {
        "/health" => respond(stream, 200, r#"{"status":"ok"}"#),
        _ => respond(stream, 500, "{}"),
    });
    let service = Service::gateway(&stub.url());
    service.wait_for_event("backend.up", 1);
    let mut client = service.connect();
    for (method, params) in [
        ("execute", json!({ "command": "x", "onDisconnect": "detach" })),
        ("attach", json!({ "executionId": "00000000-0000-4000-8000-000000000000" })),
    ] {
        let error = client.call(method, params).unwrap_err();
        assert_eq!(error["code"], -32002, "{method}: {error}");
    }
}

#[test]
fn run_attach_ps_and_cancel_work_together() {
    let service = Service::start();
    let output = |arguments: &[&str]| {
        let mut command = crate::common::service::binary();
        let output =
            command.args(&arguments[..1]).args(["--url", &service.url()]).args(&arguments[1..]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (text, String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code().unwrap())
    };
    let (id, _, code) = output(&["run", "--detach", "--", "echo here; sleep 0.3; echo there; exit 3"]);
    assert_eq!(code, 0);
    let id = id.trim();
    assert!(output(&["ps"]).0.lines().any(|line| line.contains(id) && line.contains("RUNNING")));
    assert_eq!(output(&["attach", id]), ("here\nthere\n".to_owned(), String::new(), 3));
    assert_eq!(output(&["attach", id]).0, "here\nthere\n", "once more");
    assert_eq!(output(&["cancel", id]).2, 69, "it has ended");
    let mark = procs::mark();
    let (id, ..) = output(&["run", "--detach", "--", &format!("exec sleep {mark}")]);
    procs::wait_for(&mark, 1, PATIENCE);
    let (said, _, code) = output(&["cancel", id.trim()]);
    assert_eq!((said.as_str(), code), ("CANCELLED canceled, every process gone\n", 0));
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
    first.wait_for_event("backend.up", 1);
    let address = first.address.to_string();
    let command = "for i in 1 2 3; do echo $i; sleep 0.5; done";
    let mut run = crate::common::service::binary();
    let mut run = run
        .args(["run", "--url", &first.url(), "--reconnect=20", "--", command])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    backend.wait_for_event("process.started", 1);
    first.signal(Signal::TERM);
    assert_eq!(first.wait(PATIENCE).code(), Some(0));
    let mut command = crate::common::service::binary();
    command.args(["serve", "--claude-api-url", &backend.url(), "--bind", &address]);
    let _second = Service::spawn(command);
    assert_eq!(run.wait().unwrap().code(), Some(0));
    let output = run.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n2\n3\n", "{}", String::from_utf8_lossy(&output.stderr));
}
