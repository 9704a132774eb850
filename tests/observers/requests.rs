//! Who may observe, and what an observer may ask for.

use cc_executor_actors::{
    outcome::{Reason, Status},
    rpc::code,
};
use serde_json::json;

use super::{observe, observer};
use crate::common::{
    backend_caller::{BackendCaller, backend_with_token, gateway_with_token},
    client::{Client, code_and_param},
    recording::Recording,
    service::Service,
    stub::{Stub, respond},
};

const UNKNOWN: &str = "99999999-9999-4999-8999-999999999999";

#[test]
fn requests_need_the_id_of_the_execution() {
    let service = Service::start();
    let mut holder = service.connect();
    let command = "read x; echo $x; stty size; exec sleep 1000";
    let id = holder.execute(json!({ "command": command, "pty": { "rows": 24, "cols": 80 } }));
    let mut client = observer(&service, &id);
    for (method, params) in [
        ("control", json!({ "type": "CANCEL" })),
        ("input", json!({ "data": "x\n" })),
        ("resize", json!({ "rows": 1, "cols": 2 })),
        ("ack", json!({ "offsets": {} })),
    ] {
        let error = client.call(method, params).unwrap_err();
        assert_eq!(error.code, code::NOT_ALLOWED, "{method}: {error}");
    }
    assert_eq!(client.call("status", json!({})).unwrap()["status"], "RUNNING");
    assert_eq!(client.call("attach", json!({ "executionId": id })).unwrap_err().code, code::ALREADY_RUNNING);
    client.call("resize", json!({ "executionId": id, "rows": 11, "cols": 22 })).unwrap();
    client.call("input", json!({ "executionId": id, "data": "typed\n" })).unwrap();
    let mut held = Recording::default();
    holder.record_until(&mut held, |held| held.text().ends_with("11 22\r\n"));
    assert!(held.text().contains("\ntyped\r\n"), "{:?}", held.text());
    let result = client.call("control", json!({ "type": "CANCEL", "executionId": id })).unwrap();
    assert_eq!(result["status"], "CANCELLING");
    for client in [&mut holder, &mut client] {
        assert_eq!(client.record().ending(), (Status::Cancelled, Reason::Canceled));
    }
}

#[test]
fn another_client_can_neither_observe_nor_reach_the_execution() {
    const TOKEN: &str = "the-token-of-this-gateway-in-tests-32";
    let backend = backend_with_token(&[]);
    let open = gateway_with_token(&backend, &[]);
    let closed = gateway_with_token(&backend, &[("CC_EXECUTOR_TOKEN", TOKEN)]);
    let mut holder = open.connect();
    let id = holder.execute(json!({ "command": "read x; echo $x", "stdin": true }));
    let authorization = format!("Bearer {TOKEN}");
    let mut other = Client::upgrade(closed.address, &[("Authorization", &authorization)]).expect("it may connect");
    other.notification("connected");
    let of_another = observe(&mut other, &id).unwrap_err();
    let unknown = observe(&mut other, UNKNOWN).unwrap_err();
    assert_eq!((of_another.code, unknown.code), (code::UNKNOWN_EXECUTION, code::UNKNOWN_EXECUTION));
    assert_eq!(of_another.message, unknown.message.replace(UNKNOWN, &id));
    let input = json!({ "executionId": id, "data": "x\n" });
    assert_eq!(other.call("input", input).unwrap_err().code, code::UNKNOWN_EXECUTION);
    let resize = json!({ "executionId": id, "rows": 1, "cols": 1 });
    assert_eq!(other.call("resize", resize).unwrap_err().code, code::UNKNOWN_EXECUTION);
    let stranger = BackendCaller::client(&backend, "bob");
    assert_eq!(stranger.ask(&format!("GET /executions/{id}/stream?observe=true")).0, 404);
    let hold = BackendCaller::operator(&backend).ask(&format!("GET /executions/{id}/stream?observe=true&hold=1"));
    assert_eq!((hold.0, &hold.1["data"]["param"]), (400, &json!("hold")));
    // Another session of the same client may write, whether it observes or not.
    let input = json!({ "executionId": id, "data": "of the same client\n" });
    open.connect().call("input", input).unwrap();
    assert_eq!(holder.record().stdout, b"of the same client\n");
}

#[test]
fn backend_that_lets_nobody_observe_is_refused_by_name() {
    let stub = Stub::native(|_, stream| respond(stream, 500, "{}"));
    let old = Service::gateway(&stub.url());
    let mut client = old.connect();
    let error = observe(&mut client, UNKNOWN).unwrap_err();
    assert_eq!(code_and_param(&error), (code::NOT_ALLOWED, Some("observe")));
    assert!(error.message.contains("cc-executor 0.1.0"), "{error}");
    assert!(stub.requests().iter().all(|request| !request.path.contains("/stream")));
    let image = Stub::legacy("/execute/stream", |_, stream| respond(stream, 200, "x"));
    let legacy = Service::gateway(&image.url());
    assert_eq!(observe(&mut legacy.connect(), UNKNOWN).unwrap_err().code, code::NOT_ALLOWED);
}
