//! One client cannot take the gateway from the others: what it sends, leaves unread or asks for is bounded.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use cc_executor_actors::rpc::code;
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    client::{Client, Frame},
    frames::{self, frame, text_frame},
    left_out,
    link::run_on_link,
    procs, scale,
    service::{BINARY, Service},
    wait_until,
};

/// 0.9 MB that take six times as much when escaped.
fn long() -> String {
    "\x7f".repeat(900_000)
}

#[test]
fn echoed_values_are_cut() {
    let service = Service::start();
    let mut client = service.connect();
    let long = long();
    let calls = [
        ("execute", json!({ "command": "true", "executor": long })),
        ("execute", json!({ "command": "true", "framing": long })),
        ("execute", json!({ "command": "true", "env": { format!("{long}="): "x" } })),
        ("execute", json!({ "command": "true", "env": { &long: 1 } })),
        ("execute", json!({ "command": "true", &long: 1 })),
        ("execute", json!({ "command": "true", "executionId": long })),
        ("execute", json!({ "command": "true", "timeoutMs": long })),
        ("control", json!({ "type": "SIGNAL", "signal": long })),
        ("control", json!({ "type": long })),
        (long.as_str(), json!({})),
    ];
    for (method, params) in calls {
        let error = client.call(method, params).unwrap_err();
        let length = serde_json::to_string(&error).unwrap().len();
        assert!(length < 8_192, "{length} bytes: {}", &error.message[..200]);
    }
    // The shim, and not the gateway, finds that the directory is missing.
    client.call("execute", json!({ "command": "true", "cwd": format!("/{long}") })).unwrap();
    let recording = client.record();
    assert!(recording.end["message"].to_string().len() < 8_192);
    client.close();
}

#[test]
fn long_ids_are_refused_and_not_repeated() {
    let service = Service::start();
    let mut client = service.connect();
    let allowed = "x".repeat(254);
    client.send_text(&json!({ "jsonrpc": "2.0", "id": allowed, "method": "ping" }).to_string());
    let Frame::Text(response) = client.recv() else { panic!("a response") };
    assert_eq!(response, json!({ "jsonrpc": "2.0", "id": allowed, "result": {} }));
    for id in ["x".repeat(255), long()] {
        client.send_text(&json!({ "jsonrpc": "2.0", "id": id, "method": "ping" }).to_string());
        let Frame::Text(response) = client.recv() else { panic!("a response") };
        assert_eq!((&response["id"], &response["error"]["code"]), (&Value::Null, &json!(code::INVALID_REQUEST)));
        assert!(response.to_string().len() < 1_000);
    }
    client.close();
}

#[test]
fn duplicate_parameters_are_refused() {
    let service = Service::start();
    let mut client = service.connect();
    for params in [r#"{"command":"true","command":"false"}"#, r#"{"command":"true","env":{"A":"1","A":"2"}}"#] {
        client.send_text(&format!(r#"{{"jsonrpc":"2.0","id":7,"method":"execute","params":{params}}}"#));
        let error = client.response(7).unwrap_err();
        assert_eq!(error.code, code::PARAMS, "{error}");
        assert!(error.message.contains("twice"), "{error}");
    }
    client.close();
    let backend = Service::backend();
    let request = "POST /execute/stream";
    for body in [r#"{"question":"true","question":"false"}"#, r#"{"question":"true","env":{"A":"1","A":"2"}}"#] {
        let response = crate::common::http::exchange(backend.address, request, &[crate::common::http::JSON], body);
        assert_eq!(response.status, 400, "{}", response.body);
        assert!(response.body.contains("twice"), "{}", response.body);
    }
}

#[test]
fn pipelined_pings_of_a_client_that_reads_are_answered() {
    let service = Service::start();
    for _ in 0..scale(3, 10) {
        let mut client = service.connect();
        let calls: Vec<u8> = (1..=200)
            .flat_map(|id| text_frame(&json!({ "jsonrpc": "2.0", "id": id, "method": "ping" }).to_string()))
            .collect();
        client.send_raw(&calls).unwrap();
        for id in 1..=200u64 {
            assert_eq!(client.response(id), Ok(json!({})));
        }
        client.close();
    }
}

#[test]
fn a_ping_between_the_fragments_of_the_longest_message_is_answered() {
    let service = Service::start();
    let mut client = service.connect();
    let mut text = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" }).to_string();
    text.push_str(&" ".repeat((1 << 20) - text.len()));
    let (first, last) = text.as_bytes().split_at(text.len() - 1);
    client.send_raw(&frame(0x01, first)).unwrap();
    client.send_raw(&frame(frames::PING, &[b'p'; 125])).unwrap();
    client.send_raw(&frame(0x80, last)).unwrap();
    assert_eq!(client.recv(), Frame::Pong(vec![b'p'; 125]));
    assert_eq!(client.response(1), Ok(json!({})));
    client.close();
}

/// Writes as much as the service reads, in pieces of `piece`, until `until` says so or the service has stopped reading.
/// Returns the bytes that it took.
fn flood(client: &Client, piece: &[u8], most: usize) -> usize {
    let mut stream = client.stream().try_clone().unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut n_sent = 0;
    while n_sent < most && stream.write_all(piece).is_ok() {
        n_sent += piece.len();
    }
    n_sent
}

#[test]
fn requests_in_flight_are_bounded_for_a_client_that_does_not_read() {
    let service = Service::start();
    service.connect().close();
    let n_descriptors = service.n_descriptors();
    let rss = service.rss_kib();
    let mut client = service.connect();
    client.execute(json!({ "command": "sleep 1000" }));
    let pair = |kind: &str| {
        text_frame(&json!({ "jsonrpc": "2.0", "method": "control", "params": { "type": kind } }).to_string())
    };
    let calls = [pair("PAUSE"), pair("RESUME")].concat().repeat(100);
    let mut bystander = service.connect();
    std::thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(&client, &calls, scale(100, 300) * calls.len()));
        let mut most = 0;
        while !flooding.is_finished() {
            most = most.max(service.n_descriptors());
            let asked = Instant::now();
            bystander.call("ping", json!({})).unwrap();
            assert!(asked.elapsed() < Duration::from_secs(1), "a bystander waited {:?}", asked.elapsed());
        }
        assert!(most < n_descriptors + 64, "{most} descriptors");
    });
    assert_eq!(bystander.run(json!({ "command": "echo works" })).text(), "works\n");
    let grown = service.rss_kib().saturating_sub(rss);
    assert!(grown < 16 * 1024, "grown by {grown} KiB");
}

#[test]
fn waiting_input_is_bounded_in_number() {
    let service = Service::start();
    service.connect().close();
    let rss = service.rss_kib();
    let mut client = service.connect();
    client.execute(json!({ "command": "sleep 1000", "stdin": true }));
    // The pipe takes 64 KiB; what follows waits.
    client.request("input", json!({ "data": "x".repeat(100_000) }));
    for _ in 0..2_000 {
        client.request("input", json!({ "data": "x" }));
    }
    let refused = client.request("input", json!({ "data": "x" }));
    assert_eq!(client.response(refused).unwrap_err().code, code::FULL);
    let eof = text_frame(&json!({ "jsonrpc": "2.0", "method": "input", "params": { "eof": true } }).to_string());
    flood(&client, &eof.repeat(100), scale(100_000, 1_000_000));
    let mut bystander = service.connect();
    assert_eq!(bystander.run(json!({ "command": "echo works" })).text(), "works\n");
    let grown = service.rss_kib().saturating_sub(rss);
    assert!(grown < 16 * 1024, "grown by {grown} KiB");
}

#[test]
fn long_messages_share_a_bounded_memory() {
    let n_sessions = scale(480, 512);
    let service = Service::with(&["serve", "--max-unsent-responses", "4"], &[]);
    let call = text_frame(&json!({ "jsonrpc": "2.0", "id": long(), "method": "ping" }).to_string());
    // Everything but the end, so that all of them lie in memory at the same time.
    let (beginning, _) = call.split_at(call.len() - 1);
    let clients: Vec<Client> = (0..n_sessions).map(|_| service.connect()).collect();
    let mut bystander = service.connect();
    std::thread::scope(|scope| {
        let chunks: Vec<_> = clients.chunks(n_sessions.div_ceil(4)).collect();
        for clients in chunks {
            scope.spawn(move || {
                for client in clients {
                    flood(client, beginning, 1);
                }
            });
        }
        let mut waits = Vec::new();
        for _ in 0..scale(200, 1_000) {
            let asked = Instant::now();
            bystander.call("ping", json!({})).unwrap();
            waits.push(asked.elapsed());
            // 64 MiB of messages, and what is read ahead of 512 waiting connections.
            assert!(service.rss_kib() < 256 * 1024, "{} KiB", service.rss_kib());
        }
        waits.sort_unstable();
        let p99 = waits[waits.len() * 99 / 100];
        assert!(p99 < Duration::from_millis(scale(2_000, 50) as u64), "{p99:?} of {} pings", waits.len());
    });
    assert!(service.rss_kib() > 64 * 1024, "the messages are in memory: {} KiB", service.rss_kib());
    drop(clients);
    wait_until("the memory is given back", Duration::from_secs(5), || service.rss_kib() < 64 * 1024);
    bystander.close();
}

/// Fills the memory of a service that has 4 MiB for long messages, with messages whose ends do not come. Returns the clients
/// and such a message with its end.
fn hold_all_memory(service: &Service) -> (Vec<Client>, Vec<u8>) {
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping", "params": { "x": long() } });
    let call = text_frame(&call.to_string());
    let holders: Vec<Client> = (0..4).map(|_| service.connect()).collect();
    for holder in &holders {
        holder.send_raw(&call[..call.len() - 1]).unwrap();
    }
    (holders, call)
}

#[test]
fn a_long_message_that_never_ends_gives_its_memory_back() {
    let service = Service::with(&["serve", "--client-stall-ms", "1000", "--max-incoming-bytes", "4194304"], &[]);
    let (holders, call) = hold_all_memory(&service);
    let mut waiting = service.connect();
    waiting.send_raw(&call).unwrap();
    assert_eq!(waiting.response(1).unwrap_err().code, code::PARAMS, "unknown parameter x");
    for mut holder in holders {
        // A pong would be taken for the rest of the message.
        holder.answers_pings = false;
        assert_eq!(holder.close_code(), 4408);
    }
    waiting.close();
}

#[test]
fn a_client_that_leaves_while_its_message_waits_is_noticed() {
    let service = Service::with(&["serve", "--max-incoming-bytes", "4194304"], &[]);
    let (_holders, call) = hold_all_memory(&service);
    let mut leaving = service.connect();
    let mark = procs::mark();
    leaving.execute(json!({ "command": format!("exec sleep {mark}") }));
    wait_until("its command runs", PATIENCE, || !procs::with_argument(&mark).is_empty());
    // More than the service reads ahead, so that the FIN stays behind unread bytes, and less than the kernel has room for.
    leaving.send_raw(&call[..160_000]).unwrap();
    leaving.shut_down();
    wait_until("its command is ended", Duration::from_secs(8), || procs::with_argument(&mark).is_empty());
}

/// A link of 800 kbit/s from the service, at its far end, to its client, as which this test runs again.
const SLOW_LINK: &str = r#"
$there tc qdisc add dev far root tbf rate 800kbit latency 50ms burst 4kb
CC_EXECUTOR_ALLOWED_HOSTS=$far $there "$3" serve --insecure-no-auth --bind $far:8003 >/dev/null 2>&1 &
SLOW_LINK=$far:8003 "$1" --exact "$2" --nocapture
"#;

#[test]
fn a_pong_comes_within_two_seconds_over_a_link_of_800_kbit() {
    if let Ok(address) = std::env::var("SLOW_LINK") {
        return measure_pongs(address.parse().unwrap());
    }
    let what = "a pong over a slow link";
    if !rustix::process::geteuid().is_root() || Command::new("tc").arg("-V").output().is_err() {
        return left_out(what, "shaping a link needs root and tc");
    }
    let test = std::env::current_exe().unwrap();
    let name = "flood::a_pong_comes_within_two_seconds_over_a_link_of_800_kbit";
    let arguments = [test.as_os_str(), name.as_ref(), BINARY.as_ref()];
    let Some(output) = run_on_link(what, SLOW_LINK, &arguments) else { return };
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{text}");
}

fn measure_pongs(address: SocketAddr) {
    wait_until("the service listens", PATIENCE, || TcpStream::connect(address).is_ok());
    let mut client = Client::connect(address);
    client.execute(json!({ "command": "yes 0123456789abcdef | head -c 50000000" }));
    let mut delays = Vec::new();
    for n in 0..scale(4, 15) {
        let next = Instant::now() + Duration::from_secs(1);
        while Instant::now() < next {
            client.recv();
        }
        let payload = format!("{n}").into_bytes();
        let sent = Instant::now();
        client.send_raw(&frame(frames::PING, &payload)).unwrap();
        while client.recv() != Frame::Pong(payload.clone()) {}
        delays.push(sent.elapsed());
    }
    assert!(delays.iter().all(|delay| *delay < Duration::from_secs(2)), "{delays:?}");
}
