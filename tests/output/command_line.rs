//! `cc-executor output`.

use std::{fs, process::Stdio};

use serde_json::json;

use super::{Pair, numbers};
use crate::common::{
    PATIENCE,
    client_process::ClientProcess,
    service::{output_of, run_to_exit},
    temp::TempPath,
};

#[test]
fn output_prints_the_whole_or_its_end() {
    let all = numbers(300_000);
    for (kind, pair) in Pair::of_both_kinds() {
        let id = pair.run("seq 300000; printf 'one\ntwo' >&2", json!({}));
        let output = |words: &[&str]| {
            let output = output_of(&mut pair.gateway.client_command(&[&["output"], words, &[&id]].concat()));
            assert!(output.status.success() && output.stderr.is_empty(), "{kind} {words:?}: {output:?}");
            output.stdout
        };
        assert!(output(&[]) == all, "{kind}");
        assert!(output(&["-f"]) == all, "{kind}");
        assert_eq!(output(&["--stderr"]), b"one\ntwo", "{kind}");
        assert_eq!(output(&["--tail", "9"]), b"9\n300000\n", "{kind}");
        assert_eq!(output(&["--tail", "0"]), b"", "{kind}");
        assert!(output(&["--tail", "99999999"]) == all, "{kind}");
        assert_eq!(output(&["--lines", "2"]), b"299999\n300000\n", "{kind}");
        assert_eq!(output(&["-n", "0"]), b"", "{kind}");
        assert_eq!(output(&["--stderr", "-n1"]), b"two", "{kind}: the last line has no end");
        assert_eq!(output(&["--stderr", "-n2"]), b"one\ntwo", "{kind}");
        assert_eq!(output(&["--stderr", "-n3"]), b"one\ntwo", "{kind}");
        // Far more than one look.
        let lines = String::from_utf8(output(&["-n", "290000"])).unwrap();
        assert!(lines.starts_with("10001\n") && lines.lines().count() == 290_000, "{kind}");
        assert!(output(&["-n", "300000"]) == all && output(&["-n", "300001"]) == all, "{kind}");
        let empty = pair.run("true", json!({}));
        for words in [["output", &empty].as_slice(), &["output", "-n1", &empty], &["output", "--tail=5", "-f", &empty]]
        {
            assert_eq!(
                run_to_exit(&mut pair.gateway.client_command(words)),
                (String::new(), String::new(), 0),
                "{kind}"
            );
        }
    }
}

#[test]
fn output_follows_until_the_execution_ends() {
    for (kind, pair) in Pair::of_both_kinds() {
        let [first, second] = ["first", "second"].map(TempPath::new);
        let wait_for = |flag: &TempPath| format!("until [ -e {} ]; do sleep 0.02; done", flag.display());
        let command = format!("echo a; echo b; {}; echo c; {}; exit 3", wait_for(&first), wait_for(&second));
        let id = pair.detach(&command, json!({}));
        let start = |words: &[&str]| {
            ClientProcess::start(&mut pair.gateway.client_command(&[&["output"], words, &[&id]].concat()))
        };
        let mut whole = start(&["-f"]);
        whole.expect_stdout("a\nb\n");
        let mut last = start(&["-f", "-n", "1"]);
        last.expect_stdout("b\n");
        assert_eq!(
            run_to_exit(&mut pair.gateway.client_command(&["output", &id])).0,
            "a\nb\n",
            "{kind}: it does not wait"
        );
        fs::write(&*first, "").unwrap();
        whole.expect_stdout("c\n");
        last.expect_stdout("c\n");
        fs::write(&*second, "").unwrap();
        for process in [whole, last] {
            assert_eq!(process.finish(PATIENCE), (String::new(), String::new(), 0), "{kind}: as tail -f");
        }
    }
}

#[test]
fn output_takes_the_execution_from_nobody() {
    let pair = Pair::start(&[]);
    let flag = TempPath::new("end");
    let mut client = pair.gateway.connect();
    let id =
        client.execute(json!({ "command": format!("echo hi; until [ -e {} ]; do sleep 0.02; done", flag.display()) }));
    let mut follower = ClientProcess::start(&mut pair.gateway.client_command(&["output", "-f", &id]));
    follower.expect_stdout("hi\n");
    assert_eq!(pair.backend.get(&format!("/executions/{id}"))["attached"], true);
    fs::write(&*flag, "").unwrap();
    assert_eq!(client.record().stdout, b"hi\n");
    assert_eq!(follower.finish(PATIENCE).2, 0);
}

#[test]
fn output_exits_properly_where_it_cannot_write() {
    let pair = Pair::start(&[]);
    let id = pair.run("seq 100000", json!({}));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output =
        |stdout: Stdio| output_of(pair.gateway.client_command(&["output", &id]).stdout(stdout).stderr(Stdio::piped()));
    let closed = output(writer.into());
    assert!(closed.status.code() == Some(0) && closed.stderr.is_empty(), "{closed:?}");
    let full = output(fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into());
    let stderr = String::from_utf8_lossy(&full.stderr);
    assert!(full.status.code() == Some(74) && stderr.contains("cannot write the output"), "{stderr}");
}
