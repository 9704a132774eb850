//! The command-line client on a bad day: a service that is silent, a reader that leaves, a disk that is full,
//! output that is lost, and a service that was restarted.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    client::Recording,
    procs,
    proxy::{CutKind, Proxy},
    service::{Service, binary, kill, text_and_code},
    tampering_proxy::{Direction, TamperingProxy},
    wait_until,
};

/// A client command under way, which does not outlive its test.
struct Running {
    child: Child,
    /// What it has written to standard error so far.
    err: Arc<Mutex<String>>,
}

impl Running {
    fn start(command: &mut Command) -> Running {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let err = Arc::new(Mutex::new(String::new()));
        let (stderr, told) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&err));
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                *told.lock().unwrap() += &format!("{line}\n");
            }
        });
        Running { child, err }
    }

    /// Waits until it has written exactly this to standard output.
    fn expect(&mut self, text: &str) {
        let mut bytes = vec![0; text.len()];
        self.child.stdout.as_mut().unwrap().read_exact(&mut bytes).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), text);
    }

    /// Waits until standard error contains this.
    fn says(&self, part: &str) {
        wait_until(&format!("the client says {part:?}"), NOTICED, || self.err.lock().unwrap().contains(part));
    }

    /// Waits for its end, and gives the rest of standard output, standard error, and the code.
    fn end(mut self, within: Duration) -> (String, String, i32) {
        wait_until("the client ends", within, || self.child.try_wait().unwrap().is_some());
        let mut stdout = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        wait_until("standard error is read", PATIENCE, || Arc::strong_count(&self.err) == 1);
        let stderr = self.err.lock().unwrap().clone();
        (stdout, stderr, self.child.wait().unwrap().code().expect("not ended by a signal"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

/// A subcommand that talks to the service.
fn client(service: &Service, arguments: &[&str]) -> Command {
    let mut command = binary();
    command.arg(arguments[0]).args(["--url", &service.url()]).args(&arguments[1..]);
    command
}

/// What a client command printed, and its code.
fn told(command: &mut Command) -> (String, String, i32) {
    let output = command.output().unwrap();
    let (text, code) = text_and_code(&output);
    (text, String::from_utf8_lossy(&output.stderr).into_owned(), code)
}

/// The bound on noticing that heartbeats of a second have ceased: three of them, and time to be scheduled.
const NOTICED: Duration = Duration::from_secs(12);

#[test]
fn run_detects_a_stopped_service() {
    let service = Service::start();
    let mark = procs::mark();
    let command = format!("echo ready; exec sleep {mark}");
    let mut run = Running::start(&mut service.run_command(&["--heartbeat", "1", "--", &command]));
    run.expect("ready\n");
    service.signal(Signal::STOP);
    let (_, err, code) = run.end(NOTICED);
    assert_eq!((code, err.lines().count()), (69, 1), "{err}");
    assert!(err.contains("no sign of life: nothing came for 3 s"), "{err}");
    service.signal(Signal::CONT);
    procs::wait_for(&mark, 0, PATIENCE);
}

#[test]
fn run_detects_a_network_that_drops_packets() {
    let service = Service::start();
    let proxy = Proxy::start(service.address, |_| Some((50_000, CutKind::Silent)));
    let url = format!("ws://{}", proxy.address);
    let command = "head -c 100000 /dev/zero | tr '\\0' x; exec sleep 100";
    let run = Running::start(binary().args(["run", "--heartbeat", "1", "--url", &url, "--", command]));
    let (_, err, code) = run.end(NOTICED);
    assert!(code == 69 && err.contains("no sign of life"), "{code} {err}");
}

#[test]
fn attach_detects_a_stopped_service() {
    let service = Service::start();
    let mut holder = service.connect();
    let id = holder.execute(json!({ "command": "exec sleep 100", "heartbeatMs": 1000, "onDisconnect": "detach" }));
    let mut attach = Running::start(&mut client(&service, &["attach", "--json", &id]));
    let mut lines = BufReader::new(attach.child.stdout.as_mut().unwrap()).lines();
    for _ in 0..3 {
        lines.find(|line| line.as_ref().unwrap().contains("RUNNING")).expect("heartbeats").unwrap();
    }
    service.signal(Signal::STOP);
    let (_, err, code) = attach.end(NOTICED);
    assert!(code == 69 && err.contains("no sign of life"), "{code} {err}");
}

#[test]
fn run_reconnects_after_its_gateway_was_paused() {
    let backend = Service::backend();
    let gateway = Service::gateway(&backend.url());
    gateway.wait_for_event("backend.up", 1);
    let file = std::env::temp_dir().join(format!("cc-executor-stopped-{}", std::process::id()));
    let command = format!("echo one; until [ -e {0} ]; do sleep 0.05; done; echo two", file.display());
    let mut run = Running::start(&mut gateway.run_command(&["--heartbeat", "1", "--reconnect=20", "--", &command]));
    run.expect("one\n");
    gateway.signal(Signal::STOP);
    run.says("no sign of life: nothing came for 3 s; trying to come back for 20 s\n");
    fs::write(&file, "").unwrap();
    gateway.signal(Signal::CONT);
    let (out, _, code) = run.end(PATIENCE);
    let _ = fs::remove_file(file);
    assert_eq!((out.as_str(), code), ("two\n", 0));
}

#[test]
fn run_gives_up_reconnecting_to_a_stopped_service() {
    let service = Service::start();
    let mut run =
        Running::start(&mut service.run_command(&["--heartbeat", "1", "--reconnect=2", "--", "echo x; sleep 100"]));
    run.expect("x\n");
    service.signal(Signal::STOP);
    let (_, err, code) = run.end(NOTICED + Duration::from_secs(2));
    assert_eq!((code, err.lines().count()), (69, 2), "{err}");
    assert!(err.contains("gave up after 2 s; it may still run: cc-executor attach "), "{err}");
}

#[test]
fn every_command_gives_up_on_a_stopped_service() {
    const BOUND: Duration = Duration::from_secs(20);
    let service = Service::start();
    service.signal(Signal::STOP);
    let id = "00000000-0000-4000-8000-000000000000";
    let mut commands: Vec<Command> = [
        ["ps"].as_slice(),
        &["ps", "--json"],
        &["cancel", id],
        &["attach", id],
        &["run", "--", "true"],
        &["run", "--reconnect", "--", "true"],
        &["run", "--detach", "--", "true"],
        &["check", "--only", "basic"],
    ]
    .iter()
    .map(|arguments| client(&service, arguments))
    .collect();
    let mut healthcheck = binary();
    healthcheck.args(["healthcheck", "--url", &format!("{}/ready", service.url())]);
    commands.push(healthcheck);
    let running: Vec<_> = commands.iter_mut().map(|command| (Running::start(command), Instant::now())).collect();
    for ((running, started_at), command) in running.into_iter().zip(&commands) {
        let (_, err, code) = running.end(BOUND.saturating_sub(started_at.elapsed()));
        assert_eq!((code, err.lines().count()), (69, 1), "{command:?}: {err}");
    }
}

#[test]
fn run_gives_up_on_an_unanswered_execute() {
    let service = Service::start();
    let proxy =
        TamperingProxy::start(service.address, |way, _, message| way == Direction::ToService || message["id"] != 1);
    let url = format!("ws://{}", proxy.address);
    let run = Running::start(binary().args(["run", "--heartbeat", "1", "--url", &url, "--", "exec sleep 100"]));
    let (_, err, code) = run.end(Duration::from_secs(45));
    assert_eq!((code, err.as_str()), (69, "cc-executor: the service does not answer\n"));
}

/// Standard output that nobody reads, and one that cannot be written.
fn bad_outputs() -> [(&'static str, Stdio); 2] {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    [("closed", writer.into()), ("full", fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into())]
}

fn checked(output: &Output, kind: &str, what: &[&str]) {
    let (err, code) = (String::from_utf8_lossy(&output.stderr), output.status.code());
    match kind {
        "closed" => assert!(matches!(code, Some(0 | 141)) && err.is_empty(), "{what:?}: {code:?} {err}"),
        _ => assert!(
            code == Some(74) && err.lines().count() == 1 && err.contains("cannot write the output"),
            "{what:?}: {code:?} {err}"
        ),
    }
}

#[test]
fn every_command_accepts_closed_stdout_and_fails_on_full_disk() {
    let service = Service::start();
    service.run(&["--detach", "--", "true"]);
    for arguments in [
        ["ps"].as_slice(),
        &["ps", "--json"],
        &["run", "--", "echo hi"],
        &["run", "--json", "--", "echo hi"],
        &["run", "--reconnect", "--", "echo hi"],
        &["check", "--only", "basic"],
        &["check", "--json", "--only", "basic"],
    ] {
        for (kind, stdout) in bad_outputs() {
            let mut output = client(&service, arguments).stdout(stdout).stderr(Stdio::piped()).output().unwrap();
            if arguments[0] == "check" {
                // The name of each check as it begins.
                let err = String::from_utf8_lossy(&output.stderr).replace("...   basic\n", "");
                output.stderr = err.into_bytes();
            }
            checked(&output, kind, arguments);
        }
    }
    for arguments in [
        ["--help"].as_slice(),
        &["--version"],
        &["help", "run"],
        &["run", "--help"],
        &["serve", "--help"],
        &["completions", "bash"],
        &["check", "--list"],
    ] {
        for (kind, stdout) in bad_outputs() {
            let output = binary().args(arguments).stdout(stdout).stderr(Stdio::piped()).output().unwrap();
            checked(&output, kind, arguments);
        }
    }
    for (kind, stdout) in bad_outputs() {
        let mark = procs::mark();
        let id = service.run(&["--detach", "--", &format!("exec sleep {mark}")]).stdout;
        let id = String::from_utf8(id).unwrap();
        procs::wait_for(&mark, 1, PATIENCE);
        let arguments = ["cancel", id.trim()];
        let output = client(&service, &arguments).stdout(stdout).stderr(Stdio::piped()).output().unwrap();
        checked(&output, kind, &arguments);
        assert!(procs::with_argument(&mark).is_empty(), "it was canceled all the same");
        let arguments = ["attach", id.trim()];
        assert_eq!(client(&service, &arguments).output().unwrap().status.code(), Some(143));
    }
}

#[test]
fn failed_write_to_stderr_does_not_change_the_exit_code() {
    for (_, stderr) in bad_outputs() {
        let mut command = binary();
        command.args(["ps", "--url", "ws://127.0.0.1:1"]).stdout(Stdio::null()).stderr(stderr);
        assert_eq!(command.status().unwrap().code(), Some(69));
    }
    for (_, stderr) in bad_outputs() {
        let mut command = binary();
        command.args(["serve", "--max-sessions", "no"]).stdout(Stdio::null()).stderr(stderr);
        assert_eq!(command.status().unwrap().code(), Some(64));
    }
}

#[test]
fn run_ends_the_command_when_output_cannot_be_written() {
    let service = Service::start();
    let endings = [("closed", 141), ("full", 74)];
    for flags in [["--heartbeat=5"].as_slice(), &["--reconnect"], &["--json"]] {
        for (kind, stdout) in bad_outputs() {
            let mark = procs::mark();
            let command = format!("setsid sleep {mark} & echo hi; exec sleep {mark}");
            let mut run = service.run_command(&[flags, &["--", &command]].concat());
            let output = run.stdout(stdout).stderr(Stdio::piped()).output().unwrap();
            checked(&output, kind, flags);
            let code = endings.iter().find(|(of, _)| *of == kind).unwrap().1;
            assert_eq!(output.status.code(), Some(code), "{flags:?} {kind}");
            assert!(procs::with_argument(&mark).is_empty(), "{flags:?} {kind}: gone before run says so");
        }
    }
    // The command's standard error is output, too.
    for ((kind, stderr), (_, code)) in bad_outputs().into_iter().zip(endings) {
        let mark = procs::mark();
        let mut run = service.run_command(&["--", &format!("echo hi >&2; exec sleep {mark}")]);
        assert_eq!(run.stdout(Stdio::null()).stderr(stderr).status().unwrap().code(), Some(code), "{kind}");
        assert!(procs::with_argument(&mark).is_empty(), "{kind}");
    }
}

#[test]
fn attach_with_unwritable_output_leaves_the_execution_running() {
    let service = Service::start();
    for ((kind, stdout), code) in bad_outputs().into_iter().zip([141, 74]) {
        let mark = procs::mark();
        let id = service.run(&["--detach", "--", &format!("echo hi; exec sleep {mark}")]).stdout;
        let arguments = ["attach", String::from_utf8(id).unwrap().trim()].map(str::to_owned);
        let output =
            client(&service, &arguments.each_ref().map(String::as_str)).stdout(stdout).stderr(Stdio::piped()).output();
        let output = output.unwrap();
        checked(&output, kind, &["attach"]);
        assert_eq!(output.status.code(), Some(code), "{kind}");
        procs::wait_for(&mark, 1, PATIENCE);
        assert_eq!(service.count("process.finished"), 0, "{kind}");
    }
}

#[test]
fn detached_execution_is_canceled_if_its_id_cannot_be_printed() {
    let service = Service::start();
    for ((kind, stdout), code) in bad_outputs().into_iter().zip([141, 74]) {
        let mark = procs::mark();
        let command = format!("trap 'sleep 0.3; exit' TERM; setsid sleep {mark} & sleep {mark} & wait");
        let mut run = service.run_command(&["--detach", "--", &command]);
        let output = run.stdout(stdout).stderr(Stdio::piped()).output().unwrap();
        checked(&output, kind, &["run", "--detach"]);
        assert_eq!((output.status.code(), procs::with_argument(&mark).len()), (Some(code), 0), "{kind}");
    }
    assert_eq!(service.count("cancel.requested"), 2);
}

#[test]
fn attach_fails_on_overwritten_output_and_names_the_gap() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_RING_BYTES", "65536")]);
    let mut holder = service.connect();
    let id = holder.execute(json!({ "command": "seq 100000" }));
    let whole = holder.story().stdout;
    let (out, err, code) = told(&mut client(&service, &["attach", &id]));
    assert_eq!(code, 70, "{err}");
    let from = whole.len() - out.len();
    assert!(from > 0 && whole.ends_with(out.as_bytes()), "the output comes before the failure");
    assert!(err.contains(&format!("bytes 0 to {from} of stdout are lost ({from} bytes): overwritten")), "{err}");
    assert!(err.contains("the exit code would be 0"), "{err}");
}

#[test]
fn run_fails_on_a_gap_after_reconnecting() {
    let service = Service::start();
    let proxy = TamperingProxy::start(service.address, |_, _, message| {
        if message["params"]["content"] == "lost\n" {
            *message = json!({ "jsonrpc": "2.0", "method": "gap",
                "params": { "executionId": "x", "type": "stdout", "from": 0, "to": 5, "reason": "overwritten" } });
        }
        true
    });
    let url = format!("ws://{}", proxy.address);
    let command = "echo lost; sleep 0.3; echo kept; exit 3";
    let (out, err, code) = told(binary().args(["run", "--reconnect", "--url", &url, "--", command]));
    assert_eq!((out.as_str(), code), ("kept\n", 70), "{err}");
    assert!(err.contains("bytes 0 to 5 of stdout are lost (5 bytes): overwritten"), "{err}");
    assert!(err.contains("the exit code would be 3"), "{err}");
}

#[test]
fn attach_reports_an_expired_detached_execution() {
    let service =
        Service::with(&["serve"], &[("CC_EXECUTOR_MAX_DETACH_MS", "2000"), ("CC_EXECUTOR_MAX_EXECUTIONS", "1")]);
    let mark = procs::mark();
    let started = |command: &str| {
        let (id, err, code) = told(&mut service.run_command(&["--detach", "--", command]));
        assert_eq!(code, 0, "{err}");
        id.trim().to_owned()
    };
    let id = started(&format!("exec sleep {mark}"));
    let queued = started("true");
    let _ = client(&service, &["cancel", &queued]).output().unwrap();
    procs::wait_for(&mark, 1, PATIENCE);
    procs::wait_for(&mark, 0, PATIENCE);
    let (out, err, code) = told(&mut client(&service, &["attach", &id]));
    assert_eq!((out.as_str(), code), ("", 75));
    assert_eq!(err, "cc-executor: ended by the service: nobody attached for 2 s\n");
    let (_, err, code) = told(&mut client(&service, &["attach", &queued]));
    assert_eq!((err.as_str(), code), ("cc-executor: the execution was canceled\n", 143));
}

/// Runs a command under `run --reconnect` through this URL, kills the service once the command says `ready`, starts the
/// service again at the same address, and returns the standard error and the exit code of `run`.
fn restarted_under(mut service: Service, url: &str, command: &str) -> (String, i32) {
    let address = service.address.to_string();
    let mut run = Running::start(binary().args(["run", "--reconnect=20", "--url", url, "--", command]));
    run.expect("ready\n");
    service.signal(Signal::KILL);
    service.wait(PATIENCE);
    let mut again = binary();
    again.args(["serve", "--bind", &address]);
    let _again = Service::spawn(again);
    let (_, err, code) = run.end(PATIENCE);
    (err, code)
}

/// The same for a command that only waits, behind `front`.
fn restarted_under_reconnect(front: impl Fn(&Service) -> String) -> (String, i32) {
    let service = Service::start();
    let url = front(&service);
    restarted_under(service, &url, "echo ready; exec sleep 100")
}

#[test]
fn run_reports_a_restarted_service() {
    let (err, code) = restarted_under_reconnect(Service::url);
    assert_eq!(code, 69);
    assert!(err.ends_with("cc-executor: the service was restarted; the execution ended with it\n"), "{err}");
}

#[test]
fn run_reports_a_restart_when_the_instance_differs() {
    let front = |service: &Service| {
        let proxy = TamperingProxy::start(service.address, |_, _, message: &mut Value| {
            if message["result"]["executionId"].is_string() {
                message["result"]["instance"] = json!("11111111-1111-4111-8111-111111111111");
            }
            if message["error"]["code"] == -32006 {
                message["error"]["data"]["instance"] = json!("22222222-2222-4222-8222-222222222222");
            }
            true
        });
        let url = format!("ws://{}", proxy.address);
        // It listens for as long as the test's process lives.
        std::mem::forget(proxy);
        url
    };
    let (err, code) = restarted_under_reconnect(front);
    assert_eq!(code, 69);
    assert!(err.ends_with("cc-executor: the service was restarted; the execution ended with it\n"), "{err}");
}

/// A service that takes a command, is killed before its answer arrives, and is started again.
fn killed_before_its_answer(states_its_instance: bool) -> (String, i32, String) {
    let service = Service::start();
    let proxy = TamperingProxy::start(
        service.address,
        if states_its_instance {
            |_, _, message: &mut Value| !message["result"]["executionId"].is_string()
        } else {
            |_, _, message: &mut Value| {
                message["params"].as_object_mut().map(|params| params.remove("instance"));
                !message["result"]["executionId"].is_string()
            }
        },
    );
    let runs = std::env::temp_dir().join(format!("cc-executor-runs-{}-{states_its_instance}", std::process::id()));
    let _ = fs::remove_file(&runs);
    let command = format!("echo run >> {}; echo ready; exec sleep 100", runs.display());
    let url = format!("ws://{}", proxy.address);
    let (err, code) = restarted_under(service, &url, &command);
    let n_runs = fs::read_to_string(&runs).unwrap();
    let _ = fs::remove_file(runs);
    (err, code, n_runs)
}

#[test]
fn unanswered_execute_is_not_repeated_at_a_restarted_service() {
    let (err, code, runs) = killed_before_its_answer(true);
    assert_eq!((code, runs.as_str()), (69, "run\n"), "{err}");
    assert!(err.contains("restarted before it answered; if it had started the command, that ended with it\n"), "{err}");
    let (err, code, runs) = killed_before_its_answer(false);
    assert_eq!((code, runs.as_str()), (69, "run\n"), "{err}");
    assert!(err.contains("the service has no such execution: the command was not started, or ended when"), "{err}");
}

/// Ctrl-C while there is no connection, and before the answer to the first request has come: the command may run.
#[test]
fn ctrl_c_before_the_execute_response_cancels_after_reconnecting() {
    let backend = Service::backend();
    let mut gateway = Service::gateway(&backend.url());
    gateway.wait_for_event("backend.up", 1);
    let proxy = TamperingProxy::start(gateway.address, |_, _, message: &mut Value| {
        !message["result"]["executionId"].is_string()
    });
    let (mark, url) = (procs::mark(), format!("ws://{}", proxy.address));
    let command = format!("exec sleep {mark}");
    let run = Running::start(binary().args(["run", "--reconnect=20", "--url", &url, "--", &command]));
    procs::wait_for(&mark, 1, PATIENCE);
    let address = gateway.address.to_string();
    gateway.signal(Signal::KILL);
    gateway.wait(PATIENCE);
    run.says("trying to come back for 20 s\n");
    kill(run.child.id(), Signal::INT);
    let mut again = binary();
    again.args(["serve", "--bind", &address, "--claude-api-url", &backend.url()]);
    let _again = Service::spawn(again);
    procs::wait_for(&mark, 0, PATIENCE);
    let (_, err, code) = run.end(PATIENCE);
    assert_eq!(code, 130, "{err}");
}

#[test]
fn attach_reports_a_forgotten_execution_as_unknown() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_RETENTION_MS", "0")]);
    let mut holder = service.connect();
    let id = holder.execute(json!({ "command": "true", "onDisconnect": "detach" }));
    holder.follow(&mut Recording::default(), |_| false);
    wait_until("it is forgotten", PATIENCE, || {
        service.get("/executions")["executions"].as_array().is_some_and(Vec::is_empty)
    });
    let (_, err, code) = told(&mut client(&service, &["attach", &id]));
    assert_eq!(code, 69);
    assert!(err.contains(&format!("there is no execution {id}")), "{err}");
}

#[test]
fn ctrl_c_exits_while_the_service_is_stopped() {
    let service = Service::start();
    let mut run = Running::start(&mut service.run_command(&["--heartbeat", "1", "--", "echo x; exec sleep 100"]));
    run.expect("x\n");
    service.signal(Signal::STOP);
    kill(run.child.id(), Signal::INT);
    let (_, err, code) = run.end(NOTICED);
    assert!(code == 130 && err.contains("no sign of life"), "{code} {err}");
}

#[test]
fn second_ctrl_c_exits_while_stdout_is_blocked() {
    let service = Service::start();
    let run = Running::start(&mut service.run_command(&["--", "yes"]));
    wait_until("the pipe is full", PATIENCE, || {
        let waiting = rustix::io::ioctl_fionread(run.child.stdout.as_ref().unwrap()).unwrap();
        waiting >= 60_000
    });
    kill(run.child.id(), Signal::INT);
    run.says("canceling");
    kill(run.child.id(), Signal::INT);
    let (_, _, code) = run.end(NOTICED);
    assert_eq!(code, 130);
}
