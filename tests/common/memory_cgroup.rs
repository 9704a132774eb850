//! A cgroup with a limit of memory, for a service. Of the version that counts memory on this machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use super::{
    PATIENCE, left_out,
    service::{BINARY, binary_under},
    wait_until,
};

/// A cgroup with a limit, which is removed when this is dropped. Drop its services before.
pub struct MemoryCgroup {
    directory: PathBuf,
    /// The cgroup of the service itself.
    place: PathBuf,
}

impl MemoryCgroup {
    /// Makes one with a limit in bytes. If this machine does not allow that, it is reported that `what` is left out.
    pub fn with_limit(what: &str, bytes: u64) -> Option<MemoryCgroup> {
        let made = Self::of_version_1(bytes).or_else(|v1| Self::of_version_2(bytes).map_err(|v2| (v1, v2)));
        let no_cgroup = |(v1, v2)| left_out(what, &format!("no memory cgroup (version 1: {v1}; version 2: {v2})"));
        made.map_err(no_cgroup).ok()
    }

    fn of_version_1(bytes: u64) -> Result<MemoryCgroup, String> {
        let own = own_directory(|kind| kind.starts_with("cgroup ") && kind.contains("memory"), ":memory:")?;
        let directory = make_below(&own)?;
        let cgroup = MemoryCgroup { place: directory.clone(), directory };
        write(&cgroup.directory.join("memory.limit_in_bytes"), bytes)?;
        Ok(cgroup)
    }

    /// As systemd lays a service with DelegateSubgroup= out.
    fn of_version_2(bytes: u64) -> Result<MemoryCgroup, String> {
        let own = own_directory(|kind| kind.starts_with("cgroup2 "), "0::")?;
        write(&own.join("cgroup.subtree_control"), "+memory")?;
        let cgroup = MemoryCgroup::delegated_below(&own)?;
        write(&cgroup.directory.join("memory.max"), bytes)?;
        Ok(cgroup)
    }

    /// A cgroup of version 2 that is marked as delegated, with the service in another one below it.
    pub fn delegated() -> Result<MemoryCgroup, String> {
        Self::delegated_below(&own_directory(|kind| kind.starts_with("cgroup2 "), "0::")?)
    }

    fn delegated_below(own: &Path) -> Result<MemoryCgroup, String> {
        let directory = make_below(own)?;
        let cgroup = MemoryCgroup { place: directory.join("service"), directory };
        fs::create_dir(&cgroup.place).map_err(|error| error.to_string())?;
        rustix::fs::setxattr(&cgroup.directory, "user.delegate", b"1", rustix::fs::XattrFlags::empty())
            .map_err(|error| format!("user.delegate: {error}"))?;
        Ok(cgroup)
    }

    /// A command of the binary that enters the cgroup first.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = binary_under("sh");
        command.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]).arg(self.place.join("cgroup.procs"));
        command.arg(BINARY).args(arguments);
        command
    }

    /// The names of the cgroups of backends.
    pub fn backends(&self) -> Vec<String> {
        let names = fs::read_dir(&self.directory).expect("it is readable").flatten().map(|entry| entry.file_name());
        names.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with("cc-executor.")).collect()
    }

    /// Makes the cgroup of a backend with this name, with one below it.
    pub fn make_backend(&self, name: &str) {
        fs::create_dir_all(self.directory.join(name).join("subreaper-1")).expect("it is writable");
    }

    /// The number of cgroups of executions.
    pub fn n_executions(&self) -> usize {
        let below = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        let backends = self.backends().into_iter().map(|name| self.directory.join(name));
        backends.flat_map(below).filter(|path| path.is_dir()).flat_map(below).filter(|path| path.is_dir()).count()
    }
}

impl Drop for MemoryCgroup {
    /// The subreaper of a killed service ends its processes.
    fn drop(&mut self) {
        let remove = || {
            remove_tree(&self.directory);
            !self.directory.exists()
        };
        if std::thread::panicking() {
            remove();
        } else {
            wait_until("the cgroup can be removed", PATIENCE, remove);
        }
    }
}

fn remove_tree(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_tree(&entry.path());
    }
    let _ = fs::remove_dir(directory);
}

fn make_below(own: &Path) -> Result<PathBuf, String> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let name = format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let directory = own.join(name);
    fs::create_dir(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    Ok(directory)
}

fn write(file: &Path, value: impl ToString) -> Result<(), String> {
    fs::write(file, value.to_string()).map_err(|error| format!("{}: {error}", file.display()))
}

/// This process's own directory: the mount with such a type and options, and the path after this mark.
fn own_directory(is_wanted: impl Fn(&str) -> bool, mark: &str) -> Result<PathBuf, String> {
    let read = |name: &str| fs::read_to_string(name).map_err(|error| format!("{name}: {error}"));
    let (mounts, own) = (read("/proc/self/mountinfo")?, read("/proc/self/cgroup")?);
    let mut mounts = mounts.lines().filter_map(|line| line.split_once(" - "));
    let mount = mounts.find(|(_, kind)| is_wanted(kind)).ok_or("it is not mounted")?.0.split(' ').nth(4);
    let path = own.lines().find_map(|line| line.split_once(mark)).ok_or("this process is in none")?.1;
    let directory = Path::new(mount.ok_or("no mount point")?).join(path.trim_start_matches('/'));
    Ok(directory)
}
