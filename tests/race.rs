//! Hundreds of sessions, in `make stress` thousands, in which output, a cancel, a close by either end, a cut connection to the
//! backend and a drain coincide within a few milliseconds.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use cc_executor_actors::rpc::call_text;
use rustix::process::Signal;
use serde_json::json;

use crate::common::{
    LONGEST_WAIT, PATIENCE,
    client::{Client, Frame},
    frames::{self, close_frame, frame, text_frame},
    procs,
    proxy::{CutKind, Proxy},
    random, scale,
    service::Service,
    wait_until,
};

/// The number of sessions in a round.
fn n_sessions() -> usize {
    scale(400, 2_000)
}

/// One in this many sessions has a gateway that drains during the session.
const DRAINED: usize = 10;

/// Totals of what the clients received.
#[derive(Default)]
struct Counted {
    frames: AtomicUsize,
    after_close: AtomicUsize,
    ends: AtomicUsize,
    closes: AtomicUsize,
    /// Sessions that waited for the ending of their execution before they closed.
    waited: AtomicUsize,
}

impl Counted {
    /// Reads to the end of the connection, and counts. True if there was a close frame.
    fn read(&self, client: &mut Client, counts: SessionCounts) -> bool {
        let counts = self.read_until(client, counts, |counts| counts.connection_ended);
        assert!(counts.ends <= 1, "one execution, one end");
        self.ends.fetch_add(counts.ends, Ordering::Relaxed);
        self.closes.fetch_add(usize::from(counts.closed), Ordering::Relaxed);
        counts.closed
    }

    fn read_until(
        &self,
        client: &mut Client,
        mut counts: SessionCounts,
        until: impl Fn(&SessionCounts) -> bool,
    ) -> SessionCounts {
        let start = Instant::now();
        while !counts.connection_ended && !until(&counts) {
            assert!(start.elapsed() < LONGEST_WAIT, "waited in vain for the end of a session");
            let frame = client.recv();
            if matches!(frame, Frame::End) {
                counts.connection_ended = true;
                break;
            }
            self.frames.fetch_add(1, Ordering::Relaxed);
            self.after_close.fetch_add(usize::from(counts.closed), Ordering::Relaxed);
            match frame {
                Frame::Close(..) => counts.closed = true,
                Frame::Text(message)
                    if message["params"].get("reason").is_some_and(|_| message["method"] == "statusUpdate") =>
                {
                    counts.ends += 1;
                }
                _ => {}
            }
        }
        counts
    }
}

/// What a client has received in one session so far.
#[derive(Default)]
struct SessionCounts {
    ends: usize,
    closed: bool,
    connection_ended: bool,
}

/// One session with random actions. If `drains` is false, its gateway must send every response and the close frame.
fn session(gateway: &Service, mark: &str, chance: u64, drains: bool, counted: &Counted) {
    let mut random = random(chance + 1);
    let Ok(mut client) = Client::try_upgrade(gateway.address) else { return };
    let detach = if random(4) == 0 { "detach" } else { "cancel" };
    let command = match random(4) {
        0 => "echo short".to_owned(),
        1 => format!("for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.00$i; done; exec sleep {mark}"),
        2 => format!("setsid sleep {mark} & head -c 300000 /dev/zero | tr '\\0' x; sleep {mark}"),
        _ => format!("trap 'echo late; exit 0' TERM; sleep {mark} & wait"),
    };
    let execute = call_text(
        1,
        "execute",
        &json!({ "command": command, "onDisconnect": detach, "detachMs": detach.starts_with('d').then_some(50) }),
    );
    let cancel = call_text(2, "control", &json!({ "type": "CANCEL", "graceMs": 20 }));
    let close = close_frame(1000);
    let mut counts = SessionCounts::default();
    // Errors are ignored, because the service may have closed the connection already.
    let _ = client.send_raw(&text_frame(&execute));
    let pause = [1_000, 10_000, 40_000][random(3) as usize];
    thread::sleep(Duration::from_micros(random(pause)));
    match random(8) {
        0 => {
            let _ = client.send_raw(&text_frame(&cancel));
            thread::sleep(Duration::from_micros(random(3_000)));
            let _ = client.send_raw(&close);
        }
        1 => drop(client.send_raw(&close)),
        2 => return client.disconnect(),
        3 => {
            rustix::net::sockopt::set_socket_linger(client.stream(), Some(Duration::ZERO)).unwrap();
            return;
        }
        // The service closes the session, because it does not support binary messages.
        4 => drop(client.send_raw(&frame(frames::BINARY, b"binary"))),
        5 => {
            let both = [text_frame(&cancel), close];
            let _ = client.send_raw(&both.concat());
        }
        6 => {
            let _ = client.send_raw(&text_frame(&cancel));
            thread::sleep(Duration::from_millis(30 + random(30)));
            let _ = client.send_raw(&close);
        }
        // The ending must come before the close frame.
        _ => {
            let _ = client.send_raw(&text_frame(&cancel));
            counts = counted.read_until(&mut client, counts, |counts| counts.ends > 0);
            counted.waited.fetch_add(counts.ends, Ordering::Relaxed);
            assert!(drains || counts.ends == 1, "session {chance} ended without the end of its execution");
            let _ = client.send_raw(&close);
        }
    }
    let closed = counted.read(&mut client, counts);
    assert!(drains || closed, "session {chance} ended without a close frame");
}

/// Runs all sessions of a round. The random actions are the same in each round.
fn round(gateway: &Service, backend: &str, mark: &str) -> Counted {
    let n_sessions = n_sessions();
    let counted = Counted::default();
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    if n >= (n_sessions - n_sessions / DRAINED) as u64 {
                        return;
                    }
                    session(gateway, mark, n, false, &counted);
                }
            });
        }
        scope.spawn(|| {
            for n in 0..n_sessions / DRAINED / 20 {
                let mut draining = Service::gateway(backend);
                thread::scope(|scope| {
                    for lane in 0..20 {
                        let (draining, counted) = (&draining, &counted);
                        scope
                            .spawn(move || session(draining, mark, (n_sessions + n * 20 + lane) as u64, true, counted));
                    }
                    thread::sleep(Duration::from_micros(random(n as u64 + 1)(8_000)));
                    draining.signal(Signal::TERM);
                });
                assert_eq!(draining.wait(PATIENCE).code(), Some(0));
                assert_clean(&draining);
            }
        });
    });
    counted
}

/// Checks that the log has no warning and no error, but for cut connections to the backend.
fn assert_clean(gateway: &Service) {
    for line in gateway.complaints() {
        assert_eq!(line["event"], "backend.down", "{line}");
    }
}

fn assert_nothing_left(gateway: &Service, mark: &str) {
    wait_until("the registry is empty", PATIENCE, || {
        let health = gateway.get("/health");
        health["sessions"] == 0 && health["executions"] == 0
    });
    procs::wait_for(mark, 0, PATIENCE);
}

#[test]
fn racing_sessions_leave_no_process_and_send_nothing_after_close() {
    let env = [
        ("CC_EXECUTOR_RETENTION_MS", "300"),
        ("CC_EXECUTOR_MAX_EXECUTIONS", "100"),
        ("CC_EXECUTOR_MAX_QUEUED", "1000"),
    ];
    let backend = Service::with(&["backend"], &env);
    // One connection to the backend in twenty is cut somewhere.
    let proxy = Proxy::start(backend.address, |n| {
        let mut random = random(n as u64 + 99);
        let kind = if random(2) == 0 { CutKind::Fin } else { CutKind::Reset };
        (random(20) == 0).then(|| (random(20_000) + 1, kind))
    });
    let through = proxy.url();
    let gateway = Service::gateway(&through);
    let mark = procs::mark();
    let mut before: Option<[u64; 2]> = None;
    for n in 0..2 {
        let counted = round(&gateway, &through, &mark);
        assert_eq!(counted.after_close.load(Ordering::SeqCst), 0, "frames after a close frame");
        let [frames, ends, closes, waited] = [&counted.frames, &counted.ends, &counted.closes, &counted.waited]
            .map(|count| count.load(Ordering::SeqCst));
        println!("round {n}: {frames} frames, {ends} ends, {waited} of them waited for, {closes} closes");
        // The number of endings that come before their session's close depends on timing. `session` checks each ending that
        // it waits for, and each close frame.
        assert!(waited > 0 && ends > 0 && closes > 0, "every outcome has occurred");
        assert_nothing_left(&gateway, &mark);
        wait_until("the backend has forgotten every execution", PATIENCE, || {
            backend.get("/executions")["executions"].as_array().is_some_and(Vec::is_empty)
        });
        assert_clean(&gateway);
        let rss = || [gateway.rss_kib(), backend.rss_kib()];
        // The backend returns free memory when it is idle, which it checks every second.
        if let Some(before) = before {
            wait_until("both have grown by less than 2 MiB", PATIENCE, || {
                rss().iter().zip(before).all(|(now, before)| now.saturating_sub(before) < 2 * 1024)
            });
        }
        let now = rss();
        println!("round {n}: {now:?} KiB");
        before = Some(now);
    }
}
