//! Output or an execution that the service no longer has.

use serde_json::json;

use crate::common::{
    PATIENCE, procs,
    service::{Service, binary, run_to_exit},
    tampering_proxy::TamperingProxy,
    wait_until,
};

#[test]
fn attach_fails_on_overwritten_output_and_names_the_gap() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_RING_BYTES", "65536")]);
    let mut holder = service.connect();
    let id = holder.execute(json!({ "command": "seq 100000" }));
    let whole = holder.record().stdout;
    let (stdout, stderr, code) = run_to_exit(&mut service.client_command(&["attach", &id]));
    assert_eq!(code, 70, "{stderr}");
    let from = whole.len() - stdout.len();
    assert!(from > 0 && whole.ends_with(stdout.as_bytes()), "the retained output is printed before the failure");
    assert!(
        stderr.contains(&format!("bytes 0 to {from} of stdout are lost ({from} bytes): newer output replaced them")),
        "{stderr}"
    );
    assert!(stderr.contains("the exit code would be 0"), "{stderr}");
}

#[test]
fn run_fails_on_a_gap_after_reconnecting() {
    let service = Service::start();
    let proxy = TamperingProxy::start(service.address, |_, _, message| {
        if message["params"]["content"] == "lost\n" {
            *message = json!({ "jsonrpc": "2.0", "method": "gap",
                "params": { "executionId": "00000000-0000-4000-8000-000000000000", "type": "stdout", "from": 0, "to": 5, "reason": "overwritten" } });
        }
        true
    });
    let url = proxy.url();
    let command = "echo lost; sleep 0.3; echo kept; exit 3";
    let (stdout, stderr, code) = run_to_exit(binary().args(["run", "--reconnect", "--url", &url, "--", command]));
    assert_eq!((stdout.as_str(), code), ("kept\n", 70), "{stderr}");
    assert!(stderr.contains("bytes 0 to 5 of stdout are lost (5 bytes): newer output replaced them"), "{stderr}");
    assert!(stderr.contains("the exit code would be 3"), "{stderr}");
}

#[test]
fn attach_reports_an_expired_detached_execution() {
    let service =
        Service::with(&["serve"], &[("CC_EXECUTOR_MAX_DETACH_MS", "2000"), ("CC_EXECUTOR_MAX_EXECUTIONS", "1")]);
    let mark = procs::mark();
    let start = |command: &str| {
        let (id, stderr, code) = run_to_exit(&mut service.run_command(&["--detach", "--", command]));
        assert_eq!(code, 0, "{stderr}");
        id.trim().to_owned()
    };
    let id = start(&format!("exec sleep {mark}"));
    let queued = start("true");
    run_to_exit(&mut service.client_command(&["cancel", &queued]));
    procs::wait_for(&mark, 1, PATIENCE);
    procs::wait_for(&mark, 0, PATIENCE);
    let (stdout, stderr, code) = run_to_exit(&mut service.client_command(&["attach", &id]));
    assert_eq!((stdout.as_str(), code), ("", 75));
    assert_eq!(stderr, "cc-executor: ended by the service: no client attached for 2 s\n");
    let (_, stderr, code) = run_to_exit(&mut service.client_command(&["attach", &queued]));
    assert_eq!((stderr.as_str(), code), ("cc-executor: the execution was canceled\n", 143));
}

#[test]
fn attach_reports_a_forgotten_execution_as_unknown() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_RETENTION_MS", "0")]);
    let mut holder = service.connect();
    let id = holder.execute(json!({ "command": "true", "onDisconnect": "detach" }));
    holder.record();
    wait_until("the execution is forgotten", PATIENCE, || {
        service.get("/executions")["executions"].as_array().is_some_and(Vec::is_empty)
    });
    let (_, stderr, code) = run_to_exit(&mut service.client_command(&["attach", &id]));
    assert_eq!(code, 69);
    assert!(stderr.contains(&format!("unknown execution {id}: ")), "{stderr}");
}
