//! The race that started it all: sessions by the hundred, in `make stress` by the thousand, in which output,
//! cancellation, both ends' closing, a cut to the backend and a drain meet within a few milliseconds.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::json;

use crate::common::{
    PATIENCE,
    client::{Client, Frame, frame},
    procs,
    proxy::{CutKind, Proxy},
    random, scale,
    service::Service,
    wait_until,
};

/// The sessions of a round.
fn n_sessions() -> usize {
    scale(400, 2_000)
}

/// Every so many-th session has a gateway that is told to end meanwhile.
const DRAINED: usize = 10;

/// What a client saw of its session after it had asked for everything it wanted.
#[derive(Default)]
struct Counted {
    frames: AtomicUsize,
    after_close: AtomicUsize,
    ends: AtomicUsize,
    closes: AtomicUsize,
    /// Sessions that waited for the end of their execution before they closed.
    waited: AtomicUsize,
}

impl Counted {
    /// Reads to the end of the connection, and counts. True if the service closed it properly.
    fn read(&self, client: &mut Client, seen: Seen) -> bool {
        let seen = self.read_until(client, seen, |seen| seen.connection_ended);
        assert!(seen.ends <= 1, "one execution, one end");
        self.ends.fetch_add(seen.ends, Ordering::Relaxed);
        self.closes.fetch_add(usize::from(seen.closed), Ordering::Relaxed);
        seen.closed
    }

    fn read_until(&self, client: &mut Client, mut seen: Seen, until: impl Fn(&Seen) -> bool) -> Seen {
        while !seen.connection_ended && !until(&seen) {
            let frame = client.recv();
            if matches!(frame, Frame::End) {
                seen.connection_ended = true;
                break;
            }
            self.frames.fetch_add(1, Ordering::Relaxed);
            self.after_close.fetch_add(usize::from(seen.closed), Ordering::Relaxed);
            match frame {
                Frame::Close(..) => seen.closed = true,
                Frame::Text(message)
                    if message["params"].get("reason").is_some_and(|_| message["method"] == "statusUpdate") =>
                {
                    seen.ends += 1;
                }
                _ => {}
            }
        }
        seen
    }
}

/// What a client saw of one session so far.
#[derive(Default)]
struct Seen {
    ends: usize,
    closed: bool,
    connection_ended: bool,
}

/// One session, with what chance brings. Where `drains` is false, the gateway owes it every answer.
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
    let execute = json!({ "jsonrpc": "2.0", "id": 1, "method": "execute", "params":
        { "command": command, "onDisconnect": detach, "detachMs": detach.starts_with('d').then_some(50) } });
    let cancel =
        json!({ "jsonrpc": "2.0", "id": 2, "method": "control", "params": { "type": "CANCEL", "graceMs": 20 } });
    let close = frame(0x88, &1000u16.to_be_bytes());
    let mut seen = Seen::default();
    // A service that has closed meanwhile does not take everything: that is part of the game.
    let _ = client.send_raw(&frame(0x81, execute.to_string().as_bytes()));
    let pause = [1_000, 10_000, 40_000][random(3) as usize];
    thread::sleep(Duration::from_micros(random(pause)));
    match random(8) {
        0 => {
            let _ = client.send_raw(&frame(0x81, cancel.to_string().as_bytes()));
            thread::sleep(Duration::from_micros(random(3_000)));
            let _ = client.send_raw(&close);
        }
        1 => drop(client.send_raw(&close)),
        2 => return client.vanish(),
        3 => {
            rustix::net::sockopt::set_socket_linger(client.stream(), Some(Duration::ZERO)).unwrap();
            return;
        }
        // The service closes: binary is not understood.
        4 => drop(client.send_raw(&frame(0x82, b"binary"))),
        5 => {
            let both = [frame(0x81, cancel.to_string().as_bytes()), close];
            let _ = client.send_raw(&both.concat());
        }
        6 => {
            let _ = client.send_raw(&frame(0x81, cancel.to_string().as_bytes()));
            thread::sleep(Duration::from_millis(30 + random(30)));
            let _ = client.send_raw(&close);
        }
        // However long the end takes, it comes before the close.
        _ => {
            let _ = client.send_raw(&frame(0x81, cancel.to_string().as_bytes()));
            seen = counted.read_until(&mut client, seen, |seen| seen.ends > 0);
            counted.waited.fetch_add(seen.ends, Ordering::Relaxed);
            assert!(drains || seen.ends == 1, "session {chance} ended without the end of its execution");
            let _ = client.send_raw(&close);
        }
    }
    let closed = counted.read(&mut client, seen);
    assert!(drains || closed, "session {chance} ended without a close frame");
}

/// All sessions of a round. The same chances in each.
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
                draining.wait_for_event("backend.up", 1);
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

/// No warning of a failed send, no error; that a cut connection to the backend is told is right.
fn assert_clean(gateway: &Service) {
    for line in gateway.log() {
        let level = line["level"].as_str().unwrap_or("ERROR");
        assert!(matches!(level, "INFO" | "DEBUG") || line["event"] == "backend.down", "{line}");
    }
}

fn nobody_is_left(gateway: &Service, mark: &str) {
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
        let how = if random(2) == 0 { CutKind::Fin } else { CutKind::Reset };
        (random(20) == 0).then(|| (random(20_000) + 1, how))
    });
    let through = format!("http://{}", proxy.address);
    let gateway = Service::gateway(&through);
    gateway.wait_for_event("backend.up", 1);
    let mark = procs::mark();
    let mut before: Option<[u64; 2]> = None;
    for n in 0..2 {
        let counted = round(&gateway, &through, &mark);
        assert_eq!(counted.after_close.load(Ordering::SeqCst), 0, "frames after a close frame");
        let [frames, ends, closes, waited] = [&counted.frames, &counted.ends, &counted.closes, &counted.waited]
            .map(|count| count.load(Ordering::SeqCst));
        println!("round {n}: {frames} frames, {ends} ends, {waited} of them waited for, {closes} closes");
        // How many ends overtake their session's close is a matter of speed. Each that was waited for has come, and
        // so has each close frame: `session` makes sure of that.
        assert!(waited > 0 && ends > 0 && closes > 0, "the mix has every outcome");
        nobody_is_left(&gateway, &mark);
        wait_until("the backend has forgotten all", PATIENCE, || {
            backend.get("/executions")["executions"].as_array().is_some_and(Vec::is_empty)
        });
        assert_clean(&gateway);
        let rss = || [gateway.rss_kib(), backend.rss_kib()];
        // The backend gives free memory back once it is idle, which it looks for every second.
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
