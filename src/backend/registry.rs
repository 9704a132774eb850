//! All executions of a backend: queued, running, and for a while those that have ended.
//!
//! The registry admits executions up to the limits that their clients share ([`places`]), queues the others
//! ([`fair_queue`]), and remembers ids and endings, so that no id runs twice. An execution belongs to its client: to
//! others it is unknown. The registry holds neither output nor processes: the task of each execution owns them and
//! answers requests. When an ended execution has no task any more, its record answers. [`retention`] decides how long
//! executions are remembered and whose output is evicted.

mod ended;
pub mod error;
pub mod fair_queue;
mod forgetting;
mod inbox;
mod listed;
mod lookup;
pub mod places;
mod positions;
pub mod record;
pub mod retention;
mod slot;
mod state;
pub mod withdrawn;

use std::{cell::Cell, sync::Arc, time::Duration};

use cc_executor_actors::{
    backend_api::{ExecutionPage, Health, MAX_LISTED, Snapshot},
    client::ClientName,
    excerpt::excerpt,
    id::{ExecutionId, InstanceId, SessionId},
    outcome::CancelReport,
    protocol::{CAPABILITIES, Limits, execute::ExecutionSpec, notification::ServerInfo},
};
use tokio::sync::{Semaphore, oneshot, watch};

pub use self::{
    ended::EndedExecution,
    inbox::JobInbox,
    listed::ListQuery,
    slot::{FIXED_BYTES, Retained, Slot, StreamGuard},
    state::{ExecutionCounts, QueueTurn},
};
use self::{
    error::RegistryError,
    inbox::TaskHandle,
    listed::{ListedExecution, page},
    places::TakenPlace,
    record::{Record, RequestDigest},
    state::{JobStage, KnownExecution, LiveJob, RegistryShared, RegistryState},
};
use super::{
    config::BackendConfig,
    job_request::{JobRequest, Poller},
    storage::StateDir,
};
use crate::server::caller::Caller;

/// How long an execution may take to describe its state.
const DESCRIBE_PATIENCE: Duration = Duration::from_secs(2);

/// Answers a request of an execution that has no task any more, from its record and its files.
pub type RecordAnswer =
    fn(&mut Record, ExecutionId, InstanceId, (&Arc<BackendConfig>, Option<&Arc<StateDir>>), JobRequest);

/// The registry of one backend, shared by its worker threads.
pub struct Registry {
    config: Arc<BackendConfig>,
    instance: InstanceId,
    answer: RecordAnswer,
    /// The key of the digests of requests.
    request_key: [u8; 32],
    shared: Arc<RegistryShared>,
    /// Bounds the requests for descriptions by all lists together.
    descriptions: Semaphore,
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
    pub fn new(config: BackendConfig, state_dir: Option<Arc<StateDir>>, answer: RecordAnswer) -> Self {
        let request_key = state_dir.as_ref().map(|directory| directory.sealer().request_key()).unwrap_or_default();
        let shared = Arc::new(RegistryShared::new(&config, state_dir));
        let descriptions = Semaphore::new(MAX_LISTED);
        let instance = InstanceId::random();
        Registry { config: Arc::new(config), instance, answer, request_key, shared, descriptions }
    }

    /// Where output is kept on disk.
    pub fn state_dir(&self) -> Option<&Arc<StateDir>> {
        self.shared.state_dir.as_ref()
    }

    /// The digest by which a request is recognized when it is repeated.
    pub fn digest(&self, run: &ExecutionSpec) -> RequestDigest {
        RequestDigest::of(run, &self.request_key)
    }

    /// Whether an execution of this client, or of an earlier backend, has this id.
    pub fn knows(&self, caller: &Caller, id: ExecutionId) -> bool {
        self.shared.lock().visible(caller, id, self.shared.now_ms()).is_some()
    }

    /// Adds an execution of an earlier backend. `inbox` is that of a task that serves it until it is released.
    pub fn add_ended(&self, ended: EndedExecution, has_task: bool) -> (Retained, JobInbox) {
        ended.add(&self.shared, has_task)
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

    /// Whether the service admits an execution of a client that has no executions yet. A client that has used up its
    /// own share does not make the service unready for the other clients.
    ///
    /// # Errors
    ///
    /// The service ends, or there is no room for another execution.
    pub fn ready(&self) -> Result<(), RegistryError> {
        let mut state = self.shared.lock();
        let now_ms = self.shared.now_ms();
        self.shared.forget(&mut state, now_ms);
        if state.draining {
            return Err(RegistryError::Draining);
        }
        state.places.admits_newcomer().map_err(RegistryError::NoPlace)?;
        state.model.accepts_newcomer(now_ms).map_err(RegistryError::NoRoom)
    }

    fn accepts(
        &self,
        state: &RegistryState,
        owner: &ClientName,
        may_detach: bool,
    ) -> Result<TakenPlace, RegistryError> {
        if state.draining {
            return Err(RegistryError::Draining);
        }
        let place = state.places.admits(owner).map_err(RegistryError::NoPlace)?;
        let room = state.model.accepts(owner, may_detach, self.shared.now_ms());
        room.map(|()| place).map_err(RegistryError::NoRoom)
    }

    /// Admits an execution of the caller's session, or finds it if the same request has come before.
    ///
    /// # Errors
    ///
    /// Another request has the id, the id was canceled before, or there is no room for another execution.
    pub fn admit(
        &self,
        caller: Caller,
        session: Option<SessionId>,
        id: ExecutionId,
        run: &ExecutionSpec,
    ) -> Result<Admission, RegistryError> {
        // Outside of the lock: a request can have a megabyte.
        let request = self.digest(run);
        let mut state = self.shared.lock();
        let now_ms = self.shared.now_ms();
        self.shared.forget(&mut state, now_ms);
        if let Some(entry) = state.entry(id, now_ms) {
            if !caller.may_touch(&entry.owner) {
                return Err(RegistryError::IdInUse(id));
            }
            return match entry.value.request.difference(&request) {
                None => Ok(Admission::Existing),
                Some(difference) => Err(RegistryError::IdTaken { id, difference }),
            };
        }
        let owner = caller.client();
        state.check_name(&owner, run.name.as_ref(), now_ms)?;
        let place = self.accepts(&state, &owner, run.detach.is_some())?;
        if state.withdrawn.contains(&owner, id, now_ms) {
            return Err(RegistryError::Withdrawn(id));
        }
        let (task, inbox) = TaskHandle::new();
        let (gone, report) = watch::channel(None);
        state.places.take(place, &owner, session, id);
        let turn = match state.places.queue().position(id) {
            None => QueueTurn::Now,
            Some(position) => QueueTurn::Position(position),
        };
        let turn = watch::Sender::new(turn);
        let subscribed = turn.subscribe();
        let live = LiveJob { task, turn, gone: report };
        let (command, name) = (excerpt(&run.command.to_text()).into(), run.name.clone());
        let stage = JobStage::Live(Box::new(live));
        let known = KnownExecution { request, command, name, created_ms: now_ms, stage };
        let number = state.insert(id, &owner, known);
        let slot = Slot {
            shared: Arc::clone(&self.shared),
            id,
            owner,
            number,
            turn: subscribed,
            gone,
            left: false,
            has_place: Cell::new(true),
        };
        if place == TakenPlace::InQueue {
            // Those of other sessions may have moved back.
            self.shared.queue_changed.send_replace(());
        }
        self.shared.count(&state);
        Ok(Admission::New(slot, inbox))
    }

    /// Sends a request to an execution of the caller. After the execution's end it reaches the task that keeps the
    /// output, or the record answers.
    ///
    /// # Errors
    ///
    /// The execution is not known, or has ended and cannot carry out such a request any more.
    pub fn send(&self, caller: &Caller, id: ExecutionId, request: JobRequest) -> Result<(), RegistryError> {
        let is_attach = matches!(request, JobRequest::Attach(..));
        let mut state = self.shared.lock();
        let now_ms = self.shared.now_ms();
        match state.visible(caller, id, now_ms).map(|entry| &mut entry.value.stage) {
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
                    let places = (&self.config, self.shared.state_dir.as_ref());
                    (self.answer)(record, id, self.instance, places, request);
                    let (stored, is_whole) = (record.stored_output(), record.is_whole_on_disk());
                    self.shared.record_stored(&mut state, id, stored, is_whole);
                }
            }
        }
        if is_attach {
            // Before the task receives it, because its output could be evicted meanwhile.
            state.model.follow(id, now_ms);
        }
        Ok(())
    }

    /// Gets the report of an execution of the caller that has not ended, as soon as its processes are gone.
    ///
    /// # Errors
    ///
    /// The execution is not known, or has ended.
    pub fn cancel_report(
        &self,
        caller: &Caller,
        id: ExecutionId,
    ) -> Result<watch::Receiver<Option<CancelReport>>, RegistryError> {
        let mut state = self.shared.lock();
        match state.visible(caller, id, self.shared.now_ms()).map(|entry| &entry.value.stage) {
            None => Err(self.unknown(id)),
            Some(JobStage::Ended(..)) => Err(RegistryError::Ended(id)),
            Some(JobStage::Live(live)) => Ok(live.gone.clone()),
        }
    }

    fn unknown(&self, id: ExecutionId) -> RegistryError {
        RegistryError::Unknown { id, instance: self.instance, retention: self.config.retention }
    }

    /// Refuses an id of the caller's client for a while, because it was canceled and its request may still arrive.
    /// Returns false if the request has arrived meanwhile.
    ///
    /// # Errors
    ///
    /// The client has canceled too many unknown ids.
    pub fn withdraw(&self, caller: &Caller, id: ExecutionId) -> Result<bool, RegistryError> {
        let mut state = self.shared.lock();
        let now_ms = self.shared.now_ms();
        if state.visible(caller, id, now_ms).is_some() {
            return Ok(false);
        }
        let owner = caller.clone().client();
        state.withdrawn.insert(&owner, id, now_ms).map_err(RegistryError::TooManyWithdrawn)?;
        Ok(true)
    }

    /// The state of an execution of the caller.
    ///
    /// # Errors
    ///
    /// The execution is not known, or does not answer.
    pub async fn snapshot(&self, caller: &Caller, id: ExecutionId, poller: Poller) -> Result<Snapshot, RegistryError> {
        let (answer, answered) = oneshot::channel();
        self.send(caller, id, JobRequest::Describe(poller, answer))?;
        match tokio::time::timeout(DESCRIBE_PATIENCE, answered).await {
            Ok(Ok(snapshot)) => Ok(self.shared.with_request(snapshot)),
            Ok(Err(_)) => Err(self.unknown(id)),
            Err(_) => Err(RegistryError::NoReply { id, within: DESCRIBE_PATIENCE }),
        }
    }

    /// Up to `most` executions of the caller for this query. Executions that are forgotten, or do not answer, are left
    /// out. At most [`MAX_LISTED`] executions are asked at a time, by all lists together; the records
    /// of ended ones answer without their tasks.
    pub async fn list(&self, caller: &Caller, query: &ListQuery, most: usize) -> ExecutionPage {
        let (listed, next, total) = page(&self.shared.lock(), caller, query, most, self.shared.now_ms());
        let snapshots = listed.into_iter().map(async |ListedExecution { id, ended }| match ended {
            Some((record, is_followed)) => {
                Some(self.shared.with_request(record.snapshot(id, self.instance, is_followed)))
            }
            None => {
                let _permit = self.descriptions.acquire().await;
                self.snapshot(caller, id, Poller::Observer).await.ok()
            }
        });
        let executions = futures_util::future::join_all(snapshots).await.into_iter().flatten().collect();
        ExecutionPage { executions, next: next.map(|place| place.to_string()), total: Some(total) }
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
        let queued: Vec<_> = state.places.queue().ids().collect();
        for id in queued {
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

    /// Forgets executions in time for as long as the registry exists, because also an idle backend must give memory back.
    pub fn forget_in_time(&self) -> impl Future<Output = ()> + use<> {
        forgetting::forget_in_time(Arc::downgrade(&self.shared))
    }

    /// Tells waiting executions their positions for as long as the registry exists.
    pub fn tell_positions(&self) -> impl Future<Output = ()> + use<> {
        positions::tell_in_time(Arc::downgrade(&self.shared))
    }

    /// Counts a stream until the guard is dropped.
    pub fn streaming(&self) -> StreamGuard {
        self.shared.counts.send_modify(|counts| counts.streams += 1);
        StreamGuard(Arc::clone(&self.shared))
    }
}

#[cfg(test)]
mod tests {
    use cc_executor_actors::outcome::{Outcome, Reason, Status};

    use super::*;
    use crate::backend::{job::retained, output_buffer::RetainedOutput};

    fn registry() -> Registry {
        let limits = BackendConfig { max_executions: 1, max_queued: 1, max_ended: 10, ..BackendConfig::for_tests() };
        Registry::new(BackendConfig { max_kept_bytes: 10 * FIXED_BYTES, ..limits }, None, retained::answer)
    }

    fn admit(registry: &Registry, id: ExecutionId) -> (Slot, JobInbox) {
        match registry.admit(Caller::Operator, None, id, &ExecutionSpec::of("true")).unwrap() {
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
        registry.send(&Caller::Operator, id, JobRequest::Attach(Box::new(consumer), oneshot::channel().0)).unwrap();
    }

    #[actix_web::test]
    async fn an_execution_whose_task_failed_is_lost_and_its_id_stays_known() {
        let (registry, id) = (registry(), ExecutionId::random());
        let (slot, inbox) = admit(&registry, id);
        attach(&registry, id);
        drop((slot, inbox));
        assert_eq!(registry.counts().running, 0, "its place is free");
        let ending = registry.snapshot(&Caller::Operator, id, Poller::Anyone).await.unwrap().ending.unwrap();
        assert_eq!((ending.status, ending.reason), (Status::Failed, Reason::BackendLost));
        assert!(matches!(
            registry.admit(Caller::Operator, None, id, &ExecutionSpec::of("true")),
            Ok(Admission::Existing)
        ));
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
        let ending = registry.snapshot(&Caller::Operator, id, Poller::Anyone).await.unwrap().ending.unwrap();
        assert_eq!((ending.reason, ending.message.as_deref()), (Reason::Exit, Some("as it was")));
    }
}
