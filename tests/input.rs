//! Invalid input: the session answers with an error that names the problem and continues, or it closes with the right code
//! and sends nothing after that. Messages are raw JSON and raw frames here, because the wire types cannot express invalid ones.

use std::time::Duration;

use cc_executor_actors::{outcome::Status, rpc::code};
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    client::{Client, Frame},
    frames::{self, frame, frame_header, text_frame},
    service::Service,
    wait_until,
};

/// Calls that must fail: method, params, error code, and a text that the message must contain.
fn invalid_calls() -> Vec<(&'static str, Value, i64, &'static str)> {
    vec![
        ("nope", json!({}), code::METHOD, "nope"),
        ("input", json!({ "data": "x" }), code::NOT_RUNNING, "send execute or attach"),
        ("input", json!({ "data": 7 }), code::PARAMS, "data"),
        ("resize", json!({ "rows": 1, "cols": 1 }), code::NOT_RUNNING, "send execute or attach"),
        ("resize", json!({ "rows": 1 }), code::PARAMS, "cols"),
        (
            "attach",
            json!({ "executionId": "00000000-0000-4000-8000-000000000000" }),
            code::UNKNOWN_EXECUTION,
            "00000000",
        ),
        ("attach", json!({ "offsets": {} }), code::PARAMS, "executionId"),
        ("execute", json!({}), code::PARAMS, "command"),
        ("execute", json!({ "command": "" }), code::PARAMS, "command"),
        ("execute", json!({ "command": ["echo"] }), code::PARAMS, "command"),
        ("execute", json!({ "command": "a\u{0}b" }), code::PARAMS, "NUL"),
        ("execute", json!({ "command": "x".repeat(131_072) }), code::PARAMS, "131071"),
        ("execute", json!({ "command": "true", "executor": "perl" }), code::NOT_ALLOWED, "perl"),
        ("execute", json!({ "command": "true", "executor": 7 }), code::PARAMS, "executor"),
        ("execute", json!({ "command": "true", "executionId": "x" }), code::PARAMS, "executionId"),
        ("execute", json!({ "command": "true", "env": { "A": 1 } }), code::PARAMS, "env.A"),
        ("execute", json!({ "command": "true", "timeoutMs": -1 }), code::PARAMS, "timeoutMs"),
        ("execute", json!({ "command": "true", "timeoutMs": 1u64 << 50 }), code::PARAMS, "timeoutMs"),
        ("execute", json!({ "command": "true", "heartbeatMs": 60_001 }), code::PARAMS, "60000"),
        ("execute", json!({ "command": "true", "framing": "word" }), code::PARAMS, "framing"),
        ("execute", json!({ "command": "true", "stdin": "yes" }), code::PARAMS, "stdin"),
        ("execute", json!({ "command": "true", "pty": { "rows": 1 } }), code::PARAMS, "cols"),
        ("execute", json!({ "command": "true", "stallTimeoutMs": 0 }), code::PARAMS, "stallTimeoutMs"),
        ("execute", json!({ "command": "true", "onDisconnect": "stay" }), code::PARAMS, "onDisconnect"),
        ("execute", json!({ "command": "true", "detachMs": 5 }), code::PARAMS, "detachMs"),
        ("execute", json!({ "command": "true", "claude": {} }), code::PARAMS, "claude"),
        ("execute", json!({ "command": "true", "executor": "shell", "events": true }), code::PARAMS, "events"),
        ("execute", json!({ "command": "true", "typo": 1 }), code::PARAMS, "typo"),
        ("control", json!({}), code::PARAMS, "type"),
        ("control", json!({ "type": "PAUSE" }), code::NOT_RUNNING, "nothing is running"),
        ("control", json!({ "type": "STOP" }), code::PARAMS, "PAUSE"),
        ("control", json!({ "type": "SIGNAL" }), code::PARAMS, "signal"),
        ("control", json!({ "type": "SIGNAL", "signal": "SIGWHAT" }), code::PARAMS, "SIGWHAT"),
        ("control", json!({ "type": "CANCEL", "graceMs": "long" }), code::PARAMS, "graceMs"),
        ("control", json!({ "type": "CANCEL" }), code::NOT_RUNNING, "nothing is running"),
        ("control", json!({ "type": "SIGNAL", "signal": "SIGINT" }), code::NOT_RUNNING, "nothing is running"),
        (
            "control",
            json!({ "type": "CANCEL", "executionId": "00000000-0000-4000-8000-000000000000" }),
            code::UNKNOWN_EXECUTION,
            "00000000",
        ),
        ("status", json!({}), code::NOT_RUNNING, "nothing is running"),
        ("status", json!({ "executionId": 1 }), code::PARAMS, "executionId"),
    ]
}

#[test]
fn invalid_calls_get_errors_and_the_session_continues() {
    let service = Service::start();
    let mut client = service.connect();
    for (method, params, expected, named) in invalid_calls() {
        let error = client.call(method, params.clone()).expect_err(method);
        assert_eq!(error.code, expected, "{method} {params}");
        assert!(error.message.contains(named), "{error} should name {named:?}");
    }
    for (method, params, expected, named) in invalid_calls() {
        client.notify(method, params.clone());
        let error = client.notification("error");
        assert_eq!(error["code"], expected, "{method} {params} without id");
        assert!(error["message"].as_str().unwrap().contains(named), "{error} should name {named:?}");
    }
    assert_eq!(client.run(json!({ "command": "echo alive" })).stdout, b"alive\n");
    client.close();
}

#[test]
fn malformed_calls_are_answered_with_their_id() {
    let service = Service::start();
    let mut client = service.connect();
    for (text, id, expected) in [
        ("{", Value::Null, code::PARSE),
        ("", Value::Null, code::PARSE),
        ("\u{0}", Value::Null, code::PARSE),
        ("[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}]", Value::Null, code::INVALID_REQUEST),
        ("7", Value::Null, code::INVALID_REQUEST),
        ("{\"jsonrpc\":\"1.0\",\"id\":9,\"method\":\"ping\"}", json!(9), code::INVALID_REQUEST),
        ("{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"ping\"}", Value::Null, code::INVALID_REQUEST),
        ("{\"jsonrpc\":\"2.0\",\"id\":8,\"method\":\"ping\",\"params\":[]}", json!(8), code::PARAMS),
    ] {
        client.send_text(text);
        let Frame::Text(response) = client.recv() else { panic!("a response to {text:?}") };
        assert_eq!((&response["id"], response["error"]["code"].as_i64()), (&id, Some(expected)), "{text:?}");
    }
    let deep = "[".repeat(100_000);
    client.send_text(&deep);
    let Frame::Text(response) = client.recv() else { panic!("a response") };
    assert_eq!(response["error"]["code"], code::PARSE);
    assert_eq!(client.call("ping", json!({})), Ok(json!({})));
}

#[test]
fn second_execute_is_refused_while_the_first_runs() {
    let service = Service::start();
    let mut client = service.connect();
    client.execute(json!({ "command": "read x < /dev/null; sleep 0.2; echo done" }));
    let error = client.call("execute", json!({ "command": "true" })).unwrap_err();
    assert_eq!(error.code, code::ALREADY_RUNNING);
    let recording = client.record();
    assert_eq!((recording.stdout.as_slice(), recording.status()), (&b"done\n"[..], Status::Completed));
}

#[test]
fn legacy_clients_work_unchanged() {
    let service = Service::with(&["serve", "--default-executor", "python"], &[]);
    let mut client = service.connect();
    client.notify("execute", json!({ "command": "print(42 * 17)" }));
    let recording = client.record();
    assert_eq!((recording.stdout.as_slice(), recording.statuses.last()), (&b"714\n"[..], Some(&Status::Completed)));
    client.notify("execute", json!({ "command": "import time; time.sleep(1000)" }));
    client.wait_for_status(Status::Running);
    client.notify("control", json!({ "type": "CANCEL" }));
    assert_eq!(client.record().status(), Status::Cancelled);
}

#[test]
fn each_framing_violation_has_its_close_code() {
    let service = Service::start();
    let reserved_bit = frame(0xc1, b"x");
    let unmasked = vec![0x81, 0x01, b'x'];
    let fragments = [frame(0x01, b"{"), vec![frame(0x00, b" "); 10_000].concat()].concat();
    let violations = [
        (frame(frames::BINARY, b"binary"), 1003),
        (frame(frames::TEXT, b"\xff\xfe"), 1007),
        (frame(frames::TEXT, &vec![b' '; (1 << 20) + 1]), 1009),
        (frame_header(0x81, 1 << 30), 1009),
        (frame_header(0x81, u64::MAX), 1009),
        (fragments, 1009),
        (reserved_bit, 1002),
        (unmasked, 1002),
        (frame(0x80, b"x"), 1002),
    ];
    std::thread::scope(|scope| {
        for (bytes, expected) in &violations {
            let mut client = service.connect();
            scope.spawn(move || {
                // The service may close while the rest is still being sent.
                let _ = client.send_raw(bytes);
                assert_eq!(client.close_code(), *expected, "{:x?}", &bytes[..bytes.len().min(12)]);
            });
        }
    });
    service.connect().close();
}

#[test]
fn largest_message_and_byte_by_byte_frames_are_accepted() {
    let service = Service::start();
    let mut client = service.connect();
    let mut text = json!({ "jsonrpc": "2.0", "id": 77, "method": "ping" }).to_string();
    for byte in text_frame(&text) {
        client.send_raw(&[byte]).unwrap();
    }
    assert_eq!(client.response(77), Ok(json!({})));
    text.push_str(&" ".repeat((1 << 20) - text.len()));
    client.send_text(&text);
    assert_eq!(client.response(77), Ok(json!({})));
}

#[test]
fn client_that_floods_requests_without_reading_is_closed() {
    let service = Service::start();
    service.connect().close();
    service.wait_for_event("session.closed", 1);
    let (rss, n_descriptors) = (service.rss_kib(), service.n_descriptors());
    let client = service.connect();
    client.stream().set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let call = frame(
        frames::TEXT,
        json!({ "jsonrpc": "2.0", "id": "x".repeat(4_000), "method": "ping" }).to_string().as_bytes(),
    );
    let mut n_sent = 0;
    while n_sent < 200_000_000 && client.send_raw(&call).is_ok() {
        n_sent += call.len();
    }
    let closed = service.wait_for_event("session.closed", 2).pop().unwrap();
    assert_eq!(closed["close_code"], 1008, "{closed}");
    let grown = service.rss_kib().saturating_sub(rss);
    assert!(grown < 8 * 1024, "grown by {grown} KiB over {n_sent} bytes");
    wait_until("the descriptors are closed", PATIENCE, || service.n_descriptors() <= n_descriptors);
}

#[test]
fn pings_are_answered_even_in_a_flood() {
    let service = Service::start();
    let mut client = service.connect();
    client.send_raw(&frame(frames::PING, b"are you there")).unwrap();
    assert_eq!(client.recv(), Frame::Pong(b"are you there".to_vec()));
    for _ in 0..20_000 {
        client.send_raw(&frame(frames::PING, b"ping")).unwrap();
    }
    client.request("ping", json!({}));
    loop {
        match client.recv() {
            Frame::Pong(_) => {}
            Frame::Text(response) => break assert_eq!(response["result"], json!({})),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn subprotocol_is_selected_and_token_is_not_echoed() {
    let service = Service::start();
    let upgrade = |offer: &str| Client::upgrade(service.address, &[("Sec-WebSocket-Protocol", offer)]);
    for (offer, status) in [
        ("cc-executor.v1", 101),
        ("cc-executor.v1, bearer.eA", 101),
        ("chat, cc-executor.v1", 101),
        ("chat", 400),
        ("mcp", 400),
    ] {
        assert_eq!(upgrade(offer).map_or_else(|status| status, |_| 101), status, "{offer}");
    }
    let head = upgrade("bearer.eA, cc-executor.v1").expect("the upgrade is accepted").head;
    assert!(
        head.to_ascii_lowercase().contains("sec-websocket-protocol: cc-executor.v1\r\n") && !head.contains("bearer"),
        "{head}"
    );
}

#[test]
fn sessions_are_limited_and_a_closed_one_frees_its_slot() {
    let service = Service::with(&["serve", "--max-sessions", "1"], &[]);
    let first = service.connect();
    let mut second = Client::upgrade(service.address, &[]).expect("the upgrade is accepted");
    assert_eq!(second.notification("error")["code"], code::SESSION_LIMIT);
    assert_eq!(second.close_code(), 1013);
    first.close();
    service.wait_for_event("session.closed", 1);
    service.connect().close();
    service.wait_for_event("session.refused", 1);
}
