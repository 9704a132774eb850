//! All executions of a backend: queued, running, and for a while those that have ended.
//!
//! The registry admits executions up to the limit, queues the others in their order, and remembers ids and endings, so
//! that no id runs twice. It holds neither output nor processes: the task of each execution owns them and answers
//! requests. When an ended execution has no task any more, its record answers. [`retention`] decides how long
//! executions are remembered and whose output is evicted.

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

/// The interval in which executions whose retention is over are forgotten.
const FORGET_CADENCE: Duration = Duration::from_secs(1);

/// How long an execution may take to describe its state.
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

/// The result of an admission.
pub enum Admission {
    /// The execution is new.
    New(Slot, JobInbox),
    /// The same request has created this execution before.
    Existing,
}

impl Registry {
    /// An empty registry. `answer` answers requests from records.
    pub fn new(config: BackendConfig, answer: RecordAnswer) -> Self {
        let limits = RegistryLimits {
            retention_ms: millis(config.retention),
            max_entries: config.max_ended,
            max_kept_bytes: config.max_kept_bytes,
        };
        let shared = Arc::new(RegistryShared::new(limits, config.max_executions));
        Registry { config: Arc::new(config), instance: InstanceId::random(), answer, shared }
    }

    /// The configuration of this backend.
    pub fn config(&self) -> &Arc<BackendConfig> {
        &self.config
    }

    /// Identifies this process: another one after each restart.
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    /// The limits of requests.
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
        let mut state = self.shared.lock();
        state.forget(self.shared.now_ms());
        self.accepts(&state, false)
    }

    fn accepts(&self, state: &RegistryState, may_detach: bool) -> Result<(), RegistryError> {
        if state.draining {
            return Err(RegistryError::Draining);
        }
        let BackendConfig { max_executions, max_queued, .. } = *self.config;
        if state.running >= max_executions && state.queue.len() >= max_queued {
            return Err(RegistryError::Full { max: max_executions, max_queued });
        }
        state.model.accepts(may_detach, self.shared.now_ms())
    }

    /// Admits an execution, or finds it if the same request has come before.
    ///
    /// # Errors
    ///
    /// Another request has the id, the id was canceled before, or there is no room for another execution.
    pub fn admit(&self, id: ExecutionId, run: &ExecutionSpec) -> Result<Admission, RegistryError> {
        // Outside of the lock: a request can have a megabyte.
        let request = RequestDigest::of(run);
        let mut state = self.shared.lock();
        let now_ms = self.shared.now_ms();
        state.forget(now_ms);
        if let Some(known) = state.known(id, now_ms) {
            return match known.request.difference(&request) {
                None => Ok(Admission::Existing),
                Some(difference) => Err(RegistryError::IdTaken { id, difference }),
            };
        }
        self.accepts(&state, run.detach.is_some())?;
        if state.withdrawn.contains(id, now_ms) {
            return Err(RegistryError::Withdrawn(id));
        }
        let (task, inbox) = TaskHandle::new();
        let (gone, report) = watch::channel(None);
        let turn = if state.running < self.config.max_executions {
            state.running += 1;
            QueueTurn::Now
        } else {
            state.queue.push_back(id);
            QueueTurn::Position(state.queue.len() as u64)
        };
        let turn = watch::Sender::new(turn);
        let subscribed = turn.subscribe();
        let live = LiveJob { task, turn, gone: report };
        let number = state.model.insert(id, KnownExecution { request, stage: JobStage::Live(Box::new(live)) });
        let slot = Slot { shared: Arc::clone(&self.shared), id, number, turn: subscribed, gone, left: false };
        self.shared.count(&state);
        Ok(Admission::New(slot, inbox))
    }

    /// Sends a request to an execution. After the execution's end it reaches the task that keeps the output, or the
    /// record answers.
    ///
    /// # Errors
    ///
    /// The execution is not known, or has ended and cannot carry out such a request any more.
    pub fn send(&self, id: ExecutionId, request: JobRequest) -> Result<(), RegistryError> {
        let is_attach = matches!(request, JobRequest::Attach(..));
        let mut state = self.shared.lock();
        let now_ms = self.shared.now_ms();
        match state.known(id, now_ms).map(|known| &mut known.stage) {
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
            state.model.follow(id, now_ms);
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

    /// Refuses an id for a while, because it was canceled and its request may still arrive. Returns false if the
    /// request has arrived meanwhile.
    pub fn withdraw(&self, id: ExecutionId) -> bool {
        let mut state = self.shared.lock();
        let now_ms = self.shared.now_ms();
        let is_unknown = state.known(id, now_ms).is_none();
        if is_unknown {
            state.withdrawn.insert(id, now_ms);
        }
        is_unknown
    }

    /// The state of an execution.
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

    /// The states of the newest executions, the newest first.
    pub async fn snapshots(&self) -> Vec<Snapshot> {
        let mut numbered: Vec<_> = {
            let (state, now_ms) = (self.shared.lock(), self.shared.now_ms());
            let ids = state.model.newest(MAX_LISTED, now_ms).into_iter();
            ids.filter_map(|id| Some((state.model.get(id, now_ms)?.number, id))).collect()
        };
        numbered.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
        let snapshots = numbered.into_iter().map(|(_, id)| self.snapshot(id));
        // Executions that are forgotten meanwhile are left out.
        futures_util::future::join_all(snapshots).await.into_iter().flatten().collect()
    }

    /// The response to `GET /health`.
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

    /// The current counts.
    pub fn counts(&self) -> ExecutionCounts {
        *self.shared.counts.borrow()
    }

    /// Waits until no execution runs or is queued, and every consumer has received everything.
    pub async fn idle(&self) {
        // The sender lives as long as the registry.
        let _ = self.shared.counts.subscribe().wait_for(ExecutionCounts::is_idle).await;
    }

    /// Refuses new executions, and cancels the queued ones.
    pub fn drain(&self) {
        let mut state = self.shared.lock();
        state.draining = true;
        for id in state.queue.clone() {
            state.cancel(id, 0, self.shared.now_ms());
        }
    }

    /// Cancels all executions with this grace.
    pub fn cancel_all(&self, grace_ms: u64) {
        let mut state = self.shared.lock();
        let active: Vec<_> = state.model.active().collect();
        for id in active {
            state.cancel(id, grace_ms, self.shared.now_ms());
        }
    }

    /// Forgets executions in time for as long as the registry exists, because an idle backend must give memory back,
    /// too.
    pub fn forget_in_time(&self) -> impl Future<Output = ()> + use<> {
        forget_in_time(Arc::downgrade(&self.shared))
    }

    /// Counts a stream until the guard is dropped.
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
        // Only if nothing has changed since the last look, because a backend with short executions needs the memory
        // again.
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
            Admission::New(slot, inbox) => (slot, inbox),
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

    /// Sends an attach, which is counted.
    fn attach(registry: &Registry, id: ExecutionId) {
        let (consumer, _feed) = crate::backend::output_buffer::Consumer::new(Default::default(), true);
        registry.send(id, JobRequest::Attach(Box::new(consumer), oneshot::channel().0)).unwrap();
    }

    #[actix_web::test]
    async fn an_execution_whose_task_failed_is_lost_and_its_id_stays_known() {
        let (registry, id) = (registry(), ExecutionId::random());
        let (slot, inbox) = admit(&registry, id);
        attach(&registry, id);
        drop((slot, inbox));
        assert_eq!(registry.counts().running, 0, "its place is free");
        let ending = registry.snapshot(id).await.unwrap().ending.unwrap();
        assert_eq!((ending.status, ending.reason), (Status::Failed, Reason::BackendLost));
        assert!(matches!(registry.admit(id, &ExecutionSpec::of("true")), Ok(Admission::Existing)));
        let (slot, inbox) = admit(&registry, ExecutionId::random());
        let retained = slot.end(record(), RetainedOutput::Unfetched(FIXED_BYTES));
        drop((retained, inbox));
        assert_eq!(registry.shared.lock().model.evict(), [], "what a failed task retained is not counted");
    }

    #[actix_web::test]
    async fn a_task_is_released_only_when_it_has_received_every_attach() {
        let (registry, id) = (registry(), ExecutionId::random());
        let (slot, mut inbox) = admit(&registry, id);
        attach(&registry, id);
        let retained = slot.end(record(), RetainedOutput::Nothing);
        assert!(has_task(&registry, id), "a consumer is on its way");
        retained.report(RetainedOutput::Fetched(20 * FIXED_BYTES), (1, None));
        assert!(has_task(&registry, id), "a report from before the attach does not count");
        assert!(matches!(inbox.recv().await, Some(JobRequest::Attach(..))));
        retained.report(RetainedOutput::Followed(20 * FIXED_BYTES), (1, None));
        attach(&registry, id);
        retained.report(RetainedOutput::Fetched(20 * FIXED_BYTES), (1, None));
        assert!(has_task(&registry, id), "another one is on its way");
        assert!(matches!(inbox.recv().await, Some(JobRequest::Attach(..))));
        retained.report(RetainedOutput::Fetched(20 * FIXED_BYTES), (1, None));
        assert!(!has_task(&registry, id), "memory is short, and no consumer reads it");
        assert!(inbox.recv().await.is_none(), "its inbox is closed");
        let ending = registry.snapshot(id).await.unwrap().ending.unwrap();
        assert_eq!((ending.reason, ending.message.as_deref()), (Reason::Exit, Some("as it was")));
    }
}
