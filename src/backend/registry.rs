//! All executions of a backend: those that wait, those that run, and for a while those that have ended.
//!
//! It admits executions up to the limit, has the others wait in the order in which they came, and
//! remembers ids and endings, so that no id ever runs twice. It holds no output and no process; each execution's
//! task owns those, and answers for itself. Of one that has no task any more, the registry has a record. What is
//! remembered and what gives way is decided in the [`registry`](super::registry).

pub mod model;
pub mod record;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::{Duration, Instant},
};

use actix_web::web;
use cc_executor_actors::{
    backend_api::{Health, Snapshot},
    clock::millis,
    id::{ExecutionId, InstanceId},
    outcome::{CancelReason, CancelReport, Outcome, Reason},
    protocol::{CAPABILITIES, Limits, control::ControlRequest, execute::ExecutionSpec, notification::ServerInfo},
    rpc::{ErrorObject, code},
};
use log::debug;
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};

use self::{
    model::{AdmissionError, RegistryEntry, RegistryLimits, RegistryModel, RetainedOutput, WithdrawnIds},
    record::{Record, RequestDigest},
};
use super::{
    BackendConfig,
    holds::NewestHold,
    job::{
        JobRequest,
        retained::{self, FIXED_BYTES},
    },
};
use crate::syscall::trim_heaps;

/// How many executions are listed at the most.
const MAX_LISTED: usize = 4_096;

/// How many executions are forgotten under one lock, so that an execute never waits long for it.
const FORGOTTEN_AT_A_TIME: usize = 256;

/// How often an idle backend forgets what is due.
const FORGET_CADENCE: Duration = Duration::from_secs(1);

/// How long an id that was canceled before its request came is refused, in milliseconds.
const WITHDRAWN_MS: u64 = 60_000;

/// How long an execution may take to say how it is.
const DESCRIBE_PATIENCE: Duration = Duration::from_secs(2);

/// The registry of one backend, shared by its worker threads.
pub struct Registry {
    config: BackendConfig,
    /// The registry's times count from here.
    began_at: Instant,
    instance: InstanceId,
    inner: Mutex<RegistryState>,
    counts: watch::Sender<ExecutionCounts>,
}

/// What there is at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ExecutionCounts {
    /// Executions that run.
    pub running: usize,
    /// Executions that wait.
    pub queued: usize,
    /// Streams whose consumers have not had everything.
    pub streams: usize,
}

struct RegistryState {
    model: RegistryModel<ExecutionId, KnownExecution>,
    queue: VecDeque<ExecutionId>,
    withdrawn: WithdrawnIds<ExecutionId>,
    /// The names that records share.
    executors: BTreeSet<Arc<str>>,
    running: usize,
    draining: bool,
}

/// What is known of an execution.
struct KnownExecution {
    request: RequestDigest,
    stage: JobStage,
}

enum JobStage {
    /// It waits or runs.
    Live(Box<LiveJob>),
    /// It has ended. While output is kept or a consumer is served there is a task for that.
    Ended(Record, Option<TaskHandle>),
}

struct LiveJob {
    task: TaskHandle,
    turn: watch::Sender<QueueTurn>,
    gone: watch::Receiver<Option<CancelReport>>,
}

/// The registry's end of an execution's task. Dropping it ends the task as soon as the task has served its consumer.
struct TaskHandle {
    asks: mpsc::UnboundedSender<JobRequest>,
    /// Attaches that were sent to it. The task's report counts only if it has received all of them.
    n_attaches: u64,
}

/// The task's end: the asks that reach it. Attaches are counted here, because the task may drop one unanswered and
/// must still agree with the registry on how many have come.
pub struct JobInbox {
    receiver: mpsc::UnboundedReceiver<JobRequest>,
    n_attaches: u64,
}

impl JobInbox {
    /// A closed channel, for an execution without a task.
    pub fn none() -> Self {
        TaskHandle::new().1
    }

    /// The next ask; `None` when the registry has released the task. Cancel safe.
    pub async fn recv(&mut self) -> Option<JobRequest> {
        let ask = self.receiver.recv().await?;
        self.n_attaches += u64::from(matches!(ask, JobRequest::Attach(..)));
        Some(ask)
    }

    /// How many consumers have come.
    pub fn n_attaches(&self) -> u64 {
        self.n_attaches
    }
}

impl TaskHandle {
    fn new() -> (TaskHandle, JobInbox) {
        let (asks, receiver) = mpsc::unbounded_channel();
        (TaskHandle { asks, n_attaches: 0 }, JobInbox { receiver, n_attaches: 0 })
    }

    fn send(&mut self, ask: JobRequest) -> Result<(), JobRequest> {
        let is_attach = matches!(ask, JobRequest::Attach(..));
        self.asks.send(ask).map_err(|mpsc::error::SendError(ask)| ask)?;
        self.n_attaches += u64::from(is_attach);
        Ok(())
    }
}

/// When an execution may run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueTurn {
    /// At once.
    Now,
    /// When so many others have had their turn; 1 is the next.
    Position(u64),
}

/// An execution's place in the registry: in the queue, or among those that run. Dropping it gives the
/// place to the next.
pub struct Slot {
    registry: web::Data<Registry>,
    id: ExecutionId,
    number: u64,
    turn: watch::Receiver<QueueTurn>,
    gone: watch::Sender<Option<CancelReport>>,
    left: bool,
}

/// Reports to the registry what the task of an ended execution keeps. Dropping it reports that nothing is kept.
pub struct Retained {
    registry: web::Data<Registry>,
    id: ExecutionId,
    number: u64,
    reported: Option<(RetainedOutput, u64)>,
}

/// A stream that is being consumed.
pub struct StreamGuard(web::Data<Registry>);

/// What came of asking for an execution.
pub enum Admission {
    /// It is a new one.
    New(Slot, JobInbox),
    /// It was there already, asked for in the same terms.
    Existing,
}

impl Registry {
    /// An empty registry.
    pub fn new(config: BackendConfig) -> Self {
        let bounds = RegistryLimits {
            retention_ms: millis(config.retention),
            max_entries: config.max_ended,
            max_kept_bytes: config.max_kept_bytes,
        };
        let inner = RegistryState {
            model: RegistryModel::new(bounds),
            queue: VecDeque::new(),
            withdrawn: WithdrawnIds::new(WITHDRAWN_MS),
            executors: BTreeSet::new(),
            running: 0,
            draining: false,
        };
        Registry {
            config,
            began_at: Instant::now(),
            instance: InstanceId::random(),
            inner: Mutex::new(inner),
            counts: watch::Sender::default(),
        }
    }

    /// What this backend was configured with.
    pub fn config(&self) -> &BackendConfig {
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

    /// A critical section never panics half-way: a poisoned lock still guards whole entries.
    fn lock(&self) -> MutexGuard<'_, RegistryState> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn now_ms(&self) -> u64 {
        millis(self.began_at.elapsed())
    }

    /// Whether new executions are accepted.
    pub fn ready(&self) -> Result<(), ErrorObject> {
        let mut inner = self.lock();
        inner.forget(self.now_ms());
        self.accepts(&inner, false)
    }

    fn accepts(&self, inner: &RegistryState, may_detach: bool) -> Result<(), ErrorObject> {
        if inner.draining {
            return Err(draining());
        }
        let BackendConfig { max_executions, max_queued, .. } = self.config;
        if inner.running >= max_executions && inner.queue.len() >= max_queued {
            return Err(full(max_executions, max_queued));
        }
        inner.model.accepts(may_detach, self.now_ms()).map_err(|refusal| self.refused(refusal))
    }

    fn refused(&self, refusal: AdmissionError) -> ErrorObject {
        let BackendConfig { max_ended, max_kept_bytes, .. } = self.config;
        match refusal {
            AdmissionError::Entries { next_in_ms } => {
                let when = match next_in_ms {
                    Some(ms) => format!("in {} s, when the oldest is forgotten", ms.div_ceil(1_000)),
                    None => "when the oldest is forgotten".to_owned(),
                };
                let message = format!(
                    "the backend remembers {max_ended} executions, which is the limit of --max-ended: try again {when}, raise --max-ended, or lower --retention-ms"
                );
                ErrorObject::new(code::FULL, message).with(json!({ "maxEnded": max_ended, "retryInMs": next_in_ms }))
            }
            AdmissionError::Memory { held } => {
                let message = format!(
                    "unfetched output takes {held} bytes, more than the {max_kept_bytes} of --max-kept-bytes: attach to ended executions to fetch it, wait until its retention ends, or execute without onDisconnect detach"
                );
                ErrorObject::new(code::FULL, message).with(json!({ "held": held, "max": max_kept_bytes }))
            }
        }
    }

    /// Takes a place for an execution, unless it is there already.
    pub fn admit(this: &web::Data<Registry>, id: ExecutionId, run: &ExecutionSpec) -> Result<Admission, ErrorObject> {
        // Outside of the lock: a request can have a megabyte.
        let request = RequestDigest::of(run);
        let mut inner = this.lock();
        let now_ms = this.now_ms();
        inner.forget(now_ms);
        if let Some(known) = inner.known(id, now_ms) {
            return match known.request.difference(&request) {
                None => Ok(Admission::Existing),
                Some(difference) => {
                    let message =
                        format!("executionId {id} exists already, with another {difference}: choose a new id");
                    Err(ErrorObject::new(code::PARAMS, message).with(json!({ "param": difference })))
                }
            };
        }
        this.accepts(&inner, run.detach.is_some())?;
        if inner.withdrawn.contains(id, now_ms) {
            return Err(ErrorObject::new(
                code::NOT_RUNNING,
                format!("execution {id} was canceled before it was asked for"),
            ));
        }
        let (task, asks) = TaskHandle::new();
        let (gone, watched) = watch::channel(None);
        let turn = if inner.running < this.config.max_executions {
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
        let slot = Slot { registry: this.clone(), id, number, turn: subscribed, gone, left: false };
        this.count(&inner);
        Ok(Admission::New(slot, asks))
    }

    /// Asks something of an execution that has not ended.
    pub fn ask(&self, id: ExecutionId, ask: JobRequest) -> Result<watch::Receiver<Option<CancelReport>>, ErrorObject> {
        let mut inner = self.lock();
        match inner.known(id, self.now_ms()).map(|known| &mut known.stage) {
            None => Err(unknown(id)),
            Some(JobStage::Ended(..)) => Err(over(id)),
            // The task ends in this moment: then it has ended.
            Some(JobStage::Live(live)) => live.task.send(ask).map(|()| live.gone.clone()).map_err(|_| over(id)),
        }
    }

    /// Asks something of an execution, ended or not.
    pub fn ask_any(&self, id: ExecutionId, ask: JobRequest) -> Result<(), ErrorObject> {
        let is_attach = matches!(ask, JobRequest::Attach(..));
        let mut inner = self.lock();
        let now_ms = self.now_ms();
        match inner.known(id, now_ms).map(|known| &mut known.stage) {
            None => return Err(unknown(id)),
            Some(JobStage::Live(live)) => return live.task.send(ask).map_err(|_| over(id)),
            Some(JobStage::Ended(record, task)) => {
                let refused = match task {
                    Some(task) => task.send(ask).err(),
                    None => Some(ask),
                };
                // Under the lock, because two that attach at a time must not get one hold.
                if let Some(ask) = refused {
                    retained::answer(record, id, self.instance, &self.config, ask);
                }
            }
        }
        if is_attach {
            // Before the task receives it, because its output could be evicted meanwhile.
            inner.model.follow(id, now_ms);
        }
        Ok(())
    }

    /// Refuses this id for a while: it was canceled, and its request may still be under way. False if that
    /// has come meanwhile.
    pub fn withdraw(&self, id: ExecutionId) -> bool {
        let mut inner = self.lock();
        let now_ms = self.now_ms();
        let is_unknown = inner.known(id, now_ms).is_none();
        if is_unknown {
            inner.withdrawn.insert(id, now_ms);
        }
        is_unknown
    }

    /// How an execution is.
    pub async fn snapshot(&self, id: ExecutionId) -> Result<Snapshot, ErrorObject> {
        let (answer, answered) = oneshot::channel();
        self.ask_any(id, JobRequest::Describe(answer))?;
        match tokio::time::timeout(DESCRIBE_PATIENCE, answered).await {
            Ok(Ok(snapshot)) => Ok(snapshot),
            Ok(Err(_)) => Err(unknown(id)),
            Err(_) => Err(ErrorObject::new(code::INTERNAL, "the execution does not answer")),
        }
    }

    /// How the newest executions are, the newest first.
    pub async fn snapshots(&self) -> Vec<Snapshot> {
        let mut numbered: Vec<_> = {
            let (inner, now_ms) = (self.lock(), self.now_ms());
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
        *self.counts.borrow()
    }

    /// Waits until nothing runs, nothing waits, and every consumer has had everything.
    pub async fn idle(&self) {
        // The sender lives as long as the registry.
        let _ = self.counts.subscribe().wait_for(|counts| *counts == ExecutionCounts::default()).await;
    }

    /// Accepts nothing more. What waits is canceled at once.
    pub fn drain(&self) {
        let mut inner = self.lock();
        inner.draining = true;
        for id in inner.queue.clone() {
            inner.cancel(id, 0, self.now_ms());
        }
    }

    /// Has everything ended that still runs, within this grace.
    pub fn cancel_all(&self, grace_ms: u64) {
        let mut inner = self.lock();
        let active: Vec<_> = inner.model.active().collect();
        for id in active {
            inner.cancel(id, grace_ms, self.now_ms());
        }
    }

    /// Forgets what is due for as long as the registry exists, because an idle backend must give memory back, too.
    pub async fn forget_in_time(this: Weak<Registry>) {
        let mut trimmed_at = None;
        loop {
            tokio::time::sleep(FORGET_CADENCE).await;
            while let Some(registry) = this.upgrade()
                && registry.lock().forget(registry.now_ms()) == FORGOTTEN_AT_A_TIME
            {
                drop(registry);
                tokio::task::yield_now().await;
            }
            let Some(idle_at) = this.upgrade().map(|registry| registry.lock().idle_at()) else { return };
            if idle_at.is_some() && idle_at != trimmed_at {
                // Not on this thread, because it takes milliseconds to walk large heaps. It does not panic.
                let _ = tokio::task::spawn_blocking(trim_heaps).await;
                trimmed_at = idle_at;
            }
        }
    }

    /// A stream begins.
    pub fn streaming(this: &web::Data<Registry>) -> StreamGuard {
        this.counts.send_modify(|counts| counts.streams += 1);
        StreamGuard(this.clone())
    }

    fn count(&self, inner: &RegistryState) {
        let (running, queued) = (inner.running, inner.queue.len());
        self.counts.send_modify(|counts| *counts = ExecutionCounts { running, queued, ..*counts });
    }

    /// Gives a free place to the next in the queue, and tells the others where they stand now.
    fn promote(&self, inner: &mut RegistryState, now_ms: u64) {
        while !inner.draining
            && inner.running < self.config.max_executions
            && let Some(id) = inner.queue.pop_front()
        {
            inner.running += 1;
            if let Some(live) = inner.live(id, now_ms) {
                live.turn.send_replace(QueueTurn::Now);
            }
        }
        for at in 0..inner.queue.len() {
            if let Some(live) = inner.live(inner.queue[at], now_ms) {
                let turn = QueueTurn::Position(at as u64 + 1);
                live.turn.send_if_modified(|stood| std::mem::replace(stood, turn) != turn);
            }
        }
        self.count(inner);
    }
}

impl RegistryState {
    fn entry(&mut self, id: ExecutionId, now_ms: u64) -> Option<&mut RegistryEntry<KnownExecution>> {
        self.model.get_mut(id, now_ms)
    }

    fn known(&mut self, id: ExecutionId, now_ms: u64) -> Option<&mut KnownExecution> {
        self.entry(id, now_ms).map(|entry| &mut entry.value)
    }

    fn live(&mut self, id: ExecutionId, now_ms: u64) -> Option<&mut LiveJob> {
        match &mut self.known(id, now_ms)?.stage {
            JobStage::Live(live) => Some(live),
            JobStage::Ended(..) => None,
        }
    }

    /// Ends what still waits or runs, for the shutdown.
    fn cancel(&mut self, id: ExecutionId, grace_ms: u64, now_ms: u64) {
        if let Some(live) = self.live(id, now_ms) {
            // A task that does not listen any more has failed.
            let cancel = ControlRequest::Cancel { grace_ms, reason: CancelReason::Drained };
            let _ = live.task.send(JobRequest::Control(cancel, None));
        }
    }

    /// Forgets what is due, a part of it at a time. Gives how much it was.
    fn forget(&mut self, now_ms: u64) -> usize {
        let forgotten = self.model.forget(FORGOTTEN_AT_A_TIME, now_ms);
        for (id, _) in &forgotten {
            debug!(event = "execution.forgotten", execution_id:% = id; "execution forgotten");
        }
        forgotten.len()
    }

    /// How much was used until now, while nothing runs or waits: how many executions there were, and the bytes that
    /// are kept.
    fn idle_at(&self) -> Option<(u64, usize)> {
        (self.running == 0 && self.queue.is_empty()).then(|| self.model.usage())
    }

    /// Evicts output until what is kept fits, if that can be: its task ends, and the record stays.
    fn evict(&mut self, now_ms: u64) {
        for id in self.model.evict() {
            debug!(event = "execution.evicted", execution_id:% = id; "memory is short: output evicted");
            if let Some(KnownExecution { stage: JobStage::Ended(_, task), .. }) = self.known(id, now_ms) {
                *task = None;
            }
        }
    }

    /// Takes a task's report of what it keeps. It counts only if the task has received every attach: else a consumer
    /// that is on its way could lose the output to an eviction.
    fn keep(&mut self, id: ExecutionId, number: u64, output: RetainedOutput, n_attaches: u64, now_ms: u64) {
        let Some(entry) = self.entry(id, now_ms).filter(|entry| entry.number == number) else { return };
        let JobStage::Ended(_, task) = &mut entry.value.stage else { return };
        if task.as_ref().is_none_or(|task| task.n_attaches != n_attaches) {
            return;
        }
        if output == RetainedOutput::Nothing {
            *task = None;
        }
        self.model.keep(id, output, now_ms);
        self.evict(now_ms);
    }
}

impl Slot {
    /// When it may run.
    pub fn turn(&mut self) -> QueueTurn {
        *self.turn.borrow_and_update()
    }

    /// Waits until that has changed.
    pub async fn turn_changed(&mut self) {
        if self.turn.changed().await.is_err() {
            // Its entry is gone, which happens only after its end.
            std::future::pending::<()>().await;
        }
    }

    /// Its processes are gone. Their last output may still wait for the consumer.
    pub fn gone(&self, report: CancelReport) {
        self.gone.send_replace(Some(report));
    }

    /// It ended, and this is what is kept of it: the place is free for the next.
    pub fn end(mut self, record: Record, output: RetainedOutput, n_attaches: u64) -> Retained {
        self.leave(record, Some((output, n_attaches)));
        Retained { registry: self.registry.clone(), id: self.id, number: self.number, reported: None }
    }

    /// `retained` is what the task keeps, and how many attaches it has received; `None` if the task has failed.
    fn leave(&mut self, mut record: Record, kept: Option<(RetainedOutput, u64)>) {
        if std::mem::replace(&mut self.left, true) {
            return;
        }
        let mut inner = self.registry.lock();
        let now_ms = self.registry.now_ms();
        match inner.queue.iter().position(|id| *id == self.id) {
            Some(at) => {
                inner.queue.remove(at);
            }
            None => inner.running -= 1,
        }
        if !inner.executors.insert(record.executor.clone()) {
            record.executor = inner.executors.get(&record.executor).cloned().unwrap_or(record.executor);
        }
        if let Some(known) = inner.known(self.id, now_ms)
            && let JobStage::Live(live) = &known.stage
        {
            let task = TaskHandle { asks: live.task.asks.clone(), n_attaches: live.task.n_attaches };
            let output = match kept {
                None => RetainedOutput::Nothing,
                Some((output, n_attaches)) if n_attaches == task.n_attaches => output,
                // A consumer is on its way to the task, and will be served by it.
                Some((RetainedOutput::Nothing, _)) => RetainedOutput::Followed(FIXED_BYTES),
                Some((
                    RetainedOutput::Followed(bytes) | RetainedOutput::Unfetched(bytes) | RetainedOutput::Fetched(bytes),
                    _,
                )) => RetainedOutput::Followed(bytes),
            };
            known.stage = JobStage::Ended(record, (output != RetainedOutput::Nothing).then_some(task));
            inner.model.keep(self.id, output, now_ms);
        }
        self.registry.promote(&mut inner, now_ms);
        inner.evict(now_ms);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.left {
            // Its task has failed, or the whole service ends.
            let message = "the backend's task of this execution failed: what it ran may still run";
            let ending = Outcome::failed(Reason::BackendLost, message);
            self.leave(Record::new("".into(), 0, false, false, &ending), None);
        }
    }
}

impl Retained {
    /// Reports what is kept now, the newest hold, and how many consumers have come. The registry may then release the task: it closes
    /// [`JobInbox`].
    pub fn report(&mut self, output: RetainedOutput, hold: NewestHold, n_attaches: u64) {
        if self.reported.replace((output, n_attaches)) != Some((output, n_attaches)) {
            let mut inner = self.registry.lock();
            let now_ms = self.registry.now_ms();
            if let Some(KnownExecution { stage: JobStage::Ended(record, _), .. }) = inner.known(self.id, now_ms) {
                record.set_newest_hold(hold);
            }
            inner.keep(self.id, self.number, output, n_attaches, now_ms);
        }
    }
}

impl Drop for Retained {
    fn drop(&mut self) {
        let mut inner = self.registry.lock();
        let now_ms = self.registry.now_ms();
        // Only where the task has failed it is still there.
        if let Some(entry) = inner.entry(self.id, now_ms).filter(|entry| entry.number == self.number)
            && let JobStage::Ended(_, task) = &mut entry.value.stage
            && task.take().is_some()
        {
            inner.model.keep(self.id, RetainedOutput::Nothing, now_ms);
        }
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.counts.send_modify(|counts| counts.streams -= 1);
    }
}

fn unknown(id: ExecutionId) -> ErrorObject {
    ErrorObject::new(code::UNKNOWN_EXECUTION, format!("there is no execution {id} here, or it ended long ago"))
}

fn over(id: ExecutionId) -> ErrorObject {
    ErrorObject::new(code::NOT_RUNNING, format!("execution {id} has ended"))
}

fn draining() -> ErrorObject {
    ErrorObject::new(code::DRAINING, "the backend is shutting down: try again in a moment")
}

fn full(max: usize, max_queued: usize) -> ErrorObject {
    let message = format!("all {max} executions are taken and {max_queued} wait: try again when one has ended");
    ErrorObject::new(code::FULL, message).with(json!({ "max": max, "maxQueued": max_queued }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use cc_executor_actors::outcome::Status;

    use super::*;
    use crate::backend::{agent::claude::ClaudePolicy, executor::Executors};

    fn registry() -> web::Data<Registry> {
        web::Data::new(Registry::new(BackendConfig {
            executors: Executors::new(BTreeMap::new(), "shell", BTreeMap::new(), ClaudePolicy::default()).unwrap(),
            max_executions: 1,
            max_queued: 1,
            max_timeout_ms: 1_000,
            max_detach_ms: 1_000,
            ring_bytes: 1_000,
            max_kept_bytes: 10 * FIXED_BYTES,
            max_ended: 10,
            retention: Duration::from_secs(3_600),
            consumer_stall: Duration::from_secs(60),
            max_message_bytes: 1_000,
            containment: crate::backend::shim::containment::Containment::None,
            claude_exit: Duration::from_secs(45),
            descriptor_limit: None,
        }))
    }

    fn admit(registry: &web::Data<Registry>, id: ExecutionId) -> (Slot, JobInbox) {
        match Registry::admit(registry, id, &ExecutionSpec::of("true")).unwrap() {
            Admission::New(slot, asks) => (slot, asks),
            Admission::Existing => panic!("{id} is known already"),
        }
    }

    fn record() -> Record {
        Record::new("shell".into(), 15_000, true, false, &Outcome::failed(Reason::Exit, "as it was"))
    }

    fn has_task(registry: &Registry, id: ExecutionId) -> bool {
        let now_ms = registry.now_ms();
        matches!(
            registry.lock().known(id, now_ms).map(|known| &known.stage),
            Some(JobStage::Live(_) | JobStage::Ended(_, Some(_)))
        )
    }

    /// Sends an ask of the kind that counts.
    fn attach(registry: &Registry, id: ExecutionId) {
        let (consumer, _feed) = crate::backend::output_buffer::Consumer::new(Default::default(), true);
        registry.ask_any(id, JobRequest::Attach(Box::new(consumer), oneshot::channel().0)).unwrap();
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
        assert!(matches!(Registry::admit(&registry, id, &ExecutionSpec::of("true")), Ok(Admission::Existing)));
        let (slot, asks) = admit(&registry, ExecutionId::random());
        let kept = slot.end(record(), RetainedOutput::Unfetched(FIXED_BYTES), 0);
        drop((kept, asks));
        assert_eq!(registry.lock().model.evict(), [], "what a failed task kept is not counted");
    }

    #[actix_web::test]
    async fn a_task_is_released_only_when_it_has_received_every_attach() {
        let (registry, id) = (registry(), ExecutionId::random());
        let (slot, mut asks) = admit(&registry, id);
        attach(&registry, id);
        let mut kept = slot.end(record(), RetainedOutput::Nothing, asks.n_attaches());
        assert!(has_task(&registry, id), "a consumer is on its way");
        kept.report(RetainedOutput::Fetched(20 * FIXED_BYTES), (1, None), asks.n_attaches());
        assert!(has_task(&registry, id), "what it says of the time before does not count");
        assert!(matches!(asks.recv().await, Some(JobRequest::Attach(..))));
        kept.report(RetainedOutput::Followed(20 * FIXED_BYTES), (1, None), asks.n_attaches());
        attach(&registry, id);
        kept.report(RetainedOutput::Fetched(20 * FIXED_BYTES), (1, None), asks.n_attaches());
        assert!(has_task(&registry, id), "another one is on its way");
        assert!(matches!(asks.recv().await, Some(JobRequest::Attach(..))));
        kept.report(RetainedOutput::Fetched(20 * FIXED_BYTES), (1, None), asks.n_attaches());
        assert!(!has_task(&registry, id), "memory is short, and nobody reads it");
        assert!(asks.recv().await.is_none(), "the task is told by the end of its asks");
        let ending = registry.snapshot(id).await.unwrap().ending.unwrap();
        assert_eq!((ending.reason, ending.message.as_deref()), (Reason::Exit, Some("as it was")));
    }
}
