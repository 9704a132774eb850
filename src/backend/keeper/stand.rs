//! Lets a whole process tree stand still, and go on.
//!
//! Parents are stopped before their children, and children go on before their parents: a job-control
//! shell that could see a stopped child would say so and take back its terminal. So each process must
//! really stand still before its children are stopped; a signal that was sent is not one that was
//! obeyed. Processes that are born meanwhile are found by looking again until nothing new turns up.

use std::{
    collections::{HashMap, HashSet},
    fs, thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

use super::tree::{parent_of, pid};

/// How often the tree is looked at. A tree that is still growing then is one that outruns us.
const MAX_PASSES: usize = 100;

/// How long a process may take to stop. One that waits for a disk or a network file system may not obey
/// at all for a while.
const STOP_PATIENCE: Duration = Duration::from_millis(100);

/// What stands still.
#[derive(Debug, Default)]
pub(super) struct Standstill {
    still: bool,
}

impl Standstill {
    /// Stops everything below this process.
    pub(super) fn still(&mut self) {
        self.still = true;
        let mut stopped = HashSet::new();
        for _ in 0..MAX_PASSES {
            let new: Vec<_> = descendants().into_iter().filter(|found| !stopped.contains(&found.0)).collect();
            if new.is_empty() {
                return;
            }
            for (process, parent) in new {
                send(process, parent, Signal::STOP);
                wait_until_stopped(process);
                stopped.insert(process);
            }
        }
    }

    /// Lets everything go on that was stopped.
    pub(super) fn go(&mut self) {
        if std::mem::take(&mut self.still) {
            for (process, parent) in descendants().into_iter().rev() {
                send(process, parent, Signal::CONT);
            }
        }
    }
}

/// Everything below this process with its parent, parents first.
fn descendants() -> Vec<(Pid, Pid)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut children: HashMap<i32, Vec<Pid>> = HashMap::new();
    for process in entries.flatten().filter_map(|entry| pid(entry.file_name().to_str()?)) {
        if let Some(parent) = parent_of(process) {
            children.entry(parent).or_default().push(process);
        }
    }
    let mut found = Vec::new();
    let mut parents = vec![getpid()];
    // Each turn takes the next parent in line; a process has one parent, so it comes up once.
    let mut at = 0;
    while let Some(parent) = parents.get(at).copied() {
        at += 1;
        for child in children.remove(&parent.as_raw_nonzero().get()).unwrap_or_default() {
            found.push((child, parent));
            parents.push(child);
        }
    }
    found
}

fn wait_until_stopped(process: Pid) {
    let until = Instant::now() + STOP_PATIENCE;
    while !is_still(process) && Instant::now() < until {
        thread::yield_now();
    }
}

/// Whether it is stopped, or gone.
fn is_still(process: Pid) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())) else { return true };
    // The third field, after the name in parentheses, which may hold anything.
    stat.rsplit_once(')').is_none_or(|(_, rest)| !rest.trim_start().starts_with(['R', 'S', 'D']))
}

/// Signals a process that is still the child that was seen: a number may have been given to another.
fn send(process: Pid, parent: Pid, signal: Signal) {
    let Ok(handle) = pidfd_open(process, PidfdFlags::empty()) else { return };
    // Its parent may have ended meanwhile: then it is our own child, or a child of one of ours.
    let now = parent_of(process);
    if now == Some(parent.as_raw_nonzero().get()) || now == Some(getpid().as_raw_nonzero().get()) {
        // It may have ended in this moment.
        let _ = pidfd_send_signal(&handle, signal);
    }
}
