//! A cgroup of version 2 for each execution (cgroups(7)): it can be killed and frozen as a whole.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat};

use super::procfs::{pid, stat_of};
use crate::syscall::ForkTarget;

/// The prefix of a backend's directory. The process id and the start time follow, which identify the process.
const BASE: &str = "cc-executor.";

/// The mount point of cgroups of version 2, and this process's own directory there (cgroups(7)).
fn own_cgroup() -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mount = mounts
        .lines()
        .filter_map(|line| line.split_once(" - "))
        .find(|(_, kind)| kind.starts_with("cgroup2 "))
        .and_then(|(place, _)| place.split(' ').nth(4))
        .ok_or_else(|| io::Error::new(ErrorKind::NotFound, "cgroup2 is not mounted"))?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let path = own
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .ok_or_else(|| io::Error::new(ErrorKind::NotFound, "this process has no cgroup of version 2"))?;
    Ok(Path::new(mount).join(path))
}

/// Makes the directory of this backend, and removes those of backends that are gone.
pub(super) fn make_base() -> io::Result<PathBuf> {
    let own = own_cgroup()?;
    for entry in fs::read_dir(&own)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(owner) = name.strip_prefix(BASE)
            && !is_owner_alive(owner)
        {
            remove_base(&entry.path());
        }
    }
    let me = rustix::process::getpid();
    let started = stat_of(me).map_or(0, |stat| stat.started);
    let base = own.join(format!("{BASE}{}-{started}", me.as_raw_nonzero()));
    fs::create_dir(&base)?;
    // A kernel before 5.14 has no `cgroup.kill`.
    if !base.join("cgroup.kill").exists() || !base.join("cgroup.freeze").exists() {
        fs::remove_dir(&base)?;
        return Err(io::Error::new(ErrorKind::Unsupported, "this kernel has no cgroup.kill"));
    }
    Ok(base)
}

fn is_owner_alive(owner: &str) -> bool {
    let Some((number, started)) = owner.split_once('-') else { return true };
    pid(number).and_then(stat_of).is_some_and(|stat| stat.started.to_string() == started)
}

/// Makes a directory below the backend's for the executions of one subreaper. A subreaper that is replaced, and ends,
/// must not reach the executions of the others.
///
/// # Errors
///
/// The directory cannot be made.
pub fn make_subreaper_base(base: &Path) -> io::Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let directory = base.join(format!("subreaper-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir(&directory)?;
    Ok(directory)
}

/// Ends the processes that are left in a cgroup and those below it, and removes the cgroups.
pub fn remove_base(base: &Path) {
    let _ = fs::write(base.join("cgroup.kill"), "1");
    remove_tree(base);
}

/// A cgroup that still has processes cannot be removed and is left for the next start.
fn remove_tree(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(directory);
}

/// Ends the processes that are left in a cgroup and those below it, and removes the cgroups. Returns true if it saw them
/// empty in time, or if they are gone and their parent still exists.
pub fn end_cgroup(directory: &Path, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    loop {
        if fs::write(directory.join("cgroup.kill"), "1").is_err() {
            return !directory.exists() && directory.parent().is_some_and(Path::exists);
        }
        let events = fs::read_to_string(directory.join("cgroup.events")).unwrap_or_default();
        if events.contains("populated 0") {
            remove_tree(directory);
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The cgroup of one execution, held open by its shim from before its command runs.
#[derive(Debug)]
pub struct Cgroup {
    base: OwnedFd,
    name: String,
    directory: OwnedFd,
    kill: File,
    freeze: File,
    events: File,
}

impl Cgroup {
    /// Makes the cgroup below a subreaper's directory.
    pub fn make(base: &Path, name: &str) -> io::Result<Cgroup> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let base = rustix::fs::open(base, flags, Mode::empty())?;
        mkdirat(&base, name, Mode::from_raw_mode(0o755))?;
        let directory = openat(&base, name, flags, Mode::empty())?;
        let open = |file: &str, flags: OFlags| {
            openat(&directory, file, flags | OFlags::CLOEXEC, Mode::empty()).map(File::from)
        };
        let kill = open("cgroup.kill", OFlags::WRONLY)?;
        let freeze = open("cgroup.freeze", OFlags::WRONLY)?;
        let events = open("cgroup.events", OFlags::RDONLY)?;
        Ok(Cgroup { base, name: name.to_owned(), directory, kill, freeze, events })
    }

    /// Sends KILL to every process in it.
    pub fn kill(&self) {
        // In addition to the KILL to the tree, because each may reach processes that the other does not.
        let _ = self.kill.write_all_at(b"1", 0);
    }

    /// Freezes the cgroup, or thaws it.
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        self.freeze.write_all_at(if frozen { b"1" } else { b"0" }, 0)
    }

    /// The directory for CLONE_INTO_CGROUP.
    pub fn place(&self) -> ForkTarget<'_> {
        ForkTarget::Cgroup(self.directory.as_fd())
    }

    /// Moves this process into the cgroup, for kernels whose fork cannot.
    pub fn enter(&self) -> io::Result<()> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        if own.lines().any(|line| line.starts_with("0::") && line.ends_with(&format!("/{}", self.name))) {
            return Ok(());
        }
        let procs = openat(&self.directory, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        File::from(procs).write_all(b"0")
    }

    /// Whether all of its processes are frozen.
    pub fn is_frozen(&self) -> bool {
        let mut text = [0; 256];
        let n = self.events.read_at(&mut text, 0).unwrap_or(0);
        String::from_utf8_lossy(&text[..n]).lines().any(|event| event == "frozen 1")
    }
}

impl Drop for Cgroup {
    /// Removes the cgroup. If it still has processes it stays, and the next backend's start ends them.
    fn drop(&mut self) {
        let _ = unlinkat(&self.base, &*self.name, AtFlags::REMOVEDIR);
    }
}
