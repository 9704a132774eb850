//! `cc-executor attach --observe`.

use cc_executor_actors::outcome::Status;
use rustix::process::Signal;
use serde_json::json;

use crate::common::{
    PATIENCE,
    client_process::ClientProcess,
    proxy::{CutKind, Proxy},
    recording::Recording,
    service::{Service, binary, kill, run_to_exit},
};

#[test]
fn attach_observe_prints_all_and_exits_as_the_command_does() {
    let service = Service::start();
    let mut holder = service.connect();
    let id = holder.execute(json!({ "command": "echo one; read x; echo $x; exit 3", "stdin": true }));
    let mut watch = ClientProcess::start(&mut service.client_command(&["attach", "--observe", &id]));
    watch.expect_stdout("one\n");
    holder.call("input", json!({ "data": "two\n" })).unwrap();
    let held = holder.record();
    assert_eq!((held.stdout.as_slice(), held.detached), (&b"one\ntwo\n"[..], None));
    assert_eq!(watch.finish(PATIENCE), ("two\n".to_owned(), String::new(), 3));
    assert_eq!(
        run_to_exit(&mut service.client_command(&["attach", "--observe", &id])),
        ("one\ntwo\n".to_owned(), String::new(), 3),
        "after the end"
    );
}

#[test]
fn signal_ends_attach_observe_and_nothing_else() {
    let service = Service::start();
    let mut holder = service.connect();
    let id = holder.execute(json!({ "command": "echo one; read x; echo $x", "stdin": true }));
    for (signal, expected) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut watch = ClientProcess::start(&mut service.client_command(&["attach", "--observe", &id]));
        watch.expect_stdout("one\n");
        kill(watch.pid(), signal);
        let (stdout, stderr, code) = watch.finish(PATIENCE);
        assert_eq!((stdout.as_str(), code), ("", expected));
        assert!(stderr.contains("no longer attached; the execution continues\n"), "{stderr}");
    }
    holder.call("input", json!({ "data": "two\n" })).unwrap();
    let held = holder.record();
    assert_eq!((held.stdout.as_slice(), held.status()), (&b"one\ntwo\n"[..], Status::Completed));
}

#[test]
fn attach_observe_reconnects_as_an_observer() {
    const BYTES: usize = 3_000_000;
    let service = Service::with(&["serve", "--ring-bytes", "8000000"], &[]);
    let mut holder = service.connect();
    let id = holder.execute(json!({ "command": format!("seq -f %09.0f {}; read x", BYTES / 10), "stdin": true }));
    let mut held = Recording::default();
    holder.record_until(&mut held, |held| held.stdout.len() == BYTES);
    let proxy = Proxy::start(service.address, |n| (n == 0).then_some((1_000_000, CutKind::Fin)));
    let mut command = binary();
    command.args(["attach", "--observe", "--reconnect", "--url", &proxy.url(), &id]);
    let mut watch = ClientProcess::start(&mut command);
    watch.expect_stdout(&String::from_utf8(held.stdout.clone()).unwrap());
    assert!(proxy.n_connections() >= 2, "it was cut");
    holder.call("input", json!({ "data": "\n" })).unwrap();
    let (stdout, stderr, code) = watch.finish(PATIENCE);
    assert_eq!((stdout.as_str(), code), ("", 0), "{stderr}");
    holder.record_rest(&mut held);
    assert_eq!(held.detached, None);
}
