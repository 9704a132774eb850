//! Session, execution and supervisor as actors, without a gateway's socket: a test sends messages into the session's
//! stream and reads frames from its outbox.

mod clients;
mod flow;

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix::{Actor, Addr};
use cc_executor_actors::{
    agent::claude::progress::EXIT_PATIENCE,
    backend_client::{BackendClient, KnownBackend},
    client::ClientName,
    close::{CloseCode, CloseReason},
    dial::DialConfig,
    id::{ExecutionId, SessionId},
    outcome::{CancelReport, Outcome, Reason, Status},
    protocol::Limits,
    protocol::control::ControlReply,
    rpc::{call_text, code},
    session::{self, SessionContext, outbox::Frames, phase::Incoming, unread::UnreadBudget},
    supervisor::{CancelExecution, Drain, GetStats, SessionLimits, Stats, Supervisor},
};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::common::{
    PATIENCE,
    frames::{self, read_frame},
    stub::{Stub, chunk, chunked_head, event, exited, multiplexed, respond, respond_json, started, stream_head},
};

/// The most requests of a session that are under way.
const MAX_REQUESTS: u64 = 16;

/// The client of a session, without a socket.
struct StubPeer {
    incoming: mpsc::UnboundedSender<Incoming>,
    frames: Frames,
    read: Vec<u8>,
}

impl StubPeer {
    async fn connect(context: &SessionContext) -> StubPeer {
        StubPeer::connect_as(&ClientName::anonymous(), context).await
    }

    async fn connect_as(client: &ClientName, context: &SessionContext) -> StubPeer {
        let (incoming, stream) = mpsc::unbounded_channel();
        let stream = futures_util::stream::unfold(stream, |mut stream| async { Some((stream.recv().await?, stream)) });
        let (frames, _) = session::start(SessionId::random(), None, client.clone(), context.clone(), stream).await;
        StubPeer { incoming, frames, read: Vec::new() }
    }

    fn call(&self, id: u64, method: &str, params: &Value) {
        self.incoming.send(Incoming::Text(call_text(id, method, params))).expect("the session runs");
    }

    /// The next frame: its first byte, and its payload.
    async fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            let mut rest = &self.read[..];
            if let Ok(frame) = read_frame(&mut rest) {
                let len = self.read.len() - rest.len();
                self.read.drain(..len);
                return Some((frame.first, frame.payload));
            }
            let more = tokio::time::timeout(PATIENCE, self.frames.next()).await.expect("a frame comes in time");
            self.read.extend_from_slice(&more?);
        }
    }

    /// The next text message. Pings before it are skipped; the session sends them to learn what has arrived.
    async fn message(&mut self) -> Value {
        loop {
            let (first, payload) = self.frame().await.expect("a frame");
            if first != frames::PING {
                assert_eq!(first, frames::TEXT, "a text frame");
                return serde_json::from_slice(&payload).expect("JSON");
            }
        }
    }

    /// Reads to the next notification of this method, and returns its params.
    async fn notification(&mut self, method: &str) -> Value {
        loop {
            let message = self.message().await;
            if message["method"] == method {
                return message["params"].clone();
            }
        }
    }

    /// Reads to the final status.
    async fn ending(&mut self) -> Outcome {
        loop {
            let params = self.notification("statusUpdate").await;
            if params.get("reason").is_some() {
                return serde_json::from_value(params).expect("a final status holds an outcome");
            }
        }
    }
}

fn context(stub: &Stub, max_sessions: usize) -> SessionContext {
    SessionContext {
        supervisor: Supervisor::new(SessionLimits { sessions: max_sessions, per_peer: max_sessions }).start(),
        backend: BackendClient::new(&stub.url(), None, KnownBackend::default(), EXIT_PATIENCE, DialConfig::default()),
        limits: Limits::default(),
        unread: UnreadBudget::new(1 << 20),
        max_requests: MAX_REQUESTS as usize,
    }
}

/// Runs a test in an actix system, with the supervisor and a client's session.
fn with_session(stub: &Stub, test: impl AsyncFnOnce(Addr<Supervisor>, StubPeer)) {
    actix::System::new().block_on(async {
        let context = context(stub, 10);
        let peer = StubPeer::connect(&context).await;
        test(context.supervisor, peer).await;
    });
}

async fn stats(supervisor: &Addr<Supervisor>) -> Stats {
    supervisor.send(GetStats).await.expect("the supervisor runs")
}

async fn wait_until_empty(supervisor: &Addr<Supervisor>) {
    let empty = async {
        while stats(supervisor).await.n_sessions + stats(supervisor).await.n_executions > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, empty).await.expect("the registry is empty");
}

/// A backend whose commands print two lines and exit with 0. The command `silence` prints nothing and goes on.
fn scripted_backend() -> Stub {
    Stub::native(|request, stream| {
        let _ = match request.method.as_str() {
            "DELETE" => {
                return respond_json(stream, &CancelReport::never_ran(0));
            }
            _ if request.body["question"] == "silence" => {
                let parts = [stream_head(), chunk(&started(request))].concat();
                stream.write_all(&parts).and_then(|()| std::io::copy(stream, &mut std::io::sink()).map(drop))
            }
            _ => {
                let body = [started(request), multiplexed(1, b"one\ntwo\n"), exited(0)].concat();
                stream.write_all(&[stream_head(), chunk(&body), chunk(b"")].concat())
            }
        };
    })
}

#[test]
fn session_and_execution_actors_stop_with_the_client() {
    let stub = scripted_backend();
    with_session(&stub, async |supervisor, mut peer| {
        assert_eq!(peer.message().await["method"], "connected");
        peer.call(1, "execute", &json!({ "command": "two lines", "framing": "line" }));
        let response = peer.message().await;
        assert_eq!((response["id"].as_u64(), response["result"]["status"].as_str()), (Some(1), Some("started")));
        assert_eq!(peer.notification("statusUpdate").await["status"], "RUNNING");
        assert_eq!(peer.notification("output").await["content"], "one\n");
        assert_eq!(peer.notification("output").await["content"], "two\n");
        assert_eq!(peer.ending().await.status, Status::Completed);
        assert_eq!(stats(&supervisor).await.n_sessions, 1);
        drop(peer);
        wait_until_empty(&supervisor).await;
    });
}

#[test]
fn supervisor_cancels_an_execution_by_id() {
    let stub = scripted_backend();
    with_session(&stub, async |supervisor, mut peer| {
        let id = ExecutionId::random();
        peer.call(1, "execute", &json!({ "command": "silence", "executionId": id }));
        peer.notification("statusUpdate").await;
        let cancel = async |execution_id: ExecutionId, client: ClientName| {
            let cancel = CancelExecution { execution_id, client, grace_ms: 7 };
            supervisor.send(cancel).await.expect("the supervisor runs")
        };
        assert_eq!(cancel(id, ClientName::of_user(1)).await, None, "it is another client's");
        let answer = cancel(id, ClientName::anonymous()).await;
        assert_eq!(answer, Some(Ok(ControlReply::Status(Status::Cancelling))));
        let request = stub.requests_with("DELETE").pop().expect("the backend got the cancel");
        assert_eq!(request.path, format!("/executions/{id}?grace_ms=7&reason=canceled"));
        assert_eq!(cancel(ExecutionId::random(), ClientName::anonymous()).await, None);
        assert_eq!(stub.requests_with("DELETE").len(), 1);
        // When the client is gone, its execution drops the backend's stream.
        peer.incoming.send(Incoming::Gone).expect("the session runs");
        wait_until_empty(&supervisor).await;
    });
}

#[test]
fn non_reading_client_stops_the_relay_and_can_cancel() {
    let written = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&written);
    let stub = Stub::native(move |request, stream| {
        if request.method == "DELETE" {
            return respond(stream, 200, "{}");
        }
        stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a time-out can be set");
        let _ = stream.write_all(&[stream_head(), chunk(&started(request))].concat());
        let block = chunk(&multiplexed(1, &[b'x'; 60_000]));
        for _ in 0..10_000 {
            if stream.write_all(&block).is_err() {
                return;
            }
            counted.fetch_add(block.len(), Ordering::SeqCst);
        }
    });
    with_session(&stub, async |supervisor, mut peer| {
        peer.call(1, "execute", &json!({ "command": "much" }));
        peer.notification("statusUpdate").await;
        peer.call(2, "control", &json!({ "type": "CANCEL" }));
        let cancel_arrives = async {
            while stub.requests_with("DELETE").is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, cancel_arrives).await.expect("the cancel reaches the backend");
        // Of 600 MB, only the content of kernel buffers and of one batch.
        assert!(written.load(Ordering::SeqCst) < 100_000_000);
        drop(peer);
        wait_until_empty(&supervisor).await;
    });
}

#[test]
fn response_body_ends_after_the_close_frame() {
    let stub = scripted_backend();
    with_session(&stub, async |supervisor, mut peer| {
        peer.call(1, "execute", &json!({ "command": "silence" }));
        peer.notification("statusUpdate").await;
        peer.incoming.send(Incoming::Close).expect("the session runs");
        peer.call(2, "ping", &json!({}));
        let mut last = 0;
        while let Some((first, _)) = peer.frame().await {
            assert_ne!(last, frames::CLOSE, "nothing after the close frame");
            last = first;
        }
        assert_eq!(last, frames::CLOSE);
        wait_until_empty(&supervisor).await;
    });
}

/// The session still reads for a second after its own close frame, so that the client's close frame can arrive.
#[test]
fn lingering_session_answers_no_call_after_its_close_frame() {
    let stub = scripted_backend();
    with_session(&stub, async |supervisor, mut peer| {
        let reason = CloseReason::new(CloseCode::Unsupported, "binary");
        peer.incoming.send(Incoming::Fault(reason)).expect("the session runs");
        peer.call(1, "ping", &json!({}));
        peer.call(2, "execute", &json!({ "command": "silence" }));
        assert_eq!(peer.message().await["method"], "connected");
        assert_eq!(peer.frame().await.expect("the close frame").0, frames::CLOSE);
        assert_eq!(peer.frame().await, None, "nothing after the close frame");
        wait_until_empty(&supervisor).await;
    });
}

#[test]
fn slow_reader_gets_every_message_sent_before_the_close() {
    let stub = scripted_backend();
    with_session(&stub, async |supervisor, mut peer| {
        for id in 1..=30 {
            peer.call(id, "ping", &json!({}));
        }
        let reason = CloseReason::new(CloseCode::Unsupported, "binary");
        peer.incoming.send(Incoming::Fault(reason)).expect("the session runs");
        // Longer than a closed session waits for its client, because the slowness of the client is what is tested.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(peer.message().await["method"], "connected");
        for id in 1..=30 {
            assert_eq!(peer.message().await["id"], id);
        }
        assert_eq!(peer.frame().await.expect("the close frame").0, frames::CLOSE);
        assert_eq!(peer.frame().await, None);
        wait_until_empty(&supervisor).await;
    });
}

#[test]
fn full_gateway_refuses_sessions_and_draining_one_closes_them() {
    actix::System::new().block_on(async {
        let stub = scripted_backend();
        let context = context(&stub, 1);
        let mut first = StubPeer::connect(&context).await;
        assert_eq!(first.message().await["method"], "connected");
        let mut second = StubPeer::connect(&context).await;
        assert_eq!(second.message().await["params"]["code"], code::SESSION_LIMIT);
        let (kind, payload) = second.frame().await.expect("a close frame");
        assert_eq!((kind, &payload[..2]), (frames::CLOSE, &1013u16.to_be_bytes()[..]));
        let drained = context.supervisor.send(Drain::Begin { executions_live_on: false, grace_ms: 1_000 });
        let (kind, payload) = first.frame().await.expect("a close frame");
        assert_eq!((kind, &payload[..2]), (frames::CLOSE, &1001u16.to_be_bytes()[..]));
        tokio::time::timeout(PATIENCE, drained).await.expect("the drain ends").expect("the supervisor runs");
    });
}

#[test]
fn unknown_backend_event_ends_as_backend_lost() {
    let stub = Stub::native(|request, stream| {
        let body = [started(request), multiplexed(1, b"before"), event(&json!({ "surprise": 1 }))].concat();
        let _ = stream.write_all(&[stream_head(), chunk(&body)].concat());
    });
    with_session(&stub, async |_, mut peer| {
        peer.call(1, "execute", &json!({ "command": "x" }));
        assert_eq!(peer.notification("output").await["content"], "before", "output before the fault is delivered");
        assert_eq!(peer.notification("error").await["code"], code::BACKEND);
        let ending = peer.ending().await;
        assert_eq!((ending.status, ending.reason), (Status::Failed, Reason::BackendLost));
    });
}

#[test]
fn refused_health_request_ends_as_backend_rejected() {
    let refusal = json!({ "code": code::NOT_AUTHORIZED, "message": "the Host header is not allowed" }).to_string();
    let stub = Stub::start(move |_, stream| respond(stream, 403, &refusal));
    with_session(&stub, async |_, mut peer| {
        assert_eq!(peer.message().await["method"], "connected");
        peer.call(1, "execute", &json!({ "command": "x" }));
        assert_eq!(peer.message().await["result"]["status"], "failed", "the client itself is authorized");
        assert_eq!(peer.ending().await.reason, Reason::BackendRejected);
    });
}

#[test]
fn hanging_health_request_does_not_delay_the_next_one() {
    let n_health = AtomicUsize::new(0);
    let stub = Stub::start(move |request, stream| {
        if request.path == "/health" && n_health.fetch_add(1, Ordering::SeqCst) != 1 {
            return respond(stream, 200, r#"{"status":"healthy"}"#);
        }
        // The second health request gets no answer, and the execution goes on.
        if request.path != "/health" {
            let _ = stream.write_all(&chunked_head("text/plain"));
        }
        let _ = std::io::copy(stream, &mut std::io::sink());
    });
    with_session(&stub, async |supervisor, mut peer| {
        peer.call(1, "execute", &json!({ "command": "x", "heartbeatMs": 1_000 }));
        peer.notification("statusUpdate").await;
        let third_request = async {
            while stub.requests_with("GET").len() < 3 {
                tokio::task::yield_now().await;
            }
        };
        // Less than the 5 s after which a health request is given up.
        tokio::time::timeout(Duration::from_secs(4), third_request).await.expect("health is asked each heartbeat");
        drop(peer);
        wait_until_empty(&supervisor).await;
    });
}
