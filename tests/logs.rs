//! The log: each opened session is closed, each started execution ends once, and no command text appears.

mod piped;
mod strangers;
mod unread;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::common::service::Service;

fn ids(log: &[Value], event: &str, id: &str) -> Vec<String> {
    let lines = log.iter().filter(|line| line["event"] == event);
    lines.map(|line| line[id].as_str().unwrap_or_else(|| panic!("no {id} in {line}")).to_owned()).collect()
}

/// Runs executions with different endings, and returns the log.
fn run_and_log(service: &Service) -> Vec<Value> {
    for command in ["echo secret-word; exit 3", "kill -9 $$", "true"] {
        let mut client = service.connect();
        client.run(json!({ "command": command, "env": { "HIDDEN": "secret-value" } }));
        client.close();
    }
    let mut canceled = service.connect();
    canceled.execute(json!({ "command": "sleep 1000" }));
    canceled.notify("control", json!({ "type": "CANCEL" }));
    canceled.record();
    canceled.disconnect();
    let mut left = service.connect();
    left.execute(json!({ "command": "sleep 1000" }));
    left.disconnect();
    service.wait_for_event("session.closed", 5);
    service.wait_for_event("process.finished", 5);
    service.log()
}

#[test]
fn each_opening_and_start_has_one_matching_end() {
    let service = Service::start();
    let log = run_and_log(&service);
    for (begin, end, id) in [
        ("session.opened", "session.closed", "session_id"),
        ("execution.started", "execution.finished", "execution_id"),
        ("process.started", "process.finished", "execution_id"),
    ] {
        let (begun, ended) = (ids(&log, begin, id), ids(&log, end, id));
        assert_eq!((begun.len(), ended.len()), (5, 5), "{begin}");
        assert_eq!(begun.iter().collect::<BTreeSet<_>>(), ended.iter().collect::<BTreeSet<_>>(), "{begin}");
    }
    let of = |event: &str| log.iter().filter(|line| line["event"] == event).cloned().collect::<Vec<_>>();
    let mut reasons: BTreeMap<String, u32> = BTreeMap::new();
    for line in of("execution.finished") {
        *reasons.entry(line["reason"].as_str().unwrap().to_owned()).or_default() += 1;
        assert!(line["session_id"].is_string() && line["ms"].is_u64() && line["status"].is_string(), "{line}");
    }
    let expected = [("canceled", 1), ("disconnected", 1), ("exit", 2), ("signal", 1)];
    assert_eq!(reasons, expected.into_iter().map(|(reason, n)| (reason.to_owned(), n)).collect());
    assert!(of("session.closed").iter().filter(|line| line["close_code"] == 1000).count() == 3);
    assert!(of("cancel.requested").iter().any(|line| line["session_id"].is_string() && line["grace_ms"] == 5000));
    assert!(service.complaints().is_empty(), "{log:#?}");
}

#[test]
fn command_text_is_logged_only_at_debug_and_secrets_never() {
    let quiet = serde_json::to_string(&run_and_log(&Service::start())).unwrap();
    assert!(!quiet.contains("secret-word") && !quiet.contains("secret-value"));
    let loud = serde_json::to_string(&run_and_log(&Service::with(
        &["serve"],
        &[("RUST_LOG", "trace"), ("ANTHROPIC_API_KEY", "secret-value")],
    )))
    .unwrap();
    assert!(loud.contains("secret-word") && loud.contains("HIDDEN") && !loud.contains("secret-value"));
}

/// The output of deploy/audit.py for a log, and whether it accepts the log.
fn audit(log: &[Value]) -> (String, bool) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/audit.py");
    let mut audit =
        Command::new("python3").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
    let text: String = log.iter().map(|line| format!("{line}\n")).collect();
    audit.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = audit.wait_with_output().unwrap();
    (String::from_utf8(output.stdout).unwrap(), output.status.success())
}

#[test]
fn audit_detects_missing_and_duplicate_endings() {
    let log = run_and_log(&Service::start());
    let (output, is_accepted) = audit(&log);
    assert!(is_accepted && output.starts_with("5 session.opened with 5 ends, 5 execution.started"), "{output}");
    let ends = ["session.closed", "execution.finished", "process.finished"];
    let ends: Vec<_> = (0..log.len()).filter(|at| ends.contains(&log[*at]["event"].as_str().unwrap_or(""))).collect();
    for at in [ends[0], ends[1], ends[2], ends[14]] {
        let mut lacks = log.clone();
        let end = lacks.remove(at);
        assert!(!audit(&lacks).1, "without {end}");
        let mut twice = log.clone();
        twice.push(end.clone());
        assert!(!audit(&twice).1, "twice {end}");
    }
    let listening = log.iter().find(|line| line["event"] == "service.listening").unwrap();
    let restarted = [&log[..], std::slice::from_ref(listening)].concat();
    assert!(!audit(&restarted).1, "a start without a stop before it");
    let failed = [&log[..], &[json!({ "level": "ERROR", "event": "drain.incomplete" })]].concat();
    assert!(!audit(&failed).1, "an error");
    let dropped =
        json!({ "level": "WARN", "event": "log.dropped", "lines": 3, "message": "3 log lines are missing here" });
    assert!(!audit(&[&log[..], &[dropped]].concat()).1, "missing lines");
}
