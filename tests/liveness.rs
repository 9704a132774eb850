//! Is it slow or dead? Clients that answer nothing or take nothing, and consumers that vanished.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::common::{
    PATIENCE,
    client::{Client, Frame, Recording, frame},
    left_out, namespace, procs,
    service::Service,
    wait_until,
};

/// A service whose clients may be without a sign of life for a second.
fn impatient() -> Service {
    Service::with(&["serve"], &[("CC_EXECUTOR_CLIENT_STALL_MS", "1000")])
}

#[test]
fn client_without_pongs_is_closed_in_time() {
    let service = impatient();
    let mut client = service.connect();
    client.answers_pings = false;
    let since = Instant::now();
    assert_eq!(client.close_code(), 4408);
    let after = since.elapsed();
    assert!((1_000..2_500).contains(&after.as_millis()), "{after:?}");
    service.wait_for_event("client.unresponsive", 1);
}

#[test]
fn client_with_pongs_or_messages_stays_connected() {
    let service = impatient();
    let mut answering = service.connect();
    let mut speaking = service.connect();
    speaking.answers_pings = false;
    let since = Instant::now();
    let mut n_pings = 0;
    while since.elapsed() < Duration::from_secs(3) {
        assert_eq!(speaking.call("ping", json!({})), Ok(json!({})));
        if matches!(answering.recv(), Frame::Ping(_)) {
            n_pings += 1;
        }
    }
    assert!((5..15).contains(&n_pings), "{n_pings}");
    answering.close();
    speaking.close();
}

/// Output without end, with a mark.
fn flood(mark: &str) -> String {
    format!("exec python3 -c 'import os\nwhile True: os.write(1, b\"x\" * 65536)' {mark}")
}

#[test]
fn client_with_a_full_socket_is_closed_as_stalled() {
    // A ring larger than what is under way: it is the client's socket that is full, not the ring.
    let env = [("CC_EXECUTOR_CLIENT_STALL_MS", "1000"), ("CC_EXECUTOR_RING_BYTES", "67108864")];
    let service = Service::with(&["serve"], &env);
    for (detach, goes_on) in [("cancel", false), ("detach", true)] {
        let mark = procs::mark();
        let mut client = service.connect();
        let id = format!("44444444-4444-4444-8444-44444444444{}", usize::from(goes_on));
        client.request("execute", json!({ "command": flood(&mark), "onDisconnect": detach, "executionId": id }));
        procs::wait_for(&mark, 1, PATIENCE);
        service.wait_for_event("client.stalled", 1 + usize::from(goes_on));
        if goes_on {
            service.wait_for_event("execution.detached", 1);
            let mut other = service.connect();
            other.call("control", json!({ "type": "CANCEL", "executionId": id })).unwrap();
        }
        procs::wait_for(&mark, 0, PATIENCE);
        // The descriptor comes back although the client still does not read.
        service.wait_for_event("socket.shut_down", 1 + usize::from(goes_on));
        drop(client);
    }
}

#[test]
fn slowly_reading_client_is_not_closed() {
    let service = impatient();
    let mut client = service.connect();
    client.execute(json!({ "command": "head -c 40000000 /dev/zero | tr '\\0' x" }));
    // It reads a little every now and then, for longer than the stall time.
    let mut story = Recording::default();
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(3) {
        let so_far = story.stdout.len();
        client.follow(&mut story, |story| story.stdout.len() > so_far + 1_000_000);
        std::thread::sleep(Duration::from_millis(150));
    }
    client.follow(&mut story, |_| false);
    assert_eq!((story.stdout.len(), story.end["status"].as_str()), (40_000_000, Some("COMPLETED")));
}

/// A consumer of the backend's own stream that can do what it likes.
fn consume(backend: &Service, body: &serde_json::Value) -> TcpStream {
    let mut stream = TcpStream::connect(backend.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let body = body.to_string();
    write!(
        stream,
        "POST /execute/stream HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
         Accept: application/vnd.docker.multiplexed-stream\r\nContent-Length: {}\r\n\r\n{body}",
        backend.address,
        body.len()
    )
    .unwrap();
    stream
}

fn ask(backend: &Service, id: &str) {
    let mut stream = TcpStream::connect(backend.address).unwrap();
    write!(stream, "GET /executions/{id} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", backend.address).unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
}

#[test]
fn stalled_gateway_is_dropped_and_a_polling_one_is_kept() {
    let backend = Service::with(&["backend"], &[("CC_EXECUTOR_CONSUMER_STALL_MS", "1000")]);
    let [asking, silent] = [procs::mark(), procs::mark()];
    let since = Instant::now();
    let id = "55555555-5555-4555-8555-555555555555";
    let kept = consume(&backend, &json!({ "question": flood(&asking), "executionId": id }));
    let lost = consume(&backend, &json!({ "question": flood(&silent) }));
    procs::wait_for(&asking, 1, PATIENCE);
    procs::wait_for(&silent, 1, PATIENCE);
    wait_until("the silent one is ended", PATIENCE, || {
        ask(&backend, id);
        backend.count("process.finished") == 1
    });
    assert!(since.elapsed() > Duration::from_millis(900), "{:?}", since.elapsed());
    procs::wait_for(&silent, 0, PATIENCE);
    while since.elapsed() < Duration::from_secs(4) {
        ask(&backend, id);
        assert_eq!(procs::with_argument(&asking).len(), 1, "it is asked for");
    }
    procs::wait_for(&asking, 0, PATIENCE);
    drop((kept, lost));
}

#[test]
fn byte_by_byte_frames_and_ping_floods_are_tolerated() {
    let service = impatient();
    let mut client = service.connect();
    let call = json!({ "jsonrpc": "2.0", "id": 77, "method": "execute", "params": { "command": "echo slow" } });
    for byte in frame(0x81, call.to_string().as_bytes()) {
        client.send_raw(&[byte]).unwrap();
    }
    assert_eq!(client.story().stdout, b"slow\n");
    let mut busy: Client = service.connect();
    busy.execute(json!({ "command": "for i in 1 2 3 4 5; do echo $i; sleep 0.1; done" }));
    for _ in 0..20_000 {
        busy.send_raw(&frame(0x89, b"x")).unwrap();
    }
    assert_eq!(busy.story().stdout, b"1\n2\n3\n4\n5\n");
}

/// Two network namespaces with a wire between them: a backend in the one, its gateway in the other, and
/// then the gateway's address is gone. Nothing says so, not even a reset.
const VANISHING: &str = r#"
set -eu
unshare -n sleep 60 >/dev/null 2>&1 & far=$!  # what outlives this must not hold its output open
trap 'kill $(jobs -p) 2>/dev/null' EXIT
until [ "$(readlink /proc/$far/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do :; done
ip link set lo up
ip link add near type veth peer name far netns $far
ip addr add 10.77.0.1/24 dev near
ip link set near up
nsenter -t $far -n ip addr add 10.77.0.2/24 dev far
nsenter -t $far -n ip link set far up
CC_EXECUTOR_CONSUMER_STALL_MS=2000 CC_EXECUTOR_ALLOWED_HOSTS=10.77.0.1 LOG_FORMAT=json \
    "$1" backend --bind 10.77.0.1:8000 --insecure-no-auth >/dev/null 2>"$2" & backend=$!
until grep -q service.listening "$2"; do :; done
consume() {
    nsenter -t $far -n bash -c '
        exec 3<>/dev/tcp/10.77.0.1/8000
        body="{\"question\":\"exec sleep 1000\",\"heartbeatMs\":$1}"
        printf "POST /execute/stream HTTP/1.1\r\nHost: 10.77.0.1\r\nContent-Type: application/json\r\nAccept: application/vnd.docker.multiplexed-stream\r\nContent-Length: ${#body}\r\n\r\n$body" >&3
        exec cat <&3' consume "$1" >/dev/null 2>&1 &
}
consume 1000   # is written to
consume 60000  # is quiet
until [ "$(grep -c process.started "$2")" = 2 ]; do :; done
nsenter -t $far -n ip addr del 10.77.0.2/24 dev far
date +%s%3N
until [ "$(grep -c process.finished "$2")" = 2 ]; do sleep 0.05; done
date +%s%3N
"#;

#[test]
fn vanished_gateway_is_detected_with_and_without_heartbeats() {
    let log = std::env::temp_dir().join(format!("cc-executor-vanishing-{}", std::process::id()));
    let unshare = match namespace() {
        Ok(option) => option,
        Err(missing) => return left_out("a gateway that vanishes", missing),
    };
    let output = std::process::Command::new("timeout")
        .args(["60", "unshare", unshare])
        .args(["bash", "-c", VANISHING, "vanishing", crate::common::service::BINARY, log.to_str().unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let times: Vec<u64> = said.lines().filter_map(|line| line.parse().ok()).collect();
    let lines = std::fs::read_to_string(&log).unwrap_or_default();
    let _ = std::fs::remove_file(&log);
    let [vanished_at, noticed_at] = times[..] else {
        panic!("{said} {} {lines}", String::from_utf8_lossy(&output.stderr));
    };
    let after = Duration::from_millis(noticed_at - vanished_at);
    assert!(after > Duration::from_secs(1) && after < Duration::from_secs(25), "{after:?}");
    assert_eq!(lines.matches("\"reason\":\"disconnected\"").count(), 2, "{lines}");
}
