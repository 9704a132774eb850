//! A service or a network that is silent: the client notices it, and gives up or reconnects.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::json;

use super::NOTICED;
use crate::common::{
    PATIENCE,
    client_process::ClientProcess,
    listener::TestListener,
    procs,
    proxy::{CutKind, Proxy},
    service::{Service, binary, kill},
    tampering_proxy::{Direction, TamperingProxy},
    temp::TempPath,
};

#[test]
fn run_detects_a_stopped_service() {
    let service = Service::start();
    let mark = procs::mark();
    let command = format!("echo ready; exec sleep {mark}");
    let mut run = ClientProcess::start(&mut service.run_command(&["--heartbeat", "1", "--", &command]));
    run.expect_stdout("ready\n");
    service.signal(Signal::STOP);
    let (_, stderr, code) = run.finish(NOTICED);
    assert_eq!((code, stderr.lines().count()), (69, 1), "{stderr}");
    assert!(stderr.contains("no sign of life: nothing came for 3 s"), "{stderr}");
    service.signal(Signal::CONT);
    procs::wait_for(&mark, 0, PATIENCE);
}

#[test]
fn run_detects_a_network_that_drops_packets() {
    let service = Service::start();
    let proxy = Proxy::start(service.address, |_| Some((50_000, CutKind::Silent)));
    let url = proxy.url();
    let command = "head -c 100000 /dev/zero | tr '\\0' x; exec sleep 100";
    let run = ClientProcess::start(binary().args(["run", "--heartbeat", "1", "--url", &url, "--", command]));
    let (_, stderr, code) = run.finish(NOTICED);
    assert!(code == 69 && stderr.contains("no sign of life"), "{code} {stderr}");
}

#[test]
fn attach_detects_a_stopped_service() {
    let service = Service::start();
    let mut holder = service.connect();
    let id = holder.execute(json!({ "command": "exec sleep 100", "heartbeatMs": 1000, "onDisconnect": "detach" }));
    let mut attach = ClientProcess::start(&mut service.client_command(&["attach", "--json", &id]));
    let mut lines = BufReader::new(attach.stdout()).lines();
    for _ in 0..3 {
        lines.find(|line| line.as_ref().unwrap().contains("RUNNING")).expect("heartbeats").unwrap();
    }
    service.signal(Signal::STOP);
    let (_, stderr, code) = attach.finish(NOTICED);
    assert!(code == 69 && stderr.contains("no sign of life"), "{code} {stderr}");
}

#[test]
fn run_reconnects_after_its_gateway_was_paused() {
    let backend = Service::backend();
    let gateway = Service::gateway(&backend.url());
    let file = TempPath::new("stopped");
    let command = format!("echo one; until [ -e {0} ]; do sleep 0.05; done; echo two", file.display());
    let mut run =
        ClientProcess::start(&mut gateway.run_command(&["--heartbeat", "1", "--reconnect=20", "--", &command]));
    run.expect_stdout("one\n");
    gateway.signal(Signal::STOP);
    run.wait_for_stderr("no sign of life: nothing came for 3 s; trying to reconnect for 20 s\n", NOTICED);
    fs::write(&*file, "").unwrap();
    gateway.signal(Signal::CONT);
    let (stdout, _, code) = run.finish(PATIENCE);
    assert_eq!((stdout.as_str(), code), ("two\n", 0));
}

#[test]
fn run_gives_up_reconnecting_to_a_stopped_service() {
    let service = Service::start();
    let mut run = ClientProcess::start(&mut service.run_command(&[
        "--heartbeat",
        "1",
        "--reconnect=2",
        "--",
        "echo x; sleep 100",
    ]));
    run.expect_stdout("x\n");
    service.signal(Signal::STOP);
    let (_, stderr, code) = run.finish(NOTICED + Duration::from_secs(2));
    assert_eq!((code, stderr.lines().count()), (69, 2), "{stderr}");
    assert!(
        stderr.contains(&format!("gave up reconnecting to ws://{}/ws/mcp after 2 s: ", service.address)),
        "{stderr}"
    );
    assert!(stderr.contains("; the command may still run: cc-executor attach "), "{stderr}");
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
    .map(|arguments| service.client_command(arguments))
    .collect();
    let mut healthcheck = binary();
    healthcheck.args(["healthcheck", "--url", &format!("{}/ready", service.url())]);
    commands.push(healthcheck);
    let running: Vec<_> = commands.iter_mut().map(|command| (ClientProcess::start(command), Instant::now())).collect();
    for ((running, started_at), command) in running.into_iter().zip(&commands) {
        let (_, stderr, code) = running.finish(BOUND.saturating_sub(started_at.elapsed()));
        assert_eq!((code, stderr.lines().count()), (69, 1), "{command:?}: {stderr}");
    }
}

/// A service that is not ready explains that in the response to a second request, which has the token.
#[test]
fn healthcheck_shows_the_first_answer_if_the_explanation_does_not_come() {
    const HEAD: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 7\r\n\r\n";
    let checks = ["", "HTTP/1.1 503 Service", HEAD, &format!("{HEAD}becau")].map(|explanation| {
        let explanation = explanation.to_owned();
        let mut open = Vec::new();
        let stub = TestListener::start(move |mut stream| {
            let head = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
            let has_token =
                head.fold(false, |found, line| found | line.to_ascii_lowercase().starts_with("authorization"));
            let answer = if has_token { explanation.clone() } else { format!("{HEAD}unready") };
            stream.write_all(answer.as_bytes()).unwrap();
            open.push(stream);
        });
        let url = format!("http://{}/ready", stub.address);
        let mut healthcheck = binary();
        healthcheck.args(["healthcheck", "--url", &url]).env("CC_EXECUTOR_TOKEN", "of-the-service");
        (ClientProcess::start(&mut healthcheck), url, stub)
    });
    for (check, url, _stub) in checks {
        let (_, stderr, code) = check.finish(PATIENCE);
        let expected = format!("cc-executor: {url} answers 503 Service Unavailable: unready\n");
        assert_eq!((code, stderr), (1, expected));
    }
}

#[test]
fn run_gives_up_on_an_unanswered_execute() {
    let service = Service::start();
    let proxy = TamperingProxy::start(service.address, |direction, _, message| {
        direction == Direction::ToService || message["id"] != 1
    });
    let url = proxy.url();
    let session = format!("{}/ws/mcp", url.replacen("http", "ws", 1));
    let run = ClientProcess::start(binary().args(["run", "--heartbeat", "1", "--url", &url, "--", "exec sleep 100"]));
    let (_, stderr, code) = run.finish(Duration::from_secs(45));
    assert_eq!(
        (code, stderr.as_str()),
        (69, &*format!("cc-executor: {session} did not answer the request execute within 30 s\n"))
    );
}

#[test]
fn ctrl_c_exits_while_the_service_is_stopped() {
    let service = Service::start();
    let mut run = ClientProcess::start(&mut service.run_command(&["--heartbeat", "1", "--", "echo x; exec sleep 100"]));
    run.expect_stdout("x\n");
    service.signal(Signal::STOP);
    kill(run.pid(), Signal::INT);
    let (_, stderr, code) = run.finish(NOTICED);
    assert!(code == 130 && stderr.contains("no sign of life"), "{code} {stderr}");
}
