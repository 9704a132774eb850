//! What a backend knows of the executions of an earlier one.

use std::{
    fs,
    time::{Duration, Instant},
};

use cc_executor_actors::{
    outcome::{Reason, Status},
    rpc::code,
};
use serde_json::{Value, json};

use super::{Keeper, attach_and_record, detach, listed, wait_for_end};
use crate::common::{
    PATIENCE,
    backend_caller::{BACKEND_TOKEN, BackendCaller},
    client::code_and_param,
    procs, scale,
    service::{Service, run_to_exit},
    sha256, wait_until,
};

#[test]
fn an_ended_execution_is_known_after_a_restart_and_never_runs_again() {
    let keeper = Keeper::new(&[]);
    let service = keeper.start();
    let execute = json!({
        "command": "echo out; echo err >&2; kill -USR1 $$", "onDisconnect": "detach", "env": { "A": "1" },
        "executionId": "55555555-5555-4555-8555-555555555555",
    });
    let mut client = service.connect();
    let instance = client.connected.as_ref().unwrap().instance;
    let id = client.execute(execute.clone());
    let first = client.record();
    let before = listed(&service, &id);
    drop(service);
    let service = keeper.start();
    let after = listed(&service, &id);
    for field in ["executor", "status", "command", "instance", "offsets", "ending", "storage"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    assert!(after["ageMs"].as_u64() >= before["ageMs"].as_u64());
    let mut client = service.connect();
    assert_ne!(client.connected.as_ref().unwrap().instance, instance);
    let attached = attach_and_record(&mut client, &id);
    assert!(attached.stdout == b"out\n" && attached.stderr == b"err\n" && attached.end == first.end);
    // Also with the instance that ran it, as a gateway repeats a request.
    let mut again = execute.clone();
    again["instance"] = json!(instance);
    client.call("execute", again).unwrap();
    assert_eq!(client.record().end, first.end);
    let mut other = execute;
    other["env"]["A"] = json!("2");
    let refused = client.call("execute", other).unwrap_err();
    assert_eq!(code_and_param(&refused), (code::PARAMS, Some("env")));
}

#[test]
fn an_execution_belongs_to_its_client_also_after_a_restart() {
    let keeper = Keeper::new(&[]);
    let start = || {
        let directory = keeper.directory();
        let arguments = ["backend", "--state-dir", directory.to_str().unwrap()];
        Service::with(&arguments, &[("CC_EXECUTOR_BACKEND_TOKEN", BACKEND_TOKEN)])
    };
    let backend = start();
    let id = BackendCaller::client(&backend, "a").detach("echo mine", &[]);
    let path = format!("GET /executions/{id}");
    let ended = |backend: &Service| BackendCaller::client(backend, "a").ask(&path).1["ending"]["status"] == "COMPLETED";
    wait_until("it ends", PATIENCE, || ended(&backend));
    drop(backend);
    let backend = start();
    assert!(ended(&backend));
    let (status, error) = BackendCaller::client(&backend, "b").ask(&path);
    assert_eq!((status, &error["code"]), (404, &json!(code::UNKNOWN_EXECUTION)));
    assert_eq!(BackendCaller::client(&backend, "b").list().len(), 0);
    assert_eq!(BackendCaller::operator(&backend).list().len(), 1);
}

/// The backend is killed while a client reads, and after the restart the files are what the command had written.
#[test]
fn a_killed_backend_loses_no_byte_that_a_client_has_and_invents_no_ending() {
    const PIPE: u64 = 256 * 1024;
    const PIECE: u64 = 64 * 1024;
    let keeper = Keeper::new(&[]);
    let expected: Vec<u8> = (1..=15_000_000).flat_map(|line| format!("{line}\n").into_bytes()).collect();
    let mut random = crate::common::random(7);
    for round in 0..scale(2, 20) {
        let directory = keeper.directory();
        let backend = Service::with(&["backend", "--state-dir", directory.to_str().unwrap()], &[]);
        let gateway = Service::gateway(&backend.url());
        let mark = procs::mark();
        // Its progress, in a file of its own: how much the command had written for certain.
        let progress = keeper.root.path().join(format!("progress-{round}"));
        let command = format!(
            "sleep {mark} & for n in $(seq 0 149); do seq $((n * 100000 + 1)) $((n * 100000 + 100000)) || exit; echo $n > {}; done",
            progress.display()
        );
        let mut client = gateway.connect();
        let id = client.execute(json!({ "command": command, "onDisconnect": "detach" }));
        procs::wait_for(&mark, 1, PATIENCE);
        let mut recording = crate::common::recording::Recording::default();
        let least = 10_000_000 + usize::try_from(random(60_000_000)).unwrap();
        client.record_until(&mut recording, |recording| recording.stdout.len() > least);
        backend.signal(rustix::process::Signal::KILL);
        drop(backend);
        // What was on its way reaches the client, then the loss.
        client.record_rest(&mut recording);
        assert_eq!(recording.ending(), (Status::Failed, Reason::BackendLost), "round {round}");
        wait_until("no process is left", PATIENCE, || procs::with_argument(&mark).is_empty());

        let backend = Service::with(&["backend", "--state-dir", directory.to_str().unwrap()], &[]);
        let stored = fs::read(keeper.entry(&id).join("stdout")).unwrap();
        assert!(stored == expected[..stored.len()], "round {round}: an exact prefix");
        assert!(stored.len() >= recording.stdout.len(), "round {round}: {} < {}", stored.len(), recording.stdout.len());
        let blocks: u64 = fs::read_to_string(&progress).unwrap_or_default().trim().parse().map_or(0, |n: u64| n + 1);
        let written = expected.iter().scan(0u64, |lines, byte| {
            *lines += u64::from(*byte == b'\n');
            Some(*lines)
        });
        let progress = written.take_while(|lines| *lines < blocks * 100_000).count() as u64;
        assert!(stored.len() as u64 + PIPE + PIECE >= progress, "round {round}: {} of {progress}", stored.len());
        let mut ending = Value::Null;
        wait_until("the output is digested", 3 * PATIENCE, || {
            ending = backend.get(&format!("/executions/{id}"))["ending"].clone();
            ending["sha256"]["stdout"] != "pending"
        });
        assert_eq!((&ending["status"], &ending["reason"]), (&json!("FAILED"), &json!("backend_lost")), "{ending}");
        assert_eq!(ending["bytes"]["stdout"], stored.len());
        assert_eq!(ending["sha256"]["stdout"], sha256(&stored));
        let gateway = Service::gateway(&backend.url());
        let again = attach_and_record(&mut gateway.connect(), &id);
        assert!(again.stdout == stored && again.gaps.is_empty() && again.end["sha256"] == ending["sha256"]);
        fs::remove_dir_all(keeper.entry(&id)).unwrap();
    }
}

#[test]
fn a_gateway_follows_its_execution_over_a_quick_restart_of_the_backend() {
    let keeper = Keeper::new(&[]);
    let directory = keeper.directory();
    let start = |bind: &str| {
        let mut command = crate::common::service::binary();
        command.args(["backend", "--state-dir", directory.to_str().unwrap(), "--bind", bind]);
        Service::spawn(command)
    };
    let backend = start("127.0.0.1:0");
    let address = backend.address.to_string();
    let gateway = Service::gateway(&backend.url());
    let mut client = gateway.connect();
    client.execute(json!({ "command": "seq 1 100000; sleep 1000", "onDisconnect": "detach" }));
    let mut recording = crate::common::recording::Recording::default();
    client.record_until(&mut recording, |recording| recording.stdout.ends_with(b"\n100000\n"));
    drop(backend);
    let _backend = start(&address);
    client.record_rest(&mut recording);
    assert_eq!(recording.ending(), (Status::Failed, Reason::BackendLost));
    assert_eq!(
        recording.end["sha256"]["stdout"],
        sha256(&recording.stdout),
        "the digest of the files: {}",
        recording.end
    );
}

#[test]
fn thousands_of_ended_executions_are_read_and_listed_quickly() {
    let n = scale(500, 10_000);
    let keeper = Keeper::new(&["--max-queued", "100000"]);
    let service = keeper.start();
    let id = detach(&service, "echo x; exit 7", json!({}));
    wait_for_end(&service, &id);
    drop(service);
    // Seals are bound to ids, so each execution is a real one.
    let service = keeper.start();
    let left = std::sync::atomic::AtomicUsize::new(n - 1);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = service.connect();
                use std::sync::atomic::Ordering::Relaxed;
                while left.try_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
                    client.run(json!({ "command": "exit 7", "onDisconnect": "detach" }));
                }
            });
        }
    });
    drop(service);
    let began = Instant::now();
    let service = keeper.start();
    let started = began.elapsed();
    let restored = service.events("storage.restored");
    assert_eq!(restored[0]["executions"], n);
    let began = Instant::now();
    let (stdout, stderr, code) = run_to_exit(&mut service.client_command(&["ps", "--all"]));
    let took = began.elapsed();
    assert_eq!((code, stdout.lines().count()), (0, n + 1), "{stderr}");
    assert!(started < Duration::from_secs(2) && took < Duration::from_secs(1), "start {started:?}, ps {took:?}");
}
