//! A service that is killed and started again under a running client.

use std::fs;

use cc_executor_actors::rpc::code;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::NOTICED;
use crate::common::{
    PATIENCE,
    client_process::ClientProcess,
    procs,
    service::{Service, binary, kill},
    tampering_proxy::TamperingProxy,
    temp::TempPath,
};

/// Runs a command under `run --reconnect` through this URL, kills the service once the command says `ready`, starts the
/// service again at the same address, and returns the standard error and the exit code of `run`.
fn restart_under_run(mut service: Service, url: &str, command: &str) -> (String, i32) {
    let mut run = ClientProcess::start(binary().args(["run", "--reconnect=20", "--url", url, "--", command]));
    run.expect_stdout("ready\n");
    service.signal(Signal::KILL);
    service.wait(PATIENCE);
    let _restarted = start_at(&service, &[]);
    let (_, stderr, code) = run.finish(PATIENCE);
    (stderr, code)
}

/// Starts a service at the address of one that has exited.
fn start_at(exited: &Service, arguments: &[&str]) -> Service {
    let mut command = binary();
    command.args(["serve", "--bind", &exited.address.to_string()]).args(arguments);
    Service::spawn(command)
}

/// A command that waits.
const WAITS: &str = "echo ready; exec sleep 100";

#[test]
fn run_reports_a_restarted_service() {
    let service = Service::start();
    let url = service.url();
    let (stderr, code) = restart_under_run(service, &url, WAITS);
    assert_eq!(code, 69);
    assert!(stderr.ends_with("cc-executor: the service was restarted; the execution ended with it\n"), "{stderr}");
}

#[test]
fn run_reports_a_restart_when_the_instance_differs() {
    let service = Service::start();
    let proxy = TamperingProxy::start(service.address, |_, _, message: &mut Value| {
        if message["result"]["executionId"].is_string() {
            message["result"]["instance"] = json!("11111111-1111-4111-8111-111111111111");
        }
        if message["error"]["code"] == code::UNKNOWN_EXECUTION {
            message["error"]["data"]["instance"] = json!("22222222-2222-4222-8222-222222222222");
        }
        true
    });
    let (stderr, code) = restart_under_run(service, &proxy.url(), WAITS);
    assert_eq!(code, 69);
    assert!(stderr.ends_with("cc-executor: the service was restarted; the execution ended with it\n"), "{stderr}");
}

/// A service accepts a command, and is killed and restarted before `run` gets the response. Returns the output of `run`, its
/// exit code, and a line for each run of the command.
fn restart_before_the_response(states_its_instance: bool) -> (String, i32, String) {
    let service = Service::start();
    let proxy = TamperingProxy::start(service.address, move |_, _, message: &mut Value| {
        if !states_its_instance {
            message["params"].as_object_mut().map(|params| params.remove("instance"));
        }
        !message["result"]["executionId"].is_string()
    });
    let runs = TempPath::new("runs");
    let command = format!("echo run >> {}; echo ready; exec sleep 100", runs.display());
    let (stderr, code) = restart_under_run(service, &proxy.url(), &command);
    (stderr, code, fs::read_to_string(&*runs).unwrap())
}

#[test]
fn unanswered_execute_is_not_repeated_at_a_restarted_service() {
    let (stderr, code, runs) = restart_before_the_response(true);
    assert_eq!((code, runs.as_str()), (69, "run\n"), "{stderr}");
    assert!(
        stderr.contains("restarted before it answered; if it had started the command, that ended with it\n"),
        "{stderr}"
    );
    let (stderr, code, runs) = restart_before_the_response(false);
    assert_eq!((code, runs.as_str()), (69, "run\n"), "{stderr}");
    assert!(
        stderr.contains("the service has no such execution: the command was not started, or ended when"),
        "{stderr}"
    );
}

/// Ctrl-C comes while `run` has no connection and has not got the response to `execute`, so that the command may run.
#[test]
fn ctrl_c_before_the_execute_response_cancels_after_reconnecting() {
    let backend = Service::backend();
    let mut gateway = Service::gateway(&backend.url());
    let proxy = TamperingProxy::start(gateway.address, |_, _, message: &mut Value| {
        !message["result"]["executionId"].is_string()
    });
    let mark = procs::mark();
    let command = format!("exec sleep {mark}");
    let run = ClientProcess::start(binary().args(["run", "--reconnect=20", "--url", &proxy.url(), "--", &command]));
    procs::wait_for(&mark, 1, PATIENCE);
    gateway.signal(Signal::KILL);
    gateway.wait(PATIENCE);
    run.wait_for_stderr("trying to reconnect for 20 s\n", NOTICED);
    kill(run.pid(), Signal::INT);
    let _restarted = start_at(&gateway, &["--claude-api-url", &backend.url()]);
    procs::wait_for(&mark, 0, PATIENCE);
    let (_, stderr, code) = run.finish(PATIENCE);
    assert_eq!(code, 130, "{stderr}");
}
