//! A command that turns on the processes that guard it: its shim, and the subreaper behind that. Whatever it does to
//! them, it ends in time, nothing is left of it, and nothing is said without evidence.

use std::{
    fs,
    net::TcpStream,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{
    PATIENCE,
    client::Client,
    hostile::{Mode, directory, parent, shim_of, wait_for_no_child_of},
    procs, scale,
    service::{Service, binary, kill},
    wait_until,
};

/// What the ending says of the processes: that they are gone, and how that is known.
fn assert_verified(end: &Value, evidence: &[&str]) {
    let cancel = &end["cancel"];
    assert_eq!((&cancel["verified"], &cancel["survivors"]), (&json!(true), &json!(0)), "{end}");
    assert!(evidence.contains(&cancel["evidence"].as_str().unwrap_or_default()), "{end}");
}

/// Runs a test's body in each mode that this machine has.
fn in_each_mode(body: impl Fn(Mode)) {
    for mode in Mode::all() {
        eprintln!("containment: {mode:?}");
        body(mode);
    }
}

/// The same, in all modes at once, where the body mostly waits.
fn in_all_modes_at_once(body: impl Fn(Mode) + Sync) {
    std::thread::scope(|scope| {
        for mode in Mode::all() {
            let body = &body;
            let name = format!("containment {mode:?}");
            std::thread::Builder::new().name(name).spawn_scoped(scope, move || body(mode)).expect("a thread");
        }
    });
}

/// Starts a command that may be lost, or held up, before anything is said of it.
fn begin(client: &mut Client, params: Value) {
    let answer = client.call("execute", params).unwrap();
    assert!(["started", "queued", "failed"].contains(&answer["status"].as_str().unwrap_or_default()), "{answer}");
}

#[test]
fn stopped_shim_does_not_delay_a_time_out() {
    in_all_modes_at_once(|mode| {
        let service = mode.service(&[]);
        let mark = procs::mark();
        let at = Instant::now();
        let story =
            service.connect().run(json!({ "command": format!("kill -STOP $PPID; sleep {mark}"), "timeoutMs": 3000 }));
        assert_eq!((story.end["status"].as_str(), story.end["reason"].as_str()), (Some("FAILED"), Some("timeout")));
        assert!(at.elapsed() < Duration::from_secs(4), "{:?}", at.elapsed());
        assert_verified(&story.end, &["echild", "swept", "pid_namespace"]);
        assert!(procs::with_argument(&mark).is_empty());
    });
}

#[test]
fn stopped_shim_delays_neither_cancel_nor_the_release_of_its_slot() {
    in_all_modes_at_once(|mode| {
        let service = mode.service(&["--max-executions", "4"]);
        let mut held: Vec<(Client, String)> = (0..4)
            .map(|_| {
                let (mut client, mark) = (service.connect(), procs::mark());
                client.execute(json!({ "command": format!("kill -STOP $PPID; sleep {mark}") }));
                procs::wait_for(&mark, 1, PATIENCE);
                (client, mark)
            })
            .collect();
        for (client, mark) in &mut held {
            // The first time it may have been woken by now.
            kill(shim_of(procs::wait_for(mark, 1, PATIENCE)[0]), Signal::STOP);
            let at = Instant::now();
            client.call("control", json!({ "type": "CANCEL", "graceMs": 200 })).unwrap();
            let story = client.story();
            assert!(at.elapsed() < Duration::from_millis(2_200), "{:?}", at.elapsed());
            assert_eq!(story.end["status"], "CANCELLED");
            assert_verified(&story.end, &["echild", "swept", "pid_namespace"]);
            assert!(procs::with_argument(mark).is_empty());
        }
        let story = service.connect().run(json!({ "command": "echo all places are free" }));
        assert_eq!(story.text(), "all places are free\n");
    });
}

/// Whether a process is a shim or the subreaper.
fn is_guard(pid: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    ["cc-shim", "cc-subreaper"].contains(&name.trim())
}

#[test]
fn no_process_outlives_the_service_with_stopped_shims() {
    in_all_modes_at_once(|mode| {
        for signal in [Signal::TERM, Signal::KILL] {
            let mut service = mode.service(&["--drain-ms", "2000"]);
            let mut clients = Vec::new();
            let stop = "kill -STOP $PPID";
            let stop_both = "s=$(cut -d' ' -f4 /proc/$PPID/stat); kill -STOP $s $PPID";
            let stop_all = "kill -STOP $PPID; kill -STOP $$";
            let marks: Vec<_> = [stop, stop_both, stop_all, "true"].map(|what| (what, procs::mark())).into();
            for (what, mark) in &marks {
                let mut client = service.connect();
                client.execute(json!({ "command": format!("sleep {mark} & setsid sleep {mark} & {what}; wait") }));
                procs::wait_for(mark, 2, PATIENCE);
                clients.push(client);
            }
            let below = procs::below(service.pid());
            assert!(below.len() > marks.len(), "a subreaper, shims and commands: {below:?}");
            // Those that the commands have stopped may have been woken by now.
            for guard in below.iter().filter(|pid| is_guard(**pid)) {
                kill(*guard, Signal::STOP);
            }
            service.signal(signal);
            let _ = service.wait(Duration::from_secs(5));
            wait_until("no process of it is left", Duration::from_secs(2), || {
                marks.iter().all(|(_, mark)| procs::with_argument(mark).is_empty())
                    && below.iter().all(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true))
            });
        }
    });
}

/// The shim is stopped before it could say that the command runs.
#[test]
fn requests_are_answered_if_the_shim_is_stopped_at_once() {
    in_all_modes_at_once(|mode| {
        let executors = json!({ "stopper": ["dash", "-c", "kill -STOP $PPID; exec sleep $0"] }).to_string();
        let service = mode.service(&["--executors", &executors]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let service = &service;
                scope.spawn(move || {
                    for _ in 0..scale(5, 60) {
                        let (mut client, mark) = (service.connect(), procs::mark());
                        let at = Instant::now();
                        begin(&mut client, json!({ "command": mark, "executor": "stopper" }));
                        assert!(at.elapsed() < Duration::from_secs(6), "{:?}", at.elapsed());
                        let canceled = client.call("control", json!({ "type": "CANCEL", "graceMs": 0 }));
                        assert!(canceled.is_ok(), "{canceled:?}");
                        let story = client.story();
                        assert_eq!(story.end["status"], "CANCELLED", "{}", story.end);
                        assert_verified(&story.end, &["echild", "swept", "pid_namespace"]);
                        assert!(procs::with_argument(&mark).is_empty());
                    }
                });
            }
        });
    });
}

/// A shim that may open nothing any more still knows its children; and one that could not would not say zero.
#[test]
fn shim_without_free_descriptors_ends_escaped_descendants() {
    in_each_mode(|mode| {
        let service = mode.service(&[]);
        let (mut client, mark) = (service.connect(), procs::mark());
        let command = format!("prlimit --pid $PPID --nofile=3:3; setsid sleep {mark} & echo there; sleep {mark}");
        client.execute(json!({ "command": command }));
        procs::wait_for(&mark, 2, PATIENCE);
        client.call("control", json!({ "type": "CANCEL", "graceMs": 500 })).unwrap();
        let story = client.story();
        assert_eq!(story.end["status"], "CANCELLED");
        assert_verified(&story.end, &["echild", "swept", "pid_namespace"]);
        assert!(procs::with_argument(&mark).is_empty(), "gone before it is said");
    });
}

/// The service cannot open anything: what it says of the processes must not depend on that.
#[test]
fn tree_of_a_killed_shim_is_ended_without_free_descriptors() {
    let mut command = Command::new("prlimit");
    command.arg("--nofile=150:150").arg(binary().get_program()).args(["serve", "--bind", "127.0.0.1:0"]);
    let service = Service::spawn(command);
    let (mut client, mark) = (service.connect(), procs::mark());
    client.execute(json!({ "command": format!("setsid sleep {mark} & (sleep {mark} & sleep {mark}) & wait") }));
    let process = procs::wait_for(&mark, 3, PATIENCE)[0];
    let shim = shim_of(process);
    let descriptors = format!("/proc/{}/fd", service.pid());
    let mut idle = Vec::new();
    while fs::read_dir(&descriptors).map_or(0, Iterator::count) < 150 {
        assert!(idle.len() < 200, "its descriptors are used up before that");
        idle.push(TcpStream::connect(service.address).unwrap());
        wait_until("it is accepted, or cannot be", PATIENCE, || {
            fs::read_dir(&descriptors).map_or(0, Iterator::count) >= (idle.len() + 20).min(150)
        });
    }
    kill(shim, Signal::KILL);
    let story = client.story();
    assert_eq!((story.end["status"].as_str(), story.end["reason"].as_str()), (Some("FAILED"), Some("backend_lost")));
    assert_verified(&story.end, &["swept", "cgroup_empty"]);
    assert!(procs::with_argument(&mark).is_empty(), "gone before it is said");
}

#[test]
fn program_that_kills_its_shim_at_once_is_not_reported_as_not_started() {
    in_each_mode(|mode| {
        let executors = json!({ "killer": ["dash", "-c", "kill -9 $PPID; exec sleep $0"] }).to_string();
        let service = mode.service(&["--executors", &executors]);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let service = &service;
                scope.spawn(move || {
                    for _ in 0..scale(8, 60) {
                        let (mut client, mark) = (service.connect(), procs::mark());
                        begin(&mut client, json!({ "command": mark, "executor": "killer", "timeoutMs": 300 }));
                        let story = client.story();
                        let expected = if mode.shim_is_reachable() { "backend_lost" } else { "timeout" };
                        assert_eq!(story.end["reason"], expected, "{}", story.end);
                        assert_verified(&story.end, &["echild", "swept", "pid_namespace"]);
                        assert!(procs::with_argument(&mark).is_empty(), "gone before it is said");
                    }
                });
            }
        });
    });
}

/// What was there before the service, and what comes of it later, is nobody's orphan.
#[test]
fn inherited_children_of_the_service_are_not_killed() {
    let (helper, later, mark) = (procs::mark(), procs::mark(), procs::mark());
    // The helper's own child comes to the service when the helper's shell has ended: after a shim was killed.
    let entry = format!(
        "sleep {helper} & (while [ ! -e \"$GO\" ]; do sleep 0.02; done; sleep {later} & sleep {later}) & exec \"$@\""
    );
    let go = crate::common::hostile::directory("helper").join("go");
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
        let story = client.story();
        assert_eq!(story.end["reason"], "backend_lost");
        assert_verified(&story.end, &["swept"]);
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

#[test]
fn killed_shim_frees_its_slot_with_full_ring_and_no_consumer() {
    in_each_mode(|mode| {
        let service = mode.service(&["--max-executions", "1", "--ring-bytes", "65536"]);
        let (mut client, mark) = (service.connect(), procs::mark());
        let id = client.execute(json!({
            "command": format!("sleep {mark} & seq 1 1000000 & wait"), "onDisconnect": "detach", "detachMs": 600_000
        }));
        let process = procs::wait_for(&mark, 1, PATIENCE)[0];
        client.vanish();
        let mut other = service.connect();
        let mut written = json!(null);
        wait_until("its ring is full", PATIENCE, || {
            let now = other.call("status", json!({ "executionId": id })).unwrap()["offsets"]["stdout"].clone();
            now.as_u64() >= Some(65_536) && std::mem::replace(&mut written, now.clone()) == now
        });
        kill(shim_of(process), Signal::KILL);
        let at = Instant::now();
        begin(&mut other, json!({ "command": "echo free" }));
        assert_eq!(other.story().text(), "free\n");
        assert!(at.elapsed() < Duration::from_secs(2), "{:?}", at.elapsed());
        let status = other.call("status", json!({ "executionId": id })).unwrap();
        assert_eq!((&status["status"], &status["reason"]), (&json!("FAILED"), &json!("backend_lost")));
    });
}

/// A command that limits the subreaper fails none but itself.
#[test]
fn subreaper_without_free_descriptors_is_replaced() {
    for mode in Mode::all().into_iter().filter(|mode| mode.shim_is_reachable()) {
        let service = mode.service(&[]);
        let limit = "prlimit --pid $(cut -d' ' -f4 /proc/$PPID/stat) --nofile=4:4";
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
        // The first one still looks after what it had.
        kill(shim_of(procs::wait_for(&mark, 2, PATIENCE)[0]), Signal::KILL);
        let end = client.story().end;
        assert_eq!(end["reason"], "backend_lost", "{end}");
        assert_verified(&end, &["swept"]);
        assert!(procs::with_argument(&mark).is_empty(), "gone before it is said");
        // It ends with its last execution, and takes none of its successor's with it.
        let subreapers = || procs::below(service.pid()).into_iter().filter(|pid| is_subreaper(*pid)).count();
        wait_until("the replaced one has ended", PATIENCE, || subreapers() == 1);
        if mode == Mode::Cgroup {
            wait_until("its cgroups are gone", PATIENCE, || subreaper_cgroups(service.pid()) == 1);
        }
        fs::write(file, "").unwrap();
        let story = other.story();
        assert_eq!((story.text().as_str(), &story.end["status"]), ("whole\n", &json!("COMPLETED")), "{}", story.end);
    }
}

/// How many subreapers of this service have a cgroup directory.
fn subreaper_cgroups(service: u32) -> usize {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).unwrap().split(' ').nth(4).unwrap().to_owned();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap().to_owned();
    let bases = fs::read_dir(std::path::Path::new(&mount).join(own)).unwrap().flatten();
    let base = bases.map(|entry| entry.path()).find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("cc-executor.{service}-")))
    });
    let inside = fs::read_dir(base.expect("the service has a directory")).unwrap().flatten();
    inside.filter(|entry| entry.file_name().to_string_lossy().starts_with("subreaper-")).count()
}

fn is_subreaper(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "cc-subreaper")
}

/// The same watch holds for the subreaper.
#[test]
fn stopped_or_killed_subreaper_is_replaced_and_leaves_no_process() {
    for mode in Mode::all().into_iter().filter(|mode| mode.shim_is_reachable()) {
        for signal in ["STOP", "KILL"] {
            let service = mode.service(&[]);
            let mark = procs::mark();
            let mut bystander = service.connect();
            bystander.execute(json!({ "command": format!("setsid sleep {mark} & sleep {mark}") }));
            let guarded = procs::wait_for(&mark, 2, PATIENCE);
            let (shim, attack) = (shim_of(guarded[0]), "kill -SIGNAL $(cut -d' ' -f4 /proc/$PPID/stat)");
            let subreaper = parent(shim).unwrap();
            let at = Instant::now();
            let story =
                service.connect().run(json!({ "command": format!("{}; sleep 0.1", attack.replace("SIGNAL", signal)) }));
            if signal == "STOP" {
                assert_eq!(story.end["status"], "COMPLETED", "{}", story.end);
                // A lost shim needs it: it is woken for that.
                kill(shim, Signal::KILL);
            } else {
                assert_eq!(story.end["reason"], "backend_lost", "{}", story.end);
                assert_verified(&story.end, &["echild", "swept", "cgroup_empty"]);
            }
            let end = bystander.story().end;
            assert_eq!(end["reason"], "backend_lost", "{end}");
            assert_verified(&end, &["echild", "swept", "cgroup_empty"]);
            assert!(procs::with_argument(&mark).is_empty(), "gone before it is said");
            assert!(at.elapsed() < Duration::from_secs(5), "{:?}", at.elapsed());
            let again = service.connect().run(json!({ "command": "echo again" }));
            assert_eq!(again.text(), "again\n");
            assert_eq!(signal == "KILL", !fs::exists(format!("/proc/{subreaper}")).unwrap());
        }
    }
}

/// Both guards at once: the service itself is the last.
#[test]
fn command_that_kills_shim_and_subreaper_is_ended() {
    for mode in Mode::all().into_iter().filter(|mode| mode.shim_is_reachable()) {
        let service = mode.service(&[]);
        for _ in 0..scale(3, 20) {
            let (mut client, mark) = (service.connect(), procs::mark());
            let attack = "kill -9 $PPID $(cut -d' ' -f4 /proc/$PPID/stat)";
            client.execute(json!({ "command": format!("setsid sleep {mark} & sleep 0.05; {attack}; sleep {mark}") }));
            let end = client.story().end;
            assert_eq!(end["reason"], "backend_lost", "{end}");
            assert_verified(&end, &["echild", "swept", "cgroup_empty"]);
            assert!(procs::with_argument(&mark).is_empty(), "gone before it is said");
        }
    }
}

/// A process in vfork cannot be stopped, and must hold up nothing.
#[test]
fn processes_in_vfork_delay_neither_pause_nor_cancel() {
    const PROGRAM: &str = "#include <unistd.h>\n\
        int main() { for (int n = 0; n < 200; n++) if (!fork()) { if (!vfork()) { pause(); _exit(0); } pause(); }\n\
        write(1, \"there\\n\", 6); pause(); }";
    let directory = crate::common::hostile::directory("vfork");
    let program = directory.join("vfork");
    fs::write(directory.join("vfork.c"), PROGRAM).unwrap();
    let built = Command::new("cc").arg("-o").arg(&program).arg(directory.join("vfork.c")).status();
    assert!(built.is_ok_and(|status| status.success()), "Rust needs a linker, so there is a C compiler");
    in_each_mode(|mode| {
        let service = mode.service(&[]);
        let mut client = service.connect();
        client.execute(json!({ "command": program.to_str().unwrap() }));
        client.seen("output");
        wait_until("all are there", PATIENCE, || procs::below(service.pid()).len() > 400);
        let paused = client.call("control", json!({ "type": "PAUSE" }));
        match mode {
            Mode::Cgroup => {
                assert_eq!(paused.unwrap()["status"], "PAUSED");
                client.status("PAUSED");
            }
            _ => {
                let error = paused.unwrap_err();
                assert_eq!(error["code"], -32003, "{error}");
                assert!(error["message"].as_str().unwrap().contains("cannot be stopped now"), "{error}");
            }
        }
        let at = Instant::now();
        client.call("control", json!({ "type": "CANCEL", "graceMs": 0 })).unwrap();
        let end = client.story().end;
        assert!(at.elapsed() < Duration::from_secs(1), "{:?}", at.elapsed());
        assert_eq!(end["status"], "CANCELLED");
        assert_verified(&end, &["echild"]);
        wait_until("nothing is left of it", PATIENCE, || procs::below(service.pid()).len() < 3);
    });
    let _ = fs::remove_dir_all(directory);
}

/// Whoever starts the service may have blocked or ignored what it must hear.
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
        return crate::common::left_out("blocked signals", "the starter knows the system calls of x86-64 alone");
    }
    let mut command = Command::new("python3");
    command.args(["-c", starter]).arg(binary().get_program()).args(["serve", "--bind", "127.0.0.1:0"]);
    let mut service = Service::spawn(command);
    let story = service.connect().run(json!({ "command": "grep -E 'Sig(Blk|Ign)' /proc/self/status" }));
    assert_eq!(story.text(), "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
    let story = service.connect().run(json!({ "command": "kill -USR1 $$; echo no" }));
    assert_eq!(story.end["signal"], "SIGUSR1");
    service.signal(Signal::TERM);
    assert!(service.wait(PATIENCE).success());
}

/// A command has its three streams, and no descriptor of whoever started the service.
#[test]
fn command_inherits_only_its_three_standard_streams() {
    let directory = crate::common::hostile::directory("descriptors");
    let lock = directory.join("lock");
    let mut command = Command::new("bash");
    command
        .args(["-c", "exec 9>>\"$LOCK\"; exec 33<\"$LOCK\"; exec \"$@\"", "entry"])
        .arg(binary().get_program())
        .args(["serve", "--bind", "127.0.0.1:0"])
        .env("LOCK", &lock);
    let service = Service::spawn(command);
    for extra in [json!({}), json!({ "pty": { "rows": 24, "cols": 80 } }), json!({ "stdin": true })] {
        let mut params = json!({ "command": "for fd in {0..99}; do [ -e /proc/$$/fd/$fd ] && printf \"$fd \"; done" });
        params.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let story = service.connect().run(params);
        assert_eq!(story.text(), "0 1 2 ");
    }
    let _ = fs::remove_dir_all(directory);
}

/// A service that is stopped at its start leaves no subreaper.
#[test]
fn unavailable_containment_fails_the_start_and_leaves_no_process() {
    let mut command = binary();
    command.args(["serve", "--bind", "127.0.0.1:0", "--containment", "fence"]).stderr(Stdio::piped());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("auto, none, cgroup, pid-namespace"));
    if !Mode::Unprivileged.is_possible() {
        return;
    }
    let mut command = binary();
    command.args(["backend", "--bind", "127.0.0.1:0", "--containment", "pid-namespace"]).uid(65_534).gid(65_534);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("CAP_SYS_ADMIN"));
    wait_for_no_child_of(pid);
}
