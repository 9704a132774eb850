//! All executions of a backend: those that wait, those that run, and for a while those that have ended.
//!
//! It admits executions up to the limit, has the others wait in the order in which they came, and
//! remembers ids, so that no id ever runs twice. It holds no output and no process; each execution's
//! task owns those, and answers for itself.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use actix_web::web;
use cc_executor_actors::{
    backend::api::{Health, Snapshot},
    id::{ExecutionId, InstanceId},
    protocol::{
        CAPABILITIES, Limits,
        method::Run,
        notify::Server,
        rpc::{ErrorObject, code},
    },
    terminate::{CancelReason, CancelReport},
};
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};

use super::{BackendConfig, execution::Ask};

/// How many ended executions are remembered at the most. One takes about 2 KiB besides its output.
const MAX_ENDED: usize = 4_096;

/// How long an id that was canceled before its request came is refused.
const WITHDRAWN: Duration = Duration::from_secs(60);

/// How long an execution may take to say how it is.
const DESCRIBE_PATIENCE: Duration = Duration::from_secs(2);

/// The table of one backend, shared by its worker threads.
pub struct Table {
    config: BackendConfig,
    instance: InstanceId,
    inner: Mutex<Inner>,
    counts: watch::Sender<Counts>,
}

/// What there is at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Executions that run.
    pub running: usize,
    /// Executions that wait.
    pub queued: usize,
    /// Streams whose consumers have not had everything.
    pub streams: usize,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<ExecutionId, Entry>,
    queue: VecDeque<ExecutionId>,
    withdrawn: HashMap<ExecutionId, Instant>,
    running: usize,
    draining: bool,
}

struct Entry {
    run: Arc<Run>,
    asked_at: Instant,
    asks: mpsc::UnboundedSender<Ask>,
    turn: watch::Sender<Turn>,
    gone: watch::Receiver<Option<CancelReport>>,
    ended: Option<Ended>,
}

struct Ended {
    at: Instant,
    /// Memory that its output takes, in bytes.
    memory: usize,
    /// Somebody has yet to fetch it.
    owed: bool,
}

/// When an execution may run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// At once.
    Now,
    /// When so many others have had their turn; 1 is the next.
    Position(u64),
}

/// An execution's place in the table: in the queue, or among those that run. Dropping it gives the
/// place to the next.
pub struct Seat {
    table: web::Data<Table>,
    id: ExecutionId,
    turn: watch::Receiver<Turn>,
    gone: watch::Sender<Option<CancelReport>>,
    left: bool,
}

/// An ended execution's place in the table. Dropping it has the execution forgotten.
pub struct Kept {
    table: web::Data<Table>,
    id: ExecutionId,
    owed: bool,
}

/// A stream that is being consumed.
pub struct Streaming(web::Data<Table>);

/// What came of asking for an execution.
pub enum Admitted {
    /// It is a new one.
    New(Seat, mpsc::UnboundedReceiver<Ask>),
    /// It was there already, asked for in the same terms.
    Existing,
}

impl Table {
    /// An empty table.
    pub fn new(config: BackendConfig) -> Self {
        Table { config, instance: InstanceId::random(), inner: Mutex::default(), counts: watch::Sender::default() }
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
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether new executions are accepted.
    pub fn ready(&self) -> Result<(), ErrorObject> {
        self.accepts(&self.lock())
    }

    fn accepts(&self, inner: &Inner) -> Result<(), ErrorObject> {
        if inner.draining {
            return Err(draining());
        }
        let BackendConfig { max_executions, max_queued, .. } = self.config;
        if inner.running >= max_executions && inner.queue.len() >= max_queued {
            return Err(full(max_executions, max_queued));
        }
        Ok(())
    }

    /// Takes a place for an execution, unless it is there already.
    pub fn admit(this: &web::Data<Table>, id: ExecutionId, run: &Run) -> Result<Admitted, ErrorObject> {
        let mut inner = this.lock();
        inner.forget_old();
        if let Some(entry) = inner.entries.get(&id) {
            return match entry.run.difference(run) {
                None => Ok(Admitted::Existing),
                Some(difference) => {
                    let message =
                        format!("executionId {id} exists already, with another {difference}: choose a new id");
                    Err(ErrorObject::new(code::PARAMS, message).with(json!({ "param": difference })))
                }
            };
        }
        this.accepts(&inner)?;
        if inner.withdrawn.contains_key(&id) {
            return Err(ErrorObject::new(
                code::NOT_RUNNING,
                format!("execution {id} was canceled before it was asked for"),
            ));
        }
        let (asks, receiver) = mpsc::unbounded_channel();
        let (gone, watched) = watch::channel(None);
        let turn = if inner.running < this.config.max_executions {
            inner.running += 1;
            Turn::Now
        } else {
            inner.queue.push_back(id);
            Turn::Position(inner.queue.len() as u64)
        };
        let turn = watch::Sender::new(turn);
        let seat = Seat { table: this.clone(), id, turn: turn.subscribe(), gone, left: false };
        let entry =
            Entry { run: Arc::new(run.clone()), asked_at: Instant::now(), asks, turn, gone: watched, ended: None };
        inner.entries.insert(id, entry);
        this.count(&inner);
        Ok(Admitted::New(seat, receiver))
    }

    /// Asks something of an execution that has not ended.
    pub fn ask(&self, id: ExecutionId, ask: Ask) -> Result<watch::Receiver<Option<CancelReport>>, ErrorObject> {
        let inner = self.lock();
        match inner.entries.get(&id) {
            None => Err(unknown(id)),
            Some(entry) if entry.ended.is_some() => Err(over(id)),
            // The task ends in this moment: then it has ended.
            Some(entry) => entry.asks.send(ask).map(|()| entry.gone.clone()).map_err(|_| over(id)),
        }
    }

    /// Asks something of an execution, ended or not.
    pub fn ask_any(&self, id: ExecutionId, ask: Ask) -> Result<(), ErrorObject> {
        let inner = self.lock();
        inner.entries.get(&id).and_then(|entry| entry.asks.send(ask).ok()).ok_or_else(|| unknown(id))
    }

    /// Refuses this id for a while: it was canceled, and its request may still be under way. False if that
    /// has come meanwhile.
    pub fn withdraw(&self, id: ExecutionId) -> bool {
        let mut inner = self.lock();
        inner.forget_old();
        let is_unknown = !inner.entries.contains_key(&id);
        if is_unknown {
            inner.withdrawn.insert(id, Instant::now());
        }
        is_unknown
    }

    /// How an execution is.
    pub async fn snapshot(&self, id: ExecutionId) -> Result<Snapshot, ErrorObject> {
        let (answer, answered) = oneshot::channel();
        self.ask_any(id, Ask::Describe(answer))?;
        match tokio::time::timeout(DESCRIBE_PATIENCE, answered).await {
            Ok(Ok(snapshot)) => Ok(snapshot),
            Ok(Err(_)) => Err(unknown(id)),
            Err(_) => Err(ErrorObject::new(code::INTERNAL, "the execution does not answer")),
        }
    }

    /// How all executions are, the newest first.
    pub async fn snapshots(&self) -> Vec<Snapshot> {
        let mut ids: Vec<_> = self.lock().entries.iter().map(|(id, entry)| (entry.asked_at, *id)).collect();
        ids.sort_by_key(|(asked_at, _)| std::cmp::Reverse(*asked_at));
        let asked = ids.into_iter().map(|(_, id)| self.snapshot(id));
        // Those that are forgotten in this moment are not listed.
        futures_util::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// What `GET /health` tells.
    pub fn health(&self) -> Health {
        let counts = self.counts();
        Health {
            server: Server::THIS.name.to_owned(),
            version: Server::THIS.version.to_owned(),
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
    pub fn counts(&self) -> Counts {
        *self.counts.borrow()
    }

    /// Waits until nothing runs, nothing waits, and every consumer has had everything.
    pub async fn idle(&self) {
        // The sender lives as long as the table.
        let _ = self.counts.subscribe().wait_for(|counts| *counts == Counts::default()).await;
    }

    /// Accepts nothing more. What waits is canceled at once.
    pub fn drain(&self) {
        let mut inner = self.lock();
        inner.draining = true;
        for id in &inner.queue {
            inner.tell(*id, Ask::Cancel { grace_ms: 0, reason: CancelReason::Drained });
        }
    }

    /// Has everything ended that still runs, within this grace.
    pub fn hurry(&self, grace_ms: u64) {
        let inner = self.lock();
        for (id, _) in inner.entries.iter().filter(|(_, entry)| entry.ended.is_none()) {
            inner.tell(*id, Ask::Cancel { grace_ms, reason: CancelReason::Drained });
        }
    }

    /// A stream begins.
    pub fn streaming(this: &web::Data<Table>) -> Streaming {
        this.counts.send_modify(|counts| counts.streams += 1);
        Streaming(this.clone())
    }

    fn count(&self, inner: &Inner) {
        let (running, queued) = (inner.running, inner.queue.len());
        self.counts.send_modify(|counts| *counts = Counts { running, queued, ..*counts });
    }

    /// Gives a free place to the next in the queue, and tells the others where they stand now.
    fn promote(&self, inner: &mut Inner) {
        while !inner.draining
            && inner.running < self.config.max_executions
            && let Some(id) = inner.queue.pop_front()
        {
            inner.running += 1;
            if let Some(entry) = inner.entries.get(&id) {
                entry.turn.send_replace(Turn::Now);
            }
        }
        for (at, id) in inner.queue.iter().enumerate() {
            if let Some(entry) = inner.entries.get(id) {
                let turn = Turn::Position(at as u64 + 1);
                entry.turn.send_if_modified(|stood| std::mem::replace(stood, turn) != turn);
            }
        }
        self.count(inner);
    }

    /// Keeps the output of ended executions within the limit: the oldest is forgotten first, and what
    /// somebody has yet to fetch last.
    fn shed(&self, inner: &mut Inner) {
        let kept = |inner: &Inner| inner.entries.values().filter_map(|entry| Some(entry.ended.as_ref()?.memory)).sum();
        let mut total: usize = kept(inner);
        while total > self.config.max_kept_bytes {
            let ended = inner.entries.iter_mut().filter_map(|(_, entry)| {
                let asks = entry.asks.clone();
                entry.ended.as_mut().filter(|ended| ended.memory > 0).map(|ended| (ended, asks))
            });
            let Some((oldest, asks)) = ended.min_by_key(|(ended, _)| (ended.owed, ended.at)) else { return };
            total -= std::mem::take(&mut oldest.memory);
            // One that is being forgotten has nothing left to shed.
            let _ = asks.send(Ask::Shed);
        }
    }
}

impl Inner {
    fn tell(&self, id: ExecutionId, ask: Ask) {
        if let Some(entry) = self.entries.get(&id) {
            // A task that does not listen any more has ended.
            let _ = entry.asks.send(ask);
        }
    }

    fn forget_old(&mut self) {
        self.withdrawn.retain(|_, at| at.elapsed() < WITHDRAWN);
        let ended = self.entries.iter().filter_map(|(id, entry)| Some((entry.ended.as_ref()?.at, *id)));
        let mut ended: Vec<_> = ended.collect();
        if ended.len() > MAX_ENDED {
            ended.sort_unstable();
            for (_, id) in &ended[..ended.len() - MAX_ENDED] {
                self.entries.remove(id);
            }
        }
    }
}

impl Seat {
    /// When it may run.
    pub fn turn(&mut self) -> Turn {
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

    /// It ended: the place is free for the next. The output that is kept takes so much memory, and
    /// somebody has yet to fetch it, or not.
    pub fn end(mut self, memory: usize, owed: bool) -> Kept {
        self.leave(memory, owed);
        Kept { table: self.table.clone(), id: self.id, owed }
    }

    fn leave(&mut self, memory: usize, owed: bool) {
        if std::mem::replace(&mut self.left, true) {
            return;
        }
        let mut inner = self.table.lock();
        match inner.queue.iter().position(|id| *id == self.id) {
            Some(at) => {
                inner.queue.remove(at);
            }
            None => inner.running -= 1,
        }
        if let Some(entry) = inner.entries.get_mut(&self.id) {
            entry.ended = Some(Ended { at: Instant::now(), memory, owed });
        }
        self.table.promote(&mut inner);
        self.table.shed(&mut inner);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave(0, false);
    }
}

impl Kept {
    /// Whether somebody has yet to fetch what it wrote.
    pub fn owe(&mut self, owed: bool) {
        if std::mem::replace(&mut self.owed, owed) == owed {
            return;
        }
        if let Some(ended) = self.table.lock().entries.get_mut(&self.id).and_then(|entry| entry.ended.as_mut()) {
            ended.owed = owed;
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut inner = self.table.lock();
        // Where the table forgot it first, the id may be somebody else's by now.
        if inner.entries.get(&self.id).is_some_and(|entry| entry.ended.is_some()) {
            inner.entries.remove(&self.id);
        }
    }
}

impl Drop for Streaming {
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
