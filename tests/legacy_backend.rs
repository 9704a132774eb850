//! The original's image behind the gateway: it knows `/health` and a plain-text `/execute/stream`, and
//! nothing of ids, exits or counts. What it does not say must not be invented.

use std::{
    io::Write,
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::common::{
    PATIENCE,
    client::Recording,
    service::Service,
    stub::{Request, Stub, chunk, chunked_head, our_health, respond},
    wait_until,
};

/// An image whose `/execute/stream` is answered by `answer`.
fn image(answer: impl Fn(&Request, &mut TcpStream) + Send + Sync + 'static) -> Stub {
    Stub::start(move |request, stream| match request.path.as_str() {
        "/health" => respond(stream, 200, r#"{"status":"healthy","service":"claude-api"}"#),
        "/execute/stream" => answer(request, stream),
        _ => respond(stream, 404, r#"{"detail":"Not Found"}"#),
    })
}

fn gateway(image: &Stub) -> Service {
    let service = Service::gateway(&image.url());
    service.wait_for_event("backend.up", 1);
    service
}

/// A proper response, and the body it carries.
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
    let image = image(|_, stream| {
        let _ = stream.write_all(&response().0);
    });
    let service = gateway(&image);
    let mut client = service.connect();
    assert_eq!(client.hello["executors"], json!(["default"]));
    for _ in 0..2 {
        let story = client.run(json!({ "command": "question", "executor": "default" }));
        assert_eq!(story.stdout, response().1);
        assert_eq!((story.end["status"].as_str(), story.end["reason"].as_str()), (Some("COMPLETED"), Some("exit")));
        for unknown in [&story.end["exit_code"], &story.end["bytes"]["stdout"], &story.end["sha256"]["stdout"]] {
            assert!(unknown.is_null(), "{}", story.end);
        }
    }
    let posts: Vec<_> = image.requests().into_iter().filter(|request| request.method == "POST").collect();
    assert!(posts.len() == 2 && posts.iter().all(|post| post.body == json!({ "question": "question" })));
    assert!(posts.iter().all(|post| post.headers["content-type"] == "application/json"));
}

#[test]
fn body_with_content_length_completes() {
    let image = image(|_, stream| respond(stream, 200, "all of it"));
    let story = gateway(&image).connect().run(json!({ "command": "x" }));
    assert_eq!((story.stdout.as_slice(), story.end["status"].as_str()), (&b"all of it"[..], Some("COMPLETED")));
}

#[test]
fn chunked_body_cut_anywhere_is_backend_lost() {
    let (whole, _) = response();
    let head = chunked_head("text/plain").len();
    // Every byte of the body: inside chunks and their sizes, exactly between them, inside the last CRLFs.
    let places: Vec<usize> = (head..whole.len()).collect();
    assert!(places.len() >= 50, "{} places", places.len());
    let image = image(move |request, stream| {
        let at: usize = request.body["question"].as_str().unwrap().parse().unwrap();
        let _ = stream.write_all(&response().0[..at]);
    });
    let service = gateway(&image);
    let mut client = service.connect();
    for at in places {
        let asked_at = Instant::now();
        client.request("execute", json!({ "command": at.to_string() }));
        let story = client.story();
        assert_eq!(
            (story.end["status"].as_str(), story.end["reason"].as_str()),
            (Some("FAILED"), Some("backend_lost")),
            "cut at {at}"
        );
        assert!(asked_at.elapsed() < Duration::from_secs(1), "cut at {at}");
        assert_eq!(story.errors.len(), 1);
        assert_eq!(story.errors[0]["code"], -32010);
        assert!(response().1.starts_with(&story.stdout), "what came is passed on, and nothing else");
    }
}

#[test]
fn body_shorter_than_its_content_length_is_backend_lost() {
    let image = image(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnot all of it");
    });
    let story = gateway(&image).connect().run(json!({ "command": "x" }));
    assert_eq!((story.stdout.as_slice(), story.end["reason"].as_str()), (&b"not all of it"[..], Some("backend_lost")));
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
    let image = image(move |request, stream| {
        let (head, cut) = request.body["question"].as_str().unwrap().split_once(' ').unwrap();
        let whole = format!("{}perhaps\nall of it", heads[head.parse::<usize>().unwrap()]);
        let (first, rest) = whole.split_at(cut.parse().unwrap());
        stream.set_nodelay(true).unwrap();
        let _ = stream.write_all(first.as_bytes());
        let _ = stream.write_all(rest.as_bytes());
    });
    let service = gateway(&image);
    let mut client = service.connect();
    for (n, head) in heads.iter().enumerate() {
        for cut in [0, 1, 9, head.len() - 3, head.len() - 1, head.len(), head.len() + 3] {
            client.request("execute", json!({ "command": format!("{n} {cut}") }));
            let story = client.story();
            assert_eq!(story.text(), "perhaps\nall of it", "{head:?} cut at {cut}");
            assert_eq!(
                (story.end["status"].as_str(), story.end["reason"].as_str()),
                (Some("FAILED"), Some("backend_lost")),
                "its end may have been cut off: {}",
                story.end
            );
        }
    }
}

#[test]
fn close_delimited_body_is_streamed() {
    let (finish, finished) = std::sync::mpsc::channel();
    let finished = std::sync::Mutex::new(finished);
    let image = image(move |_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nfirst\n");
        let _ = finished.lock().unwrap().recv_timeout(PATIENCE);
        let _ = stream.write_all(b"second\n");
    });
    let service = gateway(&image);
    let mut client = service.connect();
    client.execute(json!({ "command": "x" }));
    let mut story = Recording::default();
    client.follow(&mut story, |story| story.stdout == b"first\n");
    assert!(story.end.is_null(), "{}", story.end);
    finish.send(()).unwrap();
    client.follow(&mut story, |_| false);
    assert_eq!((story.text().as_str(), story.end["reason"].as_str()), ("first\nsecond\n", Some("backend_lost")));
}

#[test]
fn close_delimited_error_body_is_reported() {
    let image = image(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 500 X\r\nConnection: close\r\n\r\nno claude here");
    });
    let service = gateway(&image);
    let mut client = service.connect();
    client.request("execute", json!({ "command": "x" }));
    let story = client.story();
    assert_eq!(story.end["reason"], "backend_rejected");
    assert!(story.end["message"].as_str().unwrap().contains("no claude here"), "{}", story.end);
}

#[test]
fn close_delimited_native_health_is_understood() {
    let stub = Stub::start(|request, stream| match request.path.as_str() {
        "/health" => {
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}", our_health());
        }
        _ => respond(stream, 404, "{}"),
    });
    assert_eq!(gateway(&stub).connect().hello["executors"], our_health()["executors"]);
}

#[test]
fn unsupported_requests_are_refused() {
    let image = image(|_, stream| {
        let _ = stream.write_all(&[chunked_head("text/plain"), chunk(b"running\n")].concat());
        let _ = std::io::copy(stream, &mut std::io::sink());
    });
    let service = gateway(&image);
    let mut client = service.connect();
    for params in [
        json!({ "command": "x", "cwd": "/" }),
        json!({ "command": "x", "env": { "A": "1" } }),
        json!({ "command": "x", "executor": "shell" }),
    ] {
        assert_eq!(client.call("execute", params).unwrap_err()["code"], -32002);
    }
    client.execute(json!({ "command": "x" }));
    let signal = client.call("control", json!({ "type": "SIGNAL", "signal": "SIGINT" })).unwrap_err();
    assert_eq!(signal["code"], -32002);
    let stranger = service.connect().call("status", json!({ "executionId": "00000000-0000-4000-8000-000000000000" }));
    assert_eq!(stranger.unwrap_err()["code"], -32002);
}

#[test]
fn cancel_and_timeout_drop_the_stream_without_verification() {
    let dropped = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = std::sync::Arc::clone(&dropped);
    let image = image(move |_, stream| {
        let _ = stream.write_all(&[chunked_head("text/plain"), chunk(b"running\n")].concat());
        let _ = std::io::copy(stream, &mut std::io::sink());
        counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    });
    let service = gateway(&image);
    let mut client = service.connect();
    client.execute(json!({ "command": "x" }));
    client.call("control", json!({ "type": "CANCEL" })).unwrap();
    let canceled = client.story();
    let timed_out = client.run(json!({ "command": "x", "timeoutMs": 200 }));
    for (story, status, reason) in [(&canceled, "CANCELLED", "canceled"), (&timed_out, "FAILED", "timeout")] {
        assert_eq!((story.end["status"].as_str(), story.end["reason"].as_str()), (Some(status), Some(reason)));
        assert_eq!(
            (&story.end["cancel"]["verified"], &story.end["cancel"]["survivors"]),
            (&json!(false), &json!(null))
        );
    }
    wait_until("both streams are dropped", PATIENCE, || dropped.load(std::sync::atomic::Ordering::SeqCst) == 2);
}
