//! What the service inherits from the process that starts it, and does not pass on; and a start that fails.

use std::{
    fs,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use cc_executor_actors::outcome::Reason;
use rustix::process::Signal;
use serde_json::json;

use super::begin;
use crate::common::{
    PATIENCE,
    containment::{Mode, NOBODY, assert_verified, wait_for_no_descendant},
    left_out, merged, procs,
    service::{Service, binary, kill, run_to_exit},
    temp::directory,
};

/// The processes of the shell that has become the service, and their later children, are no orphans of an execution.
#[test]
fn inherited_children_of_the_service_are_not_killed() {
    let (helper, later, mark) = (procs::mark(), procs::mark(), procs::mark());
    // The second helper starts its children only after shims were killed, and then exits: the service becomes their parent.
    let entry = format!(
        "sleep {helper} & (while [ ! -e \"$GO\" ]; do sleep 0.02; done; sleep {later} & sleep {later}) & exec \"$@\""
    );
    let go = directory("helper").join("go");
    let mut command = Command::new("bash");
    command
        .args(["-c", &entry, "entry"])
        .arg(binary().get_program())
        .args(["serve", "--bind", "127.0.0.1:0"])
        .env("GO", &go);
    let service = Service::spawn(command);
    for round in 0..5 {
        let mut client = service.connect();
        begin(&mut client, json!({ "command": format!("setsid sleep {mark} & kill -9 $PPID; sleep {mark}") }));
        let recording = client.record();
        assert_eq!(recording.reason(), Reason::BackendLost);
        assert_verified(&recording.end, &["swept"]);
        assert!(procs::with_argument(&mark).is_empty());
        if round == 2 {
            fs::write(&go, "").unwrap();
            procs::wait_for(&later, 2, PATIENCE);
        }
    }
    assert_eq!((procs::with_argument(&helper).len(), procs::with_argument(&later).len()), (1, 2));
    drop(service);
    for mark in [&helper, &later] {
        for pid in procs::with_argument(mark) {
            kill(pid, Signal::KILL);
        }
    }
}

/// The process that starts the service may have blocked or ignored signals that the service needs.
#[test]
fn inherited_signal_masks_and_ignored_signals_are_reset() {
    let starter = "import ctypes, os, signal, sys\n\
        libc = ctypes.CDLL(None)\n\
        act = (ctypes.c_ulong * 4)(1, 0, 0, 0)\n\
        for number in [signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1, 32, 33, 40]:\n\
        \tlibc.syscall(13, number, act, None, 8)\n\
        mask = ctypes.c_ulong(0xffffffffffffffff)\n\
        libc.syscall(14, 2, ctypes.byref(mask), None, 8)\n\
        os.execv(sys.argv[1], sys.argv[1:])";
    // The numbers of the two calls are those of this architecture.
    if !cfg!(target_arch = "x86_64") {
        return left_out("blocked signals", "the starter uses the system call numbers of x86-64");
    }
    let mut command = Command::new("python3");
    command.args(["-c", starter]).arg(binary().get_program()).args(["serve", "--bind", "127.0.0.1:0"]);
    let mut service = Service::spawn(command);
    let recording = service.connect().run(json!({ "command": "grep -E 'Sig(Blk|Ign)' /proc/self/status" }));
    assert_eq!(recording.text(), "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
    let recording = service.connect().run(json!({ "command": "kill -USR1 $$; echo no" }));
    assert_eq!(recording.end["signal"], "SIGUSR1");
    service.signal(Signal::TERM);
    assert!(service.wait(PATIENCE).success());
}

#[test]
fn command_inherits_only_its_three_standard_streams() {
    let directory = directory("descriptors");
    let lock = directory.join("lock");
    let mut command = Command::new("bash");
    command
        .args(["-c", "exec 9>>\"$LOCK\"; exec 33<\"$LOCK\"; exec \"$@\"", "entry"])
        .arg(binary().get_program())
        .args(["serve", "--bind", "127.0.0.1:0"])
        .env("LOCK", &lock);
    let service = Service::spawn(command);
    for extra in [json!({}), json!({ "pty": { "rows": 24, "cols": 80 } }), json!({ "stdin": true })] {
        let params = json!({ "command": "for fd in {0..99}; do [ -e /proc/$$/fd/$fd ] && printf \"$fd \"; done" });
        let recording = service.connect().run(merged(params, &extra));
        assert_eq!(recording.text(), "0 1 2 ");
    }
    let _ = fs::remove_dir_all(directory);
}

/// A start that fails leaves no subreaper.
#[test]
fn unavailable_containment_fails_the_start_and_leaves_no_process() {
    let mut command = binary();
    let (_, stderr, code) = run_to_exit(command.args(["serve", "--bind", "127.0.0.1:0", "--containment", "fence"]));
    assert_eq!(code, 64);
    assert!(stderr.contains("auto, none, cgroup, pid-namespace"), "{stderr}");
    if !Mode::Unprivileged.is_possible() {
        return;
    }
    let mut command = binary();
    command.args(["backend", "--bind", "127.0.0.1:0", "--containment", "pid-namespace"]).uid(NOBODY).gid(NOBODY);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("CAP_SYS_ADMIN"));
    wait_for_no_descendant(pid);
}
