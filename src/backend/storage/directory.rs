//! The state directory as a whole: its lock, its key, and the places of its entries.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use cc_executor_actors::id::ExecutionId;

use super::{entry::Entry, lock::DirectoryLock, removal::Remover, seal::Sealer};
use crate::server::failure::failed;

/// The file whose time says when a backend was last alive.
const ALIVE: &str = "alive";

/// An open state directory, which no other backend uses.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    sealer: Sealer,
    remover: Remover,
    _lock: DirectoryLock,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another backend uses it.
    #[error(
        "--state-dir {}: in use by {holder}; stop that backend, or choose another directory", .path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The backend that uses it, as it has named itself.
        holder: String,
    },
    /// A call to the system failed.
    #[error("--state-dir {}: {error}; choose a directory that this user may write, or none", .path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// The error.
        #[source]
        error: io::Error,
    },
}

impl StateDir {
    /// Opens the directory, makes it if it is missing, and locks it. A second backend reports `holder` as the owner of the
    /// lock.
    ///
    /// # Errors
    ///
    /// Another backend has locked it, or the system refuses a call.
    pub fn open(path: &Path, holder: &str) -> Result<Arc<StateDir>, StateDirError> {
        let unusable = |error| StateDirError::Unusable { path: path.to_owned(), error };
        make_private(path).map_err(unusable)?;
        // Absolute, because a relative path would change its meaning with the working directory.
        let path = path.canonicalize().map_err(unusable)?;
        let unusable = |error| StateDirError::Unusable { path: path.clone(), error };
        let lock = match DirectoryLock::take(&path, holder).map_err(unusable)? {
            Ok(lock) => lock,
            Err(holder) => return Err(StateDirError::Locked { path, holder }),
        };
        let (executions, removing) = (path.join("executions"), path.join("removing"));
        make_private(&executions).map_err(unusable)?;
        make_private(&removing).map_err(unusable)?;
        let has_entries = fs::read_dir(&executions).map_err(unusable)?.next().is_some();
        let sealer = Sealer::open(&path, has_entries).map_err(unusable)?;
        let remover = Remover::start(executions, removing, path.join(ALIVE)).map_err(unusable)?;
        Ok(Arc::new(StateDir { sealer, remover, _lock: lock, path }))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes and checks the seals of the records.
    pub fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// The place of an execution's files, which need not exist.
    pub fn entry(&self, id: ExecutionId) -> Entry {
        Entry::new(&self.path.join("executions"), id)
    }

    /// Removes an execution's files, later, on another thread.
    pub fn remove(&self, id: ExecutionId) {
        self.remover.remove(id);
    }

    /// Writes a file of an execution, and removes all of them if that fails; later, on another thread.
    pub fn record_or_remove(&self, id: ExecutionId, file: &'static str, content: Vec<u8>) {
        self.remover.record_or_remove(id, file, content);
    }

    /// Marks that the disk did not take all of an execution's output, later, on another thread.
    pub fn mark_failed(&self, id: ExecutionId) {
        self.remover.mark_failed(id);
    }

    /// Removes what a removal that was cut short has left. Blocks.
    pub(super) fn finish_removals(&self) -> io::Result<()> {
        let removing = self.path.join("removing");
        fs::remove_dir_all(&removing)?;
        make_private(&removing)
    }

    /// Writes a file of an execution, later, on another thread.
    pub fn record(&self, id: ExecutionId, file: &'static str, content: Vec<u8>) {
        self.remover.record(id, file, content);
    }

    /// Waits until earlier files of this id are removed. Blocks.
    pub fn wait_until_removed(&self, id: ExecutionId) {
        self.remover.wait_until_removed(id);
    }

    /// When a backend last used the directory.
    pub fn last_alive(&self) -> Option<SystemTime> {
        fs::metadata(self.path.join(ALIVE)).and_then(|data| data.modified()).ok()
    }

    /// Moves a damaged entry aside, so that a person can look at it. Blocks.
    pub fn move_aside(&self, id: ExecutionId) -> io::Result<PathBuf> {
        let damaged = self.path.join("damaged");
        make_private(&damaged)?;
        let place = damaged.join(id.to_string());
        // The newest is the one to look at.
        let _ = fs::remove_dir_all(&place);
        fs::rename(self.entry(id).path(), &place)?;
        Ok(place)
    }
}

/// Makes a directory, and those above it, that only this user may enter. An existing one is made so, unless it holds
/// something else.
fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("cannot make the directory"))?;
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let is_ours = |name: &std::ffi::OsStr| ["lock", "executions", "lost+found"].iter().any(|own| name == *own);
    let has_other = fs::read_dir(path)?.flatten().any(|entry| !is_ours(&entry.file_name()));
    if has_other {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("it has mode {:o} and other files in it, so its mode is not changed to 700", mode & 0o777),
        ));
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed("cannot set the mode 0700"))
}
