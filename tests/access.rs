//! Access control: requests of web pages, of unknown hosts, without the token, or of a command of the same user are refused
//! and start nothing.

use std::{fs, net::SocketAddr, os::unix::process::CommandExt};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::common::{
    client::Client,
    containment::{NOBODY, reachable_binary},
    http::{self, HttpResponse},
    service::{Service, output_of, text_and_code},
};

const TOKEN: &str = "open-sesame-7-and-25-more-characters";

/// A token of another service.
const ANOTHER: &str = "another-token-with-as-many-characters";

/// The status of the response to a request such as `GET /health`.
fn status(address: SocketAddr, request: &str, headers: &[(&str, &str)], body: &str) -> u16 {
    http::read_status(&mut http::send(address, request, &[headers, &[http::CLOSE]].concat(), body))
}

/// Headers with a foreign host or origin.
fn foreign_headers(port: u16) -> Vec<Vec<(&'static str, String)>> {
    let hosts = [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "[::1].evil.example",
        "0.0.0.0",
        "10.0.0.1",
        "192.168.1.1:8003",
    ];
    let origins = [
        "http://evil.example".to_owned(),
        "null".into(),
        "file://".into(),
        format!("http://localhost.evil.example:{port}"),
        format!("http://localhost:{}", port.wrapping_add(1)),
        format!("https://127.0.0.1:{port}.evil.example"),
        format!("http://evil.example:{port}"),
        format!("chrome-extension://localhost:{port}"),
    ];
    let hosts = hosts.into_iter().map(|host| vec![("Host", host.to_owned())]);
    hosts.chain(origins.into_iter().map(|origin| vec![("Origin", origin)])).collect()
}

fn borrowed<'a>(headers: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    headers.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

fn assert_nothing_started(service: &Service) {
    for event in ["session.opened", "execution.started", "process.started"] {
        assert_eq!(service.count(event), 0, "{event}");
    }
}

#[test]
fn gateway_rejects_foreign_origins_and_hosts() {
    let service = Service::start();
    let mut n_refused = 0;
    for headers in foreign_headers(service.address.port()) {
        let refused = Client::upgrade(service.address, &borrowed(&headers)).err();
        assert_eq!(refused, Some(403), "{headers:?}");
        for route in ["GET /health", "GET /healthz", "GET /docs"] {
            assert_eq!(status(service.address, route, &borrowed(&headers), ""), 403, "every route: {headers:?}");
        }
        n_refused += 4;
    }
    assert!(n_refused >= 30, "{n_refused}");
    // Of many within a second some are only counted.
    service.wait_for_records("request.refused", n_refused);
    assert_nothing_started(&service);
    let origin = format!("http://localhost:{}", service.address.port());
    assert!(
        Client::upgrade(service.address, &[("Origin", &origin)]).is_ok(),
        "pages of the service itself may connect"
    );
}

#[test]
fn backend_rejects_foreign_origins_hosts_and_form_posts() {
    let backend = Service::backend();
    let body = json!({ "question": "touch /tmp/never" }).to_string();
    let post = |headers: &[(&str, &str)]| status(backend.address, "POST /execute/stream", headers, &body);
    for headers in foreign_headers(backend.address.port()) {
        let mut headers = borrowed(&headers);
        headers.push(("Content-Type", "application/json"));
        assert_eq!(post(&headers), 403, "{headers:?}");
    }
    for media in [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
        "text/plain;application/json",
        "",
    ] {
        assert_eq!(post(&[("Content-Type", media)]), 415, "{media}");
    }
    assert_eq!(post(&[]), 415);
    for route in [
        "GET /executions",
        "DELETE /executions/00000000-0000-4000-8000-000000000000",
        "POST /executions/00000000-0000-4000-8000-000000000000/signal",
    ] {
        assert_eq!(status(backend.address, route, &[("Origin", "http://evil.example")], ""), 403, "{route}");
    }
    assert_nothing_started(&backend);
    assert_eq!(post(&[("Content-Type", "application/json; charset=utf-8")]), 200);
}

#[test]
fn only_probes_and_docs_work_without_the_token() {
    let log = [("CC_EXECUTOR_TOKEN", TOKEN), ("RUST_LOG", "debug")];
    let gateway = Service::with(&["serve"], &log);
    let backend = Service::with(
        &["backend"],
        &[("CC_EXECUTOR_TOKEN", ANOTHER), ("CC_EXECUTOR_BACKEND_TOKEN", TOKEN), ("RUST_LOG", "debug")],
    );
    let bearer = |token: &str| format!("Bearer {token}");
    let protocol = |token: &str| format!("cc-executor.v1, bearer.{}", URL_SAFE_NO_PAD.encode(token));
    let (longer, upper) = (format!("{TOKEN}7"), TOKEN.to_uppercase());
    for token in ["", &TOKEN[1..], &longer, &upper, ANOTHER] {
        for headers in [
            vec![],
            vec![("Authorization", bearer(token))],
            vec![("Authorization", token.to_owned())],
            vec![("Sec-WebSocket-Protocol", protocol(token))],
        ] {
            let headers = borrowed(&headers);
            assert_eq!(Client::upgrade(gateway.address, &headers).err(), Some(401), "{headers:?}");
            let json = [headers.as_slice(), &[("Content-Type", "application/json")]].concat();
            assert_eq!(
                status(backend.address, "POST /execute/stream", &json, "{\"question\":\"true\"}"),
                401,
                "{headers:?}"
            );
            assert_eq!(status(backend.address, "GET /executions", &headers, ""), 401);
        }
    }
    for service in [&gateway, &backend] {
        assert_nothing_started(service);
        for probe in ["GET /health", "GET /healthz", "GET /ready"] {
            let host = ("Host", "anything.example");
            let HttpResponse { status, body, .. } = http::exchange(service.address, probe, &[host], "");
            assert_eq!((status, body.as_str()), (200, "{}"), "{probe} says nothing beyond the status");
            let wrong = [host, ("Authorization", "Bearer x")];
            let HttpResponse { status, .. } = http::exchange(service.address, probe, &wrong, "");
            assert!(matches!(status, 401 | 429), "{probe} answers no guess: {status}");
            let HttpResponse { body, .. } =
                http::exchange(service.address, probe, &[("Authorization", &bearer(TOKEN))], "");
            assert!(body.contains(if probe.ends_with("ready") { "ready" } else { "version" }), "{probe}: {body}");
        }
    }
    assert_eq!(status(gateway.address, "GET /docs", &[("Host", "anything.example")], ""), 200);
    assert_eq!(status(gateway.address, "GET /docs/x", &[], ""), 401, "only that page is open");
    for right in [("Authorization", bearer(TOKEN)), ("Sec-WebSocket-Protocol", protocol(TOKEN))] {
        assert!(Client::upgrade(gateway.address, &[(right.0, &right.1)]).is_ok(), "{right:?}");
    }
    let origin = [("Authorization", bearer(TOKEN)), ("Origin", "http://evil.example".to_owned())];
    assert_eq!(
        Client::upgrade(gateway.address, &borrowed(&origin)).err(),
        Some(403),
        "a token does not permit a foreign origin"
    );
    for service in [&gateway, &backend] {
        assert!(!serde_json::to_string(&service.log()).unwrap().contains(TOKEN), "the token is in the log");
        let line = fs::read(format!("/proc/{}/cmdline", service.pid())).unwrap();
        assert!(!String::from_utf8_lossy(&line).contains(TOKEN));
    }
}

#[test]
fn healthz_returns_the_same_as_health() {
    for service in [Service::start(), Service::backend()] {
        let (health, healthz) = (service.get("/health"), service.get("/healthz"));
        assert_eq!((health["server"].as_str(), &health), (Some("cc-executor"), &healthz));
    }
}

#[test]
fn docs_page_names_protocol_and_version_and_loads_no_resource() {
    let HttpResponse { head, body, .. } = http::exchange(Service::start().address, "GET /docs", &[], "");
    assert!(head.starts_with("http/1.1 200 ") && head.contains("content-type: text/html; charset=utf-8"), "{head}");
    for named in ["JSON-RPC 2.0", "WebSocket", "/ws/mcp", "cc-executor.v1", env!("CARGO_PKG_VERSION")] {
        assert!(body.contains(named), "{named}: {body}");
    }
    assert!(
        !body.contains('{') && !body.contains("src=") && !body.contains("href=") && !body.contains("url("),
        "{body}"
    );
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    let HttpResponse { head, .. } = http::exchange(Service::backend().address, "GET /docs", &[], "");
    assert!(head.starts_with("http/1.1 404 "), "only the gateway has the page: {head}");
}

#[test]
fn gateway_authenticates_to_its_backend() {
    let backend = Service::with(&["backend"], &[("CC_EXECUTOR_BACKEND_TOKEN", TOKEN)]);
    let with_token = Service::gateway_with(&backend.url(), &[("CC_EXECUTOR_BACKEND_TOKEN", TOKEN)]);
    assert_eq!(text_and_code(&with_token.run(&["--", "echo in"])), ("in\n".to_owned(), 0));
    // A backend that has only the SHA-256 of the token.
    let digest = format!("{:x}", Sha256::digest(TOKEN));
    let hashed = Service::with(&["backend"], &[("CC_EXECUTOR_BACKEND_TOKEN_SHA256", &digest)]);
    let of_hashed = Service::gateway_with(&hashed.url(), &[("CC_EXECUTOR_BACKEND_TOKEN", TOKEN)]);
    assert_eq!(text_and_code(&of_hashed.run(&["--", "echo in"])), ("in\n".to_owned(), 0));
    let bearer = [("Authorization", format!("Bearer {digest}"))];
    assert_eq!(status(hashed.address, "GET /executions", &borrowed(&bearer), ""), 401, "the SHA-256 is no token");
    let without_token = Service::gateway_without_backend(&backend.url());
    without_token.wait_for_event("backend.down", 1);
    assert!(without_token.log().iter().any(|line| line.to_string().contains("set CC_EXECUTOR_BACKEND_TOKEN")));
    let (_, code) = text_and_code(&without_token.run(&["--", "echo in"]));
    assert_eq!(code, 69, "the backend rejects the gateway");
}

#[test]
fn command_environment_contains_no_secret() {
    let service = Service::with(
        &["serve", "--pass-env", "PASSED_ON"],
        &[
            ("CC_EXECUTOR_TOKEN", TOKEN),
            ("SECRET_THING", "hidden"),
            ("PASSED_ON", "shown"),
            ("CC_EXECUTOR_MAX_SESSIONS", "9"),
        ],
    );
    let mut run = service.run_command(&["--", "env; cat /proc/$PPID/environ; ls -l /proc/$$/fd"]);
    let output = output_of(run.env("CC_EXECUTOR_TOKEN", TOKEN));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(stdout.contains("PASSED_ON=shown") && stdout.contains("PATH="), "{stdout}");
    for secret in [TOKEN, "hidden", "CC_EXECUTOR_", "SECRET_THING"] {
        assert!(!stdout.contains(secret), "{secret}: {stdout}");
    }
    assert!(!stdout.contains("socket:"), "no descriptor of the service reaches a command: {stdout}");
}

#[test]
fn command_cannot_read_proc_files_of_service_or_shim() {
    let mut command = reachable_binary();
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.args(["serve", "--bind", "127.0.0.1:0"]).env("CC_EXECUTOR_TOKEN", TOKEN).env("HOME", "/").current_dir("/");
    let service = Service::spawn(command);
    let read_all = format!(
        "id -u; for file in environ mem maps; do for pid in {} $PPID; do head -c 100000 /proc/$pid/$file && echo OPENED $pid $file; done; done",
        service.pid()
    );
    let output = output_of(service.run_command(&["--", &read_all]).env("CC_EXECUTOR_TOKEN", TOKEN));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        !stdout.starts_with("0\n") && stdout.lines().next().is_some_and(|uid| uid.parse::<u32>().is_ok()),
        "not as root: {stdout}"
    );
    assert!(!stdout.contains("OPENED") && !stdout.contains(TOKEN), "{stdout}");
    assert_eq!(String::from_utf8_lossy(&output.stderr).matches("Permission denied").count(), 6, "{output:?}");
}
