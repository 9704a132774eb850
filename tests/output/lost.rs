//! Output whose beginning is gone: refused as a whole, read in parts, and never filled up.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
};

use cc_executor_actors::rpc::code;
use serde_json::{Value, json};

use super::{Pair, numbers};
use crate::common::{
    PATIENCE,
    curl::{curl, has_curl},
    http,
    service::Service,
    temp::{self, TempPath},
    wait_until,
};

fn first_byte(url: &str) -> usize {
    curl(&["-I"], url).header("cc-executor-first-byte").and_then(|first| first.parse().ok()).expect("a number")
}

#[test]
fn what_is_left_is_read_in_parts_only() {
    if !has_curl("output whose beginning is gone") {
        return;
    }
    let directory = temp::directory("lost");
    let on_disk = ["--state-dir", directory.to_str().unwrap(), "--max-output-bytes", "1048576"];
    let in_memory = ["--state-dir", "none", "--ring-bytes", "65536"];
    let all = numbers(1_000_000);
    let n = all.len();
    for (kind, arguments) in [("disk", on_disk), ("ring", in_memory)] {
        let pair = Pair::start(&arguments);
        let id = pair.run("seq 1000000", json!({ "overflow": "drop" }));
        for url in pair.urls(&id, "stdout") {
            let first = first_byte(&url);
            assert!(first > 0 && first < n, "{kind}: {first}");
            let whole = curl(&[], &url);
            let error: Value = serde_json::from_slice(&whole.body).unwrap();
            assert_eq!(
                (whole.status, &error["code"], &error["data"]["first"]),
                (410, &json!(code::PARAMS), &json!(first)),
                "{kind} {error}"
            );
            assert_eq!((curl(&["-I"], &url).status, whole.header("etag")), (410, None), "{kind}");
            for range in ["0-99".to_owned(), format!("{}-{n}", first - 1)] {
                let before = curl(&["-r", &range], &url);
                assert_eq!(
                    (before.status, before.header("content-range")),
                    (416, Some(&*format!("bytes */{n}"))),
                    "{kind} {range}"
                );
                assert_eq!(before.header("cc-executor-first-byte"), Some(&*first.to_string()), "{kind} {range}");
            }
            for (range, from) in [(format!("{first}-"), first), (format!("-{n}"), first), ("-10".to_owned(), n - 10)] {
                let part = curl(&["-r", &range], &url);
                assert_eq!(
                    (part.status, part.header("content-range")),
                    (206, Some(&*format!("bytes {from}-{}/{n}", n - 1))),
                    "{kind} {range}"
                );
                assert!(part.body == all[from..], "{kind} {range}: {} bytes", part.body.len());
            }
        }
        let output = |words: &[&str]| {
            crate::common::service::output_of(&mut pair.gateway.client_command(&[&["output"], words, &[&id]].concat()))
        };
        let first = first_byte(&pair.urls(&id, "stdout")[0]);
        let message = format!("cc-executor: bytes 0 to {first} of this output are not there any more\n");
        for words in [[].as_slice(), &["-f"], &["--lines", "9999999"], &["--tail", &n.to_string()]] {
            let printed = output(words);
            assert_eq!(
                (printed.status.code(), String::from_utf8_lossy(&printed.stderr).as_ref()),
                (Some(70), message.as_str()),
                "{kind} {words:?}"
            );
            assert!(printed.stdout == all[first..], "{kind} {words:?}: {} bytes", printed.stdout.len());
        }
        let last = output(&["--lines", "2"]);
        assert_eq!((last.status.code(), last.stdout.as_slice()), (Some(0), b"999999\n1000000\n".as_slice()), "{kind}");
    }
}

/// Requests the whole output and reads only the beginning of the response. Returns the rest of the connection.
fn begin_download(service: &Service, id: &str, expected: &[u8]) -> TcpStream {
    let mut stream = http::send(service.address, &format!("GET /executions/{id}/output/stdout"), &[http::CLOSE], "");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 200") && head.contains(&format!("content-length: {}\r\n", expected.len())),
        "{head}"
    );
    stream
}

#[test]
fn bytes_that_are_given_up_during_a_download_cut_it() {
    const BEFORE: u32 = 8_000_000;
    let (directory, flag) = (temp::directory("cut"), TempPath::new("more"));
    // More than all socket buffers have, so that the beginning is read from the file when it is gone.
    let pair = Pair::start(&["--state-dir", directory.to_str().unwrap(), "--max-output-bytes", "80000000"]);
    let command =
        format!("seq {BEFORE}; until [ -e {} ]; do sleep 0.02; done; seq 30000000; sleep 1000", flag.display());
    let id = pair.detach(&command, json!({ "overflow": "drop" }));
    let expected = numbers(BEFORE);
    let written = || pair.backend.get(&format!("/executions/{id}"))["offsets"]["stdout"].as_u64().unwrap() as usize;
    wait_until("the first part is there", PATIENCE, || written() == expected.len());
    let downloads = [&pair.backend, &pair.gateway].map(|service| begin_download(service, &id, &expected));
    fs::write(&*flag, "").unwrap();
    let url = &pair.urls(&id, "stdout")[0];
    let is_given_up = || {
        http::exchange(pair.backend.address, &format!("GET {}", &url[url.find("/exec").unwrap()..]), &[], "").status
            == 410
    };
    wait_until("the first part is given up", 3 * PATIENCE, || is_given_up() && written() > 150_000_000);
    for mut download in downloads {
        let mut received = Vec::new();
        // Some kernels report the cut as a reset.
        let _ = download.read_to_end(&mut received);
        assert!(received.len() < expected.len(), "it is cut");
        assert!(received == expected[..received.len()], "every byte of it is the command's");
    }
}

#[test]
fn a_client_that_does_not_read_is_disconnected() {
    let directory = temp::directory("stalled");
    let backend =
        Service::with(&["backend", "--state-dir", directory.to_str().unwrap(), "--consumer-stall-ms", "300"], &[]);
    let gateway = Service::gateway_with(&backend.url(), &[("CC_EXECUTOR_CLIENT_STALL_MS", "300")]);
    let pair = Pair { backend, gateway };
    let id = pair.run("seq 8000000", json!({}));
    let expected = numbers(8_000_000);
    for service in [&pair.backend, &pair.gateway] {
        let mut download = begin_download(service, &id, &expected);
        service.wait_for_event("socket.shut_down", 1);
        let mut received = Vec::new();
        let _ = download.read_to_end(&mut received);
        assert!(received.len() < expected.len() && received == expected[..received.len()]);
    }
}

#[test]
fn a_file_that_was_altered_is_noticed() {
    if !has_curl("an altered file") {
        return;
    }
    let directory = temp::directory("altered");
    let pair = Pair::start(&["--state-dir", directory.to_str().unwrap()]);
    let id = pair.run("seq 1000", json!({}));
    let file = super::file_of(&directory, &id);
    let mut altered = fs::OpenOptions::new().write(true).open(&file).unwrap();
    altered.write_all(b"7").unwrap();
    let printed = crate::common::service::output_of(&mut pair.gateway.client_command(&["output", &id]));
    let stderr = String::from_utf8_lossy(&printed.stderr);
    assert!(printed.status.code() == Some(70) && stderr.contains("SHA-256"), "{stderr}");
    altered.set_len(10).unwrap();
    for url in pair.urls(&id, "stdout") {
        let answer = curl(&[], &url);
        assert!(matches!(answer.status, 500 | 502), "it is shorter than it was: {}", answer.status);
        assert_eq!(curl(&["-r", "1-9"], &url).status, 206, "what is there is read");
    }
}
