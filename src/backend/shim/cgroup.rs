//! Cgroups (cgroups(7)). One of version 2 for each execution can be killed and frozen as a whole. Its memory is counted
//! there, or in a cgroup of version 1 beside it, see [`memory`].

mod directories;
pub mod memory;
mod place;

use std::{
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::Path,
};

use rustix::fs::{AtFlags, OFlags, unlinkat};

pub use self::directories::CgroupDirectories;
use self::place::{make_directory, open_in};
use crate::syscall::ForkTarget;

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
        let (base, directory) = make_directory(base, name)?;
        let kill = open_in(&directory, "cgroup.kill", OFlags::WRONLY)?;
        let freeze = open_in(&directory, "cgroup.freeze", OFlags::WRONLY)?;
        let events = open_in(&directory, "cgroup.events", OFlags::RDONLY)?;
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

    /// Its directory.
    pub fn directory(&self) -> &OwnedFd {
        &self.directory
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
        open_in(&self.directory, "cgroup.procs", OFlags::WRONLY)?.write_all(b"0")
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
