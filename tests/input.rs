//! What bad input gets: the right error, naming what was wrong, and a session that lives; or the right
//! close code, and nothing after it.

use std::{fs, time::Duration};

use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    client::{Client, Frame, frame, frame_header},
    service::Service,
    wait_until,
};

/// Calls that must fail: method, params, the code, and what the message must name.
fn wrong_calls() -> Vec<(&'static str, Value, i64, &'static str)> {
    vec![
        ("nope", json!({}), -32601, "nope"),
        ("input", json!({ "data": "x" }), -32003, "nothing is running"),
        ("input", json!({ "data": 7 }), -32602, "data"),
        ("resize", json!({ "rows": 1, "cols": 1 }), -32003, "nothing is running"),
        ("resize", json!({ "rows": 1 }), -32602, "cols"),
        ("attach", json!({ "executionId": "00000000-0000-4000-8000-000000000000" }), -32006, "00000000"),
        ("attach", json!({ "offsets": {} }), -32602, "executionId"),
        ("execute", json!({}), -32602, "command"),
        ("execute", json!({ "command": "" }), -32602, "command"),
        ("execute", json!({ "command": ["echo"] }), -32602, "command"),
        ("execute", json!({ "command": "a\u{0}b" }), -32602, "NUL"),
        ("execute", json!({ "command": "x".repeat(131_072) }), -32602, "131071"),
        ("execute", json!({ "command": "true", "executor": "perl" }), -32002, "perl"),
        ("execute", json!({ "command": "true", "executor": 7 }), -32602, "executor"),
        ("execute", json!({ "command": "true", "executionId": "x" }), -32602, "executionId"),
        ("execute", json!({ "command": "true", "env": { "A": 1 } }), -32602, "env.A"),
        ("execute", json!({ "command": "true", "timeoutMs": -1 }), -32602, "timeoutMs"),
        ("execute", json!({ "command": "true", "timeoutMs": 1u64 << 50 }), -32602, "timeoutMs"),
        ("execute", json!({ "command": "true", "heartbeatMs": 60_001 }), -32602, "60000"),
        ("execute", json!({ "command": "true", "framing": "word" }), -32602, "framing"),
        ("execute", json!({ "command": "true", "stdin": "yes" }), -32602, "stdin"),
        ("execute", json!({ "command": "true", "pty": { "rows": 1 } }), -32602, "cols"),
        ("execute", json!({ "command": "true", "stallTimeoutMs": 0 }), -32602, "stallTimeoutMs"),
        ("execute", json!({ "command": "true", "onDisconnect": "stay" }), -32602, "onDisconnect"),
        ("execute", json!({ "command": "true", "detachMs": 5 }), -32602, "detachMs"),
        ("execute", json!({ "command": "true", "claude": {} }), -32602, "claude"),
        ("execute", json!({ "command": "true", "executor": "shell", "events": true }), -32602, "events"),
        ("execute", json!({ "command": "true", "typo": 1 }), -32602, "typo"),
        ("control", json!({}), -32602, "type"),
        ("control", json!({ "type": "PAUSE" }), -32003, "nothing is running"),
        ("control", json!({ "type": "STOP" }), -32602, "PAUSE"),
        ("control", json!({ "type": "SIGNAL" }), -32602, "signal"),
        ("control", json!({ "type": "SIGNAL", "signal": "SIGWHAT" }), -32602, "SIGWHAT"),
        ("control", json!({ "type": "CANCEL", "graceMs": "long" }), -32602, "graceMs"),
        ("control", json!({ "type": "CANCEL" }), -32003, "nothing is running"),
        ("control", json!({ "type": "SIGNAL", "signal": "SIGINT" }), -32003, "nothing is running"),
        (
            "control",
            json!({ "type": "CANCEL", "executionId": "00000000-0000-4000-8000-000000000000" }),
            -32006,
            "00000000",
        ),
        ("status", json!({}), -32003, "nothing is running"),
        ("status", json!({ "executionId": 1 }), -32602, "executionId"),
    ]
}

#[test]
fn invalid_calls_get_errors_and_the_session_continues() {
    let service = Service::start();
    let mut client = service.connect();
    for (method, params, code, named) in wrong_calls() {
        let error = client.call(method, params.clone()).expect_err(method);
        assert_eq!(error["code"], code, "{method} {params}");
        assert!(error["message"].as_str().unwrap().contains(named), "{error} should name {named:?}");
    }
    for (method, params, code, named) in wrong_calls() {
        client.notify(method, params.clone());
        let error = client.notification("error");
        assert_eq!(error["code"], code, "{method} {params} without id");
        assert!(error["message"].as_str().unwrap().contains(named), "{error} should name {named:?}");
    }
    assert_eq!(client.run(json!({ "command": "echo alive" })).stdout, b"alive\n");
    client.close();
}

#[test]
fn malformed_calls_are_answered_with_their_id() {
    let service = Service::start();
    let mut client = service.connect();
    for (text, id, code) in [
        ("{", Value::Null, -32700),
        ("", Value::Null, -32700),
        ("\u{0}", Value::Null, -32700),
        ("[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}]", Value::Null, -32600),
        ("7", Value::Null, -32600),
        ("{\"jsonrpc\":\"1.0\",\"id\":9,\"method\":\"ping\"}", json!(9), -32600),
        ("{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"ping\"}", Value::Null, -32600),
        ("{\"jsonrpc\":\"2.0\",\"id\":8,\"method\":\"ping\",\"params\":[]}", json!(8), -32602),
    ] {
        client.send_text(text);
        let Frame::Text(response) = client.recv() else { panic!("a response to {text:?}") };
        assert_eq!((&response["id"], response["error"]["code"].as_i64()), (&id, Some(code)), "{text:?}");
    }
    let deep = "[".repeat(100_000);
    client.send_text(&deep);
    let Frame::Text(response) = client.recv() else { panic!("a response") };
    assert_eq!(response["error"]["code"], -32700);
    assert_eq!(client.call("ping", json!({})), Ok(json!({})));
}

#[test]
fn second_execute_is_refused_while_the_first_runs() {
    let service = Service::start();
    let mut client = service.connect();
    client.execute(json!({ "command": "read x < /dev/null; sleep 0.2; echo done" }));
    let error = client.call("execute", json!({ "command": "true" })).unwrap_err();
    assert_eq!(error["code"], -32005);
    let story = client.story();
    assert_eq!((story.stdout.as_slice(), story.end["status"].as_str()), (&b"done\n"[..], Some("COMPLETED")));
}

#[test]
fn legacy_clients_work_unchanged() {
    let service = Service::with(&["serve", "--default-executor", "python"], &[]);
    let mut client = service.connect();
    client.notify("execute", json!({ "command": "print(42 * 17)" }));
    let story = client.story();
    assert_eq!(
        (story.stdout.as_slice(), story.statuses.last().map(String::as_str)),
        (&b"714\n"[..], Some("COMPLETED"))
    );
    client.notify("execute", json!({ "command": "import time; time.sleep(1000)" }));
    client.status("RUNNING");
    client.notify("control", json!({ "type": "CANCEL" }));
    assert_eq!(client.story().end["status"], "CANCELLED");
}

#[test]
fn each_framing_violation_has_its_close_code() {
    let service = Service::start();
    let reserved_bit = frame(0xc1, b"x");
    let unmasked = vec![0x81, 0x01, b'x'];
    let fragments = [frame(0x01, b"{"), vec![frame(0x00, b" "); 10_000].concat()].concat();
    let breaches = [
        (frame(0x82, b"binary"), 1003),
        (frame(0x81, b"\xff\xfe"), 1007),
        (frame(0x81, &vec![b' '; (1 << 20) + 1]), 1009),
        (frame_header(0x81, 1 << 30), 1009),
        (frame_header(0x81, u64::MAX), 1009),
        (fragments, 1009),
        (reserved_bit, 1002),
        (unmasked, 1002),
        (frame(0x80, b"x"), 1002),
    ];
    std::thread::scope(|scope| {
        for (bytes, code) in &breaches {
            let mut client = service.connect();
            scope.spawn(move || {
                // The service may close while the rest is still being sent.
                let _ = client.send_raw(bytes);
                assert_eq!(client.close_code(), *code, "{:x?}", &bytes[..bytes.len().min(12)]);
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
    for byte in frame(0x81, text.as_bytes()) {
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
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", service.pid())).unwrap().count();
    let (rss, n_descriptors) = (service.rss_kib(), descriptors());
    let mut client = service.connect();
    client.stream().set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let call =
        frame(0x81, json!({ "jsonrpc": "2.0", "id": "x".repeat(4_000), "method": "ping" }).to_string().as_bytes());
    let mut sent = 0;
    while sent < 200_000_000 && client.send_raw(&call).is_ok() {
        sent += call.len();
    }
    service.wait_for_event("session.closed", 2);
    let closed = service.log().into_iter().rfind(|line| line["event"] == "session.closed").unwrap();
    assert_eq!(closed["close_code"], 1008, "{closed}");
    let grown = service.rss_kib().saturating_sub(rss);
    assert!(grown < 8 * 1024, "grown by {grown} KiB over {sent} bytes");
    wait_until("the descriptors are back", PATIENCE, || descriptors() <= n_descriptors);
}

#[test]
fn pings_are_answered_even_in_a_flood() {
    let service = Service::start();
    let mut client = service.connect();
    client.send_raw(&frame(0x89, b"are you there")).unwrap();
    assert_eq!(client.recv(), Frame::Pong(b"are you there".to_vec()));
    for _ in 0..20_000 {
        client.send_raw(&frame(0x89, b"ping")).unwrap();
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
    let ask = |offer: &str| Client::upgrade(service.address, &[("Sec-WebSocket-Protocol", offer)]);
    for (offer, status) in [
        ("cc-executor.v1", 101),
        ("cc-executor.v1, bearer.eA", 101),
        ("chat, cc-executor.v1", 101),
        ("chat", 400),
        ("mcp", 400),
    ] {
        assert_eq!(ask(offer).map_or_else(|status| status, |_| 101), status, "{offer}");
    }
    let head = ask("bearer.eA, cc-executor.v1").expect("it is accepted").head;
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
    assert_eq!(second.notification("error")["code"], -32001);
    assert_eq!(second.close_code(), 1013);
    first.close();
    service.wait_for_event("session.closed", 1);
    service.connect().close();
    service.wait_for_event("session.refused", 1);
}
