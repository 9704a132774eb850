//! The lock of a state directory, so that no two backends write the same files.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::{FlockOperation, flock};

use crate::server::failure::failed;

/// A lock that the kernel releases when this process ends.
#[derive(Debug)]
pub(super) struct DirectoryLock(#[expect(dead_code, reason = "the open file is the lock")] File);

impl DirectoryLock {
    /// Takes the lock, and names its holder in it. `Ok(Err(..))` is the name of another holder.
    pub(super) fn take(directory: &Path, holder: &str) -> io::Result<Result<DirectoryLock, String>> {
        let path = directory.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path).map_err(failed("cannot open its lock file"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder)?;
                let holder = holder.trim();
                let holder = if holder.is_empty() { "another backend" } else { holder };
                return Ok(Err(holder.to_owned()));
            }
            Err(error) => return Err(failed("cannot lock it")(error.into())),
        }
        // The lock is what counts: without room for its text the backend still works.
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{holder}"));
        Ok(Ok(DirectoryLock(file)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_backend_learns_who_holds_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let first = DirectoryLock::take(directory.path(), "process 7").unwrap().unwrap();
        assert_eq!(DirectoryLock::take(directory.path(), "process 8").unwrap().unwrap_err(), "process 7");
        drop(first);
        let _second = DirectoryLock::take(directory.path(), "process 8").unwrap().unwrap();
        assert_eq!(DirectoryLock::take(directory.path(), "process 9").unwrap().unwrap_err(), "process 8");
    }
}
