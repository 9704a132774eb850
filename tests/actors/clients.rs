//! Sessions of several clients at one gateway.

use std::io::Write;

use cc_executor_actors::{
    client::ClientName,
    id::{ExecutionId, SessionId},
    rpc::code,
};
use serde_json::json;

use super::{StubPeer, context, scripted_backend, stats};
use crate::common::{
    PATIENCE,
    stub::{Stub, chunk, respond, started, stream_head},
};

/// The sessions of two clients ask for the same id. Each request names its client and its session to the backend.
#[test]
fn client_cannot_cancel_an_execution_that_another_clients_session_holds() {
    let unknown = json!({ "code": code::UNKNOWN_EXECUTION, "message": "unknown execution" }).to_string();
    let stub = Stub::native(move |request, stream| {
        if request.method == "DELETE" {
            return respond(stream, 404, &unknown);
        }
        let parts = [stream_head(), chunk(&started(request))].concat();
        let _ = stream.write_all(&parts).and_then(|()| std::io::copy(stream, &mut std::io::sink()).map(drop));
    });
    actix::System::new().block_on(async {
        let context = context(&stub, 10);
        let [alice, bob] = ["alice", "bob"].map(|name| name.parse::<ClientName>().expect("a name"));
        let mut holder = StubPeer::connect_as(&alice, &context).await;
        let id = ExecutionId::random();
        holder.call(1, "execute", &json!({ "command": "silence", "executionId": id }));
        holder.notification("statusUpdate").await;
        let mut other = StubPeer::connect_as(&bob, &context).await;
        other.call(1, "control", &json!({ "type": "CANCEL", "executionId": id }));
        let answer = loop {
            let message = other.message().await;
            if message["id"] == 1 {
                break message;
            }
        };
        assert_eq!(answer["error"]["code"], code::UNKNOWN_EXECUTION, "the backend decides: {answer}");
        assert_eq!(stats(&context.supervisor).await.n_executions, 1);
        let named = |method: &str, client: &ClientName| {
            let request = stub.requests_with(method).pop().expect("a request");
            let header = |name: &str| request.headers.get(name).map(String::as_str);
            assert_eq!(header("cc-executor-client"), Some(client.as_str()));
            assert!(header("cc-executor-session").is_some_and(|session| session.parse::<SessionId>().is_ok()));
        };
        named("POST", &alice);
        named("DELETE", &bob);
    });
}

#[test]
fn clients_share_the_sessions_of_a_gateway() {
    actix::System::new().block_on(async {
        let stub = scripted_backend();
        let context = context(&stub, 4);
        let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| name.parse::<ClientName>().expect("a name"));
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(StubPeer::connect_as(&alice, &context).await);
        }
        let refusal = async |client: &ClientName| {
            let message = StubPeer::connect_as(client, &context).await.message().await;
            assert_eq!(message["params"]["code"], code::SESSION_LIMIT, "{message}");
            message["params"]["data"].clone()
        };
        let of_client = json!({ "limit": 4, "used": 4, "scope": "client", "retryAfterMs": 1_000 });
        assert_eq!(refusal(&alice).await, of_client);
        assert!(stats(&context.supervisor).await.admits_newcomers);
        let mut newcomer = StubPeer::connect_as(&bob, &context).await;
        assert_eq!(newcomer.message().await["method"], "connected", "a quarter more than the limit is for others");
        assert!(!stats(&context.supervisor).await.admits_newcomers);
        let of_service = json!({ "limit": 4, "used": 5, "scope": "service", "retryAfterMs": 1_000 });
        assert_eq!(refusal(&carol).await, of_service);
        held.truncate(3);
        let left = async {
            while stats(&context.supervisor).await.n_sessions > 4 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, left).await.expect("a session leaves");
        let held_to = json!({ "limit": 3, "used": 3, "scope": "client", "retryAfterMs": 1_000 });
        assert_eq!(refusal(&alice).await, held_to, "another client has sessions");
    });
}
