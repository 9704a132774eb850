//! Standard output or standard error that is closed, full, or not read.

use std::{
    fs,
    process::{Output, Stdio},
};

use super::NOTICED;
use crate::common::{
    PATIENCE,
    client_process::ClientProcess,
    procs,
    service::{Service, binary, kill, output_of, run_to_exit},
    wait_until,
};
use rustix::process::Signal;

/// A closed pipe, and a file on a full disk.
fn bad_outputs() -> [(&'static str, Stdio); 2] {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    [("closed", writer.into()), ("full", fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into())]
}

/// Checks that a closed pipe was no error, and that a full disk was reported.
fn check_exit(output: &Output, kind: &str, what: &[&str]) {
    let (stderr, code) = (String::from_utf8_lossy(&output.stderr), output.status.code());
    match kind {
        "closed" => assert!(matches!(code, Some(0 | 141)) && stderr.is_empty(), "{what:?}: {code:?} {stderr}"),
        _ => assert!(
            code == Some(74) && stderr.lines().count() == 1 && stderr.contains("cannot write the output"),
            "{what:?}: {code:?} {stderr}"
        ),
    }
}

#[test]
fn every_command_accepts_closed_stdout_and_fails_on_full_disk() {
    let service = Service::start();
    service.run(&["--detach", "--", "true"]);
    for arguments in [
        ["ps"].as_slice(),
        &["ps", "--json"],
        &["run", "--", "echo hi"],
        &["run", "--json", "--", "echo hi"],
        &["run", "--reconnect", "--", "echo hi"],
        &["check", "--only", "basic"],
        &["check", "--json", "--only", "basic"],
    ] {
        for (kind, stdout) in bad_outputs() {
            let mut output = output_of(service.client_command(arguments).stdout(stdout).stderr(Stdio::piped()));
            if arguments[0] == "check" {
                // `check` prints the name of each check when it begins.
                let stderr = String::from_utf8_lossy(&output.stderr).replace("...   basic\n", "");
                output.stderr = stderr.into_bytes();
            }
            check_exit(&output, kind, arguments);
        }
    }
    for arguments in [
        ["--help"].as_slice(),
        &["--version"],
        &["help", "run"],
        &["run", "--help"],
        &["serve", "--help"],
        &["completions", "bash"],
        &["check", "--list"],
    ] {
        for (kind, stdout) in bad_outputs() {
            let output = output_of(binary().args(arguments).stdout(stdout).stderr(Stdio::piped()));
            check_exit(&output, kind, arguments);
        }
    }
    for (kind, stdout) in bad_outputs() {
        let mark = procs::mark();
        let id = service.run(&["--detach", "--", &format!("exec sleep {mark}")]).stdout;
        let id = String::from_utf8(id).unwrap();
        procs::wait_for(&mark, 1, PATIENCE);
        let arguments = ["cancel", id.trim()];
        let output = output_of(service.client_command(&arguments).stdout(stdout).stderr(Stdio::piped()));
        check_exit(&output, kind, &arguments);
        assert!(procs::with_argument(&mark).is_empty(), "the execution was canceled");
        let arguments = ["attach", id.trim()];
        assert_eq!(run_to_exit(&mut service.client_command(&arguments)).2, 143);
    }
}

#[test]
fn failed_write_to_stderr_does_not_change_the_exit_code() {
    for (_, stderr) in bad_outputs() {
        let mut command = binary();
        command.args(["ps", "--url", "ws://127.0.0.1:1"]).stdout(Stdio::null()).stderr(stderr);
        assert_eq!(command.status().unwrap().code(), Some(69));
    }
    for (_, stderr) in bad_outputs() {
        let mut command = binary();
        command.args(["serve", "--max-sessions", "no"]).stdout(Stdio::null()).stderr(stderr);
        assert_eq!(command.status().unwrap().code(), Some(64));
    }
}

#[test]
fn run_ends_the_command_when_output_cannot_be_written() {
    let service = Service::start();
    let endings = [("closed", 141), ("full", 74)];
    for flags in [["--heartbeat=5"].as_slice(), &["--reconnect"], &["--json"]] {
        for (kind, stdout) in bad_outputs() {
            let mark = procs::mark();
            let command = format!("setsid sleep {mark} & echo hi; exec sleep {mark}");
            let mut run = service.run_command(&[flags, &["--", &command]].concat());
            let output = output_of(run.stdout(stdout).stderr(Stdio::piped()));
            check_exit(&output, kind, flags);
            let code = endings.iter().find(|(of, _)| *of == kind).unwrap().1;
            assert_eq!(output.status.code(), Some(code), "{flags:?} {kind}");
            assert!(procs::with_argument(&mark).is_empty(), "{flags:?} {kind}: the process is gone before run exits");
        }
    }
    // The standard error of the command is output, too.
    for ((kind, stderr), (_, code)) in bad_outputs().into_iter().zip(endings) {
        let mark = procs::mark();
        let mut run = service.run_command(&["--", &format!("echo hi >&2; exec sleep {mark}")]);
        assert_eq!(run.stdout(Stdio::null()).stderr(stderr).status().unwrap().code(), Some(code), "{kind}");
        assert!(procs::with_argument(&mark).is_empty(), "{kind}");
    }
}

#[test]
fn attach_with_unwritable_output_leaves_the_execution_running() {
    let service = Service::start();
    for ((kind, stdout), code) in bad_outputs().into_iter().zip([141, 74]) {
        let mark = procs::mark();
        let id = service.run(&["--detach", "--", &format!("echo hi; exec sleep {mark}")]).stdout;
        let id = String::from_utf8(id).unwrap();
        let mut attach = service.client_command(&["attach", id.trim()]);
        let output = output_of(attach.stdout(stdout).stderr(Stdio::piped()));
        check_exit(&output, kind, &["attach"]);
        assert_eq!(output.status.code(), Some(code), "{kind}");
        procs::wait_for(&mark, 1, PATIENCE);
        assert_eq!(service.count("process.finished"), 0, "{kind}");
    }
}

#[test]
fn detached_execution_is_canceled_if_its_id_cannot_be_printed() {
    let service = Service::start();
    for ((kind, stdout), code) in bad_outputs().into_iter().zip([141, 74]) {
        let mark = procs::mark();
        let command = format!("trap 'sleep 0.3; exit' TERM; setsid sleep {mark} & sleep {mark} & wait");
        let mut run = service.run_command(&["--detach", "--", &command]);
        let output = output_of(run.stdout(stdout).stderr(Stdio::piped()));
        check_exit(&output, kind, &["run", "--detach"]);
        assert_eq!((output.status.code(), procs::with_argument(&mark).len()), (Some(code), 0), "{kind}");
    }
    assert_eq!(service.count("cancel.requested"), 2);
}

#[test]
fn second_ctrl_c_exits_while_stdout_is_blocked() {
    let service = Service::start();
    let mut run = ClientProcess::start(&mut service.run_command(&["--", "yes"]));
    wait_until("the pipe is full", PATIENCE, || {
        let waiting = rustix::io::ioctl_fionread(run.stdout()).unwrap();
        waiting >= 60_000
    });
    kill(run.pid(), Signal::INT);
    run.wait_for_stderr("canceling", NOTICED);
    kill(run.pid(), Signal::INT);
    let (_, _, code) = run.finish(NOTICED);
    assert_eq!(code, 130);
}
