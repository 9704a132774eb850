//! A legacy image behind the gateway: it has `/health` and a plain-text `/execute/stream`, without ids, exit codes or counts.
//! The gateway must not invent them.

use std::{
    io::Write,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use cc_executor_actors::{
    outcome::{Reason, Status},
    rpc::code,
};
use serde_json::json;

use crate::common::{
    PATIENCE,
    recording::Recording,
    service::Service,
    stub::{Stub, chunk, chunked_head, native_health, respond},
    wait_until,
};

/// The route of a legacy image that runs commands.
const ROUTE: &str = "/execute/stream";

/// A complete response, and its body.
fn response() -> (Vec<u8>, &'static [u8]) {
    let body = [
        chunked_head("text/plain"),
        chunk(b"first line\n"),
        chunk("zweite Zeile \u{e4}\n".as_bytes()),
        chunk(b"last"),
        b"0\r\n\r\n".to_vec(),
    ];
    (body.concat(), "first line\nzweite Zeile \u{e4}\nlast".as_bytes())
}

#[test]
fn output_is_streamed_and_ends_without_an_exit_code() {
    let image = Stub::legacy(ROUTE, |_, stream| {
        let _ = stream.write_all(&response().0);
    });
    let service = Service::gateway(&image.url());
    let mut client = service.connect();
    assert_eq!(client.connected.as_ref().unwrap().executors, Some(vec!["default".to_owned()]));
    for _ in 0..2 {
        let recording = client.run(json!({ "command": "question", "executor": "default" }));
        assert_eq!(recording.stdout, response().1);
        assert_eq!(recording.ending(), (Status::Completed, Reason::Exit));
        for unknown in
            [&recording.end["exit_code"], &recording.end["bytes"]["stdout"], &recording.end["sha256"]["stdout"]]
        {
            assert!(unknown.is_null(), "{}", recording.end);
        }
    }
    let posts = image.requests_with("POST");
    assert!(posts.len() == 2 && posts.iter().all(|post| post.body == json!({ "question": "question" })));
    assert!(posts.iter().all(|post| post.headers["content-type"] == "application/json"));
}

#[test]
fn body_with_content_length_completes() {
    let image = Stub::legacy(ROUTE, |_, stream| respond(stream, 200, "all of it"));
    let recording = Service::gateway(&image.url()).connect().run(json!({ "command": "x" }));
    assert_eq!((recording.stdout.as_slice(), recording.status()), (&b"all of it"[..], Status::Completed));
}

#[test]
fn chunked_body_cut_anywhere_is_backend_lost() {
    let (whole, _) = response();
    let head = chunked_head("text/plain").len();
    // Every byte of the body: inside chunks and their sizes, exactly between them, inside the last CRLFs.
    let places: Vec<usize> = (head..whole.len()).collect();
    assert!(places.len() >= 50, "{} places", places.len());
    let image = Stub::legacy(ROUTE, move |request, stream| {
        let at: usize = request.body["question"].as_str().unwrap().parse().unwrap();
        let _ = stream.write_all(&response().0[..at]);
    });
    let service = Service::gateway(&image.url());
    let mut client = service.connect();
    for at in places {
        let asked_at = Instant::now();
        client.request("execute", json!({ "command": at.to_string() }));
        let recording = client.record();
        assert_eq!(recording.ending(), (Status::Failed, Reason::BackendLost), "cut at {at}");
        assert!(asked_at.elapsed() < Duration::from_secs(1), "cut at {at}");
        let codes: Vec<_> = recording.errors.iter().map(|error| error.code).collect();
        assert_eq!(codes, [code::BACKEND]);
        assert!(response().1.starts_with(&recording.stdout), "exactly the received output is delivered");
    }
}

#[test]
fn body_shorter_than_its_content_length_is_backend_lost() {
    let image = Stub::legacy(ROUTE, |_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnot all of it");
    });
    let recording = Service::gateway(&image.url()).connect().run(json!({ "command": "x" }));
    assert_eq!((recording.stdout.as_slice(), recording.reason()), (&b"not all of it"[..], Reason::BackendLost));
}

#[test]
fn close_delimited_body_is_delivered_and_ends_as_backend_lost() {
    // RFC 9112 section 6.3, rule 8: without a length and without chunks the body goes on until the close.
    let heads = [
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nConnection: close\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\n",
    ];
    let image = Stub::legacy(ROUTE, move |request, stream| {
        let (head, cut) = request.body["question"].as_str().unwrap().split_once(' ').unwrap();
        let whole = format!("{}perhaps\nall of it", heads[head.parse::<usize>().unwrap()]);
        let (first, rest) = whole.split_at(cut.parse().unwrap());
        stream.set_nodelay(true).unwrap();
        let _ = stream.write_all(first.as_bytes());
        let _ = stream.write_all(rest.as_bytes());
    });
    let service = Service::gateway(&image.url());
    let mut client = service.connect();
    for (n, head) in heads.iter().enumerate() {
        for cut in [0, 1, 9, head.len() - 3, head.len() - 1, head.len(), head.len() + 3] {
            client.request("execute", json!({ "command": format!("{n} {cut}") }));
            let recording = client.record();
            assert_eq!(recording.text(), "perhaps\nall of it", "{head:?} cut at {cut}");
            assert_eq!(
                recording.ending(),
                (Status::Failed, Reason::BackendLost),
                "the end may have been cut off: {}",
                recording.end
            );
        }
    }
}

#[test]
fn close_delimited_body_is_streamed() {
    let (finish, finished) = mpsc::channel();
    let finished = Mutex::new(finished);
    let image = Stub::legacy(ROUTE, move |_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nfirst\n");
        let _ = finished.lock().unwrap().recv_timeout(PATIENCE);
        let _ = stream.write_all(b"second\n");
    });
    let service = Service::gateway(&image.url());
    let mut client = service.connect();
    client.execute(json!({ "command": "x" }));
    let mut recording = Recording::default();
    client.record_until(&mut recording, |recording| recording.stdout == b"first\n");
    assert!(recording.end.is_null(), "{}", recording.end);
    finish.send(()).unwrap();
    client.record_rest(&mut recording);
    assert_eq!((recording.text().as_str(), recording.reason()), ("first\nsecond\n", Reason::BackendLost));
}

#[test]
fn close_delimited_error_body_is_reported() {
    let image = Stub::legacy(ROUTE, |_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 500 X\r\nConnection: close\r\n\r\nno claude here");
    });
    let service = Service::gateway(&image.url());
    let mut client = service.connect();
    client.request("execute", json!({ "command": "x" }));
    let recording = client.record();
    assert_eq!(recording.reason(), Reason::BackendRejected);
    assert!(recording.end["message"].as_str().unwrap().contains("no claude here"), "{}", recording.end);
}

#[test]
fn close_delimited_native_health_is_understood() {
    let stub = Stub::start(|request, stream| match request.path.as_str() {
        "/health" => {
            let health = serde_json::to_string(&native_health()).unwrap();
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{health}");
        }
        _ => respond(stream, 404, "{}"),
    });
    let connected = Service::gateway(&stub.url()).connect().connected.unwrap();
    assert_eq!(connected.executors, Some(native_health().executors));
}

#[test]
fn unsupported_requests_are_refused() {
    let image = Stub::legacy(ROUTE, |_, stream| {
        let _ = stream.write_all(&[chunked_head("text/plain"), chunk(b"running\n")].concat());
        let _ = std::io::copy(stream, &mut std::io::sink());
    });
    let service = Service::gateway(&image.url());
    let mut client = service.connect();
    for params in [
        json!({ "command": "x", "cwd": "/" }),
        json!({ "command": "x", "env": { "A": "1" } }),
        json!({ "command": "x", "executor": "shell" }),
    ] {
        assert_eq!(client.call("execute", params).unwrap_err().code, code::NOT_ALLOWED);
    }
    client.execute(json!({ "command": "x" }));
    let signal = client.call("control", json!({ "type": "SIGNAL", "signal": "SIGINT" })).unwrap_err();
    assert_eq!(signal.code, code::NOT_ALLOWED);
    let stranger = service.connect().call("status", json!({ "executionId": "00000000-0000-4000-8000-000000000000" }));
    assert_eq!(stranger.unwrap_err().code, code::NOT_ALLOWED);
}

#[test]
fn cancel_and_timeout_drop_the_stream_without_verification() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&dropped);
    let image = Stub::legacy(ROUTE, move |_, stream| {
        let _ = stream.write_all(&[chunked_head("text/plain"), chunk(b"running\n")].concat());
        let _ = std::io::copy(stream, &mut std::io::sink());
        counter.fetch_add(1, Ordering::SeqCst);
    });
    let service = Service::gateway(&image.url());
    let mut client = service.connect();
    client.execute(json!({ "command": "x" }));
    client.cancel();
    let canceled = client.record();
    let timed_out = client.run(json!({ "command": "x", "timeoutMs": 200 }));
    for (recording, status, reason) in [(&canceled, "CANCELLED", "canceled"), (&timed_out, "FAILED", "timeout")] {
        assert_eq!((recording.end["status"].as_str(), recording.end["reason"].as_str()), (Some(status), Some(reason)));
        assert_eq!(
            (&recording.end["cancel"]["verified"], &recording.end["cancel"]["survivors"]),
            (&json!(false), &json!(null))
        );
    }
    wait_until("both streams are dropped", PATIENCE, || dropped.load(Ordering::SeqCst) == 2);
}
