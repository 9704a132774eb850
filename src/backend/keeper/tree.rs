//! The process tree under a keeper, seen from its root.
//!
//! Only direct children are ever signalled, and the leader's group while the leader has not been
//! reaped: no number of these can have been given to somebody else, since only this process reaps
//! them. Deeper descendants become direct children when their parents are gone.

use std::{collections::HashSet, fs, io};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitOptions, getpid, kill_process, kill_process_group, wait},
};

use super::{leader_exit, talk::LeaderExit};

/// `__WALL`: also children that are threads of another kind (clone without SIGCHLD), see waitpid(2).
const WALL: u32 = 0x4000_0000;

/// The children of this process.
pub struct Tree {
    leader: Option<Pid>,
    gone: bool,
    asked: HashSet<Pid>,
    killed: HashSet<Pid>,
}

impl Tree {
    /// The tree of this leader, just started.
    pub fn new(leader: Pid) -> Self {
        Tree { leader: Some(leader), gone: false, asked: HashSet::new(), killed: HashSet::new() }
    }

    /// Whether nothing is left: ECHILD was seen.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Reaps whatever has ended, and gives the leader's exit if that was among it.
    pub fn reap(&mut self) -> io::Result<Option<LeaderExit>> {
        let mut exit = None;
        loop {
            match wait(WaitOptions::NOHANG | WaitOptions::from_bits_retain(WALL)) {
                Ok(Some((pid, status))) => {
                    self.asked.remove(&pid);
                    if self.leader == Some(pid)
                        && let Some(ended) = leader_exit(status)
                    {
                        self.leader = None;
                        exit = Some(ended);
                    }
                }
                Ok(None) => return Ok(exit),
                Err(Errno::CHILD) => {
                    self.gone = true;
                    return Ok(exit);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a signal to the leader's process group, while the leader is there.
    pub fn signal_group(&self, number: i32) {
        if let (Some(leader), Some(signal)) = (self.leader, Signal::from_named_raw(number)) {
            // It may have ended in this moment: then there is nobody to signal.
            let _ = kill_process_group(leader, signal);
        }
    }

    /// TERM to the group, and to those who left it.
    pub fn terminate(&mut self) {
        self.signal_group(Signal::TERM.as_raw());
        self.asked.extend(self.leader);
        self.signal_orphans_once(Signal::TERM);
    }

    /// Sends a signal to each child that has not had it: descendants that have come up to here since.
    pub fn signal_orphans_once(&mut self, signal: Signal) {
        for child in children() {
            if self.asked.insert(child) {
                let _ = kill_process(child, signal);
            }
        }
    }

    /// How many processes [`Tree::kill`] has met.
    pub fn n_killed(&self) -> u32 {
        count(self.killed.len())
    }

    /// KILL to every child, and to the leader's group. Gives how many children there were.
    pub fn kill(&mut self) -> u32 {
        self.signal_group(Signal::KILL.as_raw());
        let children = children();
        for child in &children {
            let _ = kill_process(*child, Signal::KILL);
        }
        let n_children = count(children.len());
        self.killed.extend(children);
        n_children
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// The direct children of this single-threaded process that are not zombies waiting for `reap`.
fn children() -> Vec<Pid> {
    let me = getpid().as_raw_nonzero();
    // One file where the kernel has it (CONFIG_PROC_CHILDREN), else every process's parent.
    match fs::read_to_string(format!("/proc/self/task/{me}/children")) {
        Ok(list) => list.split_ascii_whitespace().filter_map(pid).collect(),
        Err(_) => {
            let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
            entries
                .flatten()
                .filter_map(|entry| pid(entry.file_name().to_str()?))
                .filter(|child| parent_of(*child) == Some(me.get()))
                .collect()
        }
    }
}

/// A process id from its digits.
pub fn pid(text: &str) -> Option<Pid> {
    Pid::from_raw(text.parse().ok()?)
}

/// The parent of a process: the fourth field of /proc/PID/stat. The second, in parentheses, may hold
/// anything.
pub fn parent_of(child: Pid) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.as_raw_nonzero())).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}
