//! A command never runs twice, and no ending is invented, when answers, connections or the service are lost.

use std::{fs, time::Duration};

use rustix::process::Signal;
use serde_json::json;

use super::in_both_languages;
use crate::common::{
    PATIENCE,
    client_package::{ClientPackage, last_report},
    proxy::{CutKind, Proxy},
    scale,
    service::{Service, binary},
    temp::TempPath,
    wait_until,
};

in_both_languages!(
    a_lost_answer_never_runs_a_command_twice,
    a_restarted_service_is_an_unknown_ending,
    a_service_that_stays_away_is_an_unknown_ending,
    a_full_service_is_tried_again,
    a_lost_backend_is_an_unknown_ending,
);

fn a_lost_answer_never_runs_a_command_twice(package: &ClientPackage) {
    let service = Service::start();
    let n = scale(8, 60);
    for round in 0..n {
        // The upgrade and `connected` have about a thousand bytes; the response to `execute` follows.
        let at = 900 + 40 * round as u64 % 600;
        let proxy = Proxy::start(service.address, move |n| (n == 0).then_some((at, CutKind::Reset)));
        let runs = TempPath::new("runs");
        let command = format!("echo run >> {}; echo out; sleep 0.1; exit 3", runs.display());
        let report = package.run(&json!({ "do": "run", "url": proxy.url(), "command": command }));
        if report["error"] == "ServiceUnavailable" {
            // Cut before the client had a session: it says that nothing was started.
            assert!(report["message"].as_str().unwrap().contains("not started"), "{report}");
            assert!(!runs.exists(), "cut at {at}");
            continue;
        }
        assert_eq!((&report["exitCode"], &report["stdout"]), (&json!(3), &json!("out\n")), "cut at {at}: {report}");
        assert_eq!(fs::read_to_string(&*runs).unwrap(), "run\n", "cut at {at}");
    }
}

/// Kills the service under a running command.
fn kill_service(package: &ClientPackage, reconnect_ms: u64, restart: bool) -> serde_json::Value {
    let mut service = Service::start();
    let scenario = json!({
        "do": "start", "url": service.url(), "command": "echo ready; exec sleep 100", "reconnectMs": reconnect_ms,
    });
    let (process, first) = package.start(&scenario);
    service.signal(Signal::KILL);
    service.wait(PATIENCE);
    let _restarted = restart.then(|| {
        let mut command = binary();
        command.args(["serve", "--bind", &service.address.to_string(), "--state-dir", "none"]);
        Service::spawn(command)
    });
    let report = last_report(&process.finish(PATIENCE));
    assert_eq!((&report["error"], &report["executionId"]), (&json!("EndingUnknown"), &first["id"]), "{report}");
    report
}

fn a_restarted_service_is_an_unknown_ending(package: &ClientPackage) {
    let report = kill_service(package, 20_000, true);
    assert!(report["message"].as_str().unwrap().contains("was restarted"), "{report}");
}

fn a_service_that_stays_away_is_an_unknown_ending(package: &ClientPackage) {
    for reconnect_ms in [0, 1_500] {
        let report = kill_service(package, reconnect_ms, false);
        let message = report["message"].as_str().unwrap();
        assert!(message.contains("may still run"), "{report}");
        assert_eq!(message.contains("gave up reconnecting after 1.5 s"), reconnect_ms > 0, "{report}");
    }
}

fn a_full_service_is_tried_again(package: &ClientPackage) {
    let service = Service::with(&["serve", "--max-executions", "1", "--max-queued", "0"], &[]);
    let mut holder = service.connect();
    holder.execute(json!({ "command": "exec sleep 100" }));
    let scenario = json!({ "do": "run", "url": service.url(), "command": "echo in", "reconnectMs": 300 });
    let report = package.run(&scenario);
    assert_eq!(report["error"], "ServiceUnavailable", "{report}");
    assert!(report["message"].as_str().unwrap().contains("not started"), "{report}");
    let refused = service.count("execution.refused");
    let mut patient = scenario.clone();
    patient["reconnectMs"] = json!(20_000);
    patient["interruptible"] = json!(true);
    let (process, _) = package.start(&patient);
    wait_until("the client is refused", PATIENCE, || service.count("execution.refused") > refused);
    holder.cancel();
    let report = last_report(&process.finish(PATIENCE));
    assert_eq!((&report["stdout"], &report["exitCode"]), (&json!("in\n"), &json!(0)), "{report}");
}

fn a_lost_backend_is_an_unknown_ending(package: &ClientPackage) {
    let mut backend = Service::backend();
    let gateway = Service::gateway(&backend.url());
    let scenario = json!({
        "do": "start", "url": gateway.url(), "command": "echo ready; exec sleep 100", "reconnectMs": 0,
    });
    let (process, first) = package.start(&scenario);
    backend.signal(Signal::KILL);
    backend.wait(PATIENCE);
    let report = last_report(&process.finish(PATIENCE + Duration::from_secs(30)));
    assert_eq!((&report["error"], &report["executionId"]), (&json!("EndingUnknown"), &first["id"]), "{report}");
}
