//! Clients with tokens of their own: the tokens file, its changes while the service runs, and `token new`.

use std::fs;

use serde_json::json;

use crate::common::{
    PATIENCE,
    client::{Client, Frame},
    http::{self, HttpResponse},
    service::{Service, binary, run_to_exit},
    sha256,
    temp::TempPath,
    wait_until,
};

const FIRST: &str = "the-token-of-the-first-client-0123456789";
const SECOND: &str = "the-token-of-the-second-client-0123456789";
const SINGLE: &str = "the-single-token-0123456789abcdefghijkl";

/// The line of a tokens file.
fn line(name: &str, token: &str) -> String {
    format!("{name} {}\n", sha256(token.as_bytes()))
}

fn bearer(token: &str) -> [(&'static str, String); 1] {
    [("Authorization", format!("Bearer {token}"))]
}

fn connect(service: &Service, token: &str) -> Result<Client, u16> {
    let [(name, value)] = bearer(token);
    Client::upgrade(service.address, &[(name, &value)])
}

/// The clients of the sessions that were opened so far.
fn clients(service: &Service) -> Vec<String> {
    let log = service.events("session.opened");
    log.iter().map(|line| line["client"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Replaces a file at once, as configuration tools do.
fn replace(file: &TempPath, content: &str) {
    let new = TempPath::with_content("tokens-new", content);
    fs::rename(&*new, &**file).unwrap();
}

#[test]
fn each_token_of_the_file_is_a_client() {
    let file =
        TempPath::with_content("tokens", format!("# clients\n\n{}{}", line("first", FIRST), line("second", SECOND)));
    let env = [("CC_EXECUTOR_TOKENS_FILE", file.as_str()), ("CC_EXECUTOR_TOKEN", SINGLE)];
    let service = Service::with(&["serve"], &env);
    for token in [FIRST, SECOND, SINGLE] {
        let mut client = connect(&service, token).expect("the token is right");
        assert!(matches!(client.recv(), Frame::Text(message) if message["method"] == "connected"));
        assert_eq!(client.run(json!({ "command": "echo in" })).text(), "in\n");
    }
    assert_eq!(clients(&service), ["first", "second", "default"]);
    for wrong in ["", "first", &sha256(FIRST.as_bytes())] {
        assert_eq!(connect(&service, wrong).err(), Some(401), "{wrong}");
    }
    let started = service.events("execution.started");
    assert_eq!(started.iter().map(|line| &line["client"]).collect::<Vec<_>>(), ["first", "second", "default"]);
}

#[test]
fn named_client_of_a_backend_is_no_gateway() {
    let file = TempPath::with_content("tokens", line("first", FIRST));
    let backend = Service::with(&["backend", "--tokens-file", file.as_str()], &[("CC_EXECUTOR_BACKEND_TOKEN", SINGLE)]);
    let status = |token: &str| {
        let [(name, value)] = bearer(token);
        // A name that a gateway may not send: only who may name a client gets an error.
        let headers = [(name, value.as_str()), ("cc-executor-client", "not a name")];
        http::exchange(backend.address, "GET /executions", &headers, "").status
    };
    assert_eq!([SINGLE, FIRST, SECOND].map(status), [400, 200, 401]);
}

#[test]
fn changes_of_the_file_count_without_a_restart() {
    let file = TempPath::with_content("tokens", line("first", FIRST));
    let service = Service::with(&["serve", "--tokens-file", file.as_str()], &[]);
    let mut first = connect(&service, FIRST).unwrap();
    assert_eq!(connect(&service, SECOND).err(), Some(401));

    // Appended.
    fs::write(&*file, line("first", FIRST) + &line("second", SECOND)).unwrap();
    service.wait_for_event("tokens.reloaded", 1);
    let mut second = connect(&service, SECOND).unwrap();
    let detached = second.execute(json!({ "command": "sleep 0.5; echo done", "onDisconnect": "detach" }));
    assert!(first.call("ping", json!({})).is_ok(), "an unchanged client is not disturbed");

    // Replaced by a file that cannot be used: once reported, and the earlier tokens stay.
    replace(&file, &(line("second", SECOND) + "first not-a-digest\n"));
    service.wait_for_event("tokens.rejected", 1);
    replace(&file, "");
    service.wait_for_event("tokens.rejected", 2);
    let rejected = |n: usize| service.events("tokens.rejected")[n]["message"].as_str().unwrap_or_default().to_owned();
    assert!(rejected(0).contains("line 2 must end with"), "{}", rejected(0));
    assert!(rejected(1).contains("no line names a client"), "{}", rejected(1));
    assert!(connect(&service, FIRST).is_ok() && connect(&service, SECOND).is_ok());

    // The second is removed, and the first gets another token under its name.
    let third = "the-next-token-of-the-first-client-01234";
    replace(&file, &line("first", third));
    service.wait_for_event("tokens.reloaded", 2);
    assert_eq!([FIRST, SECOND].map(|token| connect(&service, token).err()), [Some(401), Some(401)]);
    assert_eq!((first.close_code(), second.close_code()), (1008, 1008), "open sessions end");
    assert!(connect(&service, third).is_ok());
    assert_eq!(service.count("tokens.rejected"), 2, "each problem was reported once");
    let finished = &service.wait_for_event("process.finished", 1)[0];
    assert_eq!((finished["execution_id"].as_str(), finished["status"].as_str()), (Some(&*detached), Some("COMPLETED")));
}

#[test]
fn wrong_lines_are_reported_at_start() {
    let digest = sha256(b"x");
    let file = TempPath::with_content("tokens", format!("a {digest}\n\nb {digest}\na {}\nc\n", sha256(b"y")));
    for role in ["serve", "backend"] {
        let (_, stderr, code) = run_to_exit(binary().args([role, "--tokens-file", file.as_str()]));
        assert_eq!((code, stderr.lines().count()), (64, 3), "{stderr}");
        for (line, part) in stderr.lines().zip([
            "line 3 has the same SHA-256 as line 1",
            "line 4 has the same name as line 1",
            "line 5 must be",
        ]) {
            assert!(line.starts_with("cc-executor: --tokens-file names ") && line.contains(part), "{line}");
        }
    }
    let (_, stderr, code) = run_to_exit(binary().arg("serve").env("CC_EXECUTOR_TOKENS_FILE", "/nowhere"));
    assert_eq!(code, 64);
    assert!(
        stderr.starts_with("cc-executor: CC_EXECUTOR_TOKENS_FILE names \"/nowhere\", which cannot be read"),
        "{stderr}"
    );
}

#[test]
fn remote_backend_needs_a_token_to_tell_clients_apart() {
    let file = TempPath::with_content("tokens", line("first", FIRST));
    let remote = ["serve", "--claude-api-url", "http://127.0.0.1:1", "--tokens-file", file.as_str()];
    let (_, stderr, code) = run_to_exit(binary().args(remote));
    assert_eq!((code, stderr.lines().count()), (64, 1), "{stderr}");
    assert!(stderr.contains("set CC_EXECUTOR_BACKEND_TOKEN"), "{stderr}");

    let backend = Service::with(&["backend"], &[("CC_EXECUTOR_BACKEND_TOKEN", SINGLE)]);
    let env = [("CC_EXECUTOR_BACKEND_TOKEN", SINGLE), ("CC_EXECUTOR_TOKENS_FILE", file.as_str())];
    let gateway = Service::gateway_with(&backend.url(), &env);
    let mut client = connect(&gateway, FIRST).unwrap();
    assert_eq!(client.run(json!({ "command": "echo in" })).text(), "in\n");
}

#[test]
fn new_token_is_printed_once_with_its_line() {
    let new = |name: &str| run_to_exit(binary().args(["token", "new", name]));
    let (token, line, code) = new("ci-1");
    assert_eq!(code, 0);
    let token = token.strip_suffix('\n').unwrap();
    assert!(
        token.len() >= 43 && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)),
        "{token}"
    );
    assert_eq!(line, format!("ci-1 {}\n", sha256(token.as_bytes())));
    assert_ne!(new("ci-1").0, format!("{token}\n"));
    for wrong in ["", "a b", "-x", "uid:0", "anonymous"] {
        assert_eq!(new(wrong).2, 64, "{wrong}");
    }

    let file = TempPath::with_content("tokens", &line);
    let service = Service::with(&["serve", "--tokens-file", file.as_str()], &[]);
    let mut run = service.run_command(&["--", "echo in"]);
    assert_eq!(run_to_exit(run.env("CC_EXECUTOR_TOKEN", token)).0, "in\n");
}

#[test]
fn probes_need_no_token_and_say_nothing_but_the_status() {
    let service = Service::with(&["serve"], &[("CC_EXECUTOR_TOKEN", SINGLE)]);
    let [(name, value)] = bearer(SINGLE);
    let HttpResponse { body, .. } = http::exchange(service.address, "GET /health", &[(name, &value)], "");
    assert!(body.contains("\"sessions\":0"), "{body}");
    let stub_url = "http://127.0.0.1:1";
    let alone = Service::with(&["serve", "--claude-api-url", stub_url], &[("CC_EXECUTOR_TOKEN", SINGLE)]);
    let answer = |headers: &[(&str, &str)]| {
        let HttpResponse { status, body, .. } = http::exchange(alone.address, "GET /ready", headers, "");
        (status, body)
    };
    assert_eq!(answer(&[]), (503, "{}".to_owned()));
    let (status, body) = answer(&[(name, &value)]);
    assert!(status == 503 && body.contains("\"reason\":\"starting\""), "{body}");
    // `healthcheck` sends the token, if it has one.
    let url = format!("{}/ready", alone.url());
    let healthcheck =
        |env: &[(&str, &str)]| run_to_exit(binary().args(["healthcheck", "--url", &url]).envs(env.iter().copied()));
    let (_, stderr, code) = healthcheck(&[]);
    assert!(code == 1 && stderr.contains("503") && !stderr.contains("starting"), "{stderr}");
    let (_, stderr, code) = healthcheck(&[("CC_EXECUTOR_TOKEN", SINGLE)]);
    assert!(code == 1 && stderr.contains("starting"), "{stderr}");
    let (_, stderr, code) = healthcheck(&[("CC_EXECUTOR_TOKEN", FIRST)]);
    assert!(code == 1 && stderr.contains("503"), "a wrong token changes nothing: {stderr}");
    let ready = format!("{}/ready", service.url());
    let (_, stderr, code) =
        run_to_exit(binary().args(["healthcheck", "--url", &ready]).env("CC_EXECUTOR_TOKEN", FIRST));
    assert_eq!(code, 0, "{stderr}");
    wait_until("the gateway looks for its backend", PATIENCE, || alone.count("backend.down") == 1);
}
