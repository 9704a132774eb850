//! What a stranger can write into the log: so many lines, so much of a path, no token, and no character that a terminal
//! obeys.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use cc_executor_actors::{id::ExecutionId, rpc::code};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::piped::{PipedService, counts, parse};
use crate::common::{HOSTILE, PATIENCE, client::Client, http, is_obeyed, scale, service::Service};

const EVIL: (&str, &str) = ("Host", "evil.example");

/// Checks that these lines of one peer are at most ten a second.
fn assert_rate(lines: &[Value]) {
    let written: Vec<&Value> = lines.iter().filter(|line| line["event"] != "log.omitted").collect();
    let time = |line: &Value| line["time"].as_str().unwrap().parse::<Timestamp>().unwrap();
    let took = time(written[written.len() - 1]).duration_since(time(written[0]));
    // One more second, because the first ten need no time, and one for a delay between the decision and the time.
    let most = 10 * (took.as_secs() as usize + 3);
    assert!(written.len() <= most, "{} lines in {took:?}", written.len());
}

#[test]
fn refused_requests_write_few_short_lines_without_what_may_be_secret() {
    let service = Service::start();
    let n = scale(300, 20_000) as u64;
    let long = "%41".repeat(19_000);
    for n in 0..n {
        let request = match n % 3 {
            0 => format!("GET /{long}"),
            1 => "GET /ws/mcp?token=secret-word".to_owned(),
            _ => "GET /ws;token=secret-word/mcp%3Ftoken=secret-word".to_owned(),
        };
        assert_eq!(http::exchange(service.address, &request, &[EVIL], "").status, 403);
    }
    let lines = service.wait_for_records("request.refused", n);
    assert_rate(&lines);
    let text: String = lines.iter().map(Value::to_string).collect();
    assert!(!text.contains("secret"), "{text}");
    assert!(text.len() < 1000 * lines.len(), "{} bytes in {} lines", text.len(), lines.len());
    let paths: Vec<&str> = lines.iter().filter_map(|line| line["path"].as_str()).collect();
    for path in [format!("/{}%…", "%41".repeat(66)), "/ws/mcp".to_owned()] {
        assert!(paths.contains(&path.as_str()), "{path}: {paths:?}");
    }
    assert!(
        lines.iter().any(|line| line["event"] == "request.refused" && line["omitted"].is_u64())
            || lines.iter().any(|line| line["event"] == "log.omitted" && line["by"] == "127.0.0.1"),
        "{lines:?}"
    );
}

#[test]
fn unknown_routes_echo_neither_query_nor_parameters_of_a_path() {
    let (gateway, backend) = (Service::start(), Service::backend());
    for service in [&gateway, &backend] {
        for path in [
            "/nothing;token=secret-word/here?token=secret-word".to_owned(),
            "/nothing/here%3Btoken=secret-word%3Ftoken=secret-word".to_owned(),
            format!("/nothing/here/{}", "%42".repeat(10_000)),
        ] {
            let response = http::exchange(service.address, &format!("GET {path}"), &[], "");
            assert_eq!(response.status, 404);
            assert!(
                response.body.contains("GET /nothing/here") && !response.body.contains("secret"),
                "{}",
                response.body
            );
            assert!(response.body.len() < 500, "{} bytes", response.body.len());
        }
    }
    let response = http::exchange(backend.address, "GET /executions/x;token=secret-word", &[], "");
    assert_eq!((response.status, response.body.contains("secret")), (400, false), "{}", response.body);
}

#[test]
fn malformed_requests_write_few_lines() {
    let service = Service::start();
    let n = scale(300, 3000) as u64;
    for _ in 0..n {
        let mut stream = TcpStream::connect(service.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"\x1b[31m\x00 not HTTP\r\n\r\n").unwrap();
        let mut response = Vec::new();
        // The service may reset the connection.
        let _ = stream.read_to_end(&mut response);
    }
    let lines = service.wait_for_records("actix_http::h1::dispatcher", n);
    assert_rate(&lines);
}

#[test]
fn cancellations_of_unknown_ids_write_few_lines() {
    let service = Service::start();
    let mut client = service.connect();
    let n = scale(300, 3000) as u64;
    for _ in 0..n {
        client.notify("control", json!({ "type": "CANCEL", "executionId": ExecutionId::random() }));
        client.notification("error");
    }
    let lines = service.wait_for_records("cancel.requested", n);
    assert_rate(&lines);
    let written: Vec<_> = lines.iter().filter(|line| line["event"] == "cancel.requested").collect();
    assert!(!written.is_empty() && written.iter().all(|line| line["session_id"].is_string()), "{written:?}");
}

#[test]
fn refused_sessions_write_few_lines() {
    let service = Service::with(&["serve", "--max-sessions", "1"], &[]);
    let _first = service.connect();
    let n = scale(100, 2000) as u64;
    for _ in 0..n {
        let mut refused = Client::upgrade(service.address, &[]).expect("the upgrade is accepted");
        assert_eq!(refused.notification("error")["code"], code::SESSION_LIMIT);
    }
    assert_rate(&service.wait_for_records("session.refused", n));
}

#[test]
fn control_characters_of_a_command_are_escaped_in_both_formats() {
    let hostile = format!("true #{HOSTILE}");
    for format in ["text", "json"] {
        let mut service = PipedService::start(&[("LOG_FORMAT", format), ("RUST_LOG", "debug")]);
        let log = service.read_on();
        let mut client = Client::connect(service.address);
        client.run(json!({ "command": hostile, "env": { "NAME": "value" } }));
        client.close();
        let mut refused = http::send(service.address, "GET /%1b%9b%c2%9b", &[EVIL], "");
        assert_eq!(http::read_status(&mut refused), 403);
        service.terminate();
        assert_eq!(service.wait().0.code(), Some(0));
        let log = log.text();
        let raw = log.lines().find(|line| line.contains(is_obeyed));
        assert_eq!(raw, None, "{format}");
        let commands: Vec<&str> = log.lines().filter(|line| line.contains("execution.command")).collect();
        assert_eq!(commands.len(), 1, "{format}");
        assert!(commands[0].contains("true #\\u001b]0;title"), "{}", commands[0]);
        if format == "json" {
            assert_eq!(parse(commands[0].as_bytes())["command"], hostile);
            let lines: Vec<Value> = log.lines().map(|line| parse(line.as_bytes())).collect();
            assert_eq!(counts(&lines)["service.stopped"], 1);
        }
    }
}
