//! The state of the registry behind one lock: the executions, the queue, and the counts.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use cc_executor_actors::{
    backend_api::Snapshot,
    client::ClientName,
    clock::millis,
    id::ExecutionId,
    name::ExecutionName,
    outcome::{CancelReason, CancelReport},
};
use log::debug;
use tokio::sync::watch;

use super::{
    error::RegistryError,
    inbox::TaskHandle,
    lookup::Lookup,
    places::Places,
    record::{Record, RequestDigest},
    retention::{Evicted, RegistryEntry, RegistryLimits, RegistryModel},
    withdrawn::WithdrawnIds,
};
use crate::{
    backend::{
        config::BackendConfig,
        holds::NewestHold,
        job_request::{CancelOrder, JobRequest},
        output_buffer::RetainedOutput,
        storage::StateDir,
    },
    server::caller::Caller,
};

/// How many executions are forgotten under one lock, so that an execute never waits long for it.
pub(super) const FORGOTTEN_AT_A_TIME: usize = 256;

/// How long an id that was canceled before its request came is refused, in milliseconds.
const WITHDRAWN_MS: u64 = 60_000;

/// How many such ids are remembered. Each takes about 150 bytes.
const MAX_WITHDRAWN: u64 = 16_384;

/// The state, shared by the registry and the slots of its executions.
pub(super) struct RegistryShared {
    /// The start of the registry's times.
    began_at: Instant,
    /// That moment since 1970, in milliseconds, because executions of earlier backends ended before it.
    began_ms: u64,
    /// Where output is kept on disk.
    pub(super) state_dir: Option<Arc<StateDir>>,
    /// Changes when output on disk was removed.
    pub(super) disk_room: watch::Sender<()>,
    state: Mutex<RegistryState>,
    pub(super) counts: watch::Sender<ExecutionCounts>,
    /// Changes when positions in the queue have changed.
    pub(super) queue_changed: watch::Sender<()>,
}

/// Counts that a drain waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ExecutionCounts {
    /// Executions that run.
    pub running: usize,
    /// Executions that are queued.
    pub queued: usize,
    /// Executions whose processes are gone and whose last output, or whose end, is on its way to disk.
    pub closing: usize,
    /// Streams whose consumers have not received everything.
    pub streams: usize,
}

impl ExecutionCounts {
    /// Whether no execution runs or is queued, all endings are recorded, and every consumer has received everything.
    pub(super) fn is_idle(&self) -> bool {
        (self.running, self.queued, self.closing, self.streams) == (0, 0, 0, 0)
    }
}

/// The state that the lock guards.
pub(super) struct RegistryState {
    pub(super) model: RegistryModel<ExecutionId, KnownExecution>,
    pub(super) places: Places<ExecutionId>,
    pub(super) withdrawn: WithdrawnIds<ExecutionId>,
    pub(super) lookup: Lookup,
    /// The names of executors, which records share.
    pub(super) executors: BTreeSet<Arc<str>>,
    pub(super) draining: bool,
}

/// A known execution.
pub(super) struct KnownExecution {
    pub(super) request: RequestDigest,
    /// The beginning of the command.
    pub(super) command: Box<str>,
    pub(super) name: Option<ExecutionName>,
    /// When it was requested.
    pub(super) created_ms: u64,
    pub(super) stage: JobStage,
}

/// Whether an execution has ended.
pub(super) enum JobStage {
    /// It is queued or runs.
    Live(Box<LiveJob>),
    /// It has ended. The task exists while output is retained or a consumer is served.
    Ended(Record, Option<TaskHandle>),
}

/// An execution that is queued or runs.
pub(super) struct LiveJob {
    pub(super) task: TaskHandle,
    pub(super) turn: watch::Sender<QueueTurn>,
    pub(super) gone: watch::Receiver<Option<CancelReport>>,
}

/// When an execution may run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueTurn {
    /// Now.
    Now,
    /// At this position of the queue; 1 is the next.
    Position(u64),
}

impl RegistryShared {
    pub(super) fn new(config: &BackendConfig, state_dir: Option<Arc<StateDir>>) -> Self {
        let limits = RegistryLimits {
            retention_ms: millis(config.retention),
            stored_retention_ms: millis(config.state_retention),
            max_entries: config.max_ended,
            max_kept_bytes: config.max_kept_bytes,
            max_stored_bytes: config.max_state_bytes,
        };
        let state = RegistryState {
            model: RegistryModel::new(limits),
            places: Places::new(config.max_executions, config.max_queued),
            withdrawn: WithdrawnIds::new(WITHDRAWN_MS, MAX_WITHDRAWN),
            lookup: Lookup::default(),
            executors: BTreeSet::new(),
            draining: false,
        };
        let (counts, queue_changed) = (watch::Sender::default(), watch::Sender::default());
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        RegistryShared {
            began_at: Instant::now(),
            began_ms: millis(since_1970),
            state_dir,
            disk_room: watch::Sender::default(),
            state: Mutex::new(state),
            counts,
            queue_changed,
        }
    }

    /// A poisoned lock still guards valid state, because no critical section panics half-way.
    pub(super) fn lock(&self) -> MutexGuard<'_, RegistryState> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Milliseconds since 1970 by a clock that never goes back.
    pub(super) fn now_ms(&self) -> u64 {
        self.began_ms.saturating_add(millis(self.began_at.elapsed()))
    }

    /// Adds what only the registry knows of an execution.
    pub(super) fn with_request(&self, snapshot: Snapshot) -> Snapshot {
        let now_ms = self.now_ms();
        match self.lock().known(snapshot.execution_id, now_ms) {
            Some(known) => Snapshot {
                command: Some(known.command.clone().into()),
                name: known.name.clone(),
                age_ms: Some(now_ms.saturating_sub(known.created_ms)),
                ..snapshot
            },
            None => snapshot,
        }
    }

    /// Removes the files of an execution.
    pub(super) fn remove_files(&self, id: ExecutionId) {
        if let Some(directory) = &self.state_dir {
            directory.remove(id);
            self.disk_room.send_replace(());
        }
    }

    /// Records how much of an execution's output is on disk. Returns how much may be there.
    pub(super) fn record_stored(
        &self,
        inner: &mut RegistryState,
        id: ExecutionId,
        output: RetainedOutput,
        is_whole: bool,
    ) -> u64 {
        let (before, _) = inner.model.stored_total();
        inner.model.store(id, output, is_whole);
        let (after, is_full) = inner.model.stored_total();
        if is_full {
            self.evict(inner);
        }
        if after < before {
            self.disk_room.send_replace(());
        }
        inner.model.allows(id)
    }

    /// Forgets up to [`FORGOTTEN_AT_A_TIME`] executions whose retention is over. Returns how many.
    pub(super) fn forget(&self, inner: &mut RegistryState, now_ms: u64) -> usize {
        let forgotten = inner.model.forget(FORGOTTEN_AT_A_TIME, now_ms);
        for (id, entry) in &forgotten {
            inner.lookup.remove(&entry.owner, *id, entry.value.name.as_ref(), entry.number);
            debug!(event = "execution.forgotten", execution_id:% = id; "execution forgotten");
            if matches!(&entry.value.stage, JobStage::Ended(record, _) if record.stored().is_some_and(|stored| !stored.is_removed))
            {
                self.remove_files(*id);
            }
        }
        forgotten.len()
    }

    /// Evicts output until the rest fits, as far as it may be evicted. The tasks end, and the records stay.
    pub(super) fn evict(&self, inner: &mut RegistryState) {
        for evicted in inner.model.evict() {
            let (Evicted::Memory(id) | Evicted::Disk(id)) = evicted;
            let Some(JobStage::Ended(record, task)) = inner.model.value_mut(id).map(|known| &mut known.stage) else {
                continue;
            };
            match evicted {
                Evicted::Memory(_) => {
                    debug!(event = "execution.evicted", execution_id:% = id; "memory is short: output evicted");
                    *task = None;
                }
                Evicted::Disk(_) => {
                    debug!(event = "execution.evicted", execution_id:% = id; "disk space is short: output evicted");
                    record.set_removed();
                    self.remove_files(id);
                }
            }
        }
    }

    pub(super) fn count(&self, inner: &RegistryState) {
        let (running, queued) = (inner.places.n_running(), inner.places.queue().len());
        self.counts.send_modify(|counts| *counts = ExecutionCounts { running, queued, ..*counts });
    }

    /// Gives free places to the executions whose turn it is. [`super::positions`] tells the others their new positions.
    pub(super) fn promote(&self, inner: &mut RegistryState, now_ms: u64) {
        while !inner.draining
            && let Some(id) = inner.places.promote()
        {
            if let Some(live) = inner.live(id, now_ms) {
                live.turn.send_replace(QueueTurn::Now);
            }
        }
        if !inner.places.queue().is_empty() {
            self.queue_changed.send_replace(());
        }
        self.count(inner);
    }
}

impl RegistryState {
    pub(super) fn entry(&mut self, id: ExecutionId, now_ms: u64) -> Option<&mut RegistryEntry<KnownExecution>> {
        self.model.get_mut(id, now_ms)
    }

    /// The entry of an execution that this caller may see.
    pub(super) fn visible(
        &mut self,
        caller: &Caller,
        id: ExecutionId,
        now_ms: u64,
    ) -> Option<&mut RegistryEntry<KnownExecution>> {
        self.entry(id, now_ms).filter(|entry| caller.may_touch(&entry.owner))
    }

    pub(super) fn known(&mut self, id: ExecutionId, now_ms: u64) -> Option<&mut KnownExecution> {
        self.entry(id, now_ms).map(|entry| &mut entry.value)
    }

    /// Adds an execution whose id is unknown, and returns its number.
    pub(super) fn insert(&mut self, id: ExecutionId, owner: &ClientName, known: KnownExecution) -> u64 {
        // An entry that is due to be forgotten may still be there.
        if let Some(due) = self.model.remove(id) {
            self.lookup.remove(&due.owner, id, due.value.name.as_ref(), due.number);
        }
        let name = known.name.clone();
        let number = self.model.insert(id, owner, known);
        self.lookup.insert(owner, id, name.as_ref(), number);
        number
    }

    /// Checks that no execution of this client that waits or runs has this name.
    ///
    /// # Errors
    ///
    /// One has it.
    pub(super) fn check_name(
        &self,
        owner: &ClientName,
        name: Option<&ExecutionName>,
        now_ms: u64,
    ) -> Result<(), RegistryError> {
        // Only the newest can still run, because the name was free when that came.
        let Some((name, id)) = name.and_then(|name| Some((name, self.lookup.newest_named(owner, name)?))) else {
            return Ok(());
        };
        match self.model.get(id, now_ms).map(|entry| &entry.value.stage) {
            Some(JobStage::Live(_)) => Err(RegistryError::NameTaken { name: name.clone(), id }),
            Some(JobStage::Ended(..)) | None => Ok(()),
        }
    }

    pub(super) fn live(&mut self, id: ExecutionId, now_ms: u64) -> Option<&mut LiveJob> {
        match &mut self.known(id, now_ms)?.stage {
            JobStage::Live(live) => Some(live),
            JobStage::Ended(..) => None,
        }
    }

    /// Cancels an execution that is queued or runs, for the shutdown.
    pub(super) fn cancel(&mut self, id: ExecutionId, grace_ms: u64, now_ms: u64) {
        if let Some(live) = self.live(id, now_ms) {
            // Fails if the task has failed.
            let _ = live.task.send(JobRequest::Cancel(CancelOrder { grace_ms, reason: CancelReason::Drained }));
        }
    }

    /// While no execution runs or is queued: how many executions there were, and how many bytes are retained.
    pub(super) fn idle_at(&self) -> Option<(u64, u64)> {
        (self.places.n_running() == 0 && self.places.queue().is_empty()).then(|| self.model.usage())
    }

    /// Takes a task's report. What it retains counts only if the task has received every attach: else a consumer that
    /// is on its way could lose the output to an eviction.
    pub(super) fn report(
        &mut self,
        id: ExecutionId,
        number: u64,
        output: RetainedOutput,
        hold: NewestHold,
        now_ms: u64,
    ) {
        let Some(entry) = self.entry(id, now_ms).filter(|entry| entry.number == number) else { return };
        let JobStage::Ended(record, task) = &mut entry.value.stage else { return };
        record.set_newest_hold(hold);
        if task.as_ref().is_none_or(TaskHandle::has_unreceived_attach) {
            return;
        }
        if output == RetainedOutput::Nothing {
            *task = None;
        }
        self.model.retain(id, output, now_ms);
    }
}
