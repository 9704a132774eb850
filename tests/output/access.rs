//! Who may read output, and what a gateway answers whose backend cannot.

use cc_executor_actors::rpc::code;
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    backend_caller::{BACKEND_TOKEN, BackendCaller, backend_with_token, gateway_with_token},
    http,
    service::{Service, run_to_exit},
    stub::Stub,
    wait_until,
};

const UNKNOWN: &str = "99999999-9999-4999-8999-999999999999";

/// Status and error code of a request for output.
fn refusal(service: &Service, id: &str, headers: &[(&str, &str)]) -> (u16, i64) {
    let response = http::exchange(service.address, &format!("GET /executions/{id}/output/stdout"), headers, "");
    let error: Value = serde_json::from_str(&response.body).unwrap_or_default();
    (response.status, error["code"].as_i64().unwrap_or_default())
}

#[test]
fn output_of_another_client_is_unknown() {
    const TOKEN: &str = "the-token-of-the-gateway-in-tests-32";
    let backend = backend_with_token(&[]);
    let gateway = gateway_with_token(&backend, &[("CC_EXECUTOR_TOKEN", TOKEN)]);
    let (alice, bob) = (BackendCaller::client(&backend, "alice"), BackendCaller::client(&backend, "bob"));
    let response =
        alice.run(&json!({ "question": "echo secret", "executionId": "44444444-4444-4444-8444-444444444444" }));
    assert_eq!((response.status, response.body.as_str()), (200, "secret\n"));
    let id = "44444444-4444-4444-8444-444444444444";
    let request = format!("GET /executions/{id}/output/stdout");
    assert_eq!(alice.exchange(&request, &[], "").body, "secret\n");
    assert_eq!(BackendCaller::operator(&backend).exchange(&request, &[], "").body, "secret\n");
    for id in [id, UNKNOWN] {
        let (status, error) = bob.ask(&format!("GET /executions/{id}/output/stdout"));
        assert_eq!((status, &error["code"]), (404, &json!(code::UNKNOWN_EXECUTION)), "{error}");
    }
    let authorization = format!("Bearer {TOKEN}");
    let with_token = [("Authorization", authorization.as_str())];
    assert_eq!(refusal(&gateway, id, &with_token), (404, code::UNKNOWN_EXECUTION), "it is alice's");
    assert_eq!(refusal(&gateway, id, &[]).0, 401);
    assert_eq!(refusal(&gateway, id, &[("Authorization", "Bearer wrong")]).0, 401);
    assert_eq!(refusal(&backend, id, &[]).0, 401);
    let in_the_name_of = [("Authorization", authorization.as_str()), ("cc-executor-client", "alice")];
    assert_eq!(refusal(&gateway, id, &in_the_name_of).0, 404, "a client cannot choose its name");
    let backends = format!("Bearer {BACKEND_TOKEN}");
    assert_eq!(refusal(&gateway, id, &[("Authorization", backends.as_str())]).0, 401);
    assert_eq!(refusal(&gateway, "x", &with_token), (400, code::PARAMS));
    assert_eq!(refusal(&gateway, &format!("{id}%2F..%2F{id}"), &with_token), (400, code::PARAMS));

    let mut run = gateway.client_command(&["run", "--detach", "--", "echo own"]);
    let own = run_to_exit(run.env("CC_EXECUTOR_TOKEN", TOKEN)).0;
    let output = |id: &str, token: Option<&str>| {
        let mut command = gateway.client_command(&["output", "-f", id]);
        run_to_exit(command.envs(token.map(|token| ("CC_EXECUTOR_TOKEN", token))))
    };
    assert_eq!(output(own.trim(), Some(TOKEN)), ("own\n".to_owned(), String::new(), 0));
    assert_eq!(output(own.trim(), None).2, 77);
    let (_, stderr, code) = output(id, Some(TOKEN));
    assert!(code == 69 && stderr.contains("unknown execution"), "{code} {stderr}");
}

#[test]
fn a_backend_that_cannot_answer_is_reported() {
    let legacy = Stub::legacy("/execute/stream", |_, _| {});
    let gateway = Service::gateway(&legacy.url());
    assert_eq!(refusal(&gateway, UNKNOWN, &[]), (403, code::NOT_ALLOWED));
    let alone = Service::gateway_without_backend("http://127.0.0.1:1");
    assert_eq!(refusal(&alone, UNKNOWN, &[]), (502, code::BACKEND));
    let (_, stderr, code) = run_to_exit(&mut alone.client_command(&["output", UNKNOWN]));
    assert!(code == 69 && stderr.contains("cannot reach the backend"), "{code} {stderr}");
}

/// One client opens as many responses as it may, and reads none.
#[test]
fn responses_that_nobody_reads_leave_places_for_other_clients() {
    const PLACES: usize = 256;
    let backend = backend_with_token(&["--ring-bytes", "8000000"]);
    let [greedy, other] = ["greedy", "other"].map(|name| BackendCaller::client(&backend, name));
    let [id, of_other] = [&greedy, &other].map(|caller| caller.detach("head -c 6000000 /dev/zero | tr '\\0' x", &[]));
    for (caller, id) in [(&greedy, &id), (&other, &of_other)] {
        let path = format!("GET /executions/{id}");
        wait_until("it has ended", PATIENCE, || caller.ask(&path).1["status"] == "COMPLETED");
    }
    let path = format!("GET /executions/{id}/output/stdout");
    let mut held: Vec<_> = (0..PLACES).map(|_| greedy.send(&path, &[], "")).collect();
    // Each has its place when its head is there.
    assert!(held.iter_mut().all(|stream| http::read_status(stream) == 200));
    let (status, error) = greedy.ask(&path);
    assert_eq!((status, &error["code"], &error["data"]["limit"]), (429, &json!(code::FULL), &json!(PLACES)), "{error}");
    let response = other.exchange(&format!("GET /executions/{of_other}/output/stdout"), &[], "");
    assert_eq!((response.status, response.body.len()), (200, 6_000_000));
    drop(held);
    wait_until("the places are free", PATIENCE, || greedy.exchange(&path, &[("Range", "bytes=0-9")], "").status == 206);
}
