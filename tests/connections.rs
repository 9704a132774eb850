//! The connections of strangers, and requests that do not arrive: they take no descriptor, memory or time that work needs.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    client::Client,
    http::{self, JSON},
    scale,
    service::{BINARY, Service, binary_under, text_and_code},
    wait_until,
};

const TOKEN: &str = "a-token-of-32-characters-at-least";
const BEARER: (&str, &str) = ("Authorization", "Bearer a-token-of-32-characters-at-least");

/// The limit of open files of a service that must not run out of them.
const DESCRIPTORS: &str = "--nofile=300:300";

/// A role with the token and this limit of open files.
fn with_few_descriptors(arguments: &[&str]) -> Service {
    let mut command = binary_under("prlimit");
    command.args([DESCRIPTORS, BINARY]).args(arguments).args(["--bind", "127.0.0.1:0"]);
    Service::spawn({
        command.env("CC_EXECUTOR_TOKEN", TOKEN);
        command
    })
}

/// Connections that send nothing.
fn idle(address: SocketAddr, n: usize) -> Vec<TcpStream> {
    (0..n).map(|_| TcpStream::connect(address).expect("the service listens")).collect()
}

/// Sends the beginning of a request, and returns its connection.
fn begin(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the service listens");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(text.as_bytes()).expect("the service reads");
    stream
}

/// Everything that comes until the connection ends. A reset is an end.
fn read_all(stream: &mut TcpStream) -> String {
    let (mut bytes, mut piece) = (Vec::new(), [0; 4_096]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("the connection does not end: {error}; {}", String::from_utf8_lossy(&bytes)),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The status of a response, `None` without one.
fn status_of(response: &str) -> Option<u16> {
    response.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let read = (&*stream).read(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

/// A head that a client with the token sends.
fn head(request: &str, headers: &[(&str, &str)]) -> String {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("{request} HTTP/1.1\r\nHost: localhost\r\n{lines}")
}

#[test]
fn idle_strangers_neither_block_newcomers_nor_take_descriptors_from_executions() {
    let service = with_few_descriptors(&["serve"]);
    let mut session = Client::upgrade(service.address, &[BEARER]).expect("the upgrade is accepted");
    session.call("execute", json!({ "command": "read line; echo $line", "stdin": true })).unwrap();
    for round in 0..scale(3, 20) {
        let strangers = idle(service.address, 200);
        let executions: Vec<_> = (0..4)
            .map(|_| {
                let mut run = service.run_command(&["--", "echo in | cat"]);
                run.env("CC_EXECUTOR_TOKEN", TOKEN);
                thread::spawn(move || text_and_code(&crate::common::service::output_of(&mut run)))
            })
            .collect();
        for execution in executions {
            assert_eq!(execution.join().unwrap(), ("in\n".to_owned(), 0), "round {round}");
        }
        let n_open = strangers.iter().filter(|stream| is_open(stream)).count();
        assert!(n_open <= 50, "{n_open} strangers keep their connections");
        assert!(service.n_descriptors() < 250, "{} descriptors", service.n_descriptors());
    }
    session.call("input", json!({ "data": "still here\n" })).unwrap();
    assert_eq!(session.record().text(), "still here\n");
}

#[test]
fn gateway_reaches_its_backend_while_strangers_fill_it() {
    let backend = with_few_descriptors(&["backend"]);
    let gateway = Service::gateway_with(&backend.url(), &[("CC_EXECUTOR_BACKEND_TOKEN", TOKEN)]);
    for round in 0..scale(5, 100) {
        // Some send nothing, some a probe, some a wrong token, and some half a request.
        let mut strangers = idle(backend.address, 300);
        for (n, stream) in strangers.iter_mut().enumerate() {
            let request = match n % 4 {
                0 => head("GET /health", &[]) + "\r\n",
                1 => head("GET /executions", &[("Authorization", "Bearer wrong")]) + "\r\n",
                2 => "GET /exec".to_owned(),
                _ => String::new(),
            };
            // Fails if the connection was closed for another one.
            let _ = stream.write_all(request.as_bytes());
        }
        assert_eq!(text_and_code(&gateway.run(&["--", "echo in"])), ("in\n".to_owned(), 0), "round {round}");
    }
    assert_eq!(gateway.count("backend.down"), 0, "{:?}", gateway.log());
}

#[test]
fn sessions_at_the_limit_of_descriptors_are_refused_and_executions_go_on() {
    let service = with_few_descriptors(&["serve"]);
    let warning = service.events("service.few_descriptors").pop().expect("a warning");
    let allowed = usize::try_from(warning["sessions"].as_u64().unwrap()).unwrap();
    let sessions: Vec<_> = (0..allowed).map(|_| Client::upgrade(service.address, &[BEARER]).unwrap()).collect();
    let upgrade = [
        BEARER,
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let response = read_all(&mut http::send(service.address, "GET /ws/mcp", &upgrade, ""));
    assert_eq!(status_of(&response), Some(503), "{response}");
    assert!(response.to_ascii_lowercase().contains("retry-after: 1\r\n"), "{response}");
    let error: Value = serde_json::from_str(response.split_once("\r\n\r\n").unwrap().1).unwrap();
    let data = json!({ "limit": allowed, "used": allowed, "scope": "service", "retryAfterMs": 1_000 });
    assert_eq!((error["code"].as_i64(), &error["data"]), (Some(-32009), &data));
    assert_eq!(http::exchange(service.address, "GET /health", &[], "").status, 200, "a probe is answered");
    for mut session in sessions {
        session.call("execute", json!({ "command": "echo in" })).unwrap();
        assert_eq!(session.record().text(), "in\n");
    }
}

#[test]
fn requests_that_do_not_arrive_end_with_their_time() {
    for role in ["serve", "backend"] {
        let service = Service::with(&[role, "--request-timeout-ms", "500"], &[("CC_EXECUTOR_TOKEN", TOKEN)]);
        let mut silent = begin(service.address, "");
        let mut half = begin(service.address, "GET /health HTTP/1.1\r\nHo");
        let mut probe = begin(service.address, &(head("GET /health", &[]) + "\r\n"));
        let mut again = begin(service.address, &(head("GET /health", &[]) + "\r\nGET /hea"));
        assert_eq!(status_of(&read_all(&mut silent)), Some(408));
        assert_eq!(status_of(&read_all(&mut half)), Some(408));
        assert_eq!(status_of(&read_all(&mut probe)), Some(200), "then the connection ends");
        assert_eq!(status_of(&read_all(&mut again)), Some(200), "then the connection ends");
    }
}

#[test]
fn a_body_has_a_time_to_arrive() {
    let service = Service::with(&["backend", "--request-timeout-ms", "2000"], &[("CC_EXECUTOR_TOKEN", TOKEN)]);
    let json = ("Content-Type", "application/json");
    for framing in [("Content-Length", "100"), ("Transfer-Encoding", "chunked")] {
        let start = if framing.0 == "Content-Length" { "{\"quest" } else { "7\r\n{\"quest\r\n" };
        let request = head("POST /execute/stream", &[BEARER, json, framing]) + "\r\n" + start;
        let response = read_all(&mut begin(service.address, &request));
        assert_eq!(status_of(&response), Some(408), "{response}");
        assert!(response.contains("only 7 bytes of the body had arrived after 2"), "{response}");
    }
}

#[test]
fn unfinished_bodies_take_bounded_memory() {
    const LENGTH: usize = 15_000_000;
    let refused = Service::backend();
    let request = |length: usize| {
        let length = length.to_string();
        head("POST /execute/stream", &[BEARER, ("Content-Type", "application/json"), ("Content-Length", &length)])
            + "\r\n"
    };
    let response = read_all(&mut begin(refused.address, &request(LENGTH)));
    assert_eq!(status_of(&response), Some(413), "by default a message has 1 MiB: {response}");

    let arguments = ["backend", "--max-message-bytes", "16777216", "--request-timeout-ms", "3000"];
    let service = Service::with(&arguments, &[("CC_EXECUTOR_TOKEN", TOKEN)]);
    let before = service.rss_kib();
    let bytes = vec![b' '; LENGTH - 1];
    let statuses: Vec<_> = thread::scope(|scope| {
        let senders: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| {
                    let mut stream = begin(service.address, &request(LENGTH));
                    // Fails when the service refuses the body.
                    let _ = stream.write_all(&bytes);
                    read_all(&mut stream)
                })
            })
            .collect();
        let mut highest = 0;
        while senders.iter().any(|sender| !sender.is_finished()) {
            highest = highest.max(service.rss_kib());
            // Others work meanwhile.
            let response = http::exchange(service.address, "GET /executions", &[BEARER], "");
            assert_eq!(response.status, 200);
        }
        assert!(highest.saturating_sub(before) < 100 << 10, "{before} to {highest} KiB");
        senders.into_iter().map(|sender| sender.join().unwrap()).collect()
    });
    let n = |wanted: u16| statuses.iter().filter(|response| status_of(response) == Some(wanted)).count();
    assert!(n(408) >= 1 && n(429) + n(503) >= 1, "{statuses:?}");
    for response in statuses.iter().filter(|response| matches!(status_of(response), Some(429 | 503))) {
        assert!(response.to_ascii_lowercase().contains("retry-after: 1\r\n"), "{response}");
    }
    let question = json!({ "question": "echo in" }).to_string();
    let response = http::exchange(service.address, "POST /execute/stream", &[BEARER, JSON], &question);
    assert_eq!((response.status, response.body.as_str()), (200, "in\n"), "the memory is free again");
}

#[test]
fn a_refused_request_ends_its_connection_and_its_body_is_not_read() {
    let secured = Service::with(&["backend"], &[("CC_EXECUTOR_TOKEN", TOKEN)]);
    let open = Service::backend();
    let endless = ("Transfer-Encoding", "chunked");
    for (service, request, headers, status) in [
        (&secured, "GET /executions", vec![], 401),
        (&secured, "POST /execute/stream", vec![("Content-Length", "100000000"), JSON], 401),
        (&secured, "POST /execute/stream", vec![endless, JSON], 401),
        (&secured, "POST /execute/stream", vec![endless, BEARER], 415),
        (&secured, "POST /nowhere", vec![endless, BEARER, JSON], 404),
        (&secured, "GET /executions", vec![BEARER, BEARER], 400),
        (&open, "POST /execute/stream", vec![endless], 415),
        (&open, "GET /executions", vec![("Origin", "http://evil.example")], 403),
        (&open, "GET http://evil.example/executions", vec![], 403),
    ] {
        let mut stream = begin(service.address, &(head(request, &headers) + "\r\n"));
        let start = Instant::now();
        let writer = headers.contains(&endless).then(|| {
            let mut stream = stream.try_clone().unwrap();
            let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
            thread::spawn(move || while stream.write_all(chunk.as_bytes()).is_ok() {})
        });
        let response = read_all(&mut stream);
        assert_eq!(status_of(&response), Some(status), "{request} {headers:?}: {response}");
        assert!(response.to_ascii_lowercase().contains("connection: close\r\n"), "{request} {headers:?}: {response}");
        writer.into_iter().for_each(|writer| writer.join().unwrap());
        assert!(start.elapsed() < Duration::from_secs(15), "{request} {headers:?}: {:?}", start.elapsed());
    }
    assert_eq!(open.count("process.started") + secured.count("process.started"), 0);
}

#[test]
fn the_host_of_an_absolute_target_is_judged() {
    let service = Service::backend();
    let body = json!({ "question": "echo in" }).to_string();
    let post = |target: &str, host: &str| {
        http::exchange(service.address, &format!("POST {target}"), &[JSON, ("Host", host)], &body).status
    };
    for (target, host, status) in [
        ("http://evil.example/execute/stream", "localhost", 403),
        ("http://localhost@evil.example/execute/stream", "localhost", 403),
        ("https://evil.example:8000/execute/stream", "localhost", 403),
        ("/execute/stream", "evil.example", 403),
        ("http://localhost/execute/stream", "localhost", 200),
        ("http://127.0.0.1:1/execute/stream", "evil.example", 200),
    ] {
        assert_eq!(post(target, host), status, "{target} {host}");
    }
    for (request, status) in [
        ("OPTIONS *", 404),
        ("CONNECT evil.example:80", 403),
        ("CONNECT localhost:80", 404),
        ("GET evil.example:80", 403),
        ("GET //evil.example/execute/stream", 404),
    ] {
        let response = read_all(&mut begin(service.address, &(head(request, &[http::CLOSE]) + "\r\n")));
        assert_eq!(status_of(&response), Some(status), "{request}: {response}");
    }
    assert_eq!(service.count("process.started"), 2);
}

/// With chunked encoding the service would read WebSocket frames as chunks.
#[test]
fn a_session_request_with_a_body_is_refused() {
    let service = Service::start();
    let chunked = [("Transfer-Encoding", "chunked")];
    assert_eq!(Client::upgrade(service.address, &chunked).err(), Some(400));
    service.connect().close();
}

#[test]
fn ambiguous_and_huge_requests_are_refused_and_cost_no_memory() {
    let service = Service::with(&["backend"], &[("CC_EXECUTOR_TOKEN", TOKEN)]);
    let post = |headers: &[(&str, &str)]| head("POST /execute/stream", &[&[BEARER, JSON], headers].concat()) + "\r\n{}";
    let long = "x".repeat(200_000);
    let many: Vec<_> = (0..200).map(|_| ("X-Header", "x")).collect();
    let before = service.rss_kib();
    for _ in 0..scale(20, 200) {
        for (request, statuses) in [
            (post(&[("Content-Length", "2"), ("Transfer-Encoding", "chunked")]), [400, 400]),
            (post(&[("Content-Length", "2"), ("Content-Length", "3")]), [400, 400]),
            (post(&[("Content-Length", "+2")]), [400, 400]),
            (post(&[("Content-Length", "-2")]), [400, 400]),
            (post(&[("Content-Length", "99999999999999999999999999")]), [400, 400]),
            (post(&[("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")]), [400, 400]),
            (post(&[("Transfer-Encoding", "gzip, chunked")]), [400, 400]),
            (post(&[("Host", "localhost"), ("Content-Length", "2")]), [400, 400]),
            (head("GET /health", &[("X-Long", &long)]) + "\r\n", [431, 431]),
            (head(&format!("GET /{long}"), &[]) + "\r\n", [431, 400]),
            (head("GET /health", &many) + "\r\n", [431, 400]),
            ("\0\x01\x02\r\n\r\n".to_owned(), [400, 400]),
        ] {
            let mut stream = TcpStream::connect(service.address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            // Fails when the service refuses the rest.
            let _ = stream.write_all(request.as_bytes());
            let response = read_all(&mut stream);
            let status = status_of(&response);
            // A reset may overtake the response to a request that was not read to its end.
            let shown: String = request.chars().take(300).collect();
            assert!(status.is_none_or(|status| statuses.contains(&status)), "{shown}: {response}");
            assert!(status.is_some() || request.len() > 100_000, "{shown}: {response}");
        }
    }
    assert!(service.rss_kib().saturating_sub(before) < 16 << 10, "{before} to {} KiB", service.rss_kib());
    assert_eq!(service.count("process.started"), 0);
}

#[test]
fn wrong_tokens_slow_down_and_the_right_one_is_never_delayed() {
    let service = Service::with(&["backend"], &[("CC_EXECUTOR_TOKEN", TOKEN)]);
    let (unauthorized, limited) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let over = AtomicBool::new(false);
    let slowest = thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let mut stream = begin(
                        service.address,
                        &(head("GET /executions", &[("Authorization", "Bearer wrong")]) + "\r\n"),
                    );
                    let response = read_all(&mut stream);
                    match status_of(&response) {
                        Some(401) => unauthorized.fetch_add(1, Ordering::Relaxed),
                        Some(429) => {
                            assert!(response.to_ascii_lowercase().contains("retry-after: "), "{response}");
                            limited.fetch_add(1, Ordering::Relaxed)
                        }
                        other => panic!("{other:?}: {response}"),
                    };
                }
            });
        }
        wait_until("guesses are limited", PATIENCE, || limited.load(Ordering::Relaxed) >= 16);
        let mut slowest = Duration::ZERO;
        for _ in 0..100 {
            let start = Instant::now();
            assert_eq!(http::exchange(service.address, "GET /executions", &[BEARER], "").status, 200);
            slowest = slowest.max(start.elapsed());
        }
        over.store(true, Ordering::Relaxed);
        slowest
    });
    let (unauthorized, limited) = (unauthorized.into_inner(), limited.into_inner());
    assert!(unauthorized <= 90, "{unauthorized} guesses were answered at once, {limited} were not");
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    // A request without a token is not a guess.
    assert_eq!(http::exchange(service.address, "GET /executions", &[], "").status, 401);
}
