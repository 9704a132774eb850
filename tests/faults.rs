//! Every fault in every phase of a session: faults of the client with the real system, faults of the backend with a scripted
//! one. Each time there is at most one ending, no message after the close frame, no process left, and no error in the log.

use std::{
    io::Write,
    net::{Shutdown, TcpStream},
    sync::Mutex,
    time::{Duration, Instant},
};

use cc_executor_actors::{
    backend_api::{BackendEvent, QueuedEvent, StatusChange, StreamInfo},
    outcome::{Reason, Status},
    rpc::call_text,
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{
    LONGEST_WAIT, PATIENCE,
    client::{Client, Frame},
    frames::{self, close_frame, frame, text_frame},
    procs,
    proxy::{CutKind, Proxy},
    random,
    service::Service,
    stub::{Request, Stub, chunk, event, multiplexed, respond, started, stream_head},
    wait_until,
};

/// The phase of a session in which the fault occurs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FaultPhase {
    Idle,
    Queued,
    Running,
    Paused,
    Canceling,
    Detached,
    Draining,
}

const PHASES: [FaultPhase; 7] = [
    FaultPhase::Idle,
    FaultPhase::Queued,
    FaultPhase::Running,
    FaultPhase::Paused,
    FaultPhase::Canceling,
    FaultPhase::Detached,
    FaultPhase::Draining,
];

/// A fault of the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ClientFault {
    Reset,
    StopsReading,
    HalfCloses,
    Floods,
    ByteByByte,
    PingsWithoutEnd,
}

const CLIENT_FAULTS: [ClientFault; 6] = [
    ClientFault::Reset,
    ClientFault::StopsReading,
    ClientFault::HalfCloses,
    ClientFault::Floods,
    ClientFault::ByteByByte,
    ClientFault::PingsWithoutEnd,
];

/// A fault of the backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum BackendFault {
    Cut,
    Reset,
    HalfAFrame,
    Garbage,
    EndsWithoutAnEvent,
    GoesSilent,
}

const BACKEND_FAULTS: [BackendFault; 6] = [
    BackendFault::Cut,
    BackendFault::Reset,
    BackendFault::HalfAFrame,
    BackendFault::Garbage,
    BackendFault::EndsWithoutAnEvent,
    BackendFault::GoesSilent,
];

/// Runs the test with every pair of fault and phase, four at once.
fn for_each_pair<F: Copy + Send + std::fmt::Debug>(
    faults: &[F],
    phases: &[FaultPhase],
    case: impl Fn(FaultPhase, F) + Sync,
) {
    let pairs: Vec<_> = phases.iter().flat_map(|phase| faults.iter().map(|fault| (*phase, *fault))).collect();
    let pairs = Mutex::new(pairs.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some((phase, fault)) = { pairs.lock().unwrap().next() } {
                    println!("{phase:?} x {fault:?}");
                    case(phase, fault);
                }
            });
        }
    });
}

fn call_frame(method: &str, params: &Value) -> Vec<u8> {
    text_frame(&call_text(9, method, params))
}

/// Reads to the end of the connection, and checks that there is at most one ending and nothing after a close frame. Returns
/// the number of endings and the close code.
fn read_to_the_end(client: &mut Client) -> (usize, Option<u16>) {
    let (mut n_endings, mut closed) = (0, None);
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < LONGEST_WAIT, "waited in vain for the end of the connection");
        match client.recv() {
            Frame::End => return (n_endings, closed),
            frame if closed.is_some() => panic!("after the close: {frame:?}"),
            Frame::Close(code, _) => {
                closed = Some(code);
                let _ = client.send_raw(&close_frame(code));
            }
            Frame::Text(message) if message["method"] == "statusUpdate" && !message["params"]["reason"].is_null() => {
                n_endings += 1;
                assert_eq!(n_endings, 1, "one end: {message}");
                // The test needs no further message.
                let _ = client.send_raw(&close_frame(1000));
            }
            _ => {}
        }
    }
}

/// Brings a client of the real system into a phase. The other client occupies the only slot.
fn enter_phase(service: &Service, phase: FaultPhase, mark: &str) -> (Client, Option<Client>) {
    let mut client = service.connect();
    let holder = (phase == FaultPhase::Queued).then(|| {
        let mut holder = service.connect();
        holder.execute(json!({ "command": format!("exec sleep {mark}") }));
        holder
    });
    let ignores_term = format!("trap '' TERM; echo ready; setsid sleep {mark} & while :; do sleep {mark}; done");
    let output = format!("echo ready; setsid sleep {mark} & while :; do echo more; sleep 0.01; done");
    match phase {
        FaultPhase::Idle => {}
        FaultPhase::Queued => {
            client.queue(json!({ "command": "echo never" }));
        }
        FaultPhase::Canceling => {
            client.execute(json!({ "command": ignores_term }));
            client.wait_for("output");
            client.cancel_with_grace(400);
        }
        FaultPhase::Detached => {
            let id = client.execute(json!({ "command": output, "onDisconnect": "detach", "detachMs": 300 }));
            client.wait_for("output");
            client.disconnect();
            service.wait_for_event("execution.detached", 1);
            client = service.connect();
            client.call("attach", json!({ "executionId": id })).unwrap();
        }
        FaultPhase::Running | FaultPhase::Paused | FaultPhase::Draining => {
            client.execute(json!({ "command": output }));
            client.wait_for("output");
        }
    }
    if phase == FaultPhase::Paused {
        client.call("control", json!({ "type": "PAUSE" })).unwrap();
    }
    if phase == FaultPhase::Draining {
        service.signal(Signal::TERM);
        service.wait_for_event("drain.started", 1);
    }
    (client, holder)
}

#[test]
fn every_client_fault_in_every_phase_leaves_no_process() {
    for_each_pair(&CLIENT_FAULTS, &PHASES, |phase, fault| {
        let env = [
            ("CC_EXECUTOR_MAX_EXECUTIONS", "1"),
            ("CC_EXECUTOR_CLIENT_STALL_MS", "1500"),
            ("CC_EXECUTOR_DRAIN_MS", "3000"),
        ];
        let mut service = Service::with(&["serve"], &env);
        let mark = procs::mark();
        let (mut client, holder) = enter_phase(&service, phase, &mark);
        let before = service.rss_kib();
        let cancel = json!({ "type": "CANCEL", "graceMs": 100 });
        match fault {
            ClientFault::Reset => {
                rustix::net::sockopt::set_socket_linger(client.stream(), Some(Duration::ZERO)).unwrap();
                drop(client);
            }
            // The client keeps its socket open and does not read until the service closes the session.
            ClientFault::StopsReading => {
                if phase != FaultPhase::Draining {
                    service.wait_for_event("session.closed", 1 + usize::from(phase == FaultPhase::Detached));
                }
                drop(client);
            }
            ClientFault::HalfCloses => {
                client.stream().shutdown(Shutdown::Write).unwrap();
                client.read_to_end();
            }
            ClientFault::Floods => {
                let calls: Vec<u8> = (0..3_000).flat_map(|_| call_frame("status", &json!({}))).collect();
                // The service may answer all calls, or close the session.
                let _ = client.send_raw(&calls).and_then(|()| client.send_raw(&call_frame("control", &cancel)));
                let _ = client.send_raw(&close_frame(1000));
                read_to_the_end(&mut client);
            }
            ClientFault::ByteByByte => {
                for byte in call_frame("control", &cancel) {
                    let _ = client.send_raw(&[byte]);
                }
                if phase == FaultPhase::Idle {
                    let _ = client.send_raw(&close_frame(1000));
                }
                let (n_endings, _) = read_to_the_end(&mut client);
                assert_eq!(n_endings, usize::from(phase != FaultPhase::Idle), "{phase:?}");
            }
            ClientFault::PingsWithoutEnd => {
                let pings: Vec<u8> = (0..20_000).flat_map(|_| frame(frames::PING, b"ping")).collect();
                let _ = client.send_raw(&pings);
                let _ = client.send_raw(&call_frame("control", &cancel));
                if phase == FaultPhase::Idle {
                    let _ = client.send_raw(&close_frame(1000));
                }
                let (n_endings, _) = read_to_the_end(&mut client);
                assert_eq!(n_endings, usize::from(phase != FaultPhase::Idle), "{phase:?}");
            }
        }
        drop(holder);
        procs::wait_for(&mark, 0, PATIENCE);
        let grown = service.rss_kib_if_running().unwrap_or(0).saturating_sub(before);
        assert!(grown < 24 * 1024, "{phase:?} x {fault:?}: grown by {grown} KiB");
        if phase != FaultPhase::Draining {
            wait_until("the registry is empty", PATIENCE, || {
                let health = service.get("/health");
                health["sessions"] == 0 && health["executions"] == 0
            });
            service.signal(Signal::TERM);
        }
        assert_eq!(service.wait(PATIENCE).code(), Some(0), "{phase:?} x {fault:?}");
        for line in service.complaints() {
            let is_client_fault = line["event"].as_str().is_some_and(|event| event.starts_with("client."));
            assert!(is_client_fault, "{phase:?} x {fault:?}: {line}");
        }
    });
}

/// A backend that brings an execution into a phase, and then has the fault.
fn faulty_backend(phase: FaultPhase, fault: BackendFault) -> Stub {
    let inject = move |stream: &mut TcpStream| match fault {
        BackendFault::Cut => {}
        BackendFault::Reset => {
            let _ = rustix::net::sockopt::set_socket_linger(&*stream, Some(Duration::ZERO));
        }
        BackendFault::HalfAFrame => drop(stream.write_all(&chunk(&multiplexed(1, b"whole")[..10]))),
        BackendFault::Garbage => drop(stream.write_all(&chunk(b"GET / HTTP/1.1\r\n\r\n"))),
        BackendFault::EndsWithoutAnEvent => drop(stream.write_all(b"0\r\n\r\n")),
        BackendFault::GoesSilent => {
            // The connection stays open until the gateway gives it up.
            let _ = std::io::copy(stream, &mut std::io::sink());
        }
    };
    let (wake, woken) = std::sync::mpsc::channel::<()>();
    let (wake, woken) = (Mutex::new(wake), Mutex::new(woken));
    Stub::native(move |request: &Request, stream| match (request.method.as_str(), request.path.as_str()) {
        ("POST", "/execute/stream") => {
            let first = match phase {
                FaultPhase::Queued => {
                    event(&BackendEvent::Queued(QueuedEvent { position: 3, terms: StreamInfo::default() }))
                }
                _ => [started(request), multiplexed(1, b"output")].concat(),
            };
            let _ = stream.write_all(&[stream_head(), chunk(&first)].concat());
            if matches!(phase, FaultPhase::Paused | FaultPhase::Canceling) {
                let _ = woken.lock().unwrap().recv_timeout(PATIENCE);
                let status = if phase == FaultPhase::Paused { Status::Paused } else { Status::Cancelling };
                let change = BackendEvent::Status(StatusChange { status, scope: None });
                let _ = stream.write_all(&chunk(&event(&change)));
            }
            inject(stream);
        }
        ("GET", _) => respond(stream, 404, r#"{"code":-32006,"message":"no such execution"}"#),
        ("POST" | "DELETE", _) => {
            respond(stream, 200, "{}");
            let _ = wake.lock().unwrap().send(());
        }
        _ => respond(stream, 404, "{}"),
    })
}

#[test]
fn every_backend_fault_in_every_phase_gives_one_ending() {
    let phases =
        [FaultPhase::Queued, FaultPhase::Running, FaultPhase::Paused, FaultPhase::Canceling, FaultPhase::Draining];
    for_each_pair(&BACKEND_FAULTS, &phases, |phase, fault| {
        for detach in ["cancel", "detach"] {
            if phase == FaultPhase::Draining && (detach == "detach" || fault != BackendFault::GoesSilent) {
                // The drain leaves a detachable execution at once, and any other fault n_endings the execution before the drain.
                continue;
            }
            let stub = faulty_backend(phase, fault);
            let mut service = Service::gateway_with(&stub.url(), &[("CC_EXECUTOR_DRAIN_MS", "12000")]);
            let mut client = service.connect();
            let execute = json!({ "command": "x", "heartbeatMs": 1_000, "onDisconnect": detach });
            client.request("execute", execute);
            match phase {
                FaultPhase::Paused => {
                    client.wait_for("output");
                    client.notify("control", json!({ "type": "PAUSE" }));
                }
                FaultPhase::Canceling => {
                    client.wait_for("output");
                    client.notify("control", json!({ "type": "CANCEL" }));
                }
                FaultPhase::Draining => {
                    client.wait_for("output");
                    service.signal(Signal::TERM);
                }
                _ => {}
            }
            let recording = client.record();
            assert_eq!(
                recording.ending(),
                (Status::Failed, Reason::BackendLost),
                "{phase:?} x {fault:?}: {}",
                recording.end
            );
            assert_eq!(recording.errors.len(), 1, "{phase:?} x {fault:?}: {:?}", recording.errors);
            let was_looked_for = recording.end["message"].as_str().unwrap().contains("no longer knows execution");
            assert_eq!(was_looked_for, detach == "detach", "{phase:?} x {fault:?}: {}", recording.end);
            if phase == FaultPhase::Draining {
                assert_eq!(client.close_code(), 1001);
            } else {
                assert_eq!(client.call("ping", json!({})), Ok(json!({})), "the session continues");
                client.close();
                service.signal(Signal::TERM);
            }
            assert_eq!(service.wait(PATIENCE).code(), Some(0));
            for line in service.complaints() {
                assert_eq!(line["event"], "backend.down", "{phase:?} x {fault:?}: {line}");
            }
        }
    });
}

#[test]
fn gateway_reattaches_to_a_detachable_execution_after_any_cut() {
    let service = Service::backend();
    let proxy = Proxy::start(service.address, |n| {
        // Each stream is cut several times; health responses are shorter than the first cut.
        let mut random = random(n as u64 + 5);
        Some((random(400_000) + 600, CutKind::Reset))
    });
    let gateway = Service::gateway(&proxy.url());
    for round in 0..10 {
        let mut client = gateway.connect();
        let command = "python3 -c 'for i in range(150000): print(i)'";
        client.execute(json!({ "command": command, "onDisconnect": "detach" }));
        let recording = client.record();
        let expected: String = (0..150_000).map(|n| format!("{n}\n")).collect();
        assert_eq!(recording.status(), Status::Completed, "round {round}: {}", recording.end);
        assert!(recording.stdout == expected.as_bytes(), "round {round}: {} bytes", recording.stdout.len());
        client.close();
    }
    assert!(proxy.n_connections() > 20, "{}", proxy.n_connections());
}
