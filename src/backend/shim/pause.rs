//! Stops a whole process tree, and continues it.
//!
//! Parents are stopped before their children, and children continued before their parents, because a running
//! job-control shell would report a stopped child and take back its terminal. A process's children are
//! therefore signalled only when /proc shows that the process has stopped. The tree is listed again until it
//! has no running and no new process.
//!
//! A pause is taken in steps, and the shim reads its orders between them, because a process in vfork(2) or one
//! that waits for a dead disk cannot be stopped, and must not delay a cancellation.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

use super::{
    cgroup::Cgroup,
    procfs::{Procfs, Stat, stat_of},
};

/// The longest time for a tree to stop, and then for a cgroup to freeze.
const STOP_PATIENCE: Duration = Duration::from_millis(800);

/// How far a pause has come.
#[derive(Debug, Default)]
pub(super) enum PauseState {
    /// The shim has stopped no process.
    #[default]
    Running,
    /// The shim has sent STOP to these processes, and not all have stopped.
    Stopping { signaled: HashSet<Pid>, until: Instant },
    /// A process could not be stopped, so the shim has the cgroup frozen. It is not frozen at once, because /proc shows
    /// stopped processes and does not show frozen ones.
    Freezing { until: Instant },
    /// All processes were stopped.
    Stopped,
}

/// The result of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PauseStep {
    /// Another step is needed.
    Again,
    /// All processes are stopped.
    Done,
    /// A process cannot be stopped.
    Failed,
}

impl PauseState {
    /// Begins to stop everything below this process.
    pub(super) fn begin(&mut self) {
        if matches!(self, PauseState::Running) {
            *self = PauseState::Stopping { signaled: HashSet::new(), until: Instant::now() + STOP_PATIENCE };
        }
    }

    /// Stops the processes whose parents have stopped, or looks whether the cgroup has frozen.
    pub(super) fn step(&mut self, procfs: &Procfs, cgroup: Option<&Cgroup>) -> PauseStep {
        let step = match self {
            PauseState::Running | PauseState::Stopped => PauseStep::Done,
            PauseState::Stopping { signaled, until } => stop_running(signaled, *until, procfs),
            PauseState::Freezing { .. } if cgroup.is_some_and(Cgroup::is_frozen) => PauseStep::Done,
            PauseState::Freezing { until } if Instant::now() > *until => PauseStep::Failed,
            PauseState::Freezing { .. } => PauseStep::Again,
        };
        match step {
            PauseStep::Done => *self = PauseState::Stopped,
            PauseStep::Failed
                if matches!(self, PauseState::Stopping { .. })
                    && cgroup.is_some_and(|cgroup| cgroup.freeze(true).is_ok()) =>
            {
                *self = PauseState::Freezing { until: Instant::now() + STOP_PATIENCE };
                return PauseStep::Again;
            }
            PauseStep::Again | PauseStep::Failed => {}
        }
        step
    }

    /// Continues all processes, also those that others have stopped, because a client has no other way to continue them.
    pub(super) fn end(&mut self, procfs: &Procfs, cgroup: Option<&Cgroup>) {
        if let Some(cgroup) = cgroup {
            // Does nothing to a cgroup that is not frozen.
            let _ = cgroup.freeze(false);
        }
        *self = PauseState::Running;
        continue_all(procfs);
    }
}

/// Lists the tree once, and sends STOP to each running process whose parent has stopped.
fn stop_running(signaled: &mut HashSet<Pid>, until: Instant, procfs: &Procfs) -> PauseStep {
    let Ok(tree) = procfs.descendants(usize::MAX) else { return PauseStep::Failed };
    let mut running = HashSet::new();
    let mut all_still = true;
    for (process, stat) in tree {
        let is_still = stat.is_still();
        all_still &= is_still;
        if !is_still {
            running.insert(process.as_raw_nonzero().get());
        }
        if !running.contains(&stat.parent) && signaled.insert(process) {
            send(process, stat, Signal::STOP);
            all_still = false;
        }
    }
    if all_still {
        return PauseStep::Done;
    }
    if Instant::now() > until { PauseStep::Failed } else { PauseStep::Again }
}

/// Continues everything below this process, children first.
fn continue_all(procfs: &Procfs) {
    for (process, stat) in procfs.descendants(usize::MAX).unwrap_or_default().into_iter().rev() {
        send(process, stat, Signal::CONT);
    }
}

/// Whether all processes below this one are stopped. False if they cannot be listed.
pub(super) fn is_stopped(leader: Option<Pid>, procfs: &Procfs) -> bool {
    // The tree is listed only if the leader is stopped, because this is called for each inspection.
    let leader_is_still = leader.is_none_or(|leader| procfs.stat(leader).is_ok_and(Stat::is_still));
    leader_is_still && procfs.descendants(usize::MAX).is_ok_and(|tree| tree.iter().all(|(_, stat)| stat.is_still()))
}

/// Signals a process if it still is the child that was listed, because its id may have been reused.
fn send(process: Pid, seen: Stat, signal: Signal) {
    let Ok(handle) = pidfd_open(process, PidfdFlags::empty()) else { return };
    // If its parent has ended meanwhile, it is a child of this process.
    let now = stat_of(process).map(|stat| stat.parent);
    if now == Some(seen.parent) || now == Some(getpid().as_raw_nonzero().get()) {
        // Fails if the process has just ended.
        let _ = pidfd_send_signal(&handle, signal);
    }
}
