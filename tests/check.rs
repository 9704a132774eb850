//! `check` passes on a healthy service, and names exactly the check that fails on a faulty one.

use std::{
    io::Write,
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::common::{
    service::{Service, binary, run_to_exit},
    tampering_proxy::{Direction, TamperingProxy},
    temp::TempPath,
};

/// All checks.
pub const ALL: &[&str] = &[
    "basic",
    "stress",
    "concurrent",
    "reconnect",
    "cancel",
    "races",
    "slow-client",
    "large-output",
    "heartbeat",
    "detach",
    "limits",
];

/// The checks that take less than a second.
pub const QUICK: &[&str] = &["basic", "stress", "concurrent", "reconnect", "cancel", "races", "detach", "limits"];

/// Runs `check`: its results, its summary and its exit code.
pub fn check(url: &str, arguments: &[&str]) -> (Vec<Value>, Value, i32) {
    let (stdout, stderr, code) = run_to_exit(binary().args(["check", "--json", "--url", url]).args(arguments));
    let mut lines: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let summary = lines.pop().unwrap_or_else(|| panic!("{stderr}"));
    (lines, summary["summary"].clone(), code)
}

#[test]
fn all_checks_pass_within_a_minute_on_a_healthy_service() {
    let service = Service::start();
    let since = Instant::now();
    let (results, summary, code) = check(&service.url(), &[]);
    assert!(since.elapsed() < Duration::from_secs(60), "{:?}", since.elapsed());
    let names: Vec<_> = results.iter().map(|result| result["check"].as_str().unwrap()).collect();
    assert_eq!((names, code), (ALL.to_vec(), 0), "{results:?}");
    assert_eq!((&summary["passed"], &summary["failed"]), (&json!(ALL.len()), &json!(0)), "{results:?}");
    assert!(service.log().iter().all(|line| line["level"] != "ERROR"), "{:?}", service.log());
}

/// Runs a check and all quick ones against a service with a fault. Only this check may fail. Returns its result.
fn assert_only_failure(
    name: &str,
    tamper: impl Fn(Direction, &str, &mut Value) -> bool + Send + Sync + 'static,
) -> Value {
    let service = Service::start();
    let proxy = TamperingProxy::start(service.address, tamper);
    let mut only = QUICK.to_vec();
    only.extend((!QUICK.contains(&name)).then_some(name));
    let (results, summary, code) = check(&proxy.url(), &["--only", &only.join(",")]);
    let failed: Vec<_> = results.iter().filter(|result| result["passed"] == false).collect();
    let names: Vec<_> = failed.iter().map(|result| result["check"].as_str().unwrap()).collect();
    assert_eq!((names, code, &summary["failed"]), (vec![name], 1, &json!(1)), "{failed:?}");
    failed[0].clone()
}

/// Processes that look as if the service had leaked them.
static STRAYS: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// Ends them when the test ends.
struct EndStrays;

impl Drop for EndStrays {
    fn drop(&mut self) {
        for mut stray in STRAYS.lock().unwrap().drain(..) {
            let _ = stray.kill();
            let _ = stray.wait();
        }
    }
}

/// Starts a stray with the mark of the command, for each execution of a matching command.
fn start_stray(direction: Direction, message: &Value, is_match: fn(&str) -> bool) {
    let command = message["params"]["command"].as_str().filter(|command| is_match(command));
    if let (Direction::ToService, Some(command)) = (direction, command) {
        let mark = command.split([' ', ')']).find(|word| word.starts_with("1000.")).expect("the command has a mark");
        let mut sleep = Command::new("sleep");
        STRAYS.lock().unwrap().push(sleep.arg(mark).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }
}

fn content(message: &Value) -> &str {
    message["params"]["content"].as_str().unwrap_or_default()
}

fn is_end(message: &Value) -> bool {
    message["params"]["reason"].is_string()
}

#[test]
fn check_finds_a_wrong_result() {
    assert_only_failure("basic", |_, _, message| {
        if content(message) == "RESULT:::168\n" {
            message["params"]["content"] = json!("RESULT:::169\n");
        }
        true
    });
}

#[test]
fn check_finds_a_changed_output_line() {
    assert_only_failure("stress", |_, _, message| {
        if content(message).starts_with("caught: ") {
            message["params"]["content"] = json!("Caught: division by zero\n");
        }
        true
    });
}

#[test]
fn check_finds_a_missing_message_in_one_of_many_sessions() {
    assert_only_failure("concurrent", |_, _, message| !content(message).contains("session 7 says 2"));
}

#[test]
fn check_names_the_failing_session_of_many() {
    let service = Service::start();
    let proxy = TamperingProxy::start(service.address, |_, command, message| {
        if command.contains("session 7 says") && is_end(message) {
            message["params"]["exit_code"] = json!(1);
        }
        true
    });
    let n_before = service.count("session.opened");
    let (results, _, code) = check(&proxy.url(), &["--only", "concurrent"]);
    assert_eq!(code, 1);
    let log = service.log();
    let opened: Vec<_> = log.iter().filter(|line| line["event"] == "session.opened").skip(n_before).collect();
    // The first session only tests the connection.
    assert_eq!(results[0]["session"], opened[1 + 7]["session_id"], "{results:?}");
    assert!(results[0]["last"].is_string(), "{results:?}");
}

#[test]
fn check_finds_leftover_processes_itself() {
    let _strays = EndStrays;
    thread::scope(|scope| {
        scope.spawn(|| {
            assert_only_failure("cancel", |direction, _, message| {
                start_stray(direction, message, |command| command.ends_with("& echo ready; wait"));
                true
            })
        });
        scope.spawn(|| {
            assert_only_failure("races", |direction, _, message| {
                start_stray(direction, message, |command| command.contains("& yes "));
                true
            })
        });
        let failed = assert_only_failure("reconnect", |direction, _, message| {
            start_stray(direction, message, |command| {
                command.starts_with("setsid") && !command.contains("yes") && !command.contains("ready")
            });
            true
        });
        assert!(failed["problem"].as_str().unwrap().starts_with("20 processes are left"), "{failed}");
    });
}

#[test]
fn check_finds_an_unverified_ending() {
    assert_only_failure("races", |_, _, message| {
        if message["result"]["reason"] == "disconnected" {
            message["result"]["cancel"]["verified"] = json!(false);
        }
        true
    });
}

#[test]
fn check_finds_duplicated_output() {
    assert_only_failure("detach", |direction, _, message| {
        if direction == Direction::ToService && message["method"] == "attach" {
            message["params"]["offsets"] = json!({});
        }
        true
    });
}

#[test]
fn check_finds_a_time_out_reported_as_success() {
    assert_only_failure("limits", |_, _, message| {
        if message["params"]["reason"] == "timeout" {
            message["params"]["status"] = json!("COMPLETED");
            message["params"]["reason"] = json!("exit");
        }
        true
    });
}

#[test]
fn check_reports_a_hang_with_last_message_and_session_log() {
    let log = TempPath::new("check");
    let file = std::fs::File::create(&*log).unwrap();
    let service = Service::start();
    // The CANCEL is dropped, so heartbeats continue and no response comes.
    let proxy = TamperingProxy::start(service.address, |direction, _, message| {
        direction == Direction::ToClient || message["method"] != "control"
    });
    let is_over = AtomicBool::new(false);
    let (results, _, code) = thread::scope(|scope| {
        scope.spawn(|| {
            let mut n_written = 0;
            while !is_over.load(Ordering::SeqCst) {
                for line in service.log().iter().skip(n_written) {
                    writeln!(&file, "{line}").unwrap();
                    n_written += 1;
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        let url = proxy.url();
        let found = check(&url, &["--only", "cancel,basic", "--logs", log.as_str()]);
        is_over.store(true, Ordering::SeqCst);
        found
    });
    assert_eq!((code, results[0]["passed"].clone()), (1, json!(true)));
    let failed = &results[1];
    assert!(failed["problem"].as_str().unwrap().contains("hung: `control` is not answered"), "{failed}");
    assert!(failed["last"].as_str().unwrap().contains("RUNNING"), "{failed}");
    let session = failed["session"].as_str().unwrap();
    let printed = failed["log"].to_string();
    for part in [session, "session.opened", "process.started"] {
        assert!(printed.contains(part), "{part}: {failed}");
    }
}

#[test]
fn check_finds_lost_output() {
    assert_only_failure("slow-client", |_, command, message| {
        let end = message["params"]["end"].as_u64().unwrap_or_default();
        !(command == "seq 1 3000000" && (5_000_000..5_100_000).contains(&end))
    });
}

#[test]
fn check_finds_a_wrong_digest() {
    assert_only_failure("large-output", |_, command, message| {
        if command == "seq 1 6000000" && is_end(message) {
            message["params"]["sha256"]["stdout"] = json!("0".repeat(64));
        }
        true
    });
}

#[test]
fn check_finds_missing_heartbeats() {
    assert_only_failure("heartbeat", |_, command, message| {
        !(command.starts_with("sleep 5.5") && message["params"]["elapsedMs"].as_u64().is_some_and(|ms| ms > 500))
            || is_end(message)
    });
}

#[test]
fn check_finds_a_backend_reported_as_silent() {
    assert_only_failure("heartbeat", |_, command, message| {
        // As if the gateway had missed three heartbeats of its backend.
        if command.starts_with("sleep 5.5") && message["params"]["elapsedMs"].as_u64().is_some_and(|ms| ms > 3_500) {
            message["params"]["backend"] = json!("silent");
        }
        true
    });
}
