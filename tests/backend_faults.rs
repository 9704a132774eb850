//! Faults of the backend: the client soon gets one correct ending, and its session continues.

use std::{
    io::Write,
    net::{Shutdown, TcpListener},
    time::{Duration, Instant},
};

use cc_executor_actors::{
    outcome::{Reason, Status},
    rpc::code,
};
use rustix::process::Signal;
use serde_json::json;

use crate::common::{
    PATIENCE,
    client::Client,
    client::code_and_param,
    http, procs,
    recording::Recording,
    service::Service,
    stub::{Request, Stub, chunk, event, exited, multiplexed, respond, started, stream_head},
    wait_until,
};

/// Runs a command that must fail for this reason, within a second, with one error notification.
fn assert_fails(client: &mut Client, command: &str, reason: Reason) -> Recording {
    let asked_at = Instant::now();
    let id = client.request("execute", json!({ "command": command }));
    let result = client.response(id).expect("execute is accepted");
    let recording = client.record();
    assert!(asked_at.elapsed() < Duration::from_secs(1), "{command}: {:?}", asked_at.elapsed());
    assert_eq!(recording.ending(), (Status::Failed, reason), "{command}: {}", recording.end);
    let codes: Vec<_> = recording.errors.iter().map(|error| error.code).collect();
    assert_eq!(codes, [code::BACKEND], "{command}");
    assert!(recording.end["message"].as_str().is_some_and(|message| message.len() > 10), "the ending has a message");
    let ran = recording.statuses.contains(&Status::Running);
    assert_eq!(result["status"], if ran { "started" } else { "failed" });
    assert_eq!(client.call("ping", json!({})), Ok(json!({})), "the session continues");
    recording
}

#[test]
fn connection_refused_is_backend_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let service = Service::gateway_without_backend(&format!("http://{address}"));
    let mut client = service.connect();
    assert!(client.connected.as_ref().unwrap().executors.is_none());
    for _ in 0..3 {
        assert_fails(&mut client, "x", Reason::BackendUnreachable);
    }
    client.close();
}

#[test]
fn http_error_is_backend_rejected() {
    let stub = Stub::native(|request, stream| match request.body["question"].as_str().unwrap() {
        "500" => respond(stream, 500, "it broke"),
        "401" => respond(stream, 401, r#"{"code":-32007,"message":"no token"}"#),
        "garbage" => respond(stream, 400, "{"),
        "302" => respond(stream, 302, ""),
        _ => respond(stream, 429, r#"{"code":-32009,"message":"all 1 executions are taken","data":{"max":1}}"#),
    });
    let service = Service::gateway(&stub.url());
    let mut client = service.connect();
    for status in ["500", "401", "garbage", "302"] {
        assert_fails(&mut client, status, Reason::BackendRejected);
    }
    let refused = client.call("execute", json!({ "command": "full" })).unwrap_err();
    assert_eq!(
        (refused.code, refused.data.unwrap()["max"].as_i64()),
        (code::FULL, Some(1)),
        "an error object of the backend is passed on"
    );
    client.notify("execute", json!({ "command": "full" }));
    assert_eq!(client.notification("error")["code"], code::FULL);
    client.close();
}

#[test]
fn a_refused_gateway_is_told_what_to_change() {
    let stub = Stub::native(|request, stream| match (request.path.as_str(), request.body["question"].as_str()) {
        ("/executions", _) => respond(stream, 200, &" ".repeat(9_000_000)),
        (_, Some("401")) => respond(stream, 401, r#"{"code":-32007,"message":"no token"}"#),
        (_, Some("403")) => respond(stream, 403, r#"{"code":-32007,"message":"add the name"}"#),
        _ => respond(stream, 500, r#"{"code":-32603,"message":"it broke"}"#),
    });
    let url = stub.url();
    let (bare, token) = (Service::gateway(&url), [("CC_EXECUTOR_BACKEND_TOKEN", "x")]);
    let with_token = Service::gateway_with(&url, &token);
    let advice = "set CC_EXECUTOR_BACKEND_TOKEN of the gateway to the backend's token";
    for (service, command, message) in [
        (&bare, "401", format!("the backend at {url} demands a token: {advice}")),
        (&with_token, "401", format!("the backend at {url} rejects the gateway's token: {advice}")),
        (&bare, "403", format!("the backend at {url} refuses the gateway: add the name")),
        (
            &bare,
            "500",
            format!("the backend at {url} answered POST /execute/stream with 500 Internal Server Error: it broke"),
        ),
    ] {
        let mut client = service.connect();
        let recording = assert_fails(&mut client, command, Reason::BackendRejected);
        assert_eq!(recording.end["message"], message);
        client.close();
    }
    let list = http::exchange(bare.address, "GET /executions", &[], "");
    assert!(list.status == 502 && list.body.contains("larger than the limit of 8388608 bytes"), "{}", list.body);
}

/// A short complete stream with its HTTP framing.
fn complete_stream(request: &Request) -> Vec<u8> {
    [
        stream_head(),
        chunk(&started(request)),
        chunk(&multiplexed(1, b"some ")),
        chunk(&[multiplexed(1, b"output"), multiplexed(2, b"and errors")].concat()),
        chunk(&exited(0)),
        b"0\r\n\r\n".to_vec(),
    ]
    .concat()
}

/// The length of the stream up to the end of its exit event.
fn end_of_exit_event(request: &Request) -> usize {
    complete_stream(request).len() - b"\r\n0\r\n\r\n".len()
}

#[test]
fn stream_cut_before_its_exit_event_is_backend_lost() {
    let stub = Stub::native(|request, stream| {
        let (at, reset) = request.body["question"].as_str().unwrap().split_once(' ').unwrap();
        let wire = complete_stream(request);
        let at: usize = at.parse().unwrap();
        let _ = stream.write_all(&wire[..at.min(wire.len())]);
        if reset == "reset" {
            // With a linger time of zero, the close is a reset.
            rustix::net::sockopt::set_socket_linger(&*stream, Some(Duration::ZERO)).unwrap();
        }
    });
    let service = Service::gateway(&stub.url());
    let mut client = service.connect();
    let request =
        Request { body: json!({ "executionId": "00000000-0000-4000-8000-000000000000" }), ..Request::default() };
    let first = stream_head().len();
    let end = end_of_exit_event(&request);
    for at in first..end {
        let recording = assert_fails(&mut client, &format!("{at} fin"), Reason::BackendLost);
        assert!(b"some output".starts_with(&recording.stdout) && b"and errors".starts_with(&recording.stderr));
        if at % 10 == 0 {
            assert_fails(&mut client, &format!("{at} reset"), Reason::BackendLost);
        }
    }
    // After the exit event the stream is complete, even if the HTTP framing is cut.
    for at in [end, end + 3, end + 7] {
        let recording = client.run(json!({ "command": format!("{at} fin") }));
        assert_eq!((recording.status(), recording.stdout.as_slice()), (Status::Completed, &b"some output"[..]));
    }
    client.close();
}

#[test]
fn malformed_stream_is_backend_lost() {
    let stub = Stub::native(|request, stream| {
        let body = match request.body["question"].as_str().unwrap() {
            "no exit event" => [started(request), multiplexed(1, b"output")].concat(),
            "empty" => Vec::new(),
            "unknown stream" => [started(request), multiplexed(9, b"x")].concat(),
            "bad header" => [started(request), vec![1, 7, 7, 7, 0, 0, 0, 1, b'x']].concat(),
            "long event" => [started(request), vec![3, 0, 0, 0, 0xff, 0, 0, 0]].concat(),
            "no JSON" => [started(request), multiplexed(3, b"{")].concat(),
            "unknown event" => [started(request), event(&json!({ "strange": {} }))].concat(),
            _ => [multiplexed(1, b"too early"), started(request), exited(0)].concat(),
        };
        let _ = stream.write_all(&[stream_head(), chunk(&body), b"0\r\n\r\n".to_vec()].concat());
    });
    let service = Service::gateway(&stub.url());
    let mut client = service.connect();
    for fault in [
        "no exit event",
        "empty",
        "unknown stream",
        "bad header",
        "long event",
        "no JSON",
        "unknown event",
        "output too early",
    ] {
        assert_fails(&mut client, fault, Reason::BackendLost);
    }
    client.close();
}

#[test]
fn killed_backend_is_lost_and_leaves_no_process() {
    let mut backend = Service::backend();
    let service = Service::gateway(&backend.url());
    let mark = procs::mark();
    let mut client = service.connect();
    client.execute(json!({ "command": format!("echo x; setsid sleep {mark} & exec sleep {mark}") }));
    procs::wait_for(&mark, 2, PATIENCE);
    let killed_at = Instant::now();
    backend.signal(Signal::KILL);
    backend.wait(PATIENCE);
    let recording = client.record();
    assert!(killed_at.elapsed() < Duration::from_secs(1));
    assert_eq!(recording.ending(), (Status::Failed, Reason::BackendLost));
    procs::wait_for(&mark, 0, Duration::from_secs(1));
    assert_fails(&mut client, "x", Reason::BackendUnreachable);
}

#[test]
fn cancel_before_the_first_event_aborts_and_withdraws_the_request() {
    let stub = Stub::native(|request, stream| match request.method.as_str() {
        "DELETE" => respond(stream, 404, r#"{"code":-32006,"message":"there is no such execution"}"#),
        _ => {
            // No response until the gateway gives the request up.
            let _ = std::io::copy(stream, &mut std::io::sink());
        }
    });
    let service = Service::gateway(&stub.url());
    let mut client = service.connect();
    let execute = client.request("execute", json!({ "command": "x" }));
    wait_until("the request arrives", PATIENCE, || !stub.requests_with("POST").is_empty());
    assert_eq!(client.cancel()["status"], "CANCELLING");
    let id = client.response(execute).expect("execute is answered")["executionId"].as_str().unwrap().to_owned();
    let recording = client.record();
    assert_eq!(recording.ending(), (Status::Cancelled, Reason::Canceled));
    let withdrawn = stub.requests_with("DELETE").pop().expect("the request is withdrawn");
    assert!(withdrawn.path.contains(&id));
    // The disconnect of a client before the first event withdraws the request, too.
    client.request("execute", json!({ "command": "x" }));
    wait_until("the request arrives", PATIENCE, || stub.requests_with("POST").len() == 2);
    client.disconnect();
    wait_until("the request is withdrawn", PATIENCE, || stub.requests_with("DELETE").len() == 2);
}

#[test]
fn backend_that_never_answers_is_unreachable_after_ten_seconds() {
    let stub = Stub::native(|_, stream| {
        let _ = std::io::copy(stream, &mut std::io::sink());
    });
    let service = Service::gateway(&stub.url());
    let mut client = service.connect();
    let asked_at = Instant::now();
    client.request("execute", json!({ "command": "x" }));
    let recording = client.record();
    let took = asked_at.elapsed();
    assert!(took >= Duration::from_secs(10) && took < Duration::from_secs(12), "{took:?}");
    assert_eq!((recording.reason(), &recording.end["cancel"]["verified"]), (Reason::BackendUnreachable, &json!(false)));
    wait_until("the request is withdrawn", PATIENCE, || !stub.requests_with("DELETE").is_empty());
}

#[test]
fn id_canceled_before_its_request_does_not_run() {
    let backend = Service::backend();
    let mut service = Service::gateway(&backend.url());
    let id = "11111111-1111-4111-8111-111111111111";
    let mut client = service.connect();
    assert_eq!(
        client.call("control", json!({ "type": "CANCEL", "executionId": id })).unwrap_err().code,
        code::UNKNOWN_EXECUTION
    );
    assert_eq!(
        client.call("execute", json!({ "command": "true", "executionId": id })).unwrap_err().code,
        code::NOT_RUNNING
    );
    let again = "22222222-2222-4222-8222-222222222222";
    assert_eq!(client.run(json!({ "command": "true", "executionId": again })).status(), Status::Completed);
    let other = client.call("execute", json!({ "command": "false", "executionId": again })).unwrap_err();
    assert_eq!(code_and_param(&other), (code::PARAMS, Some("command")), "an id does not run twice");
    assert_eq!(
        client.run(json!({ "command": "true", "executionId": again })).status(),
        Status::Completed,
        "the recorded ending again"
    );
    client.close();
    service.signal(Signal::TERM);
    assert_eq!(service.wait(PATIENCE).code(), Some(0));
}

#[test]
fn plain_text_body_is_cut_unless_the_command_exits_with_0() {
    let backend = Service::backend();
    let ask = |question: &str, accept: &str| {
        let body = json!({ "question": question }).to_string();
        let headers = [http::JSON, ("Accept", accept)];
        let mut stream = http::send(backend.address, "POST /execute/stream", &headers, &body);
        let mut answer = Vec::new();
        let mut bytes = [0; 4096];
        let mut has_paused = false;
        while !answer.ends_with(b"\r\n0\r\n\r\n") {
            // A late reader, so that the buffers between it and the service are full.
            if !has_paused && answer.len() >= 4_096 {
                has_paused = true;
                std::thread::sleep(Duration::from_millis(300));
            }
            match std::io::Read::read(&mut stream, &mut bytes) {
                Ok(n) if n > 0 => answer.extend_from_slice(&bytes[..n]),
                _ => break,
            }
        }
        let _ = stream.shutdown(Shutdown::Both);
        String::from_utf8(answer).unwrap()
    };
    let fine = ask("echo fine", "text/plain");
    assert!(
        fine.contains("fine\n") && fine.ends_with("\r\n0\r\n\r\n") && fine.to_lowercase().contains("x-execution-id: "),
        "{fine}"
    );
    for command in ["echo out; exit 3", "echo out; kill -9 $$"].repeat(20) {
        let cut = ask(command, "*/*");
        assert!(cut.contains("out\n") && !cut.ends_with("0\r\n\r\n"), "{cut}");
    }
    let long = ask("head -c 20000000 /dev/zero | tr '\\0' x; exit 3", "*/*");
    let body = long.split_once("\r\n\r\n").expect("a head").1;
    assert_eq!(body.matches('x').count(), 20_000_000, "the whole output comes before the cut");
    let lines = ask("echo out; echo err >&2; exit 3", "application/x-ndjson");
    assert!(lines.contains(r#"{"output":{"type":"stdout","content":"out\n","end":4}}"#), "{lines}");
    assert!(lines.contains(r#"{"output":{"type":"stderr","content":"err\n","end":4}}"#), "{lines}");
    assert!(
        lines.contains(r#"{"exit":{"status":"FAILED","reason":"exit","exit_code":3"#)
            && lines.ends_with("\r\n0\r\n\r\n"),
        "{lines}"
    );
}
