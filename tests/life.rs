//! Rare states of an execution: a start that hangs, an output that other processes hold open, ends in an unexpected order.
//! Control requests, time-outs and consumers are served in each, and no byte in a pipe is lost.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use cc_executor_actors::{
    outcome::{Reason, Status},
    protocol::notification::BackendHealth,
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    client::Client,
    http, merged, procs,
    recording::{LOST, Recording},
    service::Service,
    temp::directory,
    wait_until, wait_until_stable,
};

#[test]
fn terminal_can_be_reopened_after_every_process_closed_it() {
    let service = Service::start();
    for (write, expected) in
        [("echo hi", "hi\r\n".to_owned()), ("seq 1 40000", (1..=40_000).map(|n| format!("{n}\r\n")).collect())]
    {
        let command = format!("exec </dev/null >/dev/null 2>&1; sleep 0.3; {write} >/dev/tty");
        let recording = service.connect().run(json!({ "command": command, "pty": { "rows": 24, "cols": 80 } }));
        assert_eq!(recording.status(), Status::Completed, "{}", recording.end);
        assert!(recording.text() == expected, "{} bytes of {}", recording.stdout.len(), expected.len());
    }
}

/// The terminal still holds output when the command has exited.
#[test]
fn last_output_on_a_terminal_is_read() {
    let service = Service::start();
    let expected: String = (1..=3_000).map(|n| format!("{n}\r\n")).collect();
    for _ in 0..20 {
        let recording = service.connect().run(json!({ "command": "seq 1 3000", "pty": { "rows": 24, "cols": 80 } }));
        assert!(recording.text() == expected, "{} bytes of {}", recording.stdout.len(), expected.len());
    }
}

/// Another execution opens the output and writes to it.
#[test]
fn output_held_open_by_another_execution_ends_with_its_processes() {
    let service = Service::start();
    let (mut victim, mark, other_mark) = (service.connect(), procs::mark(), procs::mark());
    let id = victim.execute(json!({ "command": format!("echo mine; exec sleep {mark}") }));
    victim.wait_for("output");
    let process = procs::wait_for(&mark, 1, PATIENCE)[0];
    let mut other = service.connect();
    other.execute(json!({ "command": format!(
        "exec 3>/proc/{process}/fd/1; echo held; while :; do echo theirs >&3 || exit; sleep 0.05; done & exec sleep {other_mark}"
    ) }));
    other.wait_for("output");
    let at = Instant::now();
    victim.cancel_with_grace(500);
    let recording = victim.record();
    assert!(at.elapsed() < Duration::from_secs(1), "{:?}", at.elapsed());
    assert_eq!((recording.status(), &recording.end["cancel"]["verified"]), (Status::Cancelled, &json!(true)));
    assert!(recording.text().starts_with("mine\n"), "{}", recording.text());
    let status = service.connect().call("status", json!({ "executionId": id })).unwrap();
    assert_eq!(status["status"], "CANCELLED");
    other.cancel_with_grace(0);
    other.record();
}

/// A program whose execution blocks, because a process holds a lease on its file (fcntl(2), F_SETLEASE). The process is
/// killed when this is dropped.
struct LeasedProgram {
    holder: Child,
    program: std::path::PathBuf,
}

impl LeasedProgram {
    fn new() -> LeasedProgram {
        let program = directory("lease").join("program");
        fs::write(&program, "#!/bin/sh\necho executed\n").unwrap();
        let mut permissions = fs::metadata(&program).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
        fs::set_permissions(&program, permissions).unwrap();
        let hold = "import fcntl, os, signal, sys\n\
            signal.signal(signal.SIGIO, signal.SIG_IGN)\n\
            fd = os.open(sys.argv[1], os.O_RDONLY)\n\
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n\
            print('held', flush=True)\n\
            sys.stdin.read()\n";
        let mut command = Command::new("python3");
        command.args(["-c", hold]).arg(&program).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n", "the file system grants leases");
        LeasedProgram { holder, program }
    }

    fn service(&self) -> Service {
        let executors = json!({ "leased": [self.program] }).to_string();
        Service::with(&["serve", "--executors", &executors], &[])
    }

    /// Gives the lease up, so that the program is executed.
    fn release(&mut self) {
        drop(self.holder.stdin.take());
        self.holder.wait().unwrap();
    }
}

impl Drop for LeasedProgram {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Sends a command whose program cannot be executed yet, with further parameters. Returns its id.
fn begin_leased(client: &mut Client, more: &Value) -> String {
    // The execution has its slot, but it has not started.
    client.queue(merged(json!({ "command": "x", "executor": "leased" }), more))
}

#[test]
fn hanging_start_can_be_canceled() {
    let leased = LeasedProgram::new();
    let service = leased.service();
    let mut client = service.connect();
    begin_leased(&mut client, &json!({}));
    let at = Instant::now();
    client.cancel_with_grace(500);
    let recording = client.record();
    assert!(at.elapsed() < Duration::from_millis(1_500), "{:?}", at.elapsed());
    assert_eq!(recording.ending(), (Status::Cancelled, Reason::Canceled));
    assert_eq!(recording.end["cancel"]["verified"], true, "{}", recording.end);
}

#[test]
fn hanging_start_times_out_and_sends_heartbeats() {
    let leased = LeasedProgram::new();
    let service = leased.service();
    let mut client = service.connect();
    let at = Instant::now();
    begin_leased(&mut client, &json!({ "timeoutMs": 4_000, "heartbeatMs": 1_000 }));
    let recording = client.record();
    assert!(at.elapsed() < Duration::from_secs(6), "{:?}", at.elapsed());
    assert_eq!(recording.ending(), (Status::Failed, Reason::Timeout));
    let queued = recording.with_status(Status::Queued);
    assert!(queued.len() >= 2 && queued.iter().all(|update| update.position == Some(0)), "{queued:?}");
    assert!(queued.iter().all(|update| update.backend == BackendHealth::Alive), "{queued:?}");
}

#[test]
fn attach_to_a_hanging_start_takes_over() {
    let mut leased = LeasedProgram::new();
    let service = leased.service();
    let mut first = service.connect();
    let id = begin_leased(&mut first, &json!({}));
    let mut second = service.connect();
    let answer = second.attach(&id, &Recording::default()).unwrap();
    assert_eq!(answer["status"], "QUEUED");
    assert_eq!(first.notification("detached")["reason"], "taken_over");
    leased.release();
    let recording = second.record();
    assert_eq!((recording.text().as_str(), recording.status()), ("executed\n", Status::Completed));
    assert_eq!(recording.statuses.first(), Some(&Status::Queued));
}

/// A command may enlarge its pipe (fcntl(2), F_SETPIPE_SZ).
#[test]
fn content_of_an_enlarged_pipe_is_kept_with_a_full_ring() {
    const RING: usize = 1 << 20;
    const PIPE: usize = 1 << 20;
    let ring = RING.to_string();
    let service = Service::with(&["serve", "--ring-bytes", &ring], &[]);
    let mut client = service.connect();
    client.answers_pings = false;
    // The program writes until the pipe has been full for a second: then the ring is full, too.
    let program = "import fcntl, os, select, sys\n\
        fcntl.fcntl(1, 1031, 1 << 20)\n\
        os.set_blocking(1, False)\n\
        poll = select.poll()\n\
        poll.register(1, select.POLLOUT)\n\
        n = 0\n\
        while poll.poll(1000):\n\
        \ttry: n += os.write(1, b'%015d\\n' % (n // 16))\n\
        \texcept BlockingIOError: pass\n\
        sys.stderr.write(str(n))\n";
    let id = client.execute(json!({
        "command": program, "executor": "python", "onDisconnect": "detach", "detachMs": 600_000
    }));
    client.disconnect();
    let mut later = service.connect();
    wait_until("the command has exited", PATIENCE, || {
        later.call("status", json!({ "executionId": id })).unwrap()["status"] == "COMPLETED"
    });
    later.attach(&id, &Recording::default()).unwrap();
    let recording = later.record();
    let written: usize = String::from_utf8(recording.stderr.clone()).unwrap().parse().unwrap();
    assert!(written > RING + PIPE / 2, "more than the ring and a pipe of the usual size: {written}");
    assert!(recording.gaps.is_empty(), "{:?}", recording.gaps);
    assert!(!recording.stdout.contains(&LOST));
    assert_eq!(recording.stdout.len(), written);
    for (n, line) in recording.stdout.chunks(16).enumerate() {
        assert_eq!(line, format!("{n:015}\n").as_bytes());
    }
}

/// Requests the output of a command as plain text, as curl does. Nothing of the response has been read.
fn plain_consumer(backend: &Service, params: &Value) -> TcpStream {
    http::send(backend.address, "POST /execute/stream", &[http::JSON], &params.to_string())
}

/// The consumer does not read, when a DELETE comes, and when the service shuts down.
#[test]
fn non_reading_plain_consumer_delays_neither_ending_nor_drain() {
    let mut backend = Service::with(&["backend", "--consumer-stall-ms", "1000"], &[]);
    let id = "00000000-0000-4000-8000-0000000000aa";
    let _consumer = plain_consumer(&backend, &json!({ "question": "yes", "executionId": id }));
    wait_until_stable("the bytes that the backend reads", 1, Duration::from_millis(100), || {
        backend.get(&format!("/executions/{id}"))["offsets"]["stdout"].as_u64().unwrap_or(0)
    });
    let at = Instant::now();
    let report = backend.delete(&format!("/executions/{id}?grace_ms=300"));
    assert_eq!((&report["verified"], &report["evidence"]), (&json!(true), &json!("echild")));
    assert_eq!(backend.get(&format!("/executions/{id}"))["status"], "CANCELLED");
    assert!(at.elapsed() < Duration::from_secs(1), "{:?}", at.elapsed());
    wait_until("the consumer is disconnected after the stall time", PATIENCE, || {
        backend.get(&format!("/executions/{id}"))["attached"] == false
    });
    // Another such consumer, during a shutdown.
    let mut consumer = plain_consumer(&backend, &json!({ "question": "yes | head -c 100000000" }));
    consumer.read_exact(&mut [0; 12]).unwrap();
    backend.signal(Signal::TERM);
    assert!(backend.wait(Duration::from_secs(10)).success());
    assert_eq!(backend.count("drain.incomplete"), 0);
}

/// The shell dies of TERM at once. Its child cleans up: it has the whole grace period for that, and gets only one TERM.
#[test]
fn clean_up_of_a_child_has_the_whole_grace_period() {
    let service = Service::start();
    let clean_up = "import signal, sys, time\n\
        terms = []\n\
        signal.signal(signal.SIGTERM, lambda *_: terms.append(1))\n\
        print('ready', flush=True)\n\
        while not terms: time.sleep(0.01)\n\
        for n in range(30): print(n, file=sys.stderr); time.sleep(0.1)\n\
        print('clean after', len(terms), file=sys.stderr)\n";
    let script = directory("clean-up").join("clean_up.py");
    fs::write(&script, clean_up).unwrap();
    let script = script.display();
    let commands = [
        format!("python3 {script}; echo after"),
        format!("python3 {script} | cat"),
        format!("bash -c 'bash -c \"python3 {script}; true\"; true'; true"),
    ];
    let ended = |command: &str, by_time_out: bool| {
        let mut client = service.connect();
        let mut params = json!({ "command": command });
        if by_time_out {
            params["timeoutMs"] = json!(6_000);
        }
        client.execute(params);
        client.wait_for("output");
        if !by_time_out {
            client.cancel_with_grace(10_000);
        }
        let recording = client.record();
        let expected = if by_time_out { Reason::Timeout } else { Reason::Canceled };
        assert_eq!(recording.reason(), expected, "{command}: {}", recording.end);
        let stderr = String::from_utf8_lossy(&recording.stderr);
        assert!(stderr.contains("29\nclean after 1\n"), "{command}: {stderr}");
        let cancel = &recording.end["cancel"];
        assert_eq!((&cancel["escalated"], &cancel["verified"]), (&json!(false), &json!(true)), "{cancel}");
    };
    // At the same time, because each clean-up takes three seconds.
    std::thread::scope(|scope| {
        for command in &commands {
            for by_time_out in [false, true] {
                scope.spawn(move || ended(command, by_time_out));
            }
        }
    });
}

#[test]
fn ending_by_kill_is_reported_as_escalated() {
    let service = Service::start();
    let mut client = service.connect();
    client.execute(json!({ "command": "(trap '' TERM; echo ready; while :; do sleep 0.1; done); true" }));
    client.wait_for("output");
    client.cancel_with_grace(300);
    let cancel = client.record().end["cancel"].clone();
    assert_eq!((&cancel["escalated"], &cancel["verified"]), (&json!(true), &json!(true)), "{cancel}");
}

#[test]
fn stopped_command_receives_term_and_heartbeats_show_it_as_stopped() {
    let service = Service::start();
    let mut client = service.connect();
    client.execute(json!({
        "command": "trap 'echo bye; exit 9' TERM; echo ready; kill -STOP $$; while :; do sleep .1; done",
        "heartbeatMs": 1_000
    }));
    client.wait_for("output");
    let mut recording = Recording::default();
    assert!(!client.record_until(&mut recording, |recording| recording.updates.iter().any(|update| update.stopped)));
    client.cancel();
    client.record_rest(&mut recording);
    assert_eq!((recording.text().as_str(), &recording.end["exit_code"]), ("ready\nbye\n", &json!(9)));
    assert_eq!((recording.status(), &recording.end["cancel"]["escalated"]), (Status::Cancelled, &json!(false)));
    // A signal also ends a command that was stopped and resumed.
    let mut client = service.connect();
    client.execute(json!({ "command": "echo ready; kill -STOP $$; sleep 900", "heartbeatMs": 1_000 }));
    client.wait_for("output");
    let mut recording = Recording::default();
    assert!(!client.record_until(&mut recording, |recording| recording.updates.iter().any(|update| update.stopped)));
    client.call("control", json!({ "type": "SIGNAL", "signal": "SIGUSR1" })).unwrap();
    client.call("control", json!({ "type": "PAUSE" })).unwrap();
    client.call("control", json!({ "type": "RESUME" })).unwrap();
    let end = client.record().end;
    assert_eq!(end["signal"], "SIGUSR1", "{end}");
}

#[test]
fn leftover_processes_are_ended_and_counted() {
    let service = Service::start();
    let mark = procs::mark();
    let recording = service.connect().run(json!({ "command": format!("setsid sleep {mark} & exit 4") }));
    assert_eq!((&recording.end["exit_code"], &recording.end["leftovers"]), (&json!(4), &json!(1)));
    assert!(recording.end["cancel"].is_null(), "{}", recording.end);
    assert!(procs::with_argument(&mark).is_empty());
}
