//! Removes the files of forgotten and evicted executions, and records that the backend is alive, on a thread of its own,
//! because a disk may hang.

use std::{
    collections::HashSet,
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, SystemTime},
};

use cc_executor_actors::id::ExecutionId;
use log::warn;

use super::entry::Entry;

/// How often it records that the backend is alive.
const ALIVE_CADENCE: Duration = Duration::from_secs(2);

/// The thread, and the executions that it has yet to remove: at most as many as were ever remembered.
#[derive(Debug)]
pub(super) struct Remover {
    orders: Sender<(ExecutionId, RemovalOrder)>,
    pending: Arc<Pending>,
}

#[derive(Debug)]
enum RemovalOrder {
    Remove,
    /// Mark that the disk did not take all of the output.
    MarkFailed,
    /// Write this file.
    Record(&'static str, Vec<u8>),
    /// Write this file; if that fails, remove everything.
    RecordOrRemove(&'static str, Vec<u8>),
}

#[derive(Debug, Default)]
struct Pending {
    ids: Mutex<HashSet<ExecutionId>>,
    removed: Condvar,
}

impl Remover {
    /// Starts the thread. It ends with the remover.
    pub(super) fn start(executions: PathBuf, removing: PathBuf, alive: PathBuf) -> io::Result<Remover> {
        let (orders, received) = mpsc::channel();
        let pending = Arc::<Pending>::default();
        let of_thread = Arc::clone(&pending);
        thread::Builder::new().name("cc-removal".to_owned()).spawn(move || {
            let places = RemovalPaths { executions, removing, alive };
            run(&received, &places, &of_thread);
        })?;
        Ok(Remover { orders, pending })
    }

    pub(super) fn remove(&self, id: ExecutionId) {
        self.pending.lock().insert(id);
        // Fails only if the thread has panicked: the files then stay until the next start.
        let _ = self.orders.send((id, RemovalOrder::Remove));
    }

    pub(super) fn mark_failed(&self, id: ExecutionId) {
        let _ = self.orders.send((id, RemovalOrder::MarkFailed));
    }

    pub(super) fn record(&self, id: ExecutionId, file: &'static str, content: Vec<u8>) {
        let _ = self.orders.send((id, RemovalOrder::Record(file, content)));
    }

    pub(super) fn record_or_remove(&self, id: ExecutionId, file: &'static str, content: Vec<u8>) {
        let _ = self.orders.send((id, RemovalOrder::RecordOrRemove(file, content)));
    }

    pub(super) fn wait_until_removed(&self, id: ExecutionId) {
        let ids = self.pending.removed.wait_while(self.pending.lock(), |ids| ids.contains(&id));
        drop(ids);
    }
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, HashSet<ExecutionId>> {
        self.ids.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The paths in the state directory.
struct RemovalPaths {
    executions: PathBuf,
    removing: PathBuf,
    alive: PathBuf,
}

fn run(orders: &Receiver<(ExecutionId, RemovalOrder)>, places: &RemovalPaths, pending: &Pending) {
    let mut is_failing = false;
    loop {
        let touched = touch(&places.alive);
        if let Err(error) = &touched
            && !is_failing
        {
            warn!(event = "storage.not_alive", path:% = places.alive.display();
                "cannot record in the state directory that the backend is alive: {error}");
        }
        is_failing = touched.is_err();
        match orders.recv_timeout(ALIVE_CADENCE) {
            Ok((id, order)) => carry_out(id, order, places, pending),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        while let Ok((id, order)) = orders.try_recv() {
            carry_out(id, order, places, pending);
        }
    }
}

fn touch(alive: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(alive)?;
    file.set_modified(SystemTime::now())
}

fn carry_out(id: ExecutionId, order: RemovalOrder, places: &RemovalPaths, pending: &Pending) {
    let entry = Entry::new(&places.executions, id);
    match order {
        RemovalOrder::MarkFailed => {
            if let Err(error) = entry.mark_failed() {
                warn!(event = "storage.failed", execution_id:% = id; "cannot mark that the output is not whole: {error}");
            }
            return;
        }
        RemovalOrder::Record(file, content) => {
            if let Err(error) = entry.write(file, &content) {
                warn!(event = "storage.failed", execution_id:% = id; "cannot write {file}: {error}");
            }
            return;
        }
        RemovalOrder::RecordOrRemove(file, content) if entry.write(file, &content).is_ok() => return,
        RemovalOrder::RecordOrRemove(..) | RemovalOrder::Remove => {}
    }
    if let Err(error) = entry.remove(&places.removing) {
        warn!(event = "storage.not_removed", execution_id:% = id;
                "cannot remove the files of a forgotten execution: {error}; remove its directory in the state directory");
    }
    pending.lock().remove(&id);
    pending.removed.notify_all();
}
