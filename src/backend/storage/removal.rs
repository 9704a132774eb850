//! Removes the files of forgotten and evicted executions, on a thread of its own, because a disk may hang.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        mpsc::{self, Receiver, Sender},
    },
    thread,
};

use cc_executor_actors::id::ExecutionId;
use log::warn;

use super::entry::Entry;

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
    pub(super) fn start(executions: PathBuf, removing: PathBuf) -> io::Result<Remover> {
        let (orders, received) = mpsc::channel();
        let pending = Arc::<Pending>::default();
        let of_thread = Arc::clone(&pending);
        thread::Builder::new().name("cc-removal".to_owned()).spawn(move || run(received, (&executions, &removing), &of_thread))?;
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

fn run(orders: Receiver<(ExecutionId, RemovalOrder)>, (executions, removing): (&Path, &Path), pending: &Pending) {
    for (id, order) in orders {
        let entry = Entry::new(executions, id);
        match order {
            RemovalOrder::MarkFailed => {
                if let Err(error) = entry.mark_failed() {
                    warn!(event = "storage.failed", execution_id:% = id; "cannot mark that the output is not whole: {error}");
                }
                continue;
            }
            RemovalOrder::Record(file, content) => {
                if let Err(error) = entry.write(file, &content) {
                    warn!(event = "storage.failed", execution_id:% = id; "cannot write {file}: {error}");
                }
                continue;
            }
            RemovalOrder::RecordOrRemove(file, content) if entry.write(file, &content).is_ok() => continue,
            RemovalOrder::RecordOrRemove(..) | RemovalOrder::Remove => {}
        }
        if let Err(error) = entry.remove(removing) {
            warn!(event = "storage.not_removed", execution_id:% = id;
                "cannot remove the files of a forgotten execution: {error}; remove its directory in the state directory");
        }
        pending.lock().remove(&id);
        pending.removed.notify_all();
    }
}
