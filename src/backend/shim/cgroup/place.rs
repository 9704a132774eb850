//! Finds the directories of this process's own cgroups (cgroups(7)), and makes and opens others.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags, mkdirat, openat};

/// A hierarchy of cgroups.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hierarchy {
    /// Version 2.
    Unified,
    /// The memory controller's own hierarchy, of version 1.
    Memory,
}

impl Hierarchy {
    fn description(self) -> &'static str {
        match self {
            Hierarchy::Unified => "cgroup2",
            Hierarchy::Memory => "the memory controller of version 1",
        }
    }

    /// Whether a mount is of this hierarchy, by the part of its line in mountinfo after the dash: its type, source and
    /// options.
    fn is_mounted_by(self, kind: &str) -> bool {
        let mut fields = kind.split(' ');
        let (kind, options) = (fields.next(), fields.nth(1).unwrap_or_default());
        match self {
            Hierarchy::Unified => kind == Some("cgroup2"),
            Hierarchy::Memory => kind == Some("cgroup") && options.split(',').any(|option| option == "memory"),
        }
    }

    /// The path in a line of /proc/PID/cgroup, if the line is of this hierarchy.
    fn path_in(self, line: &str) -> Option<&str> {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let is_of_this = match self {
            Hierarchy::Unified => controllers.is_empty(),
            Hierarchy::Memory => controllers.split(',').any(|controller| controller == "memory"),
        };
        is_of_this.then_some(path)
    }

    /// This process's own directory.
    ///
    /// # Errors
    ///
    /// The hierarchy is not mounted, or this process has no cgroup in it.
    pub(super) fn own_directory(self) -> io::Result<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        directory(self, &mounts, &own)
            .ok_or_else(|| io::Error::new(ErrorKind::NotFound, format!("{} is not mounted", self.description())))
    }
}

fn directory(hierarchy: Hierarchy, mounts: &str, own: &str) -> Option<PathBuf> {
    let mount = mounts
        .lines()
        .filter_map(|line| line.split_once(" - "))
        .find(|(_, kind)| hierarchy.is_mounted_by(kind))
        .map(|(place, _)| place)?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let path = own.lines().find_map(|line| hierarchy.path_in(line))?;
    // In a container without a namespace of cgroups the mount shows a part of the hierarchy only.
    let below = Path::new(path).strip_prefix(root).or_else(|_| Path::new(path).strip_prefix("/")).ok()?;
    Some(Path::new(point).join(below))
}

/// Makes a directory below another, and opens both: first the other one.
pub(super) fn make_directory(base: &Path, name: &str) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let base = rustix::fs::open(base, flags, Mode::empty())?;
    mkdirat(&base, name, Mode::from_raw_mode(0o755))?;
    let directory = openat(&base, name, flags, Mode::empty())?;
    Ok((base, directory))
}

/// Opens a file of a cgroup.
pub(super) fn open_in(directory: &OwnedFd, file: &str, flags: OFlags) -> io::Result<File> {
    Ok(openat(directory, file, flags | OFlags::CLOEXEC, Mode::empty())?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
23 28 0:21 / /proc rw - proc proc rw
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:7 - cgroup2 cgroup2 rw";

    #[test]
    fn a_hierarchy_is_found_by_its_mount_and_the_own_path() {
        let own = "9:name=systemd:/memory\n4:memory:/a/b\n1:cpu:/c\n0::/\n";
        let found = |hierarchy| directory(hierarchy, HYBRID, own);
        assert_eq!(found(Hierarchy::Memory), Some("/sys/fs/cgroup/memory/a/b".into()));
        assert_eq!(found(Hierarchy::Unified), Some("/sys/fs/cgroup/unified".into()));
        let v2 = "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,memory_recursiveprot";
        assert_eq!(directory(Hierarchy::Unified, v2, "0::/x\n"), Some("/sys/fs/cgroup/x".into()));
        assert_eq!(directory(Hierarchy::Memory, v2, "0::/x\n"), None);
    }

    #[test]
    fn a_mount_of_a_part_shows_the_path_below_it() {
        let mounts = "35 31 0:32 /docker/1f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        let found = |own: &str| directory(Hierarchy::Memory, mounts, own);
        assert_eq!(found("4:memory:/docker/1f\n"), Some("/sys/fs/cgroup/memory".into()));
        assert_eq!(found("4:memory:/docker/1f/in\n"), Some("/sys/fs/cgroup/memory/in".into()));
    }
}
