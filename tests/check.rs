//! `check` passes where all is well, and names exactly what is broken where it is not.

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
    service::{Service, binary},
    tampering_proxy::{Direction, Meddle, TamperingProxy},
};

/// All of them.
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

/// Those that do not take seconds.
pub const QUICK: &[&str] = &["basic", "stress", "concurrent", "reconnect", "cancel", "races", "detach", "limits"];

/// The results by name, the sums, and the exit code.
pub fn check(url: &str, arguments: &[&str]) -> (Vec<Value>, Value, i32) {
    let output = binary().args(["check", "--json", "--url", url]).args(arguments).output().unwrap();
    let mut lines: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sums = lines.pop().unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (lines, sums["summary"].clone(), output.status.code().unwrap())
}

#[test]
fn all_checks_pass_within_a_minute_on_a_healthy_service() {
    let service = Service::start();
    let since = Instant::now();
    let (results, sums, code) = check(&service.url(), &[]);
    assert!(since.elapsed() < Duration::from_secs(60), "{:?}", since.elapsed());
    let names: Vec<_> = results.iter().map(|result| result["check"].as_str().unwrap()).collect();
    assert_eq!((names, code), (ALL.to_vec(), 0), "{results:?}");
    assert_eq!((&sums["passed"], &sums["failed"]), (&json!(ALL.len()), &json!(0)), "{results:?}");
    assert!(service.log().iter().all(|line| line["level"] != "ERROR"), "{:?}", service.log());
}

/// Runs a check and all the quick ones against a service with that fault, which the one must find, and no
/// other.
fn is_named(name: &str, meddle: Meddle) -> Value {
    let service = Service::start();
    let proxy = TamperingProxy::start(service.address, meddle);
    let mut only = QUICK.to_vec();
    only.extend((!QUICK.contains(&name)).then_some(name));
    let (results, sums, code) = check(&format!("http://{}", proxy.address), &["--only", &only.join(",")]);
    let failed: Vec<_> = results.iter().filter(|result| result["passed"] == false).collect();
    let names: Vec<_> = failed.iter().map(|result| result["check"].as_str().unwrap()).collect();
    assert_eq!((names, code, &sums["failed"]), (vec![name], 1, &json!(1)), "{failed:?}");
    failed[0].clone()
}

/// Processes that a service has lost sight of.
static STRAYS: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// Ends them with their test.
struct EndStrays;

impl Drop for EndStrays {
    fn drop(&mut self) {
        for mut stray in STRAYS.lock().unwrap().drain(..) {
            let _ = stray.kill();
            let _ = stray.wait();
        }
    }
}

/// Starts one for each execution of such a command.
fn leave_behind(way: Direction, message: &Value, is_it: fn(&str) -> bool) {
    let asked = message["params"]["command"].as_str().filter(|asked| is_it(asked));
    if let (Direction::ToService, Some(asked)) = (way, asked) {
        let mark = asked.split([' ', ')']).find(|word| word.starts_with("1000.")).expect("it is marked");
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
    is_named("basic", |_, _, message| {
        if content(message) == "RESULT:::168\n" {
            message["params"]["content"] = json!("RESULT:::169\n");
        }
        true
    });
}

#[test]
fn check_finds_a_changed_output_line() {
    is_named("stress", |_, _, message| {
        if content(message).starts_with("caught: ") {
            message["params"]["content"] = json!("Caught: division by zero\n");
        }
        true
    });
}

#[test]
fn check_finds_a_missing_message_in_one_of_many_sessions() {
    is_named("concurrent", |_, _, message| !content(message).contains("session 7 says 2"));
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
    let (results, _, code) = check(&format!("http://{}", proxy.address), &["--only", "concurrent"]);
    assert_eq!(code, 1);
    let log = service.log();
    let opened: Vec<_> = log.iter().filter(|line| line["event"] == "session.opened").skip(n_before).collect();
    // The first one only shows that somebody listens.
    assert_eq!(results[0]["session"], opened[1 + 7]["session_id"], "{results:?}");
    assert!(results[0]["last"].is_string(), "{results:?}");
}

#[test]
fn check_finds_leftover_processes_itself() {
    let _strays = EndStrays;
    thread::scope(|scope| {
        scope.spawn(|| {
            is_named("cancel", |way, _, message| {
                leave_behind(way, message, |asked| asked.ends_with("& echo ready; wait"));
                true
            })
        });
        scope.spawn(|| {
            is_named("races", |way, _, message| {
                leave_behind(way, message, |asked| asked.contains("& yes "));
                true
            })
        });
        let failed = is_named("reconnect", |way, _, message| {
            leave_behind(way, message, |asked| {
                asked.starts_with("setsid") && !asked.contains("yes") && !asked.contains("ready")
            });
            true
        });
        assert!(failed["problem"].as_str().unwrap().starts_with("20 processes are left"), "{failed}");
    });
}

#[test]
fn check_finds_an_unverified_ending() {
    is_named("races", |_, _, message| {
        if message["result"]["reason"] == "disconnected" {
            message["result"]["cancel"]["verified"] = json!(false);
        }
        true
    });
}

#[test]
fn check_finds_duplicated_output() {
    is_named("detach", |way, _, message| {
        if way == Direction::ToService && message["method"] == "attach" {
            message["params"]["offsets"] = json!({});
        }
        true
    });
}

#[test]
fn check_finds_a_time_out_reported_as_success() {
    is_named("limits", |_, _, message| {
        if message["params"]["reason"] == "timeout" {
            message["params"]["status"] = json!("COMPLETED");
            message["params"]["reason"] = json!("exit");
        }
        true
    });
}

#[test]
fn check_reports_a_hang_with_last_message_and_session_log() {
    let log = std::env::temp_dir().join(format!("cc-executor-check-{}", std::process::id()));
    let file = std::fs::File::create(&log).unwrap();
    let service = Service::start();
    // A CANCEL that never arrives: heartbeats go on, and no answer comes.
    let proxy = TamperingProxy::start(service.address, |way, _, message| {
        way == Direction::ToClient || message["method"] != "control"
    });
    let over = AtomicBool::new(false);
    let (results, _, code) = thread::scope(|scope| {
        scope.spawn(|| {
            let mut n_written = 0;
            while !over.load(Ordering::SeqCst) {
                for line in service.log().iter().skip(n_written) {
                    writeln!(&file, "{line}").unwrap();
                    n_written += 1;
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        let url = format!("http://{}", proxy.address);
        let found = check(&url, &["--only", "cancel,basic", "--logs", log.to_str().unwrap()]);
        over.store(true, Ordering::SeqCst);
        found
    });
    let _ = std::fs::remove_file(&log);
    assert_eq!((code, results[0]["passed"].clone()), (1, json!(true)));
    let failed = &results[1];
    assert!(failed["problem"].as_str().unwrap().contains("hung: control is not answered"), "{failed}");
    assert!(failed["last"].as_str().unwrap().contains("RUNNING"), "{failed}");
    let session = failed["session"].as_str().unwrap();
    let told = failed["log"].to_string();
    for part in [session, "session.opened", "process.started"] {
        assert!(told.contains(part), "{part}: {failed}");
    }
}

#[test]
fn check_finds_lost_output() {
    is_named("slow-client", |_, command, message| {
        let end = message["params"]["end"].as_u64().unwrap_or_default();
        !(command == "seq 1 3000000" && (5_000_000..5_100_000).contains(&end))
    });
}

#[test]
fn check_finds_a_wrong_digest() {
    is_named("large-output", |_, command, message| {
        if command == "seq 1 6000000" && is_end(message) {
            message["params"]["sha256"]["stdout"] = json!("0".repeat(64));
        }
        true
    });
}

#[test]
fn check_finds_missing_heartbeats() {
    is_named("heartbeat", |_, command, message| {
        !(command.starts_with("sleep 5.5") && message["params"]["elapsedMs"].as_u64().is_some_and(|ms| ms > 500))
            || is_end(message)
    });
}

#[test]
fn check_finds_a_backend_reported_as_silent() {
    is_named("heartbeat", |_, command, message| {
        // As a gateway says it that has not heard its backend for three heartbeats.
        if command.starts_with("sleep 5.5") && message["params"]["elapsedMs"].as_u64().is_some_and(|ms| ms > 3_500) {
            message["params"]["backend"] = json!("silent");
        }
        true
    });
}
