//! Ranges and conditions of RFC 9110, checked with curl, on output that has ended.

use std::fs;

use cc_executor_actors::rpc::code;
use serde_json::{Value, json};

use super::{Pair, numbers};
use crate::common::{
    curl::{CurlAnswer, curl, has_curl},
    service::Service,
    sha256,
    stub::Stub,
    temp::{self, TempPath},
};

/// Status, `Content-Range` and `Content-Length`.
fn summary(answer: &CurlAnswer) -> (u16, Option<&str>, Option<&str>) {
    (answer.status, answer.header("content-range"), answer.header("content-length"))
}

#[test]
fn ended_output_is_read_whole_and_in_parts() {
    if !has_curl("ranges of ended output") {
        return;
    }
    let all = numbers(100_000);
    let n = all.len();
    for (kind, pair) in Pair::of_both_kinds() {
        let id = pair.run("seq 100000; echo oops >&2", json!({}));
        for url in pair.urls(&id, "stdout") {
            let whole = curl(&[], &url);
            let length = n.to_string();
            assert_eq!(summary(&whole), (200, None, Some(length.as_str())), "{kind}");
            assert!(whole.body == all && whole.exit == 0, "{kind}: {} bytes", whole.body.len());
            let tag = format!("\"{}\"", sha256(&all));
            for (name, value) in [
                ("etag", tag.as_str()),
                ("accept-ranges", "bytes"),
                ("content-type", "application/octet-stream"),
                ("x-content-type-options", "nosniff"),
                ("cc-executor-status", "completed"),
                ("cc-executor-first-byte", "0"),
            ] {
                assert_eq!(whole.header(name), Some(value), "{kind}");
            }
            for (range, from, to) in [
                ("0-99", 0, 100),
                ("0-0", 0, 1),
                ("-100", n - 100, n),
                ("100-", 100, n),
                ("70000-70009", 70_000, 70_010),
                ("65530-200000", 65_530, 200_001),
                ("588000-99999999999999999999999", 588_000, n),
                ("-99999999", 0, n),
            ] {
                let part = curl(&["-r", range], &url);
                let expected = format!("bytes {from}-{}/{n}", to - 1);
                let length = (to - from).to_string();
                assert_eq!(summary(&part), (206, Some(expected.as_str()), Some(length.as_str())), "{kind} {range}");
                assert!(part.body == all[from..to] && part.exit == 0, "{kind} {range}: {} bytes", part.body.len());
                assert_eq!(part.header("etag"), Some(tag.as_str()), "{kind} {range}");
            }
            for ignored in ["bytes=0-0,5-9", "bytes=9-5", "lines=0-1", "bytes=x-"] {
                let whole = curl(&["-H", &format!("Range: {ignored}")], &url);
                assert_eq!(
                    (summary(&whole), whole.body.len()),
                    ((200, None, Some(length.as_str())), n),
                    "{kind} {ignored}"
                );
            }
            for range in [length.as_str(), "99999999999999999999999"] {
                let beyond = curl(&["-r", &format!("{range}-")], &url);
                assert_eq!(
                    (beyond.status, beyond.header("content-range")),
                    (416, Some(&*format!("bytes */{n}"))),
                    "{kind}"
                );
                assert_eq!(beyond.header("cc-executor-first-byte"), Some("0"), "{kind}");
                let error: Value = serde_json::from_slice(&beyond.body).unwrap();
                assert_eq!((&error["code"], &error["data"]["end"]), (&json!(code::PARAMS), &json!(n)), "{error}");
            }
            assert_eq!(curl(&["-H", "Range: bytes=-0"], &url).status, 416, "{kind}");
        }
        for url in pair.urls(&id, "stderr") {
            assert_eq!(curl(&[], &url).body, b"oops\n", "{kind}");
        }
        for url in pair.urls(&id, "stdin") {
            assert_eq!(curl(&[], &url).status, 404, "{kind}");
        }
    }
}

#[test]
fn conditions_and_head_follow_the_rfc() {
    if !has_curl("conditional requests for output") {
        return;
    }
    for (kind, pair) in Pair::of_both_kinds() {
        let id = pair.run("seq 10", json!({}));
        let all = numbers(10);
        let (tag, length) = (format!("\"{}\"", sha256(&all)), all.len().to_string());
        for url in pair.urls(&id, "stdout") {
            let with =
                |range: &str, header: String| curl(&["-H", &format!("Range: bytes={range}"), "-H", &header], &url);
            assert_eq!(with("1-2", format!("If-Range: {tag}")).status, 206, "{kind}");
            for other in [
                "If-Range: \"other\"".to_owned(),
                format!("If-Range: W/{tag}"),
                "If-Range: Sat, 28 Nov 2026 00:00:00 GMT".to_owned(),
            ] {
                let whole = with("1-2", other);
                assert_eq!(
                    (whole.status, &whole.body),
                    (200, &all),
                    "{kind}: the range counts for another representation"
                );
            }
            let same = curl(&["-H", &format!("If-None-Match: \"x\", {tag}")], &url);
            assert_eq!((same.status, same.header("etag"), same.body.len()), (304, Some(tag.as_str()), 0), "{kind}");
            assert_eq!(curl(&["-H", "If-None-Match: \"x\""], &url).status, 200, "{kind}");
            let head = curl(&["-I", "-H", "Range: bytes=0-1"], &url);
            assert_eq!(summary(&head), (200, None, Some(length.as_str())), "{kind}: HEAD has no ranges");
            assert_eq!((head.body.len(), head.exit, head.header("etag")), (0, 0, Some(tag.as_str())), "{kind}");
        }
        let empty = pair.run("true", json!({}));
        for url in pair.urls(&empty, "stdout") {
            assert_eq!(summary(&curl(&[], &url)), (200, None, Some("0")), "{kind}");
            assert_eq!(summary(&curl(&["-r", "-5"], &url)), (200, None, Some("0")), "{kind}");
            let beyond = curl(&["-r", "0-"], &url);
            assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */0")), "{kind}");
        }
    }
}

#[test]
fn curl_resumes_a_download() {
    if !has_curl("a resumed download") {
        return;
    }
    let pair = Pair::start(&["--state-dir", temp::directory("resume").to_str().unwrap()]);
    let id = pair.run("seq 200000", json!({}));
    let all = numbers(200_000);
    for url in pair.urls(&id, "stdout") {
        let file = TempPath::with_content("resumed", &all[..123_456]);
        let status = std::process::Command::new("curl")
            .args(["--silent", "--fail", "--noproxy", "*", "-C", "-", "-o", file.as_str(), &url])
            .status()
            .unwrap();
        assert!(status.success() && fs::read(&*file).unwrap() == all, "{status}");
    }
}

#[test]
fn a_large_output_takes_constant_memory() {
    if !has_curl("the memory of a download") {
        return;
    }
    const BYTES: usize = 300 << 20;
    let pair = Pair::start(&["--state-dir", temp::directory("memory").to_str().unwrap()]);
    let id = pair.run(&format!("head -c {BYTES} /dev/zero"), json!({}));
    let services = [&pair.backend, &pair.gateway];
    let before = services.map(Service::rss_kib);
    let url = &pair.urls(&id, "stdout")[1];
    let download = std::thread::spawn({
        let url = url.clone();
        move || {
            std::process::Command::new("curl")
                .args(["-s", "--noproxy", "*", "-o", "/dev/null", "-w", "%{size_download}", &url])
                .output()
                .unwrap()
        }
    });
    let mut most = before;
    while !download.is_finished() {
        most = [0, 1].map(|at| most[at].max(services[at].rss_kib()));
        std::thread::yield_now();
    }
    let output = download.join().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), BYTES.to_string());
    for at in [0, 1] {
        assert!(most[at] < before[at] + 32 * 1024, "{} KiB before, {} KiB while it was read", before[at], most[at]);
    }
}

#[test]
fn a_body_that_the_backend_cuts_is_cut_at_the_gateway() {
    if !has_curl("a body that breaks off") {
        return;
    }
    let stub = Stub::native(|request, stream| {
        let length = if request.path.ends_with("stdout") { "Content-Length: 10\r\n" } else { "" };
        let head = format!("HTTP/1.1 200 OK\r\n{length}\r\nhello");
        let _ = std::io::Write::write_all(stream, head.as_bytes());
    });
    let gateway = Service::gateway(&stub.url());
    let url =
        |stream: &str| format!("{}/executions/44444444-4444-4444-8444-444444444444/output/{stream}", gateway.url());
    let cut = curl(&[], &url("stdout"));
    assert_eq!((cut.status, cut.body.as_slice(), cut.exit), (200, b"hello".as_slice(), 18));
    assert_eq!(curl(&[], &url("stderr")).status, 502, "a body without a length cannot be told from a part");
}
