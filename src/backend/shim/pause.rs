//! Stops a whole process tree, and continues it.
//!
//! Parents are stopped before their children, and children continued before their parents: a job-control
//! shell that could see a stopped child would say so and take back its terminal. So each process must
//! really be stopped before its children are told to; a signal that was sent is not one that was
//! obeyed. Processes that are born meanwhile are found by looking again until nothing new turns up.
//!
//! A pause is taken in steps, between which the shim reads its orders: a process in vfork(2) or one that
//! waits for a dead disk cannot be stopped at all, and must not hold up a cancellation.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

use super::procfs::{Procfs, Stat, stat_of};

/// How long a tree may take to stop.
pub(super) const STOP_PATIENCE: Duration = Duration::from_millis(800);

/// How far a pause has come.
#[derive(Debug, Default)]
pub(super) enum PauseState {
    /// Nothing was stopped from here.
    #[default]
    Running,
    /// These were told to stop, and not all have.
    Stopping { told: HashSet<Pid>, until: Instant },
    /// Everything was stopped.
    Stopped,
}

/// What a step came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PauseStep {
    /// Another one is needed soon.
    Again,
    /// Everything is stopped.
    Done,
    /// Something cannot be stopped.
    Failed,
}

impl PauseState {
    /// Begins to stop everything below this process.
    pub(super) fn begin(&mut self) {
        if matches!(self, PauseState::Running) {
            *self = PauseState::Stopping { told: HashSet::new(), until: Instant::now() + STOP_PATIENCE };
        }
    }

    /// Looks once at the whole tree, and tells those to stop whose turn it is.
    pub(super) fn step(&mut self, procfs: &Procfs) -> PauseStep {
        let PauseState::Stopping { told, until } = self else { return PauseStep::Done };
        let Ok(tree) = procfs.descendants() else { return PauseStep::Failed };
        let mut running = HashSet::new();
        let mut all_still = true;
        for (process, stat) in tree {
            let is_still = stat.is_still();
            all_still &= is_still;
            if !is_still {
                running.insert(process.as_raw_nonzero().get());
            }
            if !running.contains(&stat.parent) && told.insert(process) {
                send(process, stat, Signal::STOP);
                all_still = false;
            }
        }
        if all_still {
            *self = PauseState::Stopped;
            return PauseStep::Done;
        }
        if Instant::now() > *until { PauseStep::Failed } else { PauseStep::Again }
    }

    /// Continues everything that was stopped from here.
    pub(super) fn end(&mut self, procfs: &Procfs) {
        if !matches!(std::mem::take(self), PauseState::Running) {
            continue_all(procfs);
        }
    }
}

/// Continues everything below this process, whoever stopped it, children first.
pub(super) fn continue_all(procfs: &Procfs) {
    for (process, stat) in procfs.descendants().unwrap_or_default().into_iter().rev() {
        send(process, stat, Signal::CONT);
    }
}

/// Whether everything below this process is stopped. False where that cannot be seen.
pub(super) fn is_stopped(leader: Option<Pid>, procfs: &Procfs) -> bool {
    // The whole tree is looked at only where its first process is stopped: this is asked often.
    let leader_is_still = leader.is_none_or(|leader| procfs.stat(leader).is_ok_and(Stat::is_still));
    leader_is_still && procfs.descendants().is_ok_and(|tree| tree.iter().all(|(_, stat)| stat.is_still()))
}

/// Signals a process that is still the child that was seen: a number may have been given to another.
fn send(process: Pid, seen: Stat, signal: Signal) {
    let Ok(handle) = pidfd_open(process, PidfdFlags::empty()) else { return };
    // Its parent may have ended meanwhile: then it is our own child, or a child of one of ours.
    let now = stat_of(process).map(|stat| stat.parent);
    if now == Some(seen.parent) || now == Some(getpid().as_raw_nonzero().get()) {
        // It may have ended in this moment.
        let _ = pidfd_send_signal(&handle, signal);
    }
}
