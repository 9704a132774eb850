//! The directories of cgroups: those of a backend, below them those of its subreapers, below these one for each
//! execution.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::place::Hierarchy;
use crate::backend::shim::procfs::{pid, stat_of};

/// The prefix of a backend's directory. The process id and the start time follow, which identify the process.
const BASE: &str = "cc-executor.";

/// The directory in each hierarchy, under the same name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CgroupDirectories {
    /// Of version 2.
    pub unified: PathBuf,
    /// Of the memory controller of version 1. Absent where that is not mounted or cannot be written.
    pub memory: Option<PathBuf>,
}

impl CgroupDirectories {
    /// Makes the directories of this backend, and removes those of backends that are gone. Memory of version 1 is counted
    /// on demand only: its cgroups are made and removed slowly, and the removed ones stay in the kernel for a while, which
    /// slows down a service that starts many executions.
    pub(in crate::backend::shim) fn make_base(counts_memory_of_version_1: bool) -> io::Result<CgroupDirectories> {
        let own = with_delegation(Hierarchy::Unified.own_directory()?);
        let own_memory = Hierarchy::Memory.own_directory().ok();
        // Version 2 first, because only there the processes that are left can be killed.
        for own in [Some(&own), own_memory.as_ref()].into_iter().flatten() {
            remove_stale_bases(own);
        }
        let me = rustix::process::getpid();
        let started = stat_of(me).map_or(0, |stat| stat.started);
        let name = format!("{BASE}{}-{started}", me.as_raw_nonzero());
        let unified = own.join(&name);
        fs::create_dir(&unified)?;
        // A kernel before 5.14 has no `cgroup.kill`.
        if !unified.join("cgroup.kill").exists() || !unified.join("cgroup.freeze").exists() {
            fs::remove_dir(&unified)?;
            return Err(io::Error::new(ErrorKind::Unsupported, "this kernel has no cgroup.kill"));
        }
        enable_memory(&own);
        enable_memory(&unified);
        let own_memory = own_memory.filter(|_| counts_memory_of_version_1);
        Ok(CgroupDirectories { unified, memory: own_memory.and_then(|own| make_memory(&own.join(&name))) })
    }

    /// Makes directories below the backend's for the executions of one subreaper. A subreaper that is replaced, and
    /// ends, must not reach the executions of the others.
    ///
    /// # Errors
    ///
    /// The directory of version 2 cannot be made.
    pub fn make_for_subreaper(&self) -> io::Result<CgroupDirectories> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let CgroupDirectories { unified, memory } =
            self.below(&format!("subreaper-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        // The last subreaper of a backend removes the parent, too, see `remove_as_last`.
        fs::create_dir_all(&unified)?;
        enable_memory(&unified);
        Ok(CgroupDirectories { unified, memory: memory.and_then(|directory| make_memory(&directory)) })
    }

    /// The directories with this name below these.
    pub fn below(&self, name: &str) -> CgroupDirectories {
        let memory = self.memory.as_ref().map(|memory| memory.join(name));
        CgroupDirectories { unified: self.unified.join(name), memory }
    }

    /// Ends the processes that are left in the cgroups and those below, and removes the cgroups, without waiting.
    pub fn remove(&self) {
        remove_base(&self.unified);
        self.remove_memory();
    }

    /// Ends the processes that are left in the cgroups and those below, and removes the cgroups. Returns true if it saw
    /// them empty in time, or if they are gone and their parent still exists.
    pub fn end(&self, patience: Duration) -> bool {
        let is_empty = end_cgroup(&self.unified, patience);
        self.remove_memory();
        is_empty
    }

    /// The same for a subreaper that has no backend any more: also the directories of the backend, if they are empty then,
    /// because a backend may exit before its subreaper does.
    pub fn remove_as_last(&self) {
        self.remove();
        for directory in [Some(&self.unified), self.memory.as_ref()].into_iter().flatten() {
            let of_backend =
                |parent: &&Path| parent.file_name().is_some_and(|name| name.to_string_lossy().starts_with(BASE));
            // Fails while another subreaper has directories there.
            let _ = directory.parent().filter(of_backend).map(fs::remove_dir);
        }
    }

    fn remove_memory(&self) {
        if let Some(memory) = &self.memory {
            remove_tree(memory);
        }
    }
}

/// The directory that systemd has delegated, if it has put this process in a group below it (`DelegateSubgroup=` of
/// systemd.resource-control(5)), else the own one. Only there the kernel lets children count memory, because a cgroup
/// below the root that has processes cannot pass a controller on.
fn with_delegation(own: PathBuf) -> PathBuf {
    let is_delegated = |directory: &&Path| {
        let mut value = [0; 8];
        ["user.delegate", "trusted.delegate"].iter().any(|name| {
            let n = rustix::fs::getxattr(*directory, *name, &mut value[..]).unwrap_or(0);
            &value[..n] == b"1"
        })
    };
    own.parent().filter(is_delegated).map_or_else(|| own.clone(), Path::to_owned)
}

/// Makes a memory cgroup. Without one the memory of executions is not counted, and they run all the same.
fn make_memory(directory: &Path) -> Option<PathBuf> {
    fs::create_dir_all(directory).ok().map(|()| directory.to_owned())
}

/// Has the children of a cgroup of version 2 count memory. The kernel refuses that where the controller belongs to
/// version 1, and in a cgroup that has processes itself, apart from the root.
fn enable_memory(directory: &Path) {
    let _ = fs::write(directory.join("cgroup.subtree_control"), "+memory");
}

fn remove_stale_bases(own: &Path) {
    for entry in fs::read_dir(own).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(owner) = name.strip_prefix(BASE)
            && !is_owner_alive(owner)
        {
            remove_base(&entry.path());
        }
    }
}

fn is_owner_alive(owner: &str) -> bool {
    let Some((number, started)) = owner.split_once('-') else { return true };
    pid(number).and_then(stat_of).is_some_and(|stat| stat.started.to_string() == started)
}

fn remove_base(base: &Path) {
    // Fails in version 1, which has no such file.
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

fn end_cgroup(directory: &Path, patience: Duration) -> bool {
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
