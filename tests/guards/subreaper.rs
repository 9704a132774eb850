//! Commands that stop, kill or limit the subreaper.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use cc_executor_actors::outcome::{Reason, Status};
use rustix::process::Signal;
use serde_json::json;

use crate::common::{
    PATIENCE,
    containment::{Mode, NOBODY, assert_verified, is_subreaper, reachable_binary, shim_of},
    left_out, procs, scale,
    service::{Service, binary_under, kill},
    temp::{TempPath, directory},
    users::can_switch_user,
    wait_until,
};

/// The evidence of an ending after the loss of the subreaper.
const EVIDENCE: &[&str] = &["echild", "swept", "cgroup_empty"];

/// A command that limits the subreaper does not affect other executions. With 100 the subreaper can still fork, but
/// later commands would inherit the limit. A poll(2) of more descriptors than the limit fails; with 0 every poll does.
#[test]
fn subreaper_without_free_descriptors_is_replaced() {
    for (mode, limit) in Mode::with_reachable_guards().into_iter().flat_map(|mode| [(mode, 100), (mode, 4), (mode, 0)])
    {
        let service = mode.service(&[]);
        let limit = format!("prlimit --pid $(cut -d' ' -f4 /proc/$PPID/stat) --nofile={limit}:{limit}");
        let (mut client, mark) = (service.connect(), procs::mark());
        client.execute(json!({ "command": format!("{limit}; echo limited; setsid sleep {mark} & sleep {mark}") }));
        procs::wait_for(&mark, 2, PATIENCE);
        for _ in 0..3 {
            assert_eq!(service.connect().run(json!({ "command": "echo served" })).text(), "served\n");
        }
        let mut other = service.connect();
        let file = directory("replaced").join("end");
        other
            .execute(json!({ "command": format!("until [ -e {} ]; do sleep 0.05; done; echo whole", file.display()) }));
        // The limited subreaper still serves the executions that it had.
        kill(shim_of(procs::wait_for(&mark, 2, PATIENCE)[0]), Signal::KILL);
        let first = client.record();
        assert_eq!(first.reason(), Reason::BackendLost, "{}", first.end);
        assert_verified(&first.end, &["swept"]);
        assert!(procs::with_argument(&mark).is_empty(), "gone before the ending is sent");
        // It exits after its last execution, and leaves the executions of its successor alone.
        let subreapers = || procs::descendants(service.pid()).into_iter().filter(|pid| is_subreaper(*pid)).count();
        wait_until("the replaced subreaper has exited", PATIENCE, || subreapers() == 1);
        if mode == Mode::Cgroup {
            wait_until("its cgroups are removed", PATIENCE, || subreaper_cgroups(service.pid()) == 1);
        }
        fs::write(file, "").unwrap();
        let recording = other.record();
        assert_eq!(
            (recording.text().as_str(), recording.status()),
            ("whole\n", Status::Completed),
            "{}",
            recording.end
        );
    }
}

/// The number of subreapers of this service that have a cgroup directory.
fn subreaper_cgroups(service: u32) -> usize {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).unwrap().split(' ').nth(4).unwrap().to_owned();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap().to_owned();
    let bases = fs::read_dir(Path::new(&mount).join(own)).unwrap().flatten();
    let base = bases.map(|entry| entry.path()).find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("cc-executor.{service}-")))
    });
    let inside = fs::read_dir(base.expect("the service has a directory")).unwrap().flatten();
    inside.filter(|entry| entry.file_name().to_string_lossy().starts_with("subreaper-")).count()
}

#[test]
fn stopped_or_killed_subreaper_is_replaced_and_leaves_no_process() {
    for mode in Mode::with_reachable_guards() {
        for signal in ["STOP", "KILL"] {
            let service = mode.service(&[]);
            let mark = procs::mark();
            let mut bystander = service.connect();
            bystander.execute(json!({ "command": format!("setsid sleep {mark} & sleep {mark}") }));
            let guarded = procs::wait_for(&mark, 2, PATIENCE);
            let shim = shim_of(guarded[0]);
            let subreaper = procs::parent(shim).unwrap();
            let attack = format!("kill -{signal} $(cut -d' ' -f4 /proc/$PPID/stat); sleep 0.1");
            let at = Instant::now();
            let recording = service.connect().run(json!({ "command": attack }));
            if signal == "STOP" {
                assert_eq!(recording.status(), Status::Completed, "{}", recording.end);
                // The loss of a shim needs the subreaper, so the service must resume it.
                kill(shim, Signal::KILL);
            } else {
                assert_eq!(recording.reason(), Reason::BackendLost, "{}", recording.end);
                assert_verified(&recording.end, EVIDENCE);
            }
            let other = bystander.record();
            assert_eq!(other.reason(), Reason::BackendLost, "{}", other.end);
            assert_verified(&other.end, EVIDENCE);
            assert!(procs::with_argument(&mark).is_empty(), "gone before the ending is sent");
            assert!(at.elapsed() < Duration::from_secs(5), "{:?}", at.elapsed());
            let again = service.connect().run(json!({ "command": "echo again" }));
            assert_eq!(again.text(), "again\n");
            assert_eq!(signal == "KILL", !fs::exists(format!("/proc/{subreaper}")).unwrap());
        }
    }
}

/// With both guards gone, only the service itself can end the tree.
#[test]
fn command_that_kills_shim_and_subreaper_is_ended() {
    for mode in Mode::with_reachable_guards() {
        let service = mode.service(&[]);
        for _ in 0..scale(3, 20) {
            let (mut client, mark) = (service.connect(), procs::mark());
            let attack = "kill -9 $PPID $(cut -d' ' -f4 /proc/$PPID/stat)";
            client.execute(json!({ "command": format!("setsid sleep {mark} & sleep 0.05; {attack}; sleep {mark}") }));
            let recording = client.record();
            assert_eq!(recording.reason(), Reason::BackendLost, "{}", recording.end);
            assert_verified(&recording.end, EVIDENCE);
            assert!(procs::with_argument(&mark).is_empty(), "gone before the ending is sent");
        }
    }
}

/// A command that runs another one as a user without privileges, where the entries of other users in /proc are closed.
fn with_closed_proc() -> Command {
    const CLOSE: &str = r#"mount -t proc -o hidepid=1 proc /proc &&
        exec setpriv --reuid "$0" --regid "$0" --clear-groups -- "$@""#;
    let mut command = binary_under("unshare");
    command.args(["--mount", "bash", "-c", CLOSE, &NOBODY.to_string()]).current_dir("/").env("HOME", "/tmp");
    command
}

/// The entries of processes that cannot be traced are closed, too, and a command can make such processes: of programs
/// that it may not read.
#[test]
fn orphan_whose_entry_in_proc_is_closed_is_ended() {
    let what = "a service that cannot read all of /proc";
    if !can_switch_user(what) {
        return;
    }
    if !with_closed_proc().arg("true").output().is_ok_and(|output| output.status.success()) {
        return left_out(what, "mounting /proc with hidepid=1 (unshare, mount, setpriv)");
    }
    let unreadable = TempPath::new("unreadable-sleep");
    let copied = Command::new("cp").args(["/usr/bin/sleep", unreadable.as_str()]).status();
    assert!(copied.is_ok_and(|status| status.success()));
    unreadable.set_mode(0o711);
    let mut command = with_closed_proc();
    command.arg(reachable_binary().get_program()).args(["serve", "--bind", "127.0.0.1:0"]);
    let service = Service::spawn(command);
    assert_eq!(service.connect().run(json!({ "command": "echo served" })).text(), "served\n");
    let (mut client, mark) = (service.connect(), procs::mark());
    client.execute(json!({ "command": format!("setsid {} {mark} & sleep {mark}", unreadable.as_str()) }));
    let executes = |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == *unreadable);
    wait_until("it executes the program that it may not read", PATIENCE, || {
        procs::with_argument(&mark).iter().any(executes)
    });
    let shim = shim_of(procs::wait_for(&mark, 2, PATIENCE)[0]);
    let subreaper = procs::parent(shim).expect("a shim has a parent");
    // The subreaper first, because its shim would end the tree.
    kill(subreaper, Signal::STOP);
    kill(shim, Signal::KILL);
    kill(subreaper, Signal::KILL);
    let recording = client.record();
    assert_eq!(recording.reason(), Reason::BackendLost, "{}", recording.end);
    assert_verified(&recording.end, &["swept"]);
    assert!(procs::with_argument(&mark).is_empty(), "gone before the ending is sent");
}
