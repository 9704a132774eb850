//! Unresponsive and stalled clients and gateways are closed, and slow ones are not.

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use cc_executor_actors::{backend_api::MULTIPLEXED, outcome::Status};
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    client::Frame,
    frames::{self, frame, text_frame},
    http,
    link::run_on_link,
    procs,
    recording::Recording,
    service::{BINARY, Service},
    temp::TempPath,
    wait_until,
};

/// A service that closes a client after one second without a sign of life.
fn service_with_short_stall_time() -> Service {
    Service::with(&["serve"], &[("CC_EXECUTOR_CLIENT_STALL_MS", "1000")])
}

#[test]
fn client_without_pongs_is_closed_in_time() {
    let service = service_with_short_stall_time();
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
    let service = service_with_short_stall_time();
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

/// A command with endless output.
fn flood(mark: &str) -> String {
    format!("exec python3 -c 'import os\nwhile True: os.write(1, b\"x\" * 65536)' {mark}")
}

#[test]
fn client_with_a_full_socket_is_closed_as_stalled() {
    // A ring larger than all socket buffers, so that the client's socket is full and the ring is not.
    let env = [("CC_EXECUTOR_CLIENT_STALL_MS", "1000"), ("CC_EXECUTOR_RING_BYTES", "67108864")];
    let service = Service::with(&["serve"], &env);
    for (on_disconnect, survives) in [("cancel", false), ("detach", true)] {
        let mark = procs::mark();
        let mut client = service.connect();
        let id = format!("44444444-4444-4444-8444-44444444444{}", usize::from(survives));
        client.request("execute", json!({ "command": flood(&mark), "onDisconnect": on_disconnect, "executionId": id }));
        procs::wait_for(&mark, 1, PATIENCE);
        service.wait_for_event("client.stalled", 1 + usize::from(survives));
        if survives {
            service.wait_for_event("execution.detached", 1);
            let mut other = service.connect();
            other.call("control", json!({ "type": "CANCEL", "executionId": id })).unwrap();
        }
        procs::wait_for(&mark, 0, PATIENCE);
        // The service closes the descriptor although the client still does not read.
        service.wait_for_event("socket.shut_down", 1 + usize::from(survives));
        drop(client);
    }
}

#[test]
fn slowly_reading_client_is_not_closed() {
    let service = service_with_short_stall_time();
    let mut client = service.connect();
    client.execute(json!({ "command": "head -c 40000000 /dev/zero | tr '\\0' x" }));
    // Slow reads, for longer than the stall time.
    let mut recording = Recording::default();
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(3) {
        let so_far = recording.stdout.len();
        client.record_until(&mut recording, |recording| recording.stdout.len() > so_far + 1_000_000);
        std::thread::sleep(Duration::from_millis(150));
    }
    client.record_rest(&mut recording);
    assert_eq!((recording.stdout.len(), recording.status()), (40_000_000, Status::Completed));
}

/// Starts a command as a gateway does. Nothing of the response has been read.
fn consume(backend: &Service, body: &Value) -> TcpStream {
    let headers = [http::JSON, ("Accept", MULTIPLEXED)];
    http::send(backend.address, "POST /execute/stream", &headers, &body.to_string())
}

#[test]
fn stalled_gateway_is_dropped_and_a_polling_one_is_kept() {
    let backend = Service::with(&["backend"], &[("CC_EXECUTOR_CONSUMER_STALL_MS", "1000")]);
    let [polling, silent] = [procs::mark(), procs::mark()];
    let since = Instant::now();
    let id = "55555555-5555-4555-8555-555555555555";
    let kept = consume(&backend, &json!({ "question": flood(&polling), "executionId": id }));
    let lost = consume(&backend, &json!({ "question": flood(&silent) }));
    procs::wait_for(&polling, 1, PATIENCE);
    procs::wait_for(&silent, 1, PATIENCE);
    wait_until("the execution of the silent consumer is ended", PATIENCE, || {
        backend.get(&format!("/executions/{id}"));
        backend.count("process.finished") == 1
    });
    assert!(since.elapsed() > Duration::from_millis(900), "{:?}", since.elapsed());
    procs::wait_for(&silent, 0, PATIENCE);
    while since.elapsed() < Duration::from_secs(4) {
        backend.get(&format!("/executions/{id}"));
        assert_eq!(procs::with_argument(&polling).len(), 1, "the polling consumer keeps its execution");
    }
    procs::wait_for(&polling, 0, PATIENCE);
    drop((kept, lost));
}

#[test]
fn byte_by_byte_frames_and_ping_floods_are_tolerated() {
    let service = service_with_short_stall_time();
    let mut client = service.connect();
    let call = json!({ "jsonrpc": "2.0", "id": 77, "method": "execute", "params": { "command": "echo slow" } });
    for byte in text_frame(&call.to_string()) {
        client.send_raw(&[byte]).unwrap();
    }
    assert_eq!(client.record().stdout, b"slow\n");
    let mut busy = service.connect();
    busy.execute(json!({ "command": "for i in 1 2 3 4 5; do echo $i; sleep 0.1; done" }));
    for _ in 0..20_000 {
        busy.send_raw(&frame(frames::PING, b"x")).unwrap();
    }
    assert_eq!(busy.record().stdout, b"1\n2\n3\n4\n5\n");
}

/// A backend at the near end of a link, and its consumers at the far one. Then the address of the consumers is removed, so
/// that the backend gets neither data nor a reset.
const VANISHING: &str = r#"
CC_EXECUTOR_CONSUMER_STALL_MS=2000 CC_EXECUTOR_ALLOWED_HOSTS=$near LOG_FORMAT=json \
    "$1" backend --bind $near:8000 --insecure-no-auth >/dev/null 2>"$2" & backend=$!
until grep -q service.listening "$2"; do :; done
consume() {
    $there bash -c '
        exec 3<>/dev/tcp/$2/8000
        body="{\"question\":\"exec sleep 1000\",\"heartbeatMs\":$1}"
        printf "POST /execute/stream HTTP/1.1\r\nHost: $2\r\nContent-Type: application/json\r\nAccept: application/vnd.docker.multiplexed-stream\r\nContent-Length: ${#body}\r\n\r\n$body" >&3
        exec cat <&3' consume "$1" $near >/dev/null 2>&1 &
}
consume 1000   # gets heartbeats
consume 60000  # gets nothing
until [ "$(grep -c process.started "$2")" = 2 ]; do :; done
$there ip addr del $far/24 dev far
date +%s%3N
until [ "$(grep -c process.finished "$2")" = 2 ]; do sleep 0.05; done
date +%s%3N
"#;

#[test]
fn vanished_gateway_is_detected_with_and_without_heartbeats() {
    let log = TempPath::new("vanishing");
    let arguments = [BINARY.as_ref(), log.as_os_str()];
    let Some(output) = run_on_link("a gateway that vanishes", VANISHING, &arguments) else { return };
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let times: Vec<u64> = stdout.lines().filter_map(|line| line.parse().ok()).collect();
    let lines = std::fs::read_to_string(&*log).unwrap_or_default();
    let [vanished_at, noticed_at] = times[..] else {
        panic!("{stdout} {} {lines}", String::from_utf8_lossy(&output.stderr));
    };
    let after = Duration::from_millis(noticed_at - vanished_at);
    assert!(after > Duration::from_secs(1) && after < Duration::from_secs(25), "{after:?}");
    assert_eq!(lines.matches("\"reason\":\"disconnected\"").count(), 2, "{lines}");
}
