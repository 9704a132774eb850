//! An execution belongs to its client: another one cannot tell it from an unknown one.

use cc_executor_actors::{
    outcome::{Reason, Status},
    rpc::code,
};
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    backend_caller::{BackendCaller, backend_with_token, gateway_with_token},
    client::Client,
    http,
    service::{Service, run_to_exit},
    wait_until,
};

const UNKNOWN: &str = "99999999-9999-4999-8999-999999999999";

/// A session of a gateway that has a token.
fn connect_with_token(gateway: &Service, token: &str) -> Client {
    let authorization = format!("Bearer {token}");
    let mut client = Client::upgrade(gateway.address, &[("Authorization", &authorization)]).expect("it may connect");
    client.notification("connected");
    client
}

#[test]
fn execution_of_another_client_is_answered_like_an_unknown_one() {
    let backend = backend_with_token(&[]);
    let (alice, bob) = (BackendCaller::client(&backend, "alice"), BackendCaller::client(&backend, "bob"));
    let operator = BackendCaller::operator(&backend);
    let running = alice.detach("sleep 1000", &[]);
    let ended = alice.detach("echo of alice", &[]);
    wait_until("it runs", PATIENCE, || alice.ask(&format!("GET /executions/{running}")).1["status"] == "RUNNING");
    wait_until("it has ended", PATIENCE, || alice.ask(&format!("GET /executions/{ended}")).1["status"] == "COMPLETED");
    for id in [&running, &ended] {
        for (method, path) in [
            ("GET", ""),
            ("GET", "/stream"),
            ("POST", "/ack?stdout=0"),
            ("POST", "/pause"),
            ("POST", "/resume"),
            ("POST", "/stdin?eof=true"),
            ("DELETE", ""),
        ] {
            let of_alice = bob.ask(&format!("{method} /executions/{id}{path}"));
            let unknown = bob.ask(&format!("{method} /executions/{UNKNOWN}{path}"));
            assert_eq!((of_alice.0, &of_alice.1["code"]), (404, &json!(code::UNKNOWN_EXECUTION)), "{method} {path}");
            let unknown: Value = serde_json::from_str(&unknown.1.to_string().replace(UNKNOWN, id)).unwrap();
            assert_eq!(of_alice.1, unknown, "{method} {path}");
        }
        let bodies = [("signal", json!({ "signal": "SIGKILL" })), ("resize", json!({ "rows": 1, "cols": 1 }))];
        for (action, body) in bodies {
            let request = format!("POST /executions/{id}/{action}");
            assert_eq!(bob.exchange(&request, &[http::JSON], &body.to_string()).status, 404, "{action}");
        }
        for command in ["sleep 1000", "echo of bob"] {
            let (status, error, _) = bob.refusal(&json!({ "question": command, "executionId": id }));
            assert_eq!((status, &error["code"]), (400, &json!(code::PARAMS)));
            assert_eq!(error["data"], json!({ "param": "executionId" }), "the request is not revealed");
            assert!(error["message"].as_str().unwrap().contains("in use"), "{error}");
        }
    }
    assert_eq!(bob.list(), [] as [Value; 0]);
    for caller in [alice, operator] {
        let mut listed: Vec<_> = caller.list().iter().map(|execution| execution["executionId"].clone()).collect();
        assert_eq!(listed.remove(0), json!(running), "what runs comes first");
        assert_eq!(listed, [json!(ended)]);
        assert_eq!(caller.ask(&format!("GET /executions/{running}")).1["status"], "RUNNING");
    }
    assert_eq!(operator.exchange(&format!("GET /executions/{ended}/stream"), &[], "").body, "of alice\n");
    assert_eq!(operator.ask(&format!("DELETE /executions/{running}")).1["verified"], true);
    wait_until("the operator has ended it", PATIENCE, || {
        alice.ask(&format!("GET /executions/{running}")).1["ending"]["reason"] == json!(Reason::Canceled)
    });
}

#[test]
fn id_that_one_client_canceled_is_free_for_another() {
    let backend = backend_with_token(&[]);
    let (alice, bob) = (BackendCaller::client(&backend, "alice"), BackendCaller::client(&backend, "bob"));
    assert_eq!(bob.ask(&format!("DELETE /executions/{UNKNOWN}")).0, 404);
    let execute = json!({ "question": "echo ran", "executionId": UNKNOWN });
    let (status, error, _) = bob.refusal(&execute);
    assert_eq!((status, &error["code"]), (409, &json!(code::NOT_RUNNING)));
    assert!(error["message"].as_str().unwrap().contains("nothing ran"), "{error}");
    assert_eq!(alice.run(&execute).body, "ran\n");
}

#[test]
fn sessions_of_two_gateways_see_their_own_clients_executions_only() {
    const TOKEN: &str = "the-token-of-this-gateway-in-tests-32";
    let backend = backend_with_token(&[]);
    let open = gateway_with_token(&backend, &[]);
    let closed = gateway_with_token(&backend, &[("CC_EXECUTOR_TOKEN", TOKEN)]);
    let mut owner = open.connect();
    let id = owner.execute(json!({ "command": "sleep 1000", "onDisconnect": "detach" }));
    let mut other = connect_with_token(&closed, TOKEN);
    for (method, params) in [
        ("attach", json!({ "executionId": id })),
        ("status", json!({ "executionId": id })),
        ("control", json!({ "type": "CANCEL", "executionId": id })),
        ("control", json!({ "type": "PAUSE", "executionId": id })),
    ] {
        assert_eq!(other.call(method, params.clone()).unwrap_err().code, code::UNKNOWN_EXECUTION, "{method} {params}");
    }
    let error = other.call("execute", json!({ "command": "true", "executionId": id })).unwrap_err();
    assert_eq!(error.code, code::PARAMS, "{error}");
    assert_eq!(open.get("/executions")["executions"][0]["executionId"], json!(id));
    let mut ps = closed.client_command(&["ps"]);
    let (listed, stderr, code) = run_to_exit(ps.env("CC_EXECUTOR_TOKEN", TOKEN));
    assert_eq!((code, listed.lines().count()), (0, 1), "only the head: {listed}{stderr}");
    let second = open.connect().call("status", json!({ "executionId": id })).unwrap();
    assert_eq!(second["status"], "RUNNING", "another session of the same client sees it");
    owner.cancel();
    assert_eq!(owner.record().status(), Status::Cancelled);
}
