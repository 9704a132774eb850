//! What the tests of hostile commands share: the ways in which a service can be contained, and processes that a
//! test has to look for itself.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use super::{
    left_out, procs,
    service::{BINARY, Service, binary},
    wait_until,
};

/// A user without privileges.
const NOBODY: u32 = 65_534;

/// How a service's commands are contained, and as whom it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// By their process trees alone.
    None,
    /// The same, for a user without privileges.
    Unprivileged,
    /// By a cgroup.
    Cgroup,
    /// By a PID namespace.
    PidNamespace,
}

impl Mode {
    /// Those that this machine has. What it has not is said.
    pub fn all() -> Vec<Mode> {
        let mut modes = vec![Mode::None];
        for (mode, missing) in [
            (Mode::Unprivileged, "becoming another user needs root, and a binary that others may execute"),
            (Mode::Cgroup, "no cgroup of version 2 can be made here"),
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

    /// Whether this machine has it.
    pub fn is_possible(self) -> bool {
        static POSSIBLE: [OnceLock<bool>; 4] = [const { OnceLock::new() }; 4];
        *POSSIBLE[self as usize].get_or_init(|| {
            let mut probe = self.command(&["backend", "--bind", "not an address"]);
            // It fails over the address; what it says besides is why it cannot be contained.
            match self {
                Mode::None => true,
                Mode::Unprivileged => rustix::process::geteuid().is_root() && probe.output().is_ok(),
                Mode::Cgroup | Mode::PidNamespace => {
                    let mut service = self.command(&["backend", "--bind", "127.0.0.1:0"]);
                    let mut child = service.stderr(std::process::Stdio::piped()).spawn().expect("the binary starts");
                    let mut lines =
                        std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().expect("piped")));
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
        let mut command = binary();
        if self == Mode::Unprivileged {
            let mut reachable = Command::new(reachable_binary());
            for (name, _) in command.get_envs() {
                reachable.env_remove(name);
            }
            command = reachable;
        }
        command.args(arguments).args(["--containment", self.name()]);
        if self == Mode::Unprivileged {
            command.uid(NOBODY).gid(NOBODY).current_dir("/").env("HOME", "/tmp");
        }
        command
    }

    /// A service of this kind, with these arguments.
    pub fn service(self, arguments: &[&str]) -> Service {
        Service::spawn(self.command(&[&["serve", "--bind", "127.0.0.1:0"], arguments].concat()))
    }

    /// Whether a command can reach its shim.
    pub fn shim_is_reachable(self) -> bool {
        self != Mode::PidNamespace
    }
}

/// A copy of the binary that any user may execute, wherever the tests were built.
fn reachable_binary() -> &'static Path {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    COPY.get_or_init(|| {
        let copy = std::env::temp_dir().join(format!("cc-executor-{}", procs::mark()));
        // By another process: one that this process had open for writing could not be executed (ETXTBSY).
        let copied = Command::new("cp").arg(BINARY).arg(&copy).status();
        assert!(copied.is_ok_and(|status| status.success()), "cp to {}", copy.display());
        copy
    })
}

/// The shim of the only process with this argument: its parent. Shims are told by their name.
pub fn shim_of(process: u32) -> u32 {
    let mut at = process;
    loop {
        at = parent(at).expect("it has a shim above it");
        if fs::read_to_string(format!("/proc/{at}/comm")).is_ok_and(|name| name.trim() == "cc-shim") {
            return at;
        }
    }
}

/// The parent of a process.
pub fn parent(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Waits until nothing is left of a service that has ended: its subreaper, its shims.
pub fn wait_for_no_child_of(pid: u32) {
    let below = || procs::below(pid);
    wait_until("nothing is left of the service", std::time::Duration::from_secs(2), || below().is_empty());
}

/// A directory for one test, below the one that cargo gives. Everybody may look into it.
pub fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", procs::mark()));
    fs::create_dir_all(&path).expect("cargo's directory is writable");
    path
}
