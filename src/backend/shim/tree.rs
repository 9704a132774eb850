//! The process tree under a shim, seen from its root.
//!
//! Signals go only to direct children, and to the leader's group while the leader has not been reaped. Their ids cannot
//! have been reused, because only this process reaps them. Deeper descendants become direct children when their parents
//! are gone.

use std::{
    collections::{HashMap, HashSet},
    io,
};

use rustix::{
    io::Errno,
    param::clock_ticks_per_second,
    process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, kill_process_group, wait},
    time::{ClockId, clock_gettime},
};

use super::{procfs::Procfs, protocol::LeaderExit};

/// `__WALL`: wait for all children, also those that clone(2) made without SIGCHLD, see waitpid(2).
const WALL: u32 = 0x4000_0000;

/// The most processes that are listed to avoid a second TERM. In a larger tree a process may get it twice.
const MAX_LISTED: usize = 4_096;

/// The children of this process.
pub struct ProcessTree {
    leader: Option<Pid>,
    gone: bool,
    /// The children that TERM was sent to.
    terminated: HashSet<Pid>,
    /// The processes that got TERM as members of the leader's group, with their times of start. They may become
    /// children later, and a second TERM would interrupt their clean-up.
    terminated_as_group: HashMap<Pid, u64>,
    killed: HashSet<Pid>,
}

impl ProcessTree {
    /// The tree of this leader, just started.
    pub fn new(leader: Pid) -> Self {
        ProcessTree {
            leader: Some(leader),
            gone: false,
            terminated: HashSet::new(),
            terminated_as_group: HashMap::new(),
            killed: HashSet::new(),
        }
    }

    /// The command's own process, until it has been reaped.
    pub fn leader(&self) -> Option<Pid> {
        self.leader
    }

    /// Whether the tree is gone: wait(2) has returned ECHILD.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Reaps all ended children, and returns the leader's exit if the leader is among them.
    pub fn reap(&mut self) -> io::Result<Option<LeaderExit>> {
        let mut exit = None;
        loop {
            match reap_one()? {
                Reaped::Child(pid, status) => {
                    self.terminated.remove(&pid);
                    if self.leader == Some(pid)
                        && let Some(ended) = leader_exit(status)
                    {
                        self.leader = None;
                        exit = Some(ended);
                    }
                }
                Reaped::NoneYet => return Ok(exit),
                Reaped::NoChildren => {
                    self.gone = true;
                    return Ok(exit);
                }
            }
        }
    }

    /// Sends a signal to the leader's process group, while the leader is there.
    pub fn signal_group(&self, number: i32) {
        if let (Some(leader), Some(signal)) = (self.leader, Signal::from_named_raw(number)) {
            // The group exists only from shortly before the exec; until then the leader alone gets the signal. Both
            // calls fail if the leader has just ended.
            if kill_process_group(leader, signal) == Err(Errno::SRCH) {
                let _ = kill_process(leader, signal);
            }
        }
    }

    /// Sends TERM to the group, and to each child outside it.
    pub fn terminate(&mut self, procfs: &Procfs) {
        let before = now_in_ticks();
        // Before anything is listed, because a tree that keeps forking can make that slow.
        self.signal_group(Signal::TERM.as_raw());
        self.terminated_as_group = self.group_members(before, procfs);
        self.terminated.extend(self.leader);
        self.terminate_new_children(procfs);
    }

    /// The processes in the leader's group that were started before this time, with their times of start. Empty if the
    /// tree cannot be listed or is too large: then a process may get TERM twice.
    fn group_members(&self, before: u64, procfs: &Procfs) -> HashMap<Pid, u64> {
        let Some(leader) = self.leader.map(|leader| leader.as_raw_nonzero().get()) else { return HashMap::new() };
        let tree = procfs.descendants(MAX_LISTED).unwrap_or_default().into_iter();
        let members = tree.filter(|(_, stat)| stat.group == leader && stat.started < before);
        members.map(|(process, stat)| (process, stat.started)).collect()
    }

    /// Sends TERM, and CONT after it, to each child that has not had it: descendants whose parent has ended since.
    /// Where the children cannot be listed, TERM reaches the leader's group only.
    pub fn terminate_new_children(&mut self, procfs: &Procfs) {
        for child in procfs.children().unwrap_or_default() {
            if self.terminated.insert(child) && !self.has_got_term(child, procfs) {
                let _ = kill_process(child, Signal::TERM);
                let _ = kill_process(child, Signal::CONT);
            }
        }
    }

    fn has_got_term(&self, child: Pid, procfs: &Procfs) -> bool {
        let started = self.terminated_as_group.get(&child);
        started.is_some_and(|started| procfs.stat(child).is_ok_and(|stat| stat.started == *started))
    }

    /// The number of processes that [`ProcessTree::kill`] has sent KILL to.
    pub fn n_killed(&self) -> u32 {
        count(self.killed.len())
    }

    /// Sends KILL to every child and to the leader's group. Returns the number of children, or an error if they
    /// cannot be listed.
    pub fn kill(&mut self, procfs: &Procfs) -> io::Result<u32> {
        self.signal_group(Signal::KILL.as_raw());
        self.killed.extend(self.leader);
        let children = procfs.children()?;
        for child in &children {
            let _ = kill_process(*child, Signal::KILL);
        }
        let n_children = count(children.len());
        self.killed.extend(children);
        Ok(n_children)
    }
}

/// The result of looking for an ended child.
pub enum Reaped {
    /// This child had ended, and was reaped.
    Child(Pid, WaitStatus),
    /// There are children, and all of them live.
    NoneYet,
    /// There are no children (ECHILD).
    NoChildren,
}

/// Reaps one child that has ended, without waiting.
pub fn reap_one() -> io::Result<Reaped> {
    loop {
        match wait(WaitOptions::NOHANG | WaitOptions::from_bits_retain(WALL)) {
            Ok(Some((pid, status))) => return Ok(Reaped::Child(pid, status)),
            Ok(None) => return Ok(Reaped::NoneYet),
            Err(Errno::CHILD) => return Ok(Reaped::NoChildren),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// How a process ended, from its wait status.
fn leader_exit(status: WaitStatus) -> Option<LeaderExit> {
    if let Some(code) = status.exit_status() {
        return Some(LeaderExit::Code(code));
    }
    status.terminating_signal().map(LeaderExit::Signal)
}

/// The time since boot in clock ticks, as [`Stat::started`](super::procfs::Stat::started) counts it.
fn now_in_ticks() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let hertz = clock_ticks_per_second();
    now.tv_sec.unsigned_abs() * hertz + now.tv_nsec.unsigned_abs() * hertz / 1_000_000_000
}

/// A count that fits on the wire.
pub fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
