//! The life of an execution in its odd moments: starting that hangs, an output that others hold, ends that come
//! in an unexpected order. Orders, clocks and consumers are served in each, and no byte is lost that was in a pipe.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::json;

use crate::common::{
    PATIENCE,
    client::{Client, LOST, Recording},
    hostile::directory,
    procs,
    service::Service,
    wait_until,
};

#[test]
fn terminal_can_be_reopened_after_every_process_closed_it() {
    let service = Service::start();
    for (write, expected) in
        [("echo hi", "hi\r\n".to_owned()), ("seq 1 40000", (1..=40_000).map(|n| format!("{n}\r\n")).collect())]
    {
        let command = format!("exec </dev/null >/dev/null 2>&1; sleep 0.3; {write} >/dev/tty");
        let story = service.connect().run(json!({ "command": command, "pty": { "rows": 24, "cols": 80 } }));
        assert_eq!(story.end["status"], "COMPLETED", "{}", story.end);
        assert!(story.text() == expected, "{} bytes of {}", story.stdout.len(), expected.len());
    }
}

/// What a terminal still holds when the command has exited is read, all of it.
#[test]
fn last_output_on_a_terminal_is_read() {
    let service = Service::start();
    let expected: String = (1..=3_000).map(|n| format!("{n}\r\n")).collect();
    for _ in 0..20 {
        let story = service.connect().run(json!({ "command": "seq 1 3000", "pty": { "rows": 24, "cols": 80 } }));
        assert!(story.text() == expected, "{} bytes of {}", story.stdout.len(), expected.len());
    }
}

/// Another execution holds the output and writes to it.
#[test]
fn output_held_open_by_another_execution_ends_with_its_processes() {
    let service = Service::start();
    let (mut victim, mark, other_mark) = (service.connect(), procs::mark(), procs::mark());
    let id = victim.execute(json!({ "command": format!("echo mine; exec sleep {mark}") }));
    victim.seen("output");
    let process = procs::wait_for(&mark, 1, PATIENCE)[0];
    let mut other = service.connect();
    other.execute(json!({ "command": format!(
        "exec 3>/proc/{process}/fd/1; echo held; while :; do echo theirs >&3 || exit; sleep 0.05; done & exec sleep {other_mark}"
    ) }));
    other.seen("output");
    let at = Instant::now();
    victim.call("control", json!({ "type": "CANCEL", "graceMs": 500 })).unwrap();
    let story = victim.story();
    assert!(at.elapsed() < Duration::from_secs(1), "{:?}", at.elapsed());
    assert_eq!((story.end["status"].as_str(), &story.end["cancel"]["verified"]), (Some("CANCELLED"), &json!(true)));
    assert!(story.text().starts_with("mine\n"), "{}", story.text());
    let status = service.connect().call("status", json!({ "executionId": id })).unwrap();
    assert_eq!(status["status"], "CANCELLED");
    other.call("control", json!({ "type": "CANCEL", "graceMs": 0 })).unwrap();
    other.story();
}

/// A program whose execution blocks: a process holds a lease on its file (fcntl(2), F_SETLEASE), and does not give
/// it up. It is ended when dropped.
struct Leased {
    holder: Child,
    program: std::path::PathBuf,
}

impl Leased {
    fn new() -> Leased {
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
        Leased { holder, program }
    }

    fn service(&self) -> Service {
        let executors = json!({ "leased": [self.program] }).to_string();
        Service::with(&["serve", "--executors", &executors], &[])
    }

    /// Gives the lease up: the execution goes on.
    fn release(&mut self) {
        drop(self.holder.stdin.take());
        self.holder.wait().unwrap();
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Asks for a command whose program cannot be executed yet.
fn begin_leased(client: &mut Client, more: serde_json::Value) -> String {
    let mut params = json!({ "command": "x", "executor": "leased" });
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let answer = client.call("execute", params).unwrap();
    assert_eq!(answer["status"], "queued", "it has its turn, and has not started");
    answer["executionId"].as_str().unwrap().to_owned()
}

#[test]
fn hanging_start_can_be_canceled() {
    let leased = Leased::new();
    let service = leased.service();
    let mut client = service.connect();
    begin_leased(&mut client, json!({}));
    let at = Instant::now();
    client.call("control", json!({ "type": "CANCEL", "graceMs": 500 })).unwrap();
    let end = client.story().end;
    assert!(at.elapsed() < Duration::from_millis(1_500), "{:?}", at.elapsed());
    assert_eq!((end["status"].as_str(), end["reason"].as_str()), (Some("CANCELLED"), Some("canceled")));
    assert_eq!(end["cancel"]["verified"], true, "{end}");
}

#[test]
fn hanging_start_times_out_and_sends_heartbeats() {
    let leased = Leased::new();
    let service = leased.service();
    let mut client = service.connect();
    let at = Instant::now();
    begin_leased(&mut client, json!({ "timeoutMs": 4_000, "heartbeatMs": 1_000 }));
    let story = client.story();
    assert!(at.elapsed() < Duration::from_secs(6), "{:?}", at.elapsed());
    assert_eq!((story.end["status"].as_str(), story.end["reason"].as_str()), (Some("FAILED"), Some("timeout")));
    let queued = story.with_status("QUEUED");
    assert!(queued.len() >= 2 && queued.iter().all(|update| update["position"] == 0), "{queued:?}");
    assert!(queued.iter().all(|update| update["backend"] == "alive"), "{queued:?}");
}

/// The first client keeps it, and gets all of it, though another one asked for it meanwhile and has left.
#[test]
fn attach_to_a_hanging_start_takes_over() {
    let mut leased = Leased::new();
    let service = leased.service();
    let mut first = service.connect();
    let id = begin_leased(&mut first, json!({}));
    let mut second = service.connect();
    let answer = second.attach(&id, &Recording::default()).unwrap();
    assert_eq!(answer["status"], "QUEUED");
    assert_eq!(first.notification("detached")["reason"], "taken_over");
    leased.release();
    let story = second.story();
    assert_eq!((story.text().as_str(), story.end["status"].as_str()), ("executed\n", Some("COMPLETED")));
    assert_eq!(story.statuses.first().map(String::as_str), Some("QUEUED"));
}

/// A command may make its pipe larger than anybody expected.
#[test]
fn content_of_an_enlarged_pipe_is_kept_with_a_full_ring() {
    const RING: usize = 1 << 20;
    const PIPE: usize = 1 << 20;
    let ring = RING.to_string();
    let service = Service::with(&["serve", "--ring-bytes", &ring], &[]);
    let mut client = service.connect();
    client.answers_pings = false;
    // It writes until nothing has been taken for a second: then the ring and the pipe are full.
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
    client.vanish();
    let mut later = service.connect();
    wait_until("it has exited", PATIENCE, || {
        later.call("status", json!({ "executionId": id })).unwrap()["status"] == "COMPLETED"
    });
    later.attach(&id, &Recording::default()).unwrap();
    let story = later.story();
    let written: usize = String::from_utf8(story.stderr.clone()).unwrap().parse().unwrap();
    assert!(written > RING + PIPE / 2, "more than the ring and a pipe of the usual size: {written}");
    assert!(story.gaps.is_empty(), "{:?}", story.gaps);
    assert!(!story.stdout.contains(&LOST));
    assert_eq!(story.stdout.len(), written);
    for (n, line) in story.stdout.chunks(16).enumerate() {
        assert_eq!(line, format!("{n:015}\n").as_bytes());
    }
}

/// A request for a command's output as plain text, as curl makes it. Nothing of the response has been read.
fn plain_consumer(backend: &Service, params: &serde_json::Value) -> TcpStream {
    let mut consumer = TcpStream::connect(backend.address).unwrap();
    let (host, body) = (backend.address, params.to_string());
    let head = format!(
        "POST /execute/stream HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    consumer.write_all(format!("{head}{body}").as_bytes()).unwrap();
    consumer
}

/// A person's curl that does not read, and a DELETE.
#[test]
fn non_reading_plain_consumer_delays_neither_ending_nor_drain() {
    let mut backend = Service::with(&["backend", "--consumer-stall-ms", "1000"], &[]);
    let id = "00000000-0000-4000-8000-0000000000aa";
    let _consumer = plain_consumer(&backend, &json!({ "question": "yes", "executionId": id }));
    let mut written = json!(null);
    wait_until("nothing moves any more", PATIENCE, || {
        let now = backend.get(&format!("/executions/{id}"))["offsets"]["stdout"].clone();
        now.as_u64() > Some(0) && std::mem::replace(&mut written, now.clone()) == now
    });
    let at = Instant::now();
    let report = backend.delete(&format!("/executions/{id}?grace_ms=300"));
    assert_eq!((&report["verified"], &report["evidence"]), (&json!(true), &json!("echild")));
    assert_eq!(backend.get(&format!("/executions/{id}"))["status"], "CANCELLED");
    assert!(at.elapsed() < Duration::from_secs(1), "{:?}", at.elapsed());
    wait_until("the consumer is cut after its bounded wait", PATIENCE, || {
        backend.get(&format!("/executions/{id}"))["attached"] == false
    });
    // Another one, and the service ends.
    let mut consumer = plain_consumer(&backend, &json!({ "question": "yes | head -c 100000000" }));
    consumer.read_exact(&mut [0; 12]).unwrap();
    backend.signal(Signal::TERM);
    assert!(backend.wait(Duration::from_secs(10)).success());
    assert_eq!(backend.count("drain.incomplete"), 0);
}

/// A shell dies of TERM at once; what it had started cleans up, has the whole grace for that, and gets one TERM only.
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
        client.seen("output");
        if !by_time_out {
            client.call("control", json!({ "type": "CANCEL", "graceMs": 10_000 })).unwrap();
        }
        let story = client.story();
        let expected = if by_time_out { "timeout" } else { "canceled" };
        assert_eq!(story.end["reason"], expected, "{command}: {}", story.end);
        let said = String::from_utf8_lossy(&story.stderr);
        assert!(said.contains("29\nclean after 1\n"), "{command}: {said}");
        let cancel = &story.end["cancel"];
        assert_eq!((&cancel["escalated"], &cancel["verified"]), (&json!(false), &json!(true)), "{cancel}");
    };
    // At the same time: a clean-up takes three seconds.
    std::thread::scope(|scope| {
        for command in &commands {
            for by_time_out in [false, true] {
                scope.spawn(move || ended(command, by_time_out));
            }
        }
    });
}

/// The grace is over before the clean-up is: that KILL is told.
#[test]
fn ending_by_kill_is_reported_as_escalated() {
    let service = Service::start();
    let mut client = service.connect();
    client.execute(json!({ "command": "(trap '' TERM; echo ready; while :; do sleep 0.1; done); true" }));
    client.seen("output");
    client.call("control", json!({ "type": "CANCEL", "graceMs": 300 })).unwrap();
    let cancel = client.story().end["cancel"].clone();
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
    client.seen("output");
    let mut story = Recording::default();
    assert!(!client.follow(&mut story, |story| story.updates.iter().any(|update| update["stopped"] == true)));
    client.call("control", json!({ "type": "CANCEL" })).unwrap();
    assert!(client.follow(&mut story, |_| false));
    assert_eq!((story.text().as_str(), &story.end["exit_code"]), ("ready\nbye\n", &json!(9)));
    assert_eq!((&story.end["status"], &story.end["cancel"]["escalated"]), (&json!("CANCELLED"), &json!(false)));
    // One that goes on says so no more.
    let mut client = service.connect();
    client.execute(json!({ "command": "echo ready; kill -STOP $$; sleep 900", "heartbeatMs": 1_000 }));
    client.seen("output");
    let mut story = Recording::default();
    client.follow(&mut story, |story| story.updates.iter().any(|update| update["stopped"] == true));
    client.call("control", json!({ "type": "SIGNAL", "signal": "SIGUSR1" })).unwrap();
    client.call("control", json!({ "type": "PAUSE" })).unwrap();
    client.call("control", json!({ "type": "RESUME" })).unwrap();
    let end = client.story().end;
    assert_eq!(end["signal"], "SIGUSR1", "{end}");
}

#[test]
fn leftover_processes_are_ended_and_counted() {
    let service = Service::start();
    let mark = procs::mark();
    let story = service.connect().run(json!({ "command": format!("setsid sleep {mark} & exit 4") }));
    assert_eq!((&story.end["exit_code"], &story.end["leftovers"]), (&json!(4), &json!(1)));
    assert!(story.end["cancel"].is_null(), "{}", story.end);
    assert!(procs::with_argument(&mark).is_empty());
}
