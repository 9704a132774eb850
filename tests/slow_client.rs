//! A client that has stopped reading: it can still cancel, and the service does not grow.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::json;

use crate::common::{PATIENCE, procs, service::Service, wait_until};

/// How often the way of a CANCEL is timed; the median counts, these machines are shared.
const ROUNDS: usize = 5;

/// Writes 1 GB, and the time at which TERM arrives.
fn producer(heard: &Path, mark: &str) -> String {
    format!(
        "exec python3 -c '\nimport os, signal, time\n\
         def term(*_):\n now = str(time.time_ns())\n open(\"{0}.new\", \"w\").write(now)\n os.rename(\"{0}.new\", \"{0}\")\n os._exit(0)\n\
         signal.signal(signal.SIGTERM, term)\n\
         block = (b\"x\" * 99 + b\"\\n\") * 1000\n\
         for _ in range(10000): os.write(1, block)\n' {mark}",
        heard.display()
    )
}

/// Bytes that a process has written so far.
fn written(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok()).unwrap_or(0)
}

/// Waits until the process does not get rid of its output any more.
fn wait_until_blocked(pid: u32) {
    let mut before = 0;
    wait_until("the producer is held back", PATIENCE, || {
        std::thread::sleep(Duration::from_millis(100));
        let now = written(pid);
        let blocked = now > 1_000_000 && now == before;
        before = now;
        blocked
    });
    assert!(before < 200_000_000, "{before} bytes are on their way to a client that does not read");
}

#[test]
fn cancel_from_a_non_reading_client_arrives_within_50_ms() {
    let backend = Service::backend();
    let gateway = Service::gateway(&backend.url());
    gateway.wait_for_event("backend.up", 1);
    // A first execution warms up what is allocated once.
    gateway.connect().run(json!({ "command": "head -c 20000000 /dev/zero | tr '\\0' x" }));
    let rss_before = gateway.rss_kib();
    let heard = std::env::temp_dir().join(format!("cc-executor-heard-{}", std::process::id()));
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let _ = fs::remove_file(&heard);
        let mark = procs::mark();
        let mut client = gateway.connect();
        client.request("execute", json!({ "command": producer(&heard, &mark) }));
        wait_until_blocked(procs::wait_for(&mark, 1, PATIENCE)[0]);
        let grown = gateway.rss_kib().saturating_sub(rss_before);
        assert!(grown < 8 * 1024, "the gateway has grown by {grown} KiB");
        let asked_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        client.request("control", json!({ "type": "CANCEL" }));
        wait_until("the process heard TERM", PATIENCE, || heard.exists());
        let heard_at: u128 = fs::read_to_string(&heard).unwrap().parse().unwrap();
        took.push(Duration::from_nanos(heard_at.saturating_sub(asked_at) as u64));
        // The client reads on, and gets what was under way and then the end.
        let story = client.story();
        assert_eq!(story.end["status"], "CANCELLED");
        assert_eq!(story.end["bytes"]["stdout"], story.stdout.len(), "nothing of what was read is lost");
    }
    let _ = fs::remove_file(&heard);
    took.sort_unstable();
    assert!(took[ROUNDS / 2] < Duration::from_millis(50), "{took:?}");
}

#[test]
fn descriptor_of_a_non_reading_client_is_closed() {
    let gateway = Service::start();
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap().count();
    // What is opened once is open.
    gateway.connect().run(json!({ "command": "true" }));
    let before = descriptors();
    let mark = procs::mark();
    let mut client = gateway.connect();
    client.request("execute", json!({ "command": producer(Path::new("/dev/null/x"), &mark) }));
    wait_until_blocked(procs::wait_for(&mark, 1, PATIENCE)[0]);
    // A breach: the session closes, and its client does not even read that.
    client.send_raw(&crate::common::client::frame(0x82, b"binary")).unwrap();
    gateway.wait_for_event("session.closed", 2);
    procs::wait_for(&mark, 0, PATIENCE);
    wait_until("the descriptors are back", PATIENCE, || descriptors() <= before);
    gateway.wait_for_event("socket.shut_down", 1);
}

#[test]
fn heartbeat_reports_progress_of_a_silent_command() {
    let service = Service::start();
    let mut client = service.connect();
    client.execute(json!({ "command": "echo x; sleep 1000", "heartbeatMs": 1000, "timeoutMs": 60000 }));
    client.notification("output");
    let beats: Vec<_> = (0..2).map(|_| client.status("RUNNING")).collect();
    let number = |n: usize, field: &str| beats[n][field].as_u64().unwrap_or_else(|| panic!("{field} in {}", beats[n]));
    assert!(number(1, "elapsedMs") > number(0, "elapsedMs"));
    assert!(number(1, "sinceOutputMs") > number(0, "sinceOutputMs"));
    assert!(number(1, "deadlineMs") < number(0, "deadlineMs"));
    assert_eq!((beats[1]["backend"].as_str(), beats[1]["offsets"]["stdout"].as_u64()), (Some("alive"), Some(2)));
    client.close();
}
