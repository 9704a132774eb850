//! Endings are values; what is not known, and what is refused, are errors with a type.

use serde_json::{Value, json};

use super::in_both_languages;
use crate::common::{
    PATIENCE,
    client_package::{ClientPackage, last_report},
    procs,
    service::{Service, kill},
};

in_both_languages!(
    endings_are_values,
    input_and_signals_reach_the_command,
    cancel_ends_every_process,
    leaving_early_cancels,
    an_interrupted_run_cancels,
    a_detached_command_is_followed_by_another_process,
    a_second_program_takes_over,
    an_observer_leaves_the_execution_alone,
    a_token_is_demanded_and_checked,
    refusals_have_types,
);

/// A command with a child that leaves the process group.
fn lasting(mark: &str) -> String {
    format!("setsid sleep {mark} & echo ready; exec sleep {mark}")
}

fn endings_are_values(package: &ClientPackage) {
    let service = Service::start();
    for (command, more, status, reason, exit_code) in [
        ("echo hello; echo oops >&2", json!({}), "COMPLETED", "exit", json!(0)),
        ("echo hello; echo oops >&2; exit 3", json!({}), "FAILED", "exit", json!(3)),
        ("echo hello; echo oops >&2; kill -9 $$", json!({}), "FAILED", "signal", Value::Null),
        ("echo hello; echo oops >&2; exec sleep 60", json!({ "timeoutMs": 500 }), "FAILED", "timeout", Value::Null),
        ("", json!({ "command": ["sh", "-c", "echo $1; echo oops >&2", "x", "hello"] }), "COMPLETED", "exit", json!(0)),
    ] {
        let mut scenario = json!({ "do": "run", "url": service.url(), "command": command });
        scenario.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let report = package.run(&scenario);
        assert_eq!((&report["stdout"], &report["stderr"]), (&json!("hello\n"), &json!("oops\n")), "{report}");
        let ending = (&report["status"], &report["reason"], &report["exitCode"]);
        assert_eq!(ending, (&json!(status), &json!(reason), &exit_code), "{command}: {report}");
    }
    let scenario = json!({ "do": "run", "url": service.url(), "command": "exit 4", "check": true });
    let report = package.run(&scenario);
    assert_eq!(report["error"], "ExecutionFailed", "{report}");
}

fn input_and_signals_reach_the_command(package: &ClientPackage) {
    let service = Service::start();
    let scenario = json!({ "do": "run", "url": service.url(), "command": "wc -c", "inputBytes": 300_000 });
    let report = package.run(&scenario);
    assert_eq!(report["stdout"], "300000\n", "{report}");
    let command = "echo ready; cat >&2";
    let report = package.run(&json!({ "do": "start", "url": service.url(), "command": command, "then": "write" }));
    assert_eq!((&report["stderr"], &report["exitCode"]), (&json!("line\n"), &json!(0)), "{report}");
    let command = "trap 'exit 7' USR1; echo ready; while :; do sleep 0.05; done";
    let report = package.run(&json!({ "do": "start", "url": service.url(), "command": command, "then": "signal" }));
    assert_eq!(report["exitCode"], 7, "{report}");
}

fn cancel_ends_every_process(package: &ClientPackage) {
    let service = Service::start();
    let mark = procs::mark();
    let scenario = json!({ "do": "start", "url": service.url(), "command": lasting(&mark), "then": "cancel" });
    let report = package.run(&scenario);
    assert_eq!((&report["reason"], &report["verified"]), (&json!("canceled"), &json!(true)), "{report}");
    assert!(procs::with_argument(&mark).is_empty());

    let mut client = service.connect();
    let id = client.execute(json!({ "command": lasting(&mark), "onDisconnect": "detach" }));
    procs::wait_for(&mark, 2, PATIENCE);
    // The second time it has ended already.
    for _ in 0..2 {
        let report = package.run(&json!({ "do": "cancel", "url": service.url(), "id": id }));
        assert_eq!((&report["reason"], &report["verified"]), (&json!("canceled"), &json!(true)), "{report}");
    }
    assert!(procs::with_argument(&mark).is_empty());
}

fn leaving_early_cancels(package: &ClientPackage) {
    let service = Service::start();
    let mark = procs::mark();
    for reconnect_ms in [0, 20_000] {
        let report = package.run(&json!({
            "do": "start", "url": service.url(), "command": lasting(&mark), "then": "leave", "reconnectMs": reconnect_ms,
        }));
        assert_eq!((&report["reason"], &report["verified"]), (&json!("canceled"), &json!(true)), "{report}");
        assert!(procs::with_argument(&mark).is_empty());
    }
}

fn an_interrupted_run_cancels(package: &ClientPackage) {
    let service = Service::start();
    let mark = procs::mark();
    let scenario = json!({ "do": "run", "url": service.url(), "command": lasting(&mark), "interruptible": true });
    let (process, _) = package.start(&scenario);
    procs::wait_for(&mark, 2, PATIENCE);
    kill(process.pid(), rustix::process::Signal::INT);
    let report = last_report(&process.finish(PATIENCE));
    assert_eq!(report["error"], "KeyboardInterrupt", "{report}");
    assert!(procs::with_argument(&mark).is_empty());
    assert_eq!(service.events("execution.finished")[0]["reason"], "canceled");
}

fn a_detached_command_is_followed_by_another_process(package: &ClientPackage) {
    let service = Service::start();
    let command = "echo one; sleep 1; echo two; exit 5";
    let scenario = json!({ "do": "start", "url": service.url(), "command": command, "then": "detach" });
    let (process, first) = package.start(&scenario);
    let report = last_report(&process.finish(PATIENCE));
    assert_eq!(report["detached"], true, "{report}");
    let report = package.run(&json!({ "do": "attach", "url": service.url(), "id": first["id"] }));
    let digest = crate::common::sha256(b"one\ntwo\n");
    assert_eq!((&report["sha256"], &report["exitCode"]), (&json!(digest), &json!(5)), "{report}");
}

fn a_second_program_takes_over(package: &ClientPackage) {
    let service = Service::start();
    let mark = procs::mark();
    let (process, first) = package.start(&json!({ "do": "start", "url": service.url(), "command": lasting(&mark) }));
    let attach = json!({ "do": "attach", "url": service.url(), "id": first["id"], "then": "cancel" });
    let second = package.run(&attach);
    assert_eq!((&second["reason"], &second["verified"]), (&json!("canceled"), &json!(true)), "{second}");
    let report = last_report(&process.finish(PATIENCE));
    assert_eq!((&report["error"], &report["executionId"]), (&json!("TakenOver"), &first["id"]), "{report}");
}

fn an_observer_leaves_the_execution_alone(package: &ClientPackage) {
    let service = Service::start();
    let mark = procs::mark();
    let mut client = service.connect();
    let id = client.execute(json!({ "command": lasting(&mark) }));
    let observe = json!({ "do": "attach", "url": service.url(), "id": id, "observe": true });
    let mut left = observe.clone();
    left["then"] = json!("leave");
    let report = package.run(&left);
    assert!(report.get("error").is_none(), "{report}");
    assert_eq!(procs::with_argument(&mark).len(), 2);
    let (process, _) = package.start(&observe);
    client.cancel();
    let report = last_report(&process.finish(PATIENCE));
    assert_eq!((&report["reason"], &report["verified"]), (&json!("canceled"), &json!(true)), "{report}");
}

fn a_token_is_demanded_and_checked(package: &ClientPackage) {
    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_TOKEN", TOKEN)]);
    for (token, said) in [(None, "none was given"), (Some("f".repeat(32)), "refuses the token")] {
        let scenario = json!({ "do": "run", "url": service.url(), "command": "true", "token": token });
        let report = package.run(&scenario);
        assert_eq!(report["error"], "NotAuthorized", "{report}");
        assert!(report["message"].as_str().unwrap().contains(said), "{report}");
        assert!(!report.to_string().contains(&"f".repeat(32)), "an error has no secret: {report}");
    }
    // Without a URL and a token those of the environment count.
    let mut command = package.command(&json!({ "do": "run", "command": "echo in" }));
    command.env("CC_EXECUTOR_URL", service.url()).env("CC_EXECUTOR_TOKEN", TOKEN);
    let (stdout, stderr, _) = crate::common::service::run_to_exit(&mut command);
    assert!(stdout.contains(r#"in\n"#), "{stdout}{stderr}");
}

fn refusals_have_types(package: &ClientPackage) {
    let service = Service::start();
    let unknown = "00000000-0000-4000-8000-000000000000";
    let mut nobody = json!({ "do": "run", "url": "127.0.0.1:1", "command": "true" });
    for (scenario, error) in [
        (json!({ "do": "attach", "url": service.url(), "id": unknown }), "UnknownExecution"),
        (json!({ "do": "cancel", "url": service.url(), "id": unknown }), "UnknownExecution"),
        (json!({ "do": "run", "url": service.url(), "command": "true", "timeoutMs": 1e12 }), "RequestRefused"),
        (nobody.take(), "ServiceUnavailable"),
        (json!({ "do": "run", "url": format!("{}/health", service.url()), "command": "true" }), "ServiceUnavailable"),
    ] {
        let report = package.run(&scenario);
        assert_eq!(report["error"], error, "{report}");
        assert!(report["executionId"].is_string(), "{report}");
    }
}
