//! All kinds of abuse at the same time, beside sessions of an honest client: none of these gets a wrong byte, a wrong ending or
//! a late answer.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use cc_executor_actors::outcome::{Reason, Status};
use serde_json::json;

use crate::common::{
    client::{Client, Frame},
    frames::text_frame,
    scale,
    service::Service,
    sha256,
    temp::TempPath,
    wait_until,
};

const HONEST: &str = "the-token-of-the-honest-client-0123456789";
const ABUSER: &str = "the-token-of-the-abusing-client-0123456789";

/// How many sessions the honest client has.
const N_HONEST: usize = 20;

fn bearer(token: &str) -> (&'static str, String) {
    ("Authorization", format!("Bearer {token}"))
}

fn session(address: SocketAddr, token: &str) -> Result<Client, u16> {
    let (name, value) = bearer(token);
    Client::upgrade(address, &[(name, &value)])
}

fn call(method: &str, params: &serde_json::Value) -> Vec<u8> {
    text_frame(&json!({ "jsonrpc": "2.0", "method": method, "params": params }).to_string())
}

/// Opens a session and sends these bytes again and again until the service has taken nothing for a while, reading nothing.
/// Returns whether the first round was sent.
fn flood(address: SocketAddr, first: &[u8], bytes: &[u8], is_done: &AtomicBool) -> bool {
    let Ok(client) = session(address, ABUSER) else { return false };
    let _ = client.stream().set_write_timeout(Some(Duration::from_millis(200)));
    let is_taken = client.send_raw(first).is_ok() && client.send_raw(bytes).is_ok();
    while is_taken && !is_done.load(Ordering::Relaxed) && client.send_raw(bytes).is_ok() {}
    is_taken
}

/// Sends an HTTP request whose body never ends, or none at all, and keeps the connection for a while.
fn dawdle(address: SocketAddr, head: &str) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(head.as_bytes()).ok()?;
    Some(stream)
}

/// Sends a request, reads what comes until the connection ends, and returns whether that was a response with one of these
/// statuses.
fn ask(address: SocketAddr, head: &str, statuses: &[&str]) -> bool {
    let Some(mut stream) = dawdle(address, head) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response);
    let response = String::from_utf8_lossy(&response);
    response.strip_prefix("HTTP/1.1 ").is_some_and(|rest| statuses.iter().any(|status| rest.starts_with(status)))
}

/// One round of an abuse. Returns whether it reached the service.
type Abuse<'a> = Box<dyn Fn() -> bool + Send + Sync + 'a>;

/// Each abuse with its name. Its rounds are repeated.
fn abuses(gateway: SocketAddr, is_done: &AtomicBool) -> Vec<(&'static str, Abuse<'_>)> {
    let long = "\x7f".repeat(900_000);
    let long_id = text_frame(&json!({ "jsonrpc": "2.0", "id": long, "method": "ping" }).to_string());
    let pauses = [call("control", &json!({ "type": "PAUSE" })), call("control", &json!({ "type": "RESUME" }))].concat();
    let ends = call("input", &json!({ "eof": true })).repeat(100);
    let unknown = call("control", &json!({ "type": "CANCEL", "executionId": "00000000-0000-4000-8000-00000000000a" }));
    let start = |command: &str, stdin: bool| call("execute", &json!({ "command": command, "stdin": stdin }));
    let (sleeps, reads) = (start("sleep 100", false), start("sleep 100", true));
    let detached = json!({ "command": "sleep 5", "onDisconnect": "detach", "detachMs": 5_000 });
    let echo = call("execute", &json!({ "command": "true", "executor": long }));
    let path = "A".repeat(30_000);
    let (name, value) = bearer(ABUSER);
    let post = format!(
        "POST /execute/stream HTTP/1.1\r\nHost: {gateway}\r\n{name}: {value}\r\nContent-Type: application/json\r\nContent-Length: 900000\r\n\r\n{{"
    );
    let list = format!("GET /executions HTTP/1.1\r\nHost: {gateway}\r\n{name}: {value}\r\nConnection: close\r\n\r\n");
    let guess = format!("GET /{path} HTTP/1.1\r\nHost: {gateway}\r\n{name}: Bearer guess\r\n\r\n");
    vec![
        ("long ids", Box::new(move || flood(gateway, &[], &long_id, is_done))),
        ("pauses", Box::new(move || flood(gateway, &sleeps, &pauses.repeat(50), is_done))),
        ("ends of input", Box::new(move || flood(gateway, &reads, &ends, is_done))),
        ("cancellations", Box::new(move || flood(gateway, &[], &unknown.repeat(100), is_done))),
        ("long executors", Box::new(move || flood(gateway, &[], &echo, is_done))),
        (
            "detached executions",
            Box::new(move || {
                let sessions: Vec<_> = (0..80).map_while(|_| session(gateway, ABUSER).ok()).collect();
                let sent = sessions.iter().filter(|session| session.send_raw(&call("execute", &detached)).is_ok());
                sent.count() > 0
            }),
        ),
        ("lists", Box::new(move || ask(gateway, &list, &["200", "429", "503"]))),
        ("wrong tokens", Box::new(move || ask(gateway, &guess, &["401", "429"]))),
        (
            "idle connections",
            Box::new(move || {
                let held: Vec<_> = (0..50).filter_map(|_| dawdle(gateway, &post)).collect();
                let idle: Vec<_> = (0..50).filter_map(|_| dawdle(gateway, "")).collect();
                !held.is_empty() && !idle.is_empty()
            }),
        ),
    ]
}

/// One honest session: runs commands and measures the answers to pings until it is done. Returns the times.
fn be_honest(address: SocketAddr, is_done: &AtomicBool, n_runs: &AtomicUsize) -> Vec<Duration> {
    let expected: String = (1..=2_000).map(|n| format!("{n}\n")).collect();
    let mut client = session(address, HONEST).expect("an honest session is admitted");
    assert!(matches!(client.recv(), Frame::Text(message) if message["method"] == "connected"));
    let mut times = Vec::new();
    while !is_done.load(Ordering::Relaxed) {
        let asked = Instant::now();
        client.call("ping", json!({})).expect("a ping is answered");
        times.push(asked.elapsed());
        // It may have to wait for its turn.
        client.call("execute", json!({ "command": "seq 1 2000" })).expect("an execution is admitted");
        let recording = client.record();
        assert_eq!(recording.ending(), (Status::Completed, Reason::Exit), "{:?}", recording.outcome);
        assert_eq!(sha256(&recording.stdout), sha256(expected.as_bytes()));
        n_runs.fetch_add(1, Ordering::Relaxed);
    }
    client.close();
    times
}

#[test]
fn honest_sessions_do_not_notice_abuse_of_all_kinds() {
    let is_done = AtomicBool::new(false);
    let lines: String = [("honest", HONEST), ("abuser", ABUSER)]
        .map(|(name, token)| format!("{name} {}\n", sha256(token.as_bytes())))
        .concat();
    let file = TempPath::with_content("tokens", &lines);
    // A short retention, because the last assertion would count kept output as memory that was not given back.
    let service = Service::with(&["serve", "--tokens-file", file.as_str(), "--retention-ms", "2000"], &[]);
    let gateway = service.address;
    drop(session(gateway, HONEST));
    service.wait_for_event("session.closed", 1);
    let rss = service.rss_kib();
    let n_runs = AtomicUsize::new(0);
    let abuses: Vec<_> =
        abuses(gateway, &is_done).into_iter().map(|(name, abuse)| (name, abuse, AtomicUsize::new(0))).collect();
    let mut times: Vec<Duration> = thread::scope(|scope| {
        for (_, abuse, n_reached) in &abuses {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    n_reached.fetch_add(usize::from(abuse()), Ordering::Relaxed);
                }
            });
        }
        let honest: Vec<_> = (0..N_HONEST).map(|_| scope.spawn(|| be_honest(gateway, &is_done, &n_runs))).collect();
        // The duration of the abuse, and not a wait for something.
        thread::sleep(Duration::from_secs(scale(3, 60) as u64));
        is_done.store(true, Ordering::Relaxed);
        honest.into_iter().flat_map(|session| session.join().expect("an honest session is served")).collect()
    });
    for (name, _, n_reached) in &abuses {
        assert!(n_reached.load(Ordering::Relaxed) > 0, "no round of {name} reached the service");
    }
    times.sort_unstable();
    let p99 = times[times.len() * 99 / 100];
    assert!(n_runs.load(Ordering::Relaxed) >= N_HONEST, "each session has run its command");
    assert!(p99 < Duration::from_millis(scale(3_000, 250) as u64), "{p99:?} of {} pings", times.len());
    wait_until("the memory is given back", Duration::from_secs(scale(60, 10) as u64), || {
        service.rss_kib() < rss + 32 * 1024
    });
}
