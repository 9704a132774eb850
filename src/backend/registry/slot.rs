//! The guards that the task of an execution holds: its place in the registry, and after its end the report of its
//! retained output. Dropping either corrects the registry, so that a failed task leaves no place taken.

use std::{cell::Cell, sync::Arc};

use cc_executor_actors::{
    client::ClientName,
    id::ExecutionId,
    outcome::{CancelReport, Outcome, Reason, Storage},
};
use tokio::sync::watch;

use super::{
    record::Record,
    state::{JobStage, QueueTurn, RegistryShared},
};
use crate::backend::{holds::NewestHold, output_buffer::RetainedOutput};

/// Memory that an ended execution with retained output takes besides that output, in bytes: its task and its channels.
/// Measured at 7 200 bytes each, over 2 000 executions of `echo x`.
pub const FIXED_BYTES: usize = 8 * 1024;

/// An execution's place in the queue or among the running executions. Dropping it frees the place.
pub struct Slot {
    pub(super) shared: Arc<RegistryShared>,
    pub(super) id: ExecutionId,
    pub(super) owner: ClientName,
    pub(super) number: u64,
    pub(super) turn: watch::Receiver<QueueTurn>,
    pub(super) gone: watch::Sender<Option<CancelReport>>,
    pub(super) left: bool,
    /// Whether it has its place. The end may be recorded without one, because a disk may hang.
    pub(super) has_place: Cell<bool>,
}

/// Reports the retained output of an ended execution to the registry. Dropping it reports that none is retained.
pub struct Retained {
    shared: Arc<RegistryShared>,
    id: ExecutionId,
    number: u64,
}

/// Counts a stream as long as it is consumed.
pub struct StreamGuard(pub(super) Arc<RegistryShared>);

impl Slot {
    /// When the execution may run.
    pub fn turn(&mut self) -> QueueTurn {
        *self.turn.borrow_and_update()
    }

    /// Waits until its turn has changed.
    pub async fn turn_changed(&mut self) {
        if self.turn.changed().await.is_err() {
            // The entry is gone, which happens only after the end of the execution.
            std::future::pending::<()>().await;
        }
    }

    /// Publishes that the processes are gone, and frees the place. Their last output may still wait for the consumer.
    pub fn gone(&self, report: CancelReport) {
        self.gone.send_replace(Some(report));
        if self.has_place.replace(false) {
            let mut inner = self.shared.lock();
            let now_ms = self.shared.now_ms();
            inner.places.leave(&self.owner, self.id);
            self.shared.counts.send_modify(|counts| counts.closing += 1);
            self.shared.promote(&mut inner, now_ms);
        }
    }

    /// Changes when disk space is given up.
    pub fn disk_room(&self) -> watch::Receiver<()> {
        self.shared.disk_room.subscribe()
    }

    /// Records how many bytes of output are on disk. Returns how many may be there, because of the limit of all
    /// executions.
    pub fn record_stored(&self, bytes: u64) -> u64 {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.shared.record_stored(&mut self.shared.lock(), self.id, RetainedOutput::Unfetched(bytes), true)
    }

    /// Records the end and the retained output, and frees the place.
    pub fn end(mut self, record: Record, output: RetainedOutput) -> Retained {
        self.leave(record, Some(output));
        Retained { shared: Arc::clone(&self.shared), id: self.id, number: self.number }
    }

    /// `output` is what the task retains; `None` if the task has failed.
    fn leave(&mut self, mut record: Record, output: Option<RetainedOutput>) {
        self.left = true;
        let mut inner = self.shared.lock();
        let now_ms = self.shared.now_ms();
        if self.has_place.replace(false) {
            inner.places.leave(&self.owner, self.id);
        } else {
            self.shared.counts.send_modify(|counts| counts.closing -= 1);
        }
        if !inner.executors.insert(record.executor.clone()) {
            record.executor = inner.executors.get(&record.executor).cloned().unwrap_or(record.executor);
        }
        if let Some(known) = inner.known(self.id, now_ms)
            && let JobStage::Live(live) = &known.stage
        {
            let task = live.task.clone();
            let output = match output {
                None => RetainedOutput::Nothing,
                Some(output) if !task.has_unreceived_attach() => output,
                // The task has to serve the consumer that is on its way.
                Some(RetainedOutput::Nothing) => RetainedOutput::Followed(FIXED_BYTES),
                Some(output) => output.followed(),
            };
            let (stored, is_whole) = (record.stored_output(), record.is_whole_on_disk());
            known.stage = JobStage::Ended(record, (output != RetainedOutput::Nothing).then_some(task));
            inner.model.store(self.id, stored, is_whole);
            inner.model.retain(self.id, output, now_ms);
        }
        self.shared.promote(&mut inner, now_ms);
        self.shared.evict(&mut inner);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.left {
            // The task has failed, or the whole service ends.
            let message = "the backend's task of this execution failed: its command may still run";
            let ending = Outcome::failed(Reason::BackendLost, message);
            self.leave(Record::new("".into(), 0, false, &ending), None);
        }
    }
}

impl Retained {
    pub(super) fn new(shared: Arc<RegistryShared>, id: ExecutionId, number: u64) -> Self {
        Retained { shared, id, number }
    }

    /// Reports what is retained now, and the newest hold. The registry may then release the task: it closes the task's
    /// [`JobInbox`](super::JobInbox).
    pub fn report(&self, output: RetainedOutput, hold: NewestHold) {
        let mut inner = self.shared.lock();
        inner.report(self.id, self.number, output, hold, self.shared.now_ms());
        self.shared.evict(&mut inner);
    }

    /// Gives up the report: the execution has no task.
    pub fn forget(self) {
        // Its drop finds no task, and changes nothing.
        drop(self);
    }

    /// Reports that the whole stored output has been acknowledged.
    pub fn report_fetched(&self) {
        let mut inner = self.shared.lock();
        let now_ms = self.shared.now_ms();
        if let Some(entry) = inner.entry(self.id, now_ms).filter(|entry| entry.number == self.number)
            && let JobStage::Ended(record, _) = &mut entry.value.stage
            && record.set_fetched()
        {
            // What the disk did not take as a whole is of no further use, and the disk may be full of it.
            if record.stored().is_some_and(|stored| stored.storage == Storage::Failed) && record.set_removed() {
                self.shared.remove_files(self.id);
            }
            let (stored, is_whole) = (record.stored_output(), record.is_whole_on_disk());
            self.shared.record_stored(&mut inner, self.id, stored, is_whole);
        }
    }

    /// Changes the record of the end, because more is known now.
    pub fn amend(&self, amend: impl FnOnce(&mut Record)) {
        let mut inner = self.shared.lock();
        let now_ms = self.shared.now_ms();
        if let Some(entry) = inner.entry(self.id, now_ms).filter(|entry| entry.number == self.number)
            && let JobStage::Ended(record, _) = &mut entry.value.stage
        {
            amend(record);
        }
    }
}

impl Drop for Retained {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        let now_ms = self.shared.now_ms();
        // The entry still has the task only if the task has failed.
        if let Some(entry) = inner.entry(self.id, now_ms).filter(|entry| entry.number == self.number)
            && let JobStage::Ended(_, task) = &mut entry.value.stage
            && task.take().is_some()
        {
            inner.model.retain(self.id, RetainedOutput::Nothing, now_ms);
        }
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.counts.send_modify(|counts| counts.streams -= 1);
    }
}
