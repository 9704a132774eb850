//! The containment modes of a service, and its guard processes: the shims and the subreaper.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    left_out, procs,
    service::{BINARY, Service, binary, binary_under},
    wait_until,
};

/// A user without privileges.
pub const NOBODY: u32 = 65_534;

/// How a service contains its commands, and as which user it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Only by following the process tree.
    None,
    /// The same, as a user without privileges.
    Unprivileged,
    /// With a cgroup.
    Cgroup,
    /// With a PID namespace.
    PidNamespace,
}

impl Mode {
    /// The modes that this machine supports. The others are reported as left out.
    pub fn all() -> Vec<Mode> {
        let mut modes = vec![Mode::None];
        for (mode, missing) in [
            (Mode::Unprivileged, "becoming another user needs root, and a binary that others may execute"),
            (Mode::Cgroup, "--containment cgroup: cannot make a cgroup"),
            (Mode::PidNamespace, "a PID namespace needs CAP_SYS_ADMIN"),
        ] {
            if mode.is_possible() {
                modes.push(mode);
            } else {
                left_out(&format!("containment {mode:?}"), missing);
            }
        }
        modes
    }

    /// Those in which a command can signal its shim and the subreaper.
    pub fn with_reachable_guards() -> Vec<Mode> {
        Mode::all().into_iter().filter(|mode| mode.shim_is_reachable()).collect()
    }

    /// Runs a test in each mode.
    pub fn for_each(test: impl Fn(Mode)) {
        for mode in Mode::all() {
            eprintln!("containment: {mode:?}");
            test(mode);
        }
    }

    /// The same in all modes at once, for a test that mostly waits.
    pub fn for_all_at_once(test: impl Fn(Mode) + Sync) {
        std::thread::scope(|scope| {
            for mode in Mode::all() {
                let test = &test;
                let name = format!("containment {mode:?}");
                std::thread::Builder::new().name(name).spawn_scoped(scope, move || test(mode)).expect("a thread");
            }
        });
    }

    /// Whether this machine supports it.
    pub fn is_possible(self) -> bool {
        static POSSIBLE: [OnceLock<bool>; 4] = [const { OnceLock::new() }; 4];
        *POSSIBLE[self as usize].get_or_init(|| {
            match self {
                Mode::None => true,
                // Whether the user can execute the binary; the address is invalid, so that it ends at once.
                Mode::Unprivileged => {
                    rustix::process::geteuid().is_root()
                        && self.command(&["backend", "--bind", "not an address"]).output().is_ok()
                }
                Mode::Cgroup | Mode::PidNamespace => {
                    let mut service = self.command(&["backend", "--bind", "127.0.0.1:0"]);
                    let mut child = service.stderr(Stdio::piped()).spawn().expect("the binary starts");
                    let mut lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
                    let listens = lines.any(|line| line.is_ok_and(|line| line.contains("service.listening")));
                    let _ = child.kill();
                    let _ = child.wait();
                    listens
                }
            }
        })
    }

    fn name(self) -> &'static str {
        match self {
            Mode::None | Mode::Unprivileged => "none",
            Mode::Cgroup => "cgroup",
            Mode::PidNamespace => "pid-namespace",
        }
    }

    fn command(self, arguments: &[&str]) -> Command {
        let mut command = if self == Mode::Unprivileged { reachable_binary() } else { binary() };
        command.args(arguments).args(["--containment", self.name()]);
        if self == Mode::Unprivileged {
            command.uid(NOBODY).gid(NOBODY).current_dir("/").env("HOME", "/tmp");
        }
        command
    }

    /// A service in this mode, with these further arguments.
    pub fn service(self, arguments: &[&str]) -> Service {
        Service::spawn(self.command(&[&["serve", "--bind", "127.0.0.1:0"], arguments].concat()))
    }

    /// Whether a command can signal its shim.
    pub fn shim_is_reachable(self) -> bool {
        self != Mode::PidNamespace
    }
}

/// A command of a copy of the binary that every user may execute, without the variables that it reads.
pub fn reachable_binary() -> Command {
    binary_under(reachable_copy())
}

fn reachable_copy() -> &'static Path {
    const PREFIX: &str = "cc-executor-copy-";
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    COPY.get_or_init(|| {
        let directory = std::env::temp_dir();
        // A static is never dropped, so each test process removes the copies of those that have exited.
        for entry in fs::read_dir(&directory).expect("the directory is readable").flatten() {
            let owner = entry.file_name().to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
            if owner.is_some_and(|pid| procs::state(pid).is_none()) {
                let _ = fs::remove_file(entry.path());
            }
        }
        let copy = directory.join(format!("{PREFIX}{}", std::process::id()));
        // Copied by another process, because a child that another test forks inherits a descriptor that is open for
        // writing here, and until it closes that, the copy cannot be executed (ETXTBSY).
        let copied = Command::new("cp").arg(BINARY).arg(&copy).status();
        assert!(copied.is_ok_and(|status| status.success()), "cp to {}", copy.display());
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("it is this user's file");
        copy
    })
}

/// Checks that the ending proves every process gone, by one of these pieces of evidence.
pub fn assert_verified(end: &Value, evidence: &[&str]) {
    let cancel = &end["cancel"];
    assert_eq!((&cancel["verified"], &cancel["survivors"]), (&json!(true), &json!(0)), "{end}");
    assert!(evidence.contains(&cancel["evidence"].as_str().unwrap_or_default()), "{end}");
}

/// The shim of a command's process: the nearest ancestor with the name of shims.
pub fn shim_of(process: u32) -> u32 {
    let mut pid = process;
    loop {
        pid = procs::parent(pid).expect("the process has a shim above it");
        if procs::name(pid).is_some_and(|name| name == "cc-shim") {
            return pid;
        }
    }
}

/// Whether a process is a subreaper.
pub fn is_subreaper(pid: u32) -> bool {
    procs::name(pid).is_some_and(|name| name == "cc-subreaper")
}

/// Waits until a service that has ended has no descendant any more, neither subreaper nor shim.
pub fn wait_for_no_descendant(pid: u32) {
    wait_until("the service has no descendant", Duration::from_secs(2), || procs::descendants(pid).is_empty());
}
