//! Whatever a backend does wrong, the client hears one true ending, soon, and the session lives.

use std::{
    io::Write,
    net::{Shutdown, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::json;

use crate::common::{
    PATIENCE,
    client::{Client, Recording},
    procs,
    service::Service,
    stub::{Request, Stub, chunk, chunked_head, exited, multiplexed, respond, started, word},
    wait_until,
};

const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

fn behind(stub: &Stub) -> Service {
    let service = Service::gateway(&stub.url());
    service.wait_for_event("backend.up", 1);
    service
}

/// Asks for an execution that must fail for this reason, within a second, with one announced end.
fn fails(client: &mut Client, command: &str, reason: &str) -> Recording {
    let asked_at = Instant::now();
    let id = client.request("execute", json!({ "command": command }));
    let result = client.response(id).expect("every outcome but a refusal has an execution");
    let story = client.story();
    assert!(asked_at.elapsed() < Duration::from_secs(1), "{command}: {:?}", asked_at.elapsed());
    assert_eq!(
        (story.end["status"].as_str(), story.end["reason"].as_str()),
        (Some("FAILED"), Some(reason)),
        "{command}: {}",
        story.end
    );
    assert_eq!(
        story.errors.iter().map(|error| error["code"].clone()).collect::<Vec<_>>(),
        [json!(-32010)],
        "{command}"
    );
    assert!(story.end["message"].as_str().is_some_and(|message| message.len() > 10), "it says what happened");
    let ran = story.statuses.iter().any(|status| status == "RUNNING");
    assert_eq!(result["status"], if ran { "started" } else { "failed" });
    assert_eq!(client.call("ping", json!({})), Ok(json!({})), "the session lives");
    story
}

#[test]
fn connection_refused_is_backend_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let service = Service::gateway(&format!("http://{address}"));
    let mut client = service.connect();
    assert!(client.hello["executors"].is_null());
    for _ in 0..3 {
        fails(&mut client, "x", "backend_unreachable");
    }
    client.close();
}

#[test]
fn http_error_is_backend_rejected() {
    let stub = Stub::ours(|request, stream| match request.body["question"].as_str().unwrap() {
        "500" => respond(stream, 500, "it broke"),
        "401" => respond(stream, 401, r#"{"code":-32007,"message":"no token"}"#),
        "garbage" => respond(stream, 400, "{"),
        "302" => respond(stream, 302, ""),
        _ => respond(stream, 429, r#"{"code":-32009,"message":"all 1 executions are taken","data":{"max":1}}"#),
    });
    let service = behind(&stub);
    let mut client = service.connect();
    for status in ["500", "401", "garbage", "302"] {
        fails(&mut client, status, "backend_rejected");
    }
    let refused = client.call("execute", json!({ "command": "full" })).unwrap_err();
    assert_eq!(
        (refused["code"].as_i64(), refused["data"]["max"].as_i64()),
        (Some(-32009), Some(1)),
        "a refusal in our own terms is passed on"
    );
    client.notify("execute", json!({ "command": "full" }));
    assert_eq!(client.notification("error")["code"], -32009);
    client.close();
}

/// A small complete stream, its HTTP framing included.
fn whole(request: &Request) -> Vec<u8> {
    [
        chunked_head(MULTIPLEXED),
        chunk(&started(request)),
        chunk(&multiplexed(1, b"some ")),
        chunk(&[multiplexed(1, b"output"), multiplexed(2, b"and errors")].concat()),
        chunk(&exited(0)),
        b"0\r\n\r\n".to_vec(),
    ]
    .concat()
}

/// Where in the stream its last word is complete.
fn end_of_last_word(request: &Request) -> usize {
    whole(request).len() - b"\r\n0\r\n\r\n".len()
}

#[test]
fn stream_cut_before_its_exit_event_is_backend_lost() {
    let stub = Stub::ours(|request, stream| {
        let (at, reset) = request.body["question"].as_str().unwrap().split_once(' ').unwrap();
        let wire = whole(request);
        let at: usize = at.parse().unwrap();
        let _ = stream.write_all(&wire[..at.min(wire.len())]);
        if reset == "reset" {
            // Unread input makes the close a reset.
            rustix::net::sockopt::set_socket_linger(&*stream, Some(Duration::ZERO)).unwrap();
        }
    });
    let service = behind(&stub);
    let mut client = service.connect();
    let request = Request {
        method: "POST".into(),
        path: "/".into(),
        headers: Default::default(),
        body: json!({ "executionId": "00000000-0000-4000-8000-000000000000" }),
    };
    let first = chunked_head(MULTIPLEXED).len();
    let end = end_of_last_word(&request);
    for at in first..end {
        let story = fails(&mut client, &format!("{at} fin"), "backend_lost");
        assert!(b"some output".starts_with(&story.stdout) && b"and errors".starts_with(&story.stderr));
        if at % 10 == 0 {
            fails(&mut client, &format!("{at} reset"), "backend_lost");
        }
    }
    // From the last word on nothing is missing, whatever becomes of the HTTP framing.
    for at in [end, end + 3, end + 7] {
        let story = client.run(json!({ "command": format!("{at} fin") }));
        assert_eq!((story.end["status"].as_str(), story.stdout.as_slice()), (Some("COMPLETED"), &b"some output"[..]));
    }
    client.close();
}

#[test]
fn malformed_stream_is_backend_lost() {
    let stub = Stub::ours(|request, stream| {
        let body = match request.body["question"].as_str().unwrap() {
            "ended without a word" => [started(request), multiplexed(1, b"output")].concat(),
            "empty" => Vec::new(),
            "unknown stream" => [started(request), multiplexed(9, b"x")].concat(),
            "bad header" => [started(request), vec![1, 7, 7, 7, 0, 0, 0, 1, b'x']].concat(),
            "long word" => [started(request), vec![3, 0, 0, 0, 0xff, 0, 0, 0]].concat(),
            "no JSON" => [started(request), multiplexed(3, b"{")].concat(),
            "strange word" => [started(request), word(&json!({ "strange": {} }))].concat(),
            _ => [multiplexed(1, b"too early"), started(request), exited(0)].concat(),
        };
        let _ = stream.write_all(&[chunked_head(MULTIPLEXED), chunk(&body), b"0\r\n\r\n".to_vec()].concat());
    });
    let service = behind(&stub);
    let mut client = service.connect();
    for fault in [
        "ended without a word",
        "empty",
        "unknown stream",
        "bad header",
        "long word",
        "no JSON",
        "strange word",
        "output too early",
    ] {
        fails(&mut client, fault, "backend_lost");
    }
    client.close();
}

#[test]
fn killed_backend_is_lost_and_leaves_no_process() {
    let mut backend = Service::backend();
    let service = Service::gateway(&backend.url());
    service.wait_for_event("backend.up", 1);
    let mark = procs::mark();
    let mut client = service.connect();
    client.execute(json!({ "command": format!("echo x; setsid sleep {mark} & exec sleep {mark}") }));
    procs::wait_for(&mark, 2, PATIENCE);
    let killed_at = Instant::now();
    backend.signal(Signal::KILL);
    backend.wait(PATIENCE);
    let story = client.story();
    assert!(killed_at.elapsed() < Duration::from_secs(1));
    assert_eq!((story.end["status"].as_str(), story.end["reason"].as_str()), (Some("FAILED"), Some("backend_lost")));
    procs::wait_for(&mark, 0, Duration::from_secs(1));
    fails(&mut client, "x", "backend_unreachable");
}

#[test]
fn cancel_before_the_first_event_aborts_and_withdraws_the_request() {
    let stub = Stub::ours(|request, stream| match request.method.as_str() {
        "DELETE" => respond(stream, 404, r#"{"code":-32006,"message":"there is no such execution"}"#),
        _ => {
            // Not a word, until the request is given up.
            let _ = std::io::copy(stream, &mut std::io::sink());
        }
    });
    let service = behind(&stub);
    let mut client = service.connect();
    let execute = client.request("execute", json!({ "command": "x" }));
    wait_until("the request arrives", PATIENCE, || stub.requests().iter().any(|request| request.method == "POST"));
    assert_eq!(client.call("control", json!({ "type": "CANCEL" })).unwrap()["status"], "CANCELLING");
    let id = client.response(execute).expect("it is answered")["executionId"].as_str().unwrap().to_owned();
    let story = client.story();
    assert_eq!((story.end["status"].as_str(), story.end["reason"].as_str()), (Some("CANCELLED"), Some("canceled")));
    let withdrawn = stub.requests().into_iter().find(|request| request.method == "DELETE").expect("it is withdrawn");
    assert!(withdrawn.path.contains(&id));
    // A client that leaves before the first word withdraws too.
    client.request("execute", json!({ "command": "x" }));
    wait_until("the request arrives", PATIENCE, || {
        stub.requests().iter().filter(|request| request.method == "POST").count() == 2
    });
    client.vanish();
    wait_until("it is withdrawn", PATIENCE, || {
        stub.requests().iter().filter(|request| request.method == "DELETE").count() == 2
    });
}

#[test]
fn backend_that_never_answers_is_unreachable_after_ten_seconds() {
    let stub = Stub::ours(|_, stream| {
        let _ = std::io::copy(stream, &mut std::io::sink());
    });
    let service = behind(&stub);
    let mut client = service.connect();
    let asked_at = Instant::now();
    client.request("execute", json!({ "command": "x" }));
    let story = client.story();
    let took = asked_at.elapsed();
    assert!(took >= Duration::from_secs(10) && took < Duration::from_secs(12), "{took:?}");
    assert_eq!(
        (story.end["reason"].as_str(), &story.end["cancel"]["verified"]),
        (Some("backend_unreachable"), &json!(false))
    );
    wait_until("it is withdrawn", PATIENCE, || stub.requests().iter().any(|request| request.method == "DELETE"));
}

#[test]
fn id_canceled_before_its_request_does_not_run() {
    let backend = Service::backend();
    let mut service = Service::gateway(&backend.url());
    service.wait_for_event("backend.up", 1);
    let id = "11111111-1111-4111-8111-111111111111";
    let mut client = service.connect();
    assert_eq!(client.call("control", json!({ "type": "CANCEL", "executionId": id })).unwrap_err()["code"], -32006);
    assert_eq!(client.call("execute", json!({ "command": "true", "executionId": id })).unwrap_err()["code"], -32003);
    let again = "22222222-2222-4222-8222-222222222222";
    assert_eq!(client.run(json!({ "command": "true", "executionId": again })).end["status"], "COMPLETED");
    let other = client.call("execute", json!({ "command": "false", "executionId": again })).unwrap_err();
    assert_eq!((&other["code"], &other["data"]["param"]), (&json!(-32602), &json!("command")), "no id runs twice");
    assert_eq!(
        client.run(json!({ "command": "true", "executionId": again })).end["status"],
        "COMPLETED",
        "its end again"
    );
    client.close();
    service.signal(Signal::TERM);
    assert_eq!(service.wait(PATIENCE).code(), Some(0));
}

#[test]
fn plain_text_body_is_cut_unless_the_command_exits_with_0() {
    let backend = Service::backend();
    let ask = |question: &str, accept: &str| {
        let mut stream = TcpStream::connect(backend.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = json!({ "question": question }).to_string();
        let head = format!(
            "POST /execute/stream HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut bytes = [0; 4096];
        while !answer.ends_with(b"\r\n0\r\n\r\n") {
            // One that reads late has full buffers between itself and the service.
            if answer.len() == 4_096 {
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
    assert_eq!(body.matches('x').count(), 20_000_000, "all that was written comes before the cut");
    let lines = ask("echo out; echo err >&2; exit 3", "application/x-ndjson");
    assert!(lines.contains(r#"{"output":{"type":"stdout","content":"out\n","end":4}}"#), "{lines}");
    assert!(lines.contains(r#"{"output":{"type":"stderr","content":"err\n","end":4}}"#), "{lines}");
    assert!(
        lines.contains(r#"{"exit":{"status":"FAILED","reason":"exit","exit_code":3"#)
            && lines.ends_with("\r\n0\r\n\r\n"),
        "{lines}"
    );
}
