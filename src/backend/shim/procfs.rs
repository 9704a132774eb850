//! Reads /proc through descriptors that the shim opened before its command ran.
//!
//! A command of the same user can lower the limits of its shim (prlimit(2)), so a listing must not need a
//! new descriptor; and a listing that failed must never look like an empty one.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use rustix::{
    fs::{Dir, Mode, OFlags, openat},
    process::{Pid, getpid},
};

/// The most passes of one listing. A tree whose processes keep forking and ending never comes to rest.
const MAX_PASSES: usize = 4;

/// The fields of /proc/PID/stat that the shim uses (proc(5)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stat {
    /// Its parent.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// Its start time, in clock ticks since boot. Together with the process id it identifies a process.
    pub started: u64,
    /// Its state: `R`, `S`, `D`, `T`, `t`, `Z` and others.
    pub state: char,
}

impl Stat {
    /// Whether it is stopped, or has ended.
    pub fn is_still(self) -> bool {
        matches!(self.state, 'T' | 't' | 'Z' | 'X')
    }
}

/// /proc, as one single-threaded process sees it.
#[derive(Debug)]
pub struct Procfs {
    proc: OwnedFd,
    /// The process's children, where the kernel has that file (CONFIG_PROC_CHILDREN).
    children: Option<File>,
}

impl Procfs {
    /// Opens the descriptors. A forked process needs its own, because /proc/self is another one there.
    pub fn open() -> io::Result<Procfs> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open("/proc", flags, Mode::empty())?;
        let children = File::open(format!("/proc/self/task/{}/children", getpid().as_raw_nonzero())).ok();
        Ok(Procfs { proc, children })
    }

    /// The direct children of this process, including ended ones that it has not reaped.
    pub fn children(&self) -> io::Result<Vec<Pid>> {
        let Some(file) = &self.children else { return self.children_among_all() };
        let mut list = Vec::new();
        let mut piece = [0; 4096];
        loop {
            match file.read_at(&mut piece, list.len() as u64)? {
                0 => break,
                n => list.extend_from_slice(&piece[..n]),
            }
        }
        let list = String::from_utf8(list).map_err(io::Error::other)?;
        Ok(list.split_ascii_whitespace().filter_map(pid).collect())
    }

    /// The direct children of all threads of this process. If the kernel lists children, only this process's own entry
    /// is read, because with `hidepid` (proc(5)) those of other users, and of processes that cannot be traced, are
    /// closed.
    ///
    /// # Errors
    ///
    /// /proc cannot be read. `PermissionDenied` if the kernel does not list children, and the parent of some process
    /// cannot be read.
    pub fn children_of_all_threads(&self) -> io::Result<Vec<Pid>> {
        match self.children {
            Some(_) => self.children_of(getpid()),
            None => self.children_among_all(),
        }
    }

    fn children_among_all(&self) -> io::Result<Vec<Pid>> {
        let me = getpid().as_raw_nonzero().get();
        let all = self.all()?;
        Ok(all.into_iter().filter(|(_, stat)| stat.parent == me).map(|(process, _)| process).collect())
    }

    /// All processes below this one, parents first. If the kernel lists children, only this tree is read, because
    /// reading all processes takes too long when many executions end at the same time.
    ///
    /// # Errors
    ///
    /// /proc cannot be read, or there are more than `most` processes. Without a limit a tree that keeps forking may
    /// keep this busy for as long as it forks.
    pub fn descendants(&self, most: usize) -> io::Result<Vec<(Pid, Stat)>> {
        if self.children.is_none() {
            let all = self.descendants_of_all()?;
            return if all.len() > most { Err(too_many()) } else { Ok(all) };
        }
        let visit = |process| match self.stat(process) {
            Ok(stat) => Ok(Some((stat, self.children_of(process)?))),
            Err(error) if is_ended(&error) => Ok(None),
            Err(error) => Err(error),
        };
        walk(|| self.children(), visit, most)
    }

    /// The children of all threads of a process. Empty for a process that has ended.
    fn children_of(&self, process: Pid) -> io::Result<Vec<Pid>> {
        let name = process.as_raw_nonzero();
        let tasks = match openat(
            &self.proc,
            format!("{name}/task"),
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Ok(tasks) => tasks,
            Err(error) if is_ended(&error.into()) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut found = Vec::new();
        for task in Dir::read_from(tasks.as_fd())? {
            let task = match task {
                Ok(task) => task,
                Err(error) if is_ended(&error.into()) => break,
                Err(error) => return Err(error.into()),
            };
            let Some(task) = task.file_name().to_str().ok().and_then(pid) else { continue };
            let path = format!("{}/children", task.as_raw_nonzero());
            let mut list = String::new();
            let read = openat(&tasks, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(io::Error::from)
                .and_then(|file| File::from(file).read_to_string(&mut list));
            match read {
                Ok(_) => found.extend(list.split_ascii_whitespace().filter_map(pid)),
                Err(error) if is_ended(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    fn descendants_of_all(&self) -> io::Result<Vec<(Pid, Stat)>> {
        let mut children: HashMap<i32, Vec<(Pid, Stat)>> = HashMap::new();
        for (process, stat) in self.all()? {
            children.entry(stat.parent).or_default().push((process, stat));
        }
        let mut found = Vec::new();
        let mut parents = vec![getpid().as_raw_nonzero().get()];
        // Terminates, because each process has one parent and so is added once.
        let mut at = 0;
        while let Some(parent) = parents.get(at).copied() {
            at += 1;
            for child in children.remove(&parent).unwrap_or_default() {
                parents.push(child.0.as_raw_nonzero().get());
                found.push(child);
            }
        }
        Ok(found)
    }

    /// The fields of one process.
    pub fn stat(&self, process: Pid) -> io::Result<Stat> {
        let name = format!("{}/stat", process.as_raw_nonzero());
        let file = openat(&self.proc, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = Vec::new();
        File::from(file).read_to_end(&mut text)?;
        parse_stat(&String::from_utf8_lossy(&text)).ok_or_else(|| io::Error::other("not a stat line"))
    }

    fn all(&self) -> io::Result<Vec<(Pid, Stat)>> {
        let mut found = Vec::new();
        for entry in Dir::read_from(self.proc.as_fd())? {
            let entry = entry?;
            let Some(process) = entry.file_name().to_str().ok().and_then(pid) else { continue };
            match self.stat(process) {
                Ok(stat) => found.push((process, stat)),
                // It has ended.
                Err(error) if is_ended(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

/// Lists a tree from this process's children on. `visit` returns the fields and the children of a process, or `None` if
/// it has ended. This process's children are listed again after each pass, because the children of a process that ended
/// meanwhile have become children of this process.
fn walk(
    own_children: impl Fn() -> io::Result<Vec<Pid>>,
    visit: impl Fn(Pid) -> io::Result<Option<(Stat, Vec<Pid>)>>,
    most: usize,
) -> io::Result<Vec<(Pid, Stat)>> {
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    for _ in 0..MAX_PASSES {
        let mut next = own_children()?;
        next.retain(|process| !seen.contains(process));
        if next.is_empty() {
            break;
        }
        while !next.is_empty() {
            let mut below = Vec::new();
            for process in next {
                if seen.insert(process)
                    && let Some((stat, children)) = visit(process)?
                {
                    found.push((process, stat));
                    below.extend(children);
                }
                if found.len() > most {
                    return Err(too_many());
                }
            }
            next = below;
        }
    }
    Ok(found)
}

fn too_many() -> io::Error {
    io::Error::other("too many processes")
}

fn is_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// A process id from its digits.
pub fn pid(text: &str) -> Option<Pid> {
    Pid::from_raw(text.parse().ok()?)
}

/// The fields of any process, for a caller without a [`Procfs`].
pub fn stat_of(process: Pid) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).ok()?)
}

/// The third, fourth, fifth and 22nd field of a stat line. The second, in parentheses, may hold anything.
fn parse_stat(text: &str) -> Option<Stat> {
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let (parent, group) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Stat { state, parent, group, started: fields.nth(16)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_process_whose_parent_ends_during_the_listing_is_listed() {
        let [shell, child] = [2, 3].map(|number| Pid::from_raw(number).unwrap());
        let has_ended = Cell::new(false);
        let own_children = || Ok(if has_ended.get() { vec![shell, child] } else { vec![shell] });
        let visit = |process| {
            // The shell ends, so that it has no children any more, and its child is moved to this process.
            has_ended.set(true);
            let state = if process == shell { 'Z' } else { 'S' };
            Ok(Some((Stat { parent: 1, group: 2, started: 0, state }, Vec::new())))
        };
        let listed: Vec<_> = walk(own_children, visit, 10).unwrap().into_iter().map(|(process, _)| process).collect();
        assert_eq!(listed, [shell, child]);
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = parse_stat("12 (a) b (c) T 7 11 10 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 5432 3133440 9").unwrap();
        assert_eq!(stat, Stat { state: 'T', parent: 7, group: 11, started: 5432 });
        assert!(stat.is_still());
        assert_eq!(parse_stat("12 (a"), None);
    }
}
