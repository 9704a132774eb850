//! Closed by default: what a web page, a stranger or a command of the same user tries is refused, and
//! starts nothing.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::common::{
    PATIENCE,
    client::Client,
    service::{BINARY, Service, binary, text_and_code},
};

const TOKEN: &str = "open-sesame-7";

/// The status of a request with these headers and this body.
fn status(address: SocketAddr, request: &str, headers: &[(&str, &str)], body: &str) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut head = format!("{request} HTTP/1.1\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head.push_str(&format!("Host: {address}\r\n"));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n{body}").as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut bytes = [0; 4096];
    while !answer.contains(&b'\n') {
        let n = stream.read(&mut bytes).expect("an answer");
        assert!(n > 0, "no answer to {request}");
        answer.extend_from_slice(&bytes[..n]);
    }
    String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status")
}

/// Hosts and origins that are not this service, each with the status of its refusal.
fn strangers(port: u16) -> Vec<Vec<(&'static str, String)>> {
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

fn nothing_happened(service: &Service) {
    for event in ["session.opened", "execution.started", "process.started"] {
        assert_eq!(service.count(event), 0, "{event}");
    }
}

#[test]
fn gateway_rejects_foreign_origins_and_hosts() {
    let service = Service::start();
    let mut n_refused = 0;
    for headers in strangers(service.address.port()) {
        let refused = Client::upgrade(service.address, &borrowed(&headers)).err();
        assert_eq!(refused, Some(403), "{headers:?}");
        for route in ["GET /health", "GET /healthz", "GET /docs"] {
            assert_eq!(status(service.address, route, &borrowed(&headers), ""), 403, "every route: {headers:?}");
        }
        n_refused += 4;
    }
    assert!(n_refused >= 30, "{n_refused}");
    // The log is read on a thread of its own: what is asserted of it is waited for.
    service.wait_for_event("request.refused", n_refused);
    nothing_happened(&service);
    let origin = format!("http://localhost:{}", service.address.port());
    assert!(Client::upgrade(service.address, &[("Origin", &origin)]).is_ok(), "its own pages may");
}

#[test]
fn backend_rejects_foreign_origins_hosts_and_form_posts() {
    let backend = Service::backend();
    let body = json!({ "question": "touch /tmp/never" }).to_string();
    let post = |headers: &[(&str, &str)]| status(backend.address, "POST /execute/stream", headers, &body);
    for headers in strangers(backend.address.port()) {
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
    nothing_happened(&backend);
    assert_eq!(post(&[("Content-Type", "application/json; charset=utf-8")]), 200);
}

#[test]
fn only_probes_and_docs_work_without_the_token() {
    let log = [("CC_EXECUTOR_TOKEN", TOKEN), ("RUST_LOG", "debug")];
    let gateway = Service::with(&["serve"], &log);
    let backend = Service::with(
        &["backend"],
        &[("CC_EXECUTOR_TOKEN", "another"), ("CC_EXECUTOR_BACKEND_TOKEN", TOKEN), ("RUST_LOG", "debug")],
    );
    let bearer = |token: &str| format!("Bearer {token}");
    let protocol = |token: &str| format!("cc-executor.v1, bearer.{}", URL_SAFE_NO_PAD.encode(token));
    let wrong = ["", "open-sesame", "open-sesame-77", "OPEN-SESAME-7", "another"];
    for token in wrong {
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
        nothing_happened(service);
        for probe in ["GET /health", "GET /healthz", "GET /ready"] {
            assert_eq!(status(service.address, probe, &[("Host", "anything.example")], ""), 200, "{probe}");
        }
    }
    assert_eq!(status(gateway.address, "GET /docs", &[("Host", "anything.example")], ""), 200);
    assert_eq!(status(gateway.address, "GET /docs/x", &[], ""), 401, "nothing but that page");
    for right in [("Authorization", bearer(TOKEN)), ("Sec-WebSocket-Protocol", protocol(TOKEN))] {
        assert!(Client::upgrade(gateway.address, &[(right.0, &right.1)]).is_ok(), "{right:?}");
    }
    let origin = [("Authorization", bearer(TOKEN)), ("Origin", "http://evil.example".to_owned())];
    assert_eq!(
        Client::upgrade(gateway.address, &borrowed(&origin)).err(),
        Some(403),
        "a token does not excuse a stranger's page"
    );
    for service in [&gateway, &backend] {
        assert!(!serde_json::to_string(&service.log()).unwrap().contains(TOKEN), "the token is in the log");
        let line = fs::read(format!("/proc/{}/cmdline", service.pid())).unwrap();
        assert!(!String::from_utf8_lossy(&line).contains(TOKEN));
    }
}

/// The head and the body of an answer to a GET.
fn page(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_ascii_lowercase(), body.to_owned())
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
    let (head, body) = page(Service::start().address, "/docs");
    assert!(head.starts_with("http/1.1 200 ") && head.contains("content-type: text/html; charset=utf-8"), "{head}");
    for named in ["JSON-RPC 2.0", "WebSocket", "/ws/mcp", "cc-executor.v1", env!("CARGO_PKG_VERSION")] {
        assert!(body.contains(named), "{named}: {body}");
    }
    assert!(
        !body.contains('{') && !body.contains("src=") && !body.contains("href=") && !body.contains("url("),
        "{body}"
    );
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    let (head, _) = page(Service::backend().address, "/docs");
    assert!(head.starts_with("http/1.1 404 "), "only the gateway speaks it: {head}");
}

#[test]
fn gateway_authenticates_to_its_backend() {
    let backend = Service::with(&["backend"], &[("CC_EXECUTOR_BACKEND_TOKEN", TOKEN)]);
    let knowing =
        Service::with(&["serve", "--claude-api-url", &backend.url()], &[("CC_EXECUTOR_BACKEND_TOKEN", TOKEN)]);
    assert_eq!(text_and_code(&knowing.run(&["--", "echo in"])), ("in\n".to_owned(), 0));
    // The backend may know no more of it than its SHA-256.
    let digest = format!("{:x}", Sha256::digest(TOKEN));
    let hashed = Service::with(&["backend"], &[("CC_EXECUTOR_BACKEND_TOKEN_SHA256", &digest)]);
    let of_hashed =
        Service::with(&["serve", "--claude-api-url", &hashed.url()], &[("CC_EXECUTOR_BACKEND_TOKEN", TOKEN)]);
    assert_eq!(text_and_code(&of_hashed.run(&["--", "echo in"])), ("in\n".to_owned(), 0));
    let bearer = [("Authorization", format!("Bearer {digest}"))];
    assert_eq!(status(hashed.address, "GET /executions", &borrowed(&bearer), ""), 401, "the SHA-256 opens nothing");
    let ignorant = Service::gateway(&backend.url());
    let (_, code) = text_and_code(&ignorant.run(&["--", "echo in"]));
    assert_eq!(code, 69, "the backend rejects it");
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
    let output = run.env("CC_EXECUTOR_TOKEN", TOKEN).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("PASSED_ON=shown") && said.contains("PATH="), "{said}");
    for secret in [TOKEN, "hidden", "CC_EXECUTOR_", "SECRET_THING"] {
        assert!(!said.contains(secret), "{secret}: {said}");
    }
    assert!(!said.contains("socket:"), "no descriptor of the service reaches a command: {said}");
}

/// The binary where a user without privileges can reach it, removed when dropped.
struct Reachable(PathBuf);

impl Reachable {
    fn new() -> Reachable {
        let directory = std::env::temp_dir().join(format!("cc-executor-reachable-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        // By another process: while this one has the copy open for writing, a child that another test forks holds
        // that descriptor until its own exec, and the copy cannot be executed (ETXTBSY).
        assert!(Command::new("cp").args([BINARY.as_ref(), directory.as_path()]).status().unwrap().success());
        Reachable(directory)
    }
}

impl Drop for Reachable {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn command_cannot_read_proc_files_of_service_or_shim() {
    let reachable = Reachable::new();
    let copy = reachable.0.join("cc-executor");
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy);
        command
    } else {
        Command::new(&copy)
    };
    for (name, _) in binary().get_envs() {
        command.env_remove(name);
    }
    command.args(["serve", "--bind", "127.0.0.1:0"]).env("CC_EXECUTOR_TOKEN", TOKEN).env("HOME", "/").current_dir("/");
    let service = Service::spawn(command);
    let try_all = format!(
        "id -u; for file in environ mem maps; do for pid in {} $PPID; do head -c 100000 /proc/$pid/$file && echo OPENED $pid $file; done; done",
        service.pid()
    );
    let output = service.run_command(&["--", &try_all]).env("CC_EXECUTOR_TOKEN", TOKEN).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        !said.starts_with("0\n") && said.lines().next().is_some_and(|uid| uid.parse::<u32>().is_ok()),
        "not as root: {said}"
    );
    assert!(!said.contains("OPENED") && !said.contains(TOKEN), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stderr).matches("Permission denied").count(), 6, "{output:?}");
}
