//! Where the kernel counts the memory of an execution: its peak, and the processes that it killed because memory ran out.
//!
//! Everything is opened before the command runs, because the command may lower the shim's limit of descriptors. Where
//! the memory is not counted the execution runs all the same.

use std::{
    fs::File,
    io::Write,
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::Path,
};

use rustix::fs::{AtFlags, OFlags, unlinkat};

use super::place::{Hierarchy, make_directory, open_in};
use crate::backend::shim::protocol::OomKills;

/// The files of a memory cgroup.
struct FileNames {
    peak: &'static str,
    kills: &'static str,
}

/// Version 1 counts a kill in the cgroup of the killed process only.
const V1: FileNames = FileNames { peak: "memory.max_usage_in_bytes", kills: "memory.oom_control" };

/// Version 2 counts a kill in the cgroup of the killed process and in those above it.
const V2: FileNames = FileNames { peak: "memory.peak", kills: "memory.events" };

/// Where the memory of one execution is counted.
#[derive(Debug)]
pub enum MemoryAccount {
    /// In a cgroup of its own.
    Own(OwnMemory),
    /// In the cgroup of the service, which all executions share.
    Shared {
        /// The kills there.
        counter: OomCounter,
        /// Their number before the command ran.
        before: u64,
    },
    /// Nowhere.
    Nowhere,
}

/// The memory cgroup of one execution.
#[derive(Debug)]
pub struct OwnMemory {
    counter: OomCounter,
    /// Absent with version 2 of a kernel before 5.19.
    peak: Option<File>,
    /// Absent with version 2, where the execution's cgroup is also its memory cgroup.
    directory: Option<MemoryDirectory>,
}

/// A directory of version 1, which exists as long as this value.
#[derive(Debug)]
struct MemoryDirectory {
    base: OwnedFd,
    name: String,
    /// And not `cgroup.procs`, because a thread that moves only itself takes no lock of all processes.
    tasks: File,
}

impl Drop for MemoryDirectory {
    fn drop(&mut self) {
        // Fails if it still has processes. The next backend's start removes it.
        let _ = unlinkat(&self.base, &*self.name, AtFlags::REMOVEDIR);
    }
}

impl MemoryAccount {
    /// Makes the account of an execution below the directory of version 1, or opens that in its cgroup of version 2.
    /// `service` is the counter for an execution that gets neither.
    pub fn open(
        cgroup: Option<&OwnedFd>,
        memory_base: Option<&Path>,
        name: &str,
        service: Option<OomCounter>,
    ) -> MemoryAccount {
        let own = memory_base.and_then(|base| OwnMemory::make_v1(base, name)).or_else(|| OwnMemory::open_v2(cgroup?));
        if let Some(own) = own {
            return MemoryAccount::Own(own);
        }
        match service.and_then(|counter| Some((counter.read()?, counter))) {
            Some((before, counter)) => MemoryAccount::Shared { counter, before },
            None => MemoryAccount::Nowhere,
        }
    }

    /// Moves this process, which has one thread, to its memory cgroup. If that fails, nothing is counted there.
    pub fn enter(&self) {
        if let MemoryAccount::Own(OwnMemory { directory: Some(directory), .. }) = self {
            let _ = (&directory.tasks).write_all(b"0");
        }
    }

    /// The most memory that the execution used at one time, in bytes.
    pub fn peak_bytes(&self) -> Option<u64> {
        let MemoryAccount::Own(OwnMemory { peak: Some(peak), .. }) = self else { return None };
        // A process takes memory, so with 0 none has entered the cgroup.
        read(peak).trim().parse().ok().filter(|bytes| *bytes > 0)
    }

    /// The processes that the kernel has killed since the account was opened.
    pub fn oom_kills(&self) -> OomKills {
        match self {
            MemoryAccount::Own(own) => match own.counter.read() {
                Some(n) if n > 0 => OomKills::Own(n),
                Some(_) | None => OomKills::NotCounted,
            },
            MemoryAccount::Shared { counter, before } if counter.read().is_some_and(|now| now > *before) => {
                OomKills::Shared
            }
            MemoryAccount::Shared { .. } | MemoryAccount::Nowhere => OomKills::NotCounted,
        }
    }
}

impl OwnMemory {
    fn make_v1(base: &Path, name: &str) -> Option<OwnMemory> {
        let (base, opened) = make_directory(base, name).ok()?;
        let made = open_in(&opened, "tasks", OFlags::WRONLY).ok();
        let Some(tasks) = made else {
            let _ = unlinkat(&base, name, AtFlags::REMOVEDIR);
            return None;
        };
        let directory = MemoryDirectory { base, name: name.to_owned(), tasks };
        OwnMemory::open(&opened, &V1, Some(directory))
    }

    /// The execution's cgroup has these files only where the memory controller is enabled for it.
    fn open_v2(cgroup: &OwnedFd) -> Option<OwnMemory> {
        OwnMemory::open(cgroup, &V2, None)
    }

    fn open(opened: &OwnedFd, names: &FileNames, directory: Option<MemoryDirectory>) -> Option<OwnMemory> {
        let counter = OomCounter(open_in(opened, names.kills, OFlags::RDONLY).ok()?);
        // A kernel before 4.13 does not count kills in version 1.
        counter.read()?;
        Some(OwnMemory { counter, peak: open_in(opened, names.peak, OFlags::RDONLY).ok(), directory })
    }
}

/// The number of processes in a cgroup that the kernel has killed because memory ran out.
#[derive(Debug)]
pub struct OomCounter(File);

impl OomCounter {
    /// The counter of this process's own cgroup, in whichever version counts memory.
    pub fn of_this_process() -> Option<OomCounter> {
        [(Hierarchy::Memory, V1), (Hierarchy::Unified, V2)].into_iter().find_map(|(hierarchy, names)| {
            let counter = OomCounter(File::open(hierarchy.own_directory().ok()?.join(names.kills)).ok()?);
            counter.read().map(|_| counter)
        })
    }

    fn read(&self) -> Option<u64> {
        parse_oom_kills(&read(&self.0))
    }
}

fn parse_oom_kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// The beginning of a small file of the kernel, which is read anew. Empty if it cannot be read.
fn read(file: &File) -> String {
    let mut text = [0; 512];
    let n = file.read_at(&mut text, 0).unwrap_or(0);
    String::from_utf8_lossy(&text[..n]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kills_are_read_from_the_files_of_both_versions() {
        for (text, kills) in [
            ("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", Some(3)),
            ("low 0\nhigh 0\nmax 12\noom 4\noom_kill 2\noom_group_kill 1\n", Some(2)),
            ("oom_kill_disable 0\nunder_oom 0\n", None),
            ("", None),
        ] {
            assert_eq!(parse_oom_kills(text), kills, "{text}");
        }
    }
}
