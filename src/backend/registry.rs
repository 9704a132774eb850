//! All executions of a backend: those that wait, those that run, and for a while those that have ended.
//!
//! It admits executions up to the limit, has the others wait in the order in which they came, and
//! remembers ids and endings, so that no id ever runs twice. It holds no output and no process; each execution's
//! task owns those, and answers for itself. Of one that has no task any more, the registry has a record. What is
//! remembered and what gives way is decided in [`retention`].

pub mod error;
mod inbox;
pub mod record;
pub mod retention;
mod slot;
mod state;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use cc_executor_actors::{
    backend_api::{Health, Snapshot},
    clock::millis,
    id::{ExecutionId, InstanceId},
    outcome::CancelReport,
    protocol::{CAPABILITIES, Limits, execute::ExecutionSpec, notification::ServerInfo},
};
use tokio::sync::{oneshot, watch};

use self::{
    error::RegistryError,
    inbox::TaskHandle,
    record::{Record, RequestDigest},
    retention::RegistryLimits,
    state::{FORGOTTEN_AT_A_TIME, JobStage, KnownExecution, LiveJob, RegistryShared, RegistryState},
};
pub use self::{
    inbox::JobInbox,
    slot::{FIXED_BYTES, Retained, Slot, StreamGuard},
    state::{ExecutionCounts, QueueTurn},
};
use super::{config::BackendConfig, job_request::JobRequest};
use crate::syscall::trim_heaps;

/// How many executions are listed at the most.
const MAX_LISTED: usize = 4_096;

/// How often an idle backend forgets what is due.
const FORGET_CADENCE: Duration = Duration::from_secs(1);

/// How long an execution may take to say how it is.
const DESCRIBE_PATIENCE: Duration = Duration::from_secs(2);

/// Answers a request of an execution that has no task any more, from its record.
pub type RecordAnswer = fn(&mut Record, ExecutionId, InstanceId, &Arc<BackendConfig>, JobRequest);

/// The registry of one backend, shared by its worker threads.
pub struct Registry {
    config: Arc<BackendConfig>,
    instance: InstanceId,
    answer: RecordAnswer,
    shared: Arc<RegistryShared>,
}

/// What came of asking for an execution.
pub enum Admission {
    /// It is a new one.
    New(Slot, JobInbox),
    /// It was there already, asked for in the same terms.
    Existing,
}

impl Registry {
    /// An empty registry. `answer` is what answers for executions of which only a record is left.
    pub fn new(config: BackendConfig, answer: RecordAnswer) -> Self {
        let limits = RegistryLimits {
            retention_ms: millis(config.retention),
            max_entries: config.max_ended,
            max_kept_bytes: config.max_kept_bytes,
        };
        let shared = Arc::new(RegistryShared::new(limits, config.max_executions));
        Registry { config: Arc::new(config), instance: InstanceId::random(), answer, shared }
    }

    /// What this backend was configured with.
    pub fn config(&self) -> &Arc<BackendConfig> {
        &self.config
    }

    /// Which process this is: another one after each restart.
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    /// The bounds on what may be asked for.
    pub fn limits(&self) -> Limits {
        Limits {
            message_bytes: self.config.max_message_bytes,
            timeout_ms: self.config.max_timeout_ms,
            detach_ms: self.config.max_detach_ms,
            ..Limits::default()
        }
    }

    /// Whether new executions are accepted.
    ///
    /// # Errors
    ///
    /// The service ends, or there is no room for another execution.
    pub fn ready(&self) -> Result<(), RegistryError> {
        let mut inner = self.shared.lock();
        inner.forget(self.shared.now_ms());
        self.accepts(&inner, false)
    }

    fn accepts(&self, inner: &RegistryState, may_detach: bool) -> Result<(), RegistryError> {
        if inner.draining {
            return Err(RegistryError::Draining);
        }
        let BackendConfig { max_executions, max_queued, .. } = *self.config;
        if inner.running >= max_executions && inner.queue.len() >= max_queued {
            return Err(RegistryError::Full { max: max_executions, max_queued });
        }
        inner.model.accepts(may_detach, self.shared.now_ms())
    }

    /// Takes a place for an execution, unless it is there already.
    ///
    /// # Errors
    ///
    /// Another request has the id, the id was canceled before, or there is no room for another execution.
    pub fn admit(&self, id: ExecutionId, run: &ExecutionSpec) -> Result<Admission, RegistryError> {
        // Outside of the lock: a request can have a megabyte.
        let request = RequestDigest::of(run);
        let mut inner = self.shared.lock();
        let now_ms = self.shared.now_ms();
        inner.forget(now_ms);
        if let Some(known) = inner.known(id, now_ms) {
            return match known.request.difference(&request) {
                None => Ok(Admission::Existing),
                Some(difference) => Err(RegistryError::IdTaken { id, difference }),
            };
        }
        self.accepts(&inner, run.detach.is_some())?;
        if inner.withdrawn.contains(id, now_ms) {
            return Err(RegistryError::Withdrawn(id));
        }
        let (task, asks) = TaskHandle::new();
        let (gone, watched) = watch::channel(None);
        let turn = if inner.running < self.config.max_executions {
            inner.running += 1;
            QueueTurn::Now
        } else {
            inner.queue.push_back(id);
            QueueTurn::Position(inner.queue.len() as u64)
        };
        let turn = watch::Sender::new(turn);
        let subscribed = turn.subscribe();
        let live = LiveJob { task, turn, gone: watched };
        let number = inner.model.insert(id, KnownExecution { request, stage: JobStage::Live(Box::new(live)) });
        let slot = Slot::new(Arc::clone(&self.shared), id, number, subscribed, gone);
        self.shared.count(&inner);
        Ok(Admission::New(slot, asks))
    }

    /// Sends a request to an execution. After the execution's end it reaches the task that keeps the output, or the record
    /// answers.
    ///
    /// # Errors
    ///
    /// The execution is not known, or has ended and cannot carry out such a request any more.
    pub fn send(&self, id: ExecutionId, request: JobRequest) -> Result<(), RegistryError> {
        let is_attach = matches!(request, JobRequest::Attach(..));
        let mut inner = self.shared.lock();
        let now_ms = self.shared.now_ms();
        match inner.known(id, now_ms).map(|known| &mut known.stage) {
            None => return Err(self.unknown(id)),
            // Fails if the task has just ended.
            Some(JobStage::Live(live)) => return live.task.send(request).map_err(|_| RegistryError::Ended(id)),
            Some(JobStage::Ended(..)) if request.needs_process() => return Err(RegistryError::Ended(id)),
            Some(JobStage::Ended(record, task)) => {
                let unsent = match task {
                    Some(task) => task.send(request).err(),
                    None => Some(request),
                };
                // Under the lock, because two consumers that attach at the same time must not get the same hold.
                if let Some(request) = unsent {
                    (self.answer)(record, id, self.instance, &self.config, request);
                }
            }
        }
        if is_attach {
            // Before the task receives it, because its output could be evicted meanwhile.
            inner.model.follow(id, now_ms);
        }
        Ok(())
    }

    /// Gets the report of an execution that has not ended, as soon as its processes are gone.
    ///
    /// # Errors
    ///
    /// The execution is not known, or has ended.
    pub fn cancel_report(&self, id: ExecutionId) -> Result<watch::Receiver<Option<CancelReport>>, RegistryError> {
        match self.shared.lock().known(id, self.shared.now_ms()).map(|known| &known.stage) {
            None => Err(self.unknown(id)),
            Some(JobStage::Ended(..)) => Err(RegistryError::Ended(id)),
            Some(JobStage::Live(live)) => Ok(live.gone.clone()),
        }
    }

    fn unknown(&self, id: ExecutionId) -> RegistryError {
        RegistryError::Unknown { id, instance: self.instance }
    }

    /// Refuses this id for a while: it was canceled, and its request may still be under way. False if that
    /// has come meanwhile.
    pub fn withdraw(&self, id: ExecutionId) -> bool {
        let mut inner = self.shared.lock();
        let now_ms = self.shared.now_ms();
        let is_unknown = inner.known(id, now_ms).is_none();
        if is_unknown {
            inner.withdrawn.insert(id, now_ms);
        }
        is_unknown
    }

    /// How an execution is.
    ///
    /// # Errors
    ///
    /// The execution is not known, or does not answer.
    pub async fn snapshot(&self, id: ExecutionId) -> Result<Snapshot, RegistryError> {
        let (answer, answered) = oneshot::channel();
        self.send(id, JobRequest::Describe(answer))?;
        match tokio::time::timeout(DESCRIBE_PATIENCE, answered).await {
            Ok(Ok(snapshot)) => Ok(snapshot),
            Ok(Err(_)) => Err(self.unknown(id)),
            Err(_) => Err(RegistryError::NoReply),
        }
    }

    /// How the newest executions are, the newest first.
    pub async fn snapshots(&self) -> Vec<Snapshot> {
        let mut numbered: Vec<_> = {
            let (inner, now_ms) = (self.shared.lock(), self.shared.now_ms());
            let ids = inner.model.newest(MAX_LISTED, now_ms).into_iter();
            ids.filter_map(|id| Some((inner.model.get(id, now_ms)?.number, id))).collect()
        };
        numbered.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
        let asked = numbered.into_iter().map(|(_, id)| self.snapshot(id));
        // Those that are forgotten in this moment are not listed.
        futures_util::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// What `GET /health` tells.
    pub fn health(&self) -> Health {
        let counts = self.counts();
        Health {
            server: ServerInfo::THIS.name.into_owned(),
            version: ServerInfo::THIS.version.into_owned(),
            instance: Some(self.instance),
            executors: self.config.executors.names(),
            default_executor: self.config.executors.default_name().to_owned(),
            max_executions: self.config.max_executions,
            capabilities: CAPABILITIES.iter().map(|name| (*name).to_owned()).collect(),
            running: counts.running,
            queued: counts.queued,
        }
    }

    /// What there is at the moment.
    pub fn counts(&self) -> ExecutionCounts {
        *self.shared.counts.borrow()
    }

    /// Waits until nothing runs, nothing waits, and every consumer has had everything.
    pub async fn idle(&self) {
        // The sender lives as long as the registry.
        let _ = self.shared.counts.subscribe().wait_for(|counts| *counts == ExecutionCounts::default()).await;
    }

    /// Accepts nothing more. What waits is canceled at once.
    pub fn drain(&self) {
        let mut inner = self.shared.lock();
        inner.draining = true;
        for id in inner.queue.clone() {
            inner.cancel(id, 0, self.shared.now_ms());
        }
    }

    /// Has everything ended that still runs, within this grace.
    pub fn cancel_all(&self, grace_ms: u64) {
        let mut inner = self.shared.lock();
        let active: Vec<_> = inner.model.active().collect();
        for id in active {
            inner.cancel(id, grace_ms, self.shared.now_ms());
        }
    }

    /// Forgets what is due for as long as the registry exists, because an idle backend must give memory back, too.
    pub fn forget_in_time(&self) -> impl Future<Output = ()> + use<> {
        forget_in_time(Arc::downgrade(&self.shared))
    }

    /// A stream begins.
    pub fn streaming(&self) -> StreamGuard {
        self.shared.counts.send_modify(|counts| counts.streams += 1);
        StreamGuard(Arc::clone(&self.shared))
    }
}

async fn forget_in_time(this: Weak<RegistryShared>) {
    let (mut trimmed_at, mut seen_at) = (None, None);
    loop {
        tokio::time::sleep(FORGET_CADENCE).await;
        while let Some(shared) = this.upgrade()
            && shared.lock().forget(shared.now_ms()) == FORGOTTEN_AT_A_TIME
        {
            drop(shared);
            tokio::task::yield_now().await;
        }
        let Some(idle_at) = this.upgrade().map(|shared| shared.lock().idle_at()) else { return };
        // Only when nothing has changed since the last look, because a backend with short executions needs the memory again.
        if idle_at.is_some() && idle_at == seen_at && idle_at != trimmed_at {
            // Not on this thread, because it takes milliseconds to walk large heaps. It does not panic.
            let _ = tokio::task::spawn_blocking(trim_heaps).await;
            trimmed_at = idle_at;
        }
        seen_at = idle_at;
    }
}

#[cfg(test)]
mod tests {
    use cc_executor_actors::outcome::{Outcome, Reason, Status};

    use super::*;
    use crate::backend::{job::retained, output_buffer::RetainedOutput};

    fn registry() -> Registry {
        let limits = BackendConfig { max_executions: 1, max_queued: 1, max_ended: 10, ..BackendConfig::for_tests() };
        Registry::new(BackendConfig { max_kept_bytes: 10 * FIXED_BYTES, ..limits }, retained::answer)
    }

    fn admit(registry: &Registry, id: ExecutionId) -> (Slot, JobInbox) {
        match registry.admit(id, &ExecutionSpec::of("true")).unwrap() {
            Admission::New(slot, asks) => (slot, asks),
            Admission::Existing => panic!("{id} is known already"),
        }
    }

    fn record() -> Record {
        Record::new("shell".into(), 15_000, true, &Outcome::failed(Reason::Exit, "as it was"))
    }

    fn has_task(registry: &Registry, id: ExecutionId) -> bool {
        let now_ms = registry.shared.now_ms();
        matches!(
            registry.shared.lock().known(id, now_ms).map(|known| &known.stage),
            Some(JobStage::Live(_) | JobStage::Ended(_, Some(_)))
        )
    }

    /// Sends an ask of the kind that counts.
    fn attach(registry: &Registry, id: ExecutionId) {
        let (consumer, _feed) = crate::backend::output_buffer::Consumer::new(Default::default(), true);
        registry.send(id, JobRequest::Attach(Box::new(consumer), oneshot::channel().0)).unwrap();
    }

    #[actix_web::test]
    async fn an_execution_whose_task_failed_is_lost_and_its_id_stays_known() {
        let (registry, id) = (registry(), ExecutionId::random());
        let (slot, asks) = admit(&registry, id);
        attach(&registry, id);
        drop((slot, asks));
        assert_eq!(registry.counts().running, 0, "its place is free");
        let ending = registry.snapshot(id).await.unwrap().ending.unwrap();
        assert_eq!((ending.status, ending.reason), (Status::Failed, Reason::BackendLost));
        assert!(matches!(registry.admit(id, &ExecutionSpec::of("true")), Ok(Admission::Existing)));
        let (slot, asks) = admit(&registry, ExecutionId::random());
        let retained = slot.end(record(), RetainedOutput::Unfetched(FIXED_BYTES));
        drop((retained, asks));
        assert_eq!(registry.shared.lock().model.evict(), [], "what a failed task retained is not counted");
    }

    #[actix_web::test]
    async fn a_task_is_released_only_when_it_has_received_every_attach() {
        let (registry, id) = (registry(), ExecutionId::random());
        let (slot, mut asks) = admit(&registry, id);
        attach(&registry, id);
        let retained = slot.end(record(), RetainedOutput::Nothing);
        assert!(has_task(&registry, id), "a consumer is on its way");
        retained.report(RetainedOutput::Fetched(20 * FIXED_BYTES), (1, None));
        assert!(has_task(&registry, id), "what it says of the time before does not count");
        assert!(matches!(asks.recv().await, Some(JobRequest::Attach(..))));
        retained.report(RetainedOutput::Followed(20 * FIXED_BYTES), (1, None));
        attach(&registry, id);
        retained.report(RetainedOutput::Fetched(20 * FIXED_BYTES), (1, None));
        assert!(has_task(&registry, id), "another one is on its way");
        assert!(matches!(asks.recv().await, Some(JobRequest::Attach(..))));
        retained.report(RetainedOutput::Fetched(20 * FIXED_BYTES), (1, None));
        assert!(!has_task(&registry, id), "memory is short, and nobody reads it");
        assert!(asks.recv().await.is_none(), "the task is told by the end of its asks");
        let ending = registry.snapshot(id).await.unwrap().ending.unwrap();
        assert_eq!((ending.reason, ending.message.as_deref()), (Reason::Exit, Some("as it was")));
    }
}
