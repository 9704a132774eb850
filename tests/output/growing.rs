//! Output that is read while its command runs.

use std::fs;

use serde_json::json;

use super::Pair;
use crate::common::{
    PATIENCE,
    curl::{curl, has_curl},
    sha256,
    temp::TempPath,
    wait_until,
};

#[test]
fn growing_output_has_no_length_and_no_tag_until_the_end() {
    if !has_curl("ranges of growing output") {
        return;
    }
    for (kind, pair) in Pair::of_both_kinds() {
        let flag = TempPath::new("grow");
        let command = format!("printf 0123456789; until [ -e {} ]; do sleep 0.02; done; printf abcdef", flag.display());
        let id = pair.detach(&command, json!({}));
        for url in pair.urls(&id, "stdout") {
            wait_until("the beginning is there", PATIENCE, || curl(&[], &url).body.len() == 10);
            for (arguments, status, range, body) in [
                ([].as_slice(), 200, "bytes 0-9/*", "0123456789"),
                (&["-r", "5-"], 206, "bytes 5-9/*", "56789"),
                (&["-r", "0-3"], 206, "bytes 0-3/*", "0123"),
                (&["-r", "-3"], 206, "bytes 7-9/*", "789"),
                (&["-r", "8-20"], 206, "bytes 8-9/*", "89"),
            ] {
                let answer = curl(arguments, &url);
                assert_eq!(
                    (answer.status, answer.header("content-range")),
                    (status, Some(range)),
                    "{kind} {arguments:?}"
                );
                assert_eq!(String::from_utf8_lossy(&answer.body), body, "{kind} {arguments:?}");
                assert_eq!(
                    (answer.header("etag"), answer.header("cc-executor-status")),
                    (None, Some("running")),
                    "{kind}"
                );
            }
            let beyond = curl(&["-r", "10-"], &url);
            assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */10")), "{kind}");
            let conditional = curl(&["-r", "5-", "-H", "If-Range: \"x\""], &url);
            assert_eq!(conditional.status, 200, "{kind}: there is no tag yet");
            let head = curl(&["-I"], &url);
            assert_eq!((head.status, head.header("content-length")), (200, Some("10")), "{kind}");
        }
        fs::write(&*flag, "").unwrap();
        pair.wait_for_status(&id, "COMPLETED");
        let all = b"0123456789abcdef";
        for url in pair.urls(&id, "stdout") {
            let rest = curl(&["-r", "10-"], &url);
            assert_eq!(
                (rest.status, rest.header("content-range"), rest.body.as_slice()),
                (206, Some("bytes 10-15/16"), &all[10..]),
                "{kind}"
            );
            assert_eq!(rest.header("etag"), Some(&*format!("\"{}\"", sha256(all))), "{kind}");
        }
    }
}

#[test]
fn a_queued_execution_has_no_output_yet() {
    if !has_curl("output of a queued execution") {
        return;
    }
    let pair = Pair::start(&["--max-executions", "1"]);
    let first = pair.detach("sleep 1000", json!({}));
    let mut client = pair.gateway.connect();
    let id = client.queue(json!({ "command": "echo hi", "onDisconnect": "detach" }));
    for url in pair.urls(&id, "stdout") {
        let answer = curl(&[], &url);
        assert_eq!((answer.status, answer.header("cc-executor-status"), answer.body.len()), (200, Some("queued"), 0));
    }
    pair.backend.delete(&format!("/executions/{first}?grace_ms=0"));
    pair.wait_for_status(&id, "COMPLETED");
    assert_eq!(curl(&[], &pair.urls(&id, "stdout")[1]).body, b"hi\n");
}
