//! All executions of a backend: those that run, and for a while those that have ended.
//!
//! It admits executions up to the limit and remembers ids, so that no id ever runs twice. It holds no
//! output and no process; each execution's task owns those.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use cc_executor_actors::{
    backend::api::{Health, Snapshot},
    id::ExecutionId,
    protocol::{
        CAPABILITIES, Limits,
        notify::Server,
        rpc::{ErrorObject, code},
    },
    terminate::{CancelReason, CancelReport, Ending, Status},
};
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::{
    BackendConfig,
    execution::{Ask, Told},
};

/// How long an ended execution is remembered.
const RETENTION: Duration = Duration::from_secs(600);

/// How many ended executions are remembered at the most. One takes about 1 KiB.
const MAX_ENDED: usize = 4_096;

/// How long an id that was canceled before its request came is refused.
const WITHDRAWN: Duration = Duration::from_secs(60);

/// The table of one backend, shared by its worker threads.
pub struct Table {
    config: BackendConfig,
    inner: Mutex<Inner>,
    running: watch::Sender<usize>,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<ExecutionId, Entry>,
    withdrawn: HashMap<ExecutionId, Instant>,
    draining: bool,
}

struct Entry {
    executor: String,
    started_at: Instant,
    status: Status,
    asks: mpsc::UnboundedSender<Ask>,
    gone: watch::Receiver<Option<CancelReport>>,
    ending: Option<Ending>,
    ended_at: Option<Instant>,
}

/// An execution's place in the table. Its status is told through it; dropping it without an ending
/// still frees the place.
pub struct Seat {
    table: actix_web::web::Data<Table>,
    id: ExecutionId,
    gone: watch::Sender<Option<CancelReport>>,
}

impl Table {
    /// An empty table.
    pub fn new(config: BackendConfig) -> Self {
        Table { config, inner: Mutex::default(), running: watch::Sender::new(0) }
    }

    /// What this backend was configured with.
    pub fn config(&self) -> &BackendConfig {
        &self.config
    }

    /// The bounds on what may be asked for.
    pub fn limits(&self) -> Limits {
        Limits {
            message_bytes: self.config.max_message_bytes,
            timeout_ms: self.config.max_timeout_ms,
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
        if self.n_running() >= self.config.max_executions {
            return Err(full(self.config.max_executions));
        }
        Ok(())
    }

    /// Takes a place for a new execution.
    pub fn seat(
        this: &actix_web::web::Data<Table>,
        id: ExecutionId,
        executor: &str,
    ) -> Result<(Seat, mpsc::UnboundedReceiver<Ask>), ErrorObject> {
        let mut inner = this.lock();
        this.accepts(&inner)?;
        inner.forget_old();
        if inner.withdrawn.contains_key(&id) {
            return Err(ErrorObject::new(
                code::NOT_RUNNING,
                format!("execution {id} was canceled before it was asked for"),
            ));
        }
        if inner.entries.contains_key(&id) {
            let error = ErrorObject::new(
                code::PARAMS,
                format!(
                    "executionId {id} exists already, and attaching is not supported by this version: choose a new one"
                ),
            );
            return Err(error.with(json!({ "param": "executionId", "asked": id })));
        }
        let (asks, receiver) = mpsc::unbounded_channel();
        let (gone, watched) = watch::channel(None);
        let entry = Entry {
            executor: executor.to_owned(),
            started_at: Instant::now(),
            status: Status::Running,
            asks,
            gone: watched,
            ending: None,
            ended_at: None,
        };
        inner.entries.insert(id, entry);
        this.running.send_modify(|n| *n += 1);
        Ok((Seat { table: this.clone(), id, gone }, receiver))
    }

    /// Asks something of a running execution.
    pub fn ask(&self, id: ExecutionId, ask: Ask) -> Result<watch::Receiver<Option<CancelReport>>, ErrorObject> {
        let mut inner = self.lock();
        inner.forget_old();
        match inner.entries.get(&id) {
            None => Err(unknown(id)),
            Some(entry) if entry.ended_at.is_some() => Err(over(id)),
            // The task ends in this moment: then it has ended.
            Some(entry) => entry.asks.send(ask).map(|()| entry.gone.clone()).map_err(|_| over(id)),
        }
    }

    /// Refuses this id for a while: it was canceled, and its request may still be under way.
    pub fn withdraw(&self, id: ExecutionId) {
        let mut inner = self.lock();
        inner.forget_old();
        inner.withdrawn.insert(id, Instant::now());
    }

    /// How an execution is.
    pub fn snapshot(&self, id: ExecutionId) -> Result<Snapshot, ErrorObject> {
        self.lock().entries.get(&id).map(|entry| entry.snapshot(id)).ok_or_else(|| unknown(id))
    }

    /// How all executions are, the newest first.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        let inner = self.lock();
        let mut all: Vec<_> = inner.entries.iter().collect();
        all.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.started_at));
        all.into_iter().map(|(id, entry)| entry.snapshot(*id)).collect()
    }

    /// What `GET /health` tells.
    pub fn health(&self) -> Health {
        Health {
            server: Server::THIS.name.to_owned(),
            version: Server::THIS.version.to_owned(),
            executors: self.config.executors.names(),
            default_executor: self.config.executors.default_name().to_owned(),
            max_executions: self.config.max_executions,
            capabilities: CAPABILITIES.iter().map(|name| (*name).to_owned()).collect(),
            running: self.n_running(),
            queued: 0,
        }
    }

    /// How many executions run.
    pub fn n_running(&self) -> usize {
        *self.running.borrow()
    }

    /// Waits until nothing runs.
    pub async fn idle(&self) {
        // The sender lives as long as the table.
        let _ = self.running.subscribe().wait_for(|n| *n == 0).await;
    }

    /// Accepts nothing more, and has what runs ended within this grace.
    pub fn drain(&self, grace_ms: u64) {
        let mut inner = self.lock();
        inner.draining = true;
        for entry in inner.entries.values().filter(|entry| entry.ended_at.is_none()) {
            // A task that does not listen any more has ended.
            let _ = entry.asks.send(Ask::Cancel { grace_ms, reason: CancelReason::Drained });
        }
    }
}

impl Inner {
    fn forget_old(&mut self) {
        self.withdrawn.retain(|_, at| at.elapsed() < WITHDRAWN);
        self.entries.retain(|_, entry| entry.ended_at.is_none_or(|at| at.elapsed() < RETENTION));
        let ended = self.entries.iter().filter_map(|(id, entry)| Some((entry.ended_at?, *id)));
        let mut ended: Vec<_> = ended.collect();
        if ended.len() > MAX_ENDED {
            ended.sort_unstable();
            for (_, id) in &ended[..ended.len() - MAX_ENDED] {
                self.entries.remove(id);
            }
        }
    }
}

impl Entry {
    fn snapshot(&self, execution_id: ExecutionId) -> Snapshot {
        let ending = self.ending.clone();
        let elapsed = self.started_at.elapsed();
        Snapshot {
            execution_id,
            executor: self.executor.clone(),
            status: ending.as_ref().map_or(self.status, |ending| ending.status),
            elapsed_ms: ending
                .as_ref()
                .and_then(|ending| ending.elapsed_ms)
                .unwrap_or_else(|| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)),
            ending,
        }
    }
}

impl Seat {
    /// Takes note of what is told about the execution.
    pub fn tell(&self, told: Told) {
        match told {
            Told::Status(status) => {
                if let Some(entry) = self.table.lock().entries.get_mut(&self.id) {
                    entry.status = status;
                }
            }
            Told::Gone(report) => {
                self.gone.send_replace(Some(report));
            }
        }
    }

    /// It ended: the place is free, and the ending is known to whoever asks.
    pub fn end(self, ending: Ending) {
        if let Some(entry) = self.table.lock().entries.get_mut(&self.id) {
            entry.ending = Some(ending);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.table.lock();
        if let Some(entry) = inner.entries.get_mut(&self.id) {
            entry.ended_at = Some(Instant::now());
        }
        drop(inner);
        self.table.running.send_modify(|n| *n -= 1);
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

fn full(max: usize) -> ErrorObject {
    ErrorObject::new(code::FULL, format!("all {max} executions are taken: try again when one has ended"))
        .with(json!({ "max": max }))
}
