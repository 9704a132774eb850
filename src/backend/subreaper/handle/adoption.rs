//! Ends and reaps the processes that a lost subreaper has left to this process.

use std::{
    io,
    process::{Child, Command},
    sync::{Arc, Mutex, Weak},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, waitpid};

use super::state::{HandlePhase, SharedHandle, lock};
use crate::backend::shim::procfs::Procfs;

/// The interval between two looks for the orphans of a lost subreaper.
pub(super) const ADOPTED_CADENCE: Duration = Duration::from_millis(2);

/// Takes over the children of a lost subreaper. The kernel gives them to this process if it is a subreaper itself,
/// which it is only if it could prove that it had no children when it started, because their descendants could not be told
/// from orphans.
#[derive(Debug)]
pub(super) struct Adoption {
    is_subreaper: bool,
    procfs: Procfs,
    subreapers: Mutex<Vec<Weak<SharedHandle>>>,
    own: Mutex<Vec<Pid>>,
}

impl Adoption {
    /// To be called before this process has any other children.
    pub(super) fn prepare() -> io::Result<Adoption> {
        let procfs = Procfs::open()?;
        // Of all threads, because each subreaper is started by a thread of its own.
        let is_subreaper = match procfs.children_of_all_threads() {
            Ok(children) => children.is_empty(),
            // A listing with gaps would also prove nothing later.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => false,
            Err(error) => return Err(error),
        };
        if is_subreaper {
            set_child_subreaper(Some(Pid::INIT))?;
        }
        Ok(Adoption { is_subreaper, procfs, subreapers: Mutex::default(), own: Mutex::default() })
    }

    pub(super) fn spawn(&self, command: &mut Command, shared: &Arc<SharedHandle>) -> io::Result<(Child, Pid)> {
        // One lock around both, because a subreaper that is not listed would be taken for an orphan.
        let mut own = lock(&self.own);
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        own.push(pid);
        let mut subreapers = lock(&self.subreapers);
        subreapers.retain(|shared| shared.strong_count() > 0);
        subreapers.push(Arc::downgrade(shared));
        Ok((child, pid))
    }

    /// Whether the children of a lost subreaper come to this process.
    pub(super) fn adopts(&self) -> bool {
        self.is_subreaper
    }

    pub(super) fn forget(&self, pid: Pid) {
        lock(&self.own).retain(|own| *own != pid);
    }

    /// Ends the orphans that a lost subreaper has left to this process, and reaps its shims. Returns when no execution
    /// holds that subreaper any more.
    pub(super) fn look_after(&self, shared: &Arc<SharedHandle>) {
        while Arc::strong_count(shared) > 1 {
            if self.is_subreaper
                && self.end_orphans().is_ok_and(|n| n == 0)
                && let HandlePhase::Lost { n_clean } = &mut lock(&shared.state).phase
            {
                *n_clean += 1;
            }
            let is_waited_for = !lock(&shared.state).shims.is_empty();
            thread::sleep(if is_waited_for { ADOPTED_CADENCE } else { ADOPTED_CADENCE * 10 });
        }
    }

    /// Kills every child that is neither a subreaper nor a living shim. Returns how many there were.
    fn end_orphans(&self) -> io::Result<usize> {
        // Held while listing, so that no subreaper is started meanwhile.
        let own = lock(&self.own);
        let mut children = self.procfs.children_of_all_threads()?;
        children.retain(|child| !own.contains(child));
        drop(own);
        let shims: Vec<Pid> = {
            let mut subreapers = lock(&self.subreapers);
            subreapers.retain(|shared| shared.strong_count() > 0);
            let shared: Vec<_> = subreapers.iter().filter_map(Weak::upgrade).collect();
            shared.iter().flat_map(|shared| lock(&shared.state).shims.values().copied().collect::<Vec<_>>()).collect()
        };
        let mut n_orphans = 0;
        for child in children {
            if !shims.contains(&child) {
                n_orphans += 1;
                let _ = kill_process(child, Signal::KILL);
            }
            // A shim that has ended its tree has exited.
            let _ = waitpid(Some(child), WaitOptions::NOHANG);
        }
        Ok(n_orphans)
    }
}
