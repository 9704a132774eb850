//! A client that has stopped reading: it can still cancel, and the service does not grow.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cc_executor_actors::{outcome::Status, protocol::notification::BackendHealth};
use serde_json::json;

use crate::common::{
    PATIENCE,
    frames::{self, frame},
    procs,
    service::Service,
    temp::TempPath,
    wait_until, wait_until_stable,
};

/// The number of timed CANCELs. The median counts, because test machines are shared.
const ROUNDS: usize = 5;

/// A command that writes 1 GB, and at TERM the time into a file.
fn producer(term_time: &Path, mark: &str) -> String {
    format!(
        "exec python3 -c '\nimport os, signal, time\n\
         def term(*_):\n now = str(time.time_ns())\n open(\"{0}.new\", \"w\").write(now)\n os.rename(\"{0}.new\", \"{0}\")\n os._exit(0)\n\
         signal.signal(signal.SIGTERM, term)\n\
         block = (b\"x\" * 99 + b\"\\n\") * 1000\n\
         for _ in range(10000): os.write(1, block)\n' {mark}",
        term_time.display()
    )
}

/// Waits until the process cannot write any more.
fn wait_until_blocked(pid: u32) {
    let written =
        wait_until_stable("the bytes that the producer writes", 1_000_000, Duration::from_millis(100), || {
            procs::bytes_written(pid)
        });
    assert!(written < 200_000_000, "{written} bytes are buffered for a client that does not read");
}

#[test]
fn cancel_from_a_non_reading_client_arrives_within_50_ms() {
    let backend = Service::backend();
    let gateway = Service::gateway(&backend.url());
    // The first execution allocates what later ones reuse.
    gateway.connect().run(json!({ "command": "head -c 20000000 /dev/zero | tr '\\0' x" }));
    let rss_before = gateway.rss_kib();
    let term_time = TempPath::new("term-time");
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let _ = fs::remove_file(&*term_time);
        let mark = procs::mark();
        let mut client = gateway.connect();
        client.request("execute", json!({ "command": producer(&term_time, &mark) }));
        wait_until_blocked(procs::wait_for(&mark, 1, PATIENCE)[0]);
        let grown = gateway.rss_kib().saturating_sub(rss_before);
        assert!(grown < 8 * 1024, "the gateway has grown by {grown} KiB");
        let asked_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        client.request("control", json!({ "type": "CANCEL" }));
        wait_until("the process got TERM", PATIENCE, || term_time.exists());
        let term_at: u128 = fs::read_to_string(&*term_time).unwrap().parse().unwrap();
        took.push(Duration::from_nanos(term_at.saturating_sub(asked_at) as u64));
        // The client reads again, and gets the buffered output and the ending.
        let recording = client.record();
        assert_eq!(recording.status(), Status::Cancelled);
        assert_eq!(recording.end["bytes"]["stdout"], recording.stdout.len(), "no byte that the backend read is lost");
    }
    took.sort_unstable();
    assert!(took[ROUNDS / 2] < Duration::from_millis(50), "{took:?}");
}

#[test]
fn descriptor_of_a_non_reading_client_is_closed() {
    let gateway = Service::start();
    // The first execution opens descriptors that later ones reuse.
    gateway.connect().run(json!({ "command": "true" }));
    let before = gateway.n_descriptors();
    let mark = procs::mark();
    let mut client = gateway.connect();
    client.request("execute", json!({ "command": producer(Path::new("/dev/null/x"), &mark) }));
    wait_until_blocked(procs::wait_for(&mark, 1, PATIENCE)[0]);
    // The session closes at a binary message, and the client does not read the close frame.
    client.send_raw(&frame(frames::BINARY, b"binary")).unwrap();
    gateway.wait_for_event("session.closed", 2);
    procs::wait_for(&mark, 0, PATIENCE);
    wait_until("the descriptors are closed", PATIENCE, || gateway.n_descriptors() <= before);
    gateway.wait_for_event("socket.shut_down", 1);
}

#[test]
fn heartbeat_reports_progress_of_a_silent_command() {
    let service = Service::start();
    let mut client = service.connect();
    client.execute(json!({ "command": "echo x; sleep 1000", "heartbeatMs": 1000, "timeoutMs": 60000 }));
    client.notification("output");
    let beats: Vec<_> = (0..2).map(|_| client.wait_for_status(Status::Running)).collect();
    let [first, second] = &beats[..] else { unreachable!() };
    assert!(second.elapsed_ms > first.elapsed_ms);
    assert!(second.since_output_ms > first.since_output_ms);
    assert!(second.deadline_ms.unwrap() < first.deadline_ms.unwrap());
    assert_eq!((second.backend, second.offsets.stdout), (BackendHealth::Alive, 2));
    client.close();
}
