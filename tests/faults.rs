//! Every fault crossed with every phase that it can meet: the client's faults before the real system,
//! the backend's by a script. Each time there is one true ending or none, nothing after the close,
//! nothing left, and no line in the log that calls it a fault of the service.

use std::{
    io::Write,
    net::{Shutdown, TcpStream},
    sync::Mutex,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    client::{Client, Frame, frame},
    procs,
    service::Service,
    stub::{Request, Stub, chunk, chunked_head, multiplexed, respond, started, word},
    wait_until,
};

const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

/// What a session is in the middle of.
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

/// What a client does wrong.
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

/// What a backend does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum BackendFault {
    Cut,
    Reset,
    HalfAFrame,
    Garbage,
    EndsWithoutAWord,
    GoesSilent,
}

const BACKEND_FAULTS: [BackendFault; 6] = [
    BackendFault::Cut,
    BackendFault::Reset,
    BackendFault::HalfAFrame,
    BackendFault::Garbage,
    BackendFault::EndsWithoutAWord,
    BackendFault::GoesSilent,
];

/// Does the same with every pair, some at once.
fn crossed<F: Copy + Send + std::fmt::Debug>(faults: &[F], phases: &[FaultPhase], case: impl Fn(FaultPhase, F) + Sync) {
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

fn call(method: &str, params: &Value) -> Vec<u8> {
    frame(0x81, json!({ "jsonrpc": "2.0", "id": 9, "method": method, "params": params }).to_string().as_bytes())
}

/// Reads to the end of the connection: at most one ending, and nothing after a close frame.
fn read_to_the_end(client: &mut Client) -> (usize, Option<u16>) {
    let (mut ends, mut closed) = (0, None);
    loop {
        match client.recv() {
            Frame::End => return (ends, closed),
            frame if closed.is_some() => panic!("after the close: {frame:?}"),
            Frame::Close(code, _) => {
                closed = Some(code);
                let _ = client.send_raw(&frame(0x88, &code.to_be_bytes()));
            }
            Frame::Text(message) if message["method"] == "statusUpdate" && !message["params"]["reason"].is_null() => {
                ends += 1;
                assert_eq!(ends, 1, "one end: {message}");
                // All is said: the session may go.
                let _ = client.send_raw(&frame(0x88, &1000u16.to_be_bytes()));
            }
            _ => {}
        }
    }
}

/// Brings a client of the real system into a phase. The other client only holds a place.
fn bring(service: &Service, phase: FaultPhase, mark: &str) -> (Client, Option<Client>) {
    let mut client = service.connect();
    let holder = (phase == FaultPhase::Queued).then(|| {
        let mut holder = service.connect();
        holder.execute(json!({ "command": format!("exec sleep {mark}") }));
        holder
    });
    let stubborn = format!("trap '' TERM; echo ready; setsid sleep {mark} & while :; do sleep {mark}; done");
    let output = format!("echo ready; setsid sleep {mark} & while :; do echo more; sleep 0.01; done");
    match phase {
        FaultPhase::Idle => {}
        FaultPhase::Queued => {
            let result = client.call("execute", json!({ "command": "echo never" })).unwrap();
            assert_eq!(result["status"], "queued");
        }
        FaultPhase::Canceling => {
            client.execute(json!({ "command": stubborn }));
            client.seen("output");
            client.call("control", json!({ "type": "CANCEL", "graceMs": 400 })).unwrap();
        }
        FaultPhase::Detached => {
            let id = client.execute(json!({ "command": output, "onDisconnect": "detach", "detachMs": 300 }));
            client.seen("output");
            client.vanish();
            service.wait_for_event("execution.detached", 1);
            client = service.connect();
            client.call("attach", json!({ "executionId": id })).unwrap();
        }
        FaultPhase::Running | FaultPhase::Paused | FaultPhase::Draining => {
            client.execute(json!({ "command": output }));
            client.seen("output");
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
    crossed(&CLIENT_FAULTS, &PHASES, |phase, fault| {
        let env = [
            ("CC_EXECUTOR_MAX_EXECUTIONS", "1"),
            ("CC_EXECUTOR_CLIENT_STALL_MS", "1500"),
            ("CC_EXECUTOR_DRAIN_MS", "3000"),
        ];
        let mut service = Service::with(&["serve"], &env);
        let mark = procs::mark();
        let (mut client, holder) = bring(&service, phase, &mark);
        let before = service.rss_kib();
        let cancel = json!({ "type": "CANCEL", "graceMs": 100 });
        match fault {
            ClientFault::Reset => {
                rustix::net::sockopt::set_socket_linger(client.stream(), Some(Duration::ZERO)).unwrap();
                drop(client);
            }
            // It keeps its socket open and takes nothing, until the service gives it up.
            ClientFault::StopsReading => {
                if phase != FaultPhase::Draining {
                    service.wait_for_event("session.closed", 1 + usize::from(phase == FaultPhase::Detached));
                }
                drop(client);
            }
            ClientFault::HalfCloses => {
                client.stream().shutdown(Shutdown::Write).unwrap();
                while client.recv() != Frame::End {}
            }
            ClientFault::Floods => {
                let calls: Vec<u8> = (0..3_000).flat_map(|_| call("status", &json!({}))).collect();
                // Closed for it, or all answered: both are right.
                let _ = client.send_raw(&calls).and_then(|()| client.send_raw(&call("control", &cancel)));
                let _ = client.send_raw(&frame(0x88, &1000u16.to_be_bytes()));
                read_to_the_end(&mut client);
            }
            ClientFault::ByteByByte => {
                for byte in call("control", &cancel) {
                    let _ = client.send_raw(&[byte]);
                }
                if phase == FaultPhase::Idle {
                    let _ = client.send_raw(&frame(0x88, &1000u16.to_be_bytes()));
                }
                let (ends, _) = read_to_the_end(&mut client);
                assert_eq!(ends, usize::from(phase != FaultPhase::Idle), "{phase:?}");
            }
            ClientFault::PingsWithoutEnd => {
                let pings: Vec<u8> = (0..20_000).flat_map(|_| frame(0x89, b"ping")).collect();
                let _ = client.send_raw(&pings);
                let _ = client.send_raw(&call("control", &cancel));
                if phase == FaultPhase::Idle {
                    let _ = client.send_raw(&frame(0x88, &1000u16.to_be_bytes()));
                }
                let (ends, _) = read_to_the_end(&mut client);
                assert_eq!(ends, usize::from(phase != FaultPhase::Idle), "{phase:?}");
            }
        }
        drop(holder);
        procs::wait_for(&mark, 0, PATIENCE);
        let grown = service.rss_kib_if_running().saturating_sub(before);
        assert!(grown < 24 * 1024, "{phase:?} x {fault:?}: grown by {grown} KiB");
        if phase != FaultPhase::Draining {
            wait_until("the registry is empty", PATIENCE, || {
                let health = service.get("/health");
                health["sessions"] == 0 && health["executions"] == 0
            });
            service.signal(Signal::TERM);
        }
        assert_eq!(service.wait(PATIENCE).code(), Some(0), "{phase:?} x {fault:?}");
        for line in service.log() {
            let level = line["level"].as_str().unwrap_or("ERROR");
            let told = line["event"].as_str().is_some_and(|event| event.starts_with("client."));
            assert!(level == "INFO" || told, "{phase:?} x {fault:?}: {line}");
        }
    });
}

/// A backend that brings an execution into a phase, and then does what it does wrong.
fn faulty(phase: FaultPhase, fault: BackendFault) -> Stub {
    let commit = move |stream: &mut TcpStream| match fault {
        BackendFault::Cut => {}
        BackendFault::Reset => {
            let _ = rustix::net::sockopt::set_socket_linger(&*stream, Some(Duration::ZERO));
        }
        BackendFault::HalfAFrame => drop(stream.write_all(&chunk(&multiplexed(1, b"whole")[..10]))),
        BackendFault::Garbage => drop(stream.write_all(&chunk(b"GET / HTTP/1.1\r\n\r\n"))),
        BackendFault::EndsWithoutAWord => drop(stream.write_all(b"0\r\n\r\n")),
        BackendFault::GoesSilent => {
            // Nothing more, on a connection that stays: until the gateway gives it up.
            let _ = std::io::copy(stream, &mut std::io::sink());
        }
    };
    let (wake, woken) = std::sync::mpsc::channel::<()>();
    let (wake, woken) = (Mutex::new(wake), Mutex::new(woken));
    Stub::ours(move |request: &Request, stream| match (request.method.as_str(), request.path.as_str()) {
        ("POST", "/execute/stream") => {
            let first = match phase {
                FaultPhase::Queued => word(&json!({ "queued": { "position": 3 } })),
                _ => [started(request), multiplexed(1, b"output")].concat(),
            };
            let _ = stream.write_all(&[chunked_head(MULTIPLEXED), chunk(&first)].concat());
            if matches!(phase, FaultPhase::Paused | FaultPhase::Canceling) {
                let _ = woken.lock().unwrap().recv_timeout(PATIENCE);
                let status = if phase == FaultPhase::Paused { "PAUSED" } else { "CANCELLING" };
                let _ = stream.write_all(&chunk(&word(&json!({ "status": { "status": status } }))));
            }
            commit(stream);
        }
        ("GET", _) => respond(stream, 404, r#"{"code":-32006,"message":"there is none"}"#),
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
    crossed(&BACKEND_FAULTS, &phases, |phase, fault| {
        for detach in ["cancel", "detach"] {
            if phase == FaultPhase::Draining && (detach == "detach" || fault != BackendFault::GoesSilent) {
                // One that may detach is left at once; any other fault comes before the drain does.
                continue;
            }
            let stub = faulty(phase, fault);
            let mut service =
                Service::with(&["serve", "--claude-api-url", &stub.url()], &[("CC_EXECUTOR_DRAIN_MS", "12000")]);
            service.wait_for_event("backend.up", 1);
            let mut client = service.connect();
            let execute = json!({ "command": "x", "heartbeatMs": 1_000, "onDisconnect": detach });
            client.request("execute", execute);
            match phase {
                FaultPhase::Paused => {
                    client.seen("output");
                    client.notify("control", json!({ "type": "PAUSE" }));
                }
                FaultPhase::Canceling => {
                    client.seen("output");
                    client.notify("control", json!({ "type": "CANCEL" }));
                }
                FaultPhase::Draining => {
                    client.seen("output");
                    service.signal(Signal::TERM);
                }
                _ => {}
            }
            let story = client.story();
            assert_eq!(
                (&story.end["status"], &story.end["reason"]),
                (&json!("FAILED"), &json!("backend_lost")),
                "{phase:?} x {fault:?}: {}",
                story.end
            );
            assert_eq!(story.errors.len(), 1, "{phase:?} x {fault:?}: {:?}", story.errors);
            let may_run_on = story.end["message"].as_str().unwrap().contains("may still run");
            assert_eq!(may_run_on, detach == "detach", "{phase:?} x {fault:?}: {}", story.end);
            if phase == FaultPhase::Draining {
                assert_eq!(client.close_code(), 1001);
            } else {
                assert_eq!(client.call("ping", json!({})), Ok(json!({})), "the session lives");
                client.close();
                service.signal(Signal::TERM);
            }
            assert_eq!(service.wait(PATIENCE).code(), Some(0));
            for line in service.log() {
                let level = line["level"].as_str().unwrap_or("ERROR");
                assert!(level == "INFO" || line["event"] == "backend.down", "{phase:?} x {fault:?}: {line}");
            }
        }
    });
}

/// A stream that breaks off is found again, and nobody notices.
#[test]
fn gateway_reattaches_to_a_detachable_execution_after_any_cut() {
    let service = Service::backend();
    let proxy = crate::common::proxy::Proxy::start(service.address, |n| {
        // The first connections are for health; each stream is cut a few times.
        let mut random = crate::common::random(n as u64 + 5);
        Some((random(400_000) + 600, crate::common::proxy::CutKind::Reset))
    });
    let gateway = Service::gateway(&format!("http://{}", proxy.address));
    gateway.wait_for_event("backend.up", 1);
    for round in 0..10 {
        let mut client = gateway.connect();
        let command = "python3 -c 'for i in range(150000): print(i)'";
        client.execute(json!({ "command": command, "onDisconnect": "detach" }));
        let story = client.story();
        let expected: String = (0..150_000).map(|n| format!("{n}\n")).collect();
        assert_eq!(story.end["status"], "COMPLETED", "round {round}: {}", story.end);
        assert!(story.stdout == expected.as_bytes(), "round {round}: {} bytes", story.stdout.len());
        client.close();
    }
    assert!(proxy.n_connections() > 20, "{}", proxy.n_connections());
}
