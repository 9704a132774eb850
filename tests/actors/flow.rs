//! What a session reads while its requests to the backend are under way.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use cc_executor_actors::{id::ExecutionId, session::phase::Incoming, supervisor::Drain};
use futures_util::{FutureExt, StreamExt};
use serde_json::json;

use super::{MAX_REQUESTS, StubPeer, context, wait_until_empty, with_session};
use crate::common::{
    PATIENCE, frames,
    stub::{Request, Stub, chunk, exited, multiplexed, started, stream_head},
};

/// A backend whose commands print eight bytes and end, and which answers no other request.
fn unanswering_backend() -> Stub {
    Stub::native(|request, stream| {
        let _ = match request.body.get("question") {
            Some(_) => {
                let body = [started(request), multiplexed(1, b"one\ntwo\n"), exited(0)].concat();
                stream.write_all(&[stream_head(), chunk(&body), chunk(b"")].concat())
            }
            None => std::io::copy(stream, &mut std::io::sink()).map(drop),
        };
    })
}

#[test]
fn acknowledgements_under_way_are_bounded() {
    let stub = unanswering_backend();
    with_session(&stub, async |supervisor, mut peer| {
        let execution_id = ExecutionId::random();
        let execute = json!({ "command": "two lines", "executionId": execution_id, "onDisconnect": "detach" });
        peer.call(1, "execute", &execute);
        peer.ending().await;
        for id in 0..MAX_REQUESTS + 4 {
            peer.call(id, "ack", &json!({ "executionId": execution_id, "offsets": { "stdout": 4, "stderr": 0 } }));
        }
        for id in 0..MAX_REQUESTS {
            let response = peer.message().await;
            assert_eq!((response["id"].as_u64(), response.get("error")), (Some(id), None), "{response}");
        }
        assert!(peer.read.is_empty() && peer.frames.next().now_or_never().is_none(), "the client is not read");
        let is_ack = |request: &&Request| request.path.contains("/ack?");
        let n_acks = || stub.requests().iter().filter(is_ack).count() as u64;
        let arrive = async {
            while n_acks() < MAX_REQUESTS {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, arrive).await.expect("the acknowledgements arrive");
        drop(peer);
        wait_until_empty(&supervisor).await;
        assert_eq!(n_acks(), MAX_REQUESTS);
    });
}

#[test]
fn close_frame_of_a_client_is_read_behind_messages_that_were_held_back() {
    let stub = unanswering_backend();
    actix::System::new().block_on(async {
        let context = context(&stub, 1);
        let mut peer = StubPeer::connect(&context).await;
        for id in 0..MAX_REQUESTS + 4 {
            peer.call(id, "control", &json!({ "type": "CANCEL", "executionId": ExecutionId::random() }));
        }
        peer.call(100, "ping", &json!({}));
        assert_eq!(peer.message().await["method"], "connected");
        let drained = context.supervisor.send(Drain::Begin { executions_live_on: false, grace_ms: 1_000 });
        assert_eq!(peer.frame().await.expect("a frame").0, frames::CLOSE, "the ping was held back");
        let closed_at = Instant::now();
        peer.incoming.send(Incoming::Close).expect("the session runs");
        assert_eq!(peer.frame().await, None);
        assert!(
            closed_at.elapsed() < Duration::from_millis(900),
            "it waits a second for a close frame it does not read"
        );
        drained.await.expect("the supervisor runs");
    });
}
