//! Without a token a service on loopback accepts its own user and root, and other local users only if they are allowed.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    process::{Command, Stdio},
};

use rustix::process::Signal;
use serde_json::json;

use crate::common::{
    PATIENCE,
    client::Client,
    containment::{NOBODY, reachable_binary},
    http::{self, HttpResponse},
    left_out,
    service::{Service, binary_under, output_of, run_to_exit},
    temp::TempPath,
    users::{STRANGER, bash_of_user, can_switch_user, of_user},
};

/// A request that makes a backend create this file.
fn request_to_create(address: SocketAddr, file: &TempPath) -> String {
    let body = json!({ "question": format!("touch {}", file.as_str()) }).to_string();
    let head = "POST /execute/stream HTTP/1.1\r\nContent-Type: application/json\r\nConnection: close";
    format!("{head}\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Sends a request as another user, and returns the response.
fn request_of(uid: u32, address: SocketAddr, request: &str) -> String {
    let (host, port) = (address.ip(), address.port());
    let script = format!("exec 3<>/dev/tcp/{host}/{port}; printf %s \"$REQUEST\" >&3; cat <&3");
    let output = output_of(bash_of_user(uid, &script).env("REQUEST", request));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn get(address: SocketAddr, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
}

/// The exit code of `run` as this user.
fn run_of(uid: u32, service: &Service) -> i32 {
    let mut run = reachable_binary();
    run_to_exit(of_user(run.args(["run", "--url", &service.url(), "--", "true"]), uid)).2
}

#[test]
fn other_users_are_refused_and_start_nothing() {
    if !can_switch_user("a request of another local user") {
        return;
    }
    let (gateway, backend) = (Service::start(), Service::backend());
    assert_eq!(run_of(STRANGER, &gateway), 77);
    let file = TempPath::new("stranger");
    let response = request_of(STRANGER, backend.address, &request_to_create(backend.address, &file));
    assert!(response.starts_with("HTTP/1.1 403 "), "{response}");
    for part in ["user 4242", "--allow-local-users 4242"] {
        assert!(response.contains(part), "{part}: {response}");
    }
    for service in [&gateway, &backend] {
        let list = request_of(STRANGER, service.address, &get(service.address, "/executions"));
        assert!(list.starts_with("HTTP/1.1 403 "), "{list}");
        for probe in ["/health", "/ready"] {
            let response = request_of(STRANGER, service.address, &get(service.address, probe));
            assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("\r\n\r\n{}"), "{probe}: {response}");
        }
        for event in ["session.opened", "process.started"] {
            assert_eq!(service.count(event), 0, "{event}");
        }
    }
    assert!(!file.exists(), "a command of the stranger has run");
    assert_eq!(run_of(0, &gateway), 0, "root is accepted");
    let opened = &gateway.wait_for_event("session.opened", 1)[0];
    assert_eq!(opened["client"], "uid:0", "the user is the client");
}

#[test]
fn own_user_and_root_are_accepted() {
    if !can_switch_user("a service of another local user") {
        return;
    }
    let mut command = reachable_binary();
    of_user(command.args(["serve", "--bind", "127.0.0.1:0"]), NOBODY);
    let service = Service::spawn(command);
    assert_eq!([NOBODY, 0, STRANGER].map(|uid| run_of(uid, &service)), [0, 0, 77]);
}

#[test]
fn allowed_users_are_accepted() {
    if !can_switch_user("--allow-local-users") {
        return;
    }
    for (allowed, codes) in
        [("4242", [0, 77]), (" nobody , 7", [77, 0]), ("nobody,4242", [0, 0]), ("all", [0, 0]), ("", [77, 77])]
    {
        let service = Service::with(&["serve", "--allow-local-users", allowed], &[]);
        assert_eq!([STRANGER, NOBODY].map(|uid| run_of(uid, &service)), codes, "{allowed:?}");
    }
    let all = Service::with(&["serve", "--allow-local-users", "all"], &[]);
    assert_eq!(run_of(STRANGER, &all), 0);
    let opened = &all.wait_for_event("session.opened", 1)[0];
    assert_eq!(opened["client"], "anonymous", "nobody asks for the user");
}

#[test]
fn a_peer_that_closes_or_exits_is_not_taken_for_root() {
    if !can_switch_user("a local user that closes its connection") {
        return;
    }
    let backend = Service::backend();
    let (host, port) = (backend.address.ip(), backend.address.port());
    let file = TempPath::new("stranger");
    let request = request_to_create(backend.address, &file);
    let send = format!("exec 3<>/dev/tcp/{host}/{port}; printf %s \"$REQUEST\" >&3");
    // The backend accepts the connections when their peers are gone, because it is stopped until then.
    backend.signal(Signal::STOP);
    assert!(bash_of_user(STRANGER, &send).env("REQUEST", &request).status().unwrap().success(), "sends and exits");
    let mut closed = bash_of_user(STRANGER, &format!("{send}; exec 3>&-; echo closed; read"))
        .env("REQUEST", &request)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 7];
    closed.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    backend.signal(Signal::CONT);
    let refused = backend.wait_for_event("request.refused", 2);
    for line in &refused {
        assert!(line.to_string().contains("its peer has closed the connection"), "{line}");
    }
    closed.stdin.take();
    closed.wait().unwrap();
    assert_eq!(backend.count("process.started"), 0);
    assert!(!file.exists());
}

#[test]
fn a_peer_that_only_stops_writing_is_known() {
    let backend = Service::backend();
    // Stopped, so that the end of the input is there when the user is looked up.
    backend.signal(Signal::STOP);
    let mut stream = TcpStream::connect(backend.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(get(backend.address, "/executions").as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    backend.signal(Signal::CONT);
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    assert_eq!(backend.count("request.refused"), 0);
}

#[test]
fn users_are_known_over_every_loopback_address() {
    let can_switch_user = can_switch_user("other local users over IPv6");
    for bind in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
        let mut command = reachable_binary();
        command.args(["serve", "--bind", bind]);
        let service = Service::spawn(command);
        let HttpResponse { status, body, .. } = http::exchange(service.address, "GET /executions", &[], "");
        assert_eq!(status, 200, "{bind}: {body}");
        assert!(Client::upgrade(service.address, &[]).is_ok(), "{bind}");
        if can_switch_user {
            let response = request_of(STRANGER, service.address, &get(service.address, "/executions"));
            assert!(response.starts_with("HTTP/1.1 403 ") && response.contains("user 4242"), "{bind}: {response}");
        }
    }
    // An IPv6 socket of the client, and an IPv4 socket of the service.
    let service = Service::start();
    let mapped: SocketAddr = format!("[::ffff:127.0.0.1]:{}", service.address.port()).parse().unwrap();
    assert_eq!(http::exchange(mapped, "GET /executions", &[("Host", "localhost")], "").status, 200);
    if can_switch_user {
        let request = get(service.address, "/executions");
        assert!(request_of(STRANGER, mapped, &request).contains("user 4242"));
    }
}

#[test]
fn start_fails_where_users_cannot_be_known() {
    // In a user namespace without a map all users have the same number.
    let in_namespace = |arguments: &[&str]| {
        let mut command = binary_under("unshare");
        let copy = reachable_binary();
        command.arg("-U").arg(copy.get_program()).args(arguments).args(["--bind", "127.0.0.1:0"]);
        command
    };
    if !Command::new("unshare").args(["-U", "true"]).output().is_ok_and(|output| output.status.success()) {
        return left_out("a service that cannot know the users of connections", "no user namespaces (unshare -U)");
    }
    for role in ["serve", "backend"] {
        let (_, stderr, code) = run_to_exit(&mut in_namespace(&[role]));
        assert_eq!(code, 1, "{stderr}");
        assert!(stderr.contains("user namespace") && stderr.contains("--allow-local-users all"), "{stderr}");
    }
    Service::spawn(in_namespace(&["backend", "--allow-local-users", "all"]));
}
