//! One execution in the backend: it waits for its turn, follows its command to the end, and keeps what
//! the command wrote for a while after.
//!
//! It is one task, and everything that happens to it comes through it: orders, clocks, the shim, the
//! pipes, and consumers that come and go. So nothing here is locked, and nothing has to be. When there is nothing left
//! to keep or to say, the task ends, and the table's record answers ([`kept`]).

mod following;
mod input;
pub mod kept;
mod last;
mod life;
mod waiting;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cc_executor_actors::{
    backend::api::{self, Alive, Queued, Snapshot, Started, Word},
    clock::millis,
    id::{ExecutionId, InstanceId},
    protocol::{
        DEFAULT_GRACE_MS, PerStream,
        method::{Detach, Size},
        rpc::{ErrorObject, code},
    },
    terminate::{CancelReason, Ending, Reason, Scope, Status},
};
use log::{debug, info};
use tokio::sync::oneshot;

pub use self::following::READ;
use super::{
    holds::{Claim, Claimed},
    process::Process,
    shim::protocol::JobSpec,
    spool::{Consumer, Dismissal, Moved, Spool},
    subreaper::handle::Subreapers,
    table::{Asks, Seat},
};

/// Where the outcome of an ask goes.
pub type Answer = oneshot::Sender<Result<(), ErrorObject>>;

/// What others ask of an execution.
#[derive(Debug)]
pub enum Ask {
    /// End it.
    Cancel {
        /// Milliseconds between TERM and KILL.
        grace_ms: u64,
        /// Who wanted it.
        reason: CancelReason,
    },
    /// End it, if whoever gave the request for it up still has it. Answered when that is decided.
    Withdraw {
        /// Who has it, in the asker's eyes.
        claim: Claim,
        /// Milliseconds between TERM and KILL.
        grace_ms: u64,
        /// Who wanted it.
        reason: CancelReason,
        /// Who wants to know.
        answer: Answer,
    },
    /// Send a signal to its process group.
    Signal(i32, Answer),
    /// Let its whole tree stand still.
    Pause(Answer),
    /// Let it go on.
    Resume(Answer),
    /// Write to its standard input; answered when all is in the pipe.
    Input {
        /// What to write.
        bytes: Bytes,
        /// Whether nothing follows.
        eof: bool,
        /// Who wants to know.
        answer: Answer,
    },
    /// Tell its terminal its size.
    Resize(Size, Answer),
    /// Follow it from now on.
    Attach(Box<Consumer>, Answer),
    /// The client of this holder has this much.
    Acknowledge((PerStream<u64>, Claim), Answer),
    /// Tell how it is. A gateway asks that for as long as its client does not read.
    Describe(oneshot::Sender<Snapshot>),
}

impl Ask {
    /// Whether nobody waits for what comes of it any more. What a client has received stays true all the
    /// same, and a cancellation waits for no answer.
    fn is_abandoned(&self) -> bool {
        match self {
            Ask::Signal(_, answer)
            | Ask::Pause(answer)
            | Ask::Resume(answer)
            | Ask::Input { answer, .. }
            | Ask::Resize(_, answer)
            | Ask::Attach(_, answer)
            | Ask::Withdraw { answer, .. } => answer.is_closed(),
            Ask::Describe(answer) => answer.is_closed(),
            Ask::Cancel { .. } | Ask::Acknowledge(..) => false,
        }
    }
}

/// What an execution needs to know of itself.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Its id.
    pub id: ExecutionId,
    /// The backend's process that has it.
    pub instance: InstanceId,
    /// What runs it.
    pub executor: String,
    /// Total time-out, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// The longest time without output, in milliseconds.
    pub stall_timeout_ms: Option<u64>,
    /// How often a sign of life is sent.
    pub heartbeat: Duration,
    /// How it goes on without a consumer; it is ended if absent.
    pub detach: Option<Detach>,
    /// The size of its terminal, if it runs on one.
    pub pty: Option<Size>,
    /// How long a consumer may take nothing while nobody asks for it.
    pub consumer_stall: Duration,
    /// How long Claude may take to exit after its last event.
    pub claude_exit: Duration,
    /// How much of each stream is kept, in bytes.
    pub ring_bytes: usize,
    /// What is written to its standard input, and nothing else: a prompt, and its output is Claude's events.
    pub prompt: Option<Bytes>,
}

/// What every part of an execution's life needs.
struct Body {
    terms: Terms,
    asks: Asks,
    spool: Spool,
    /// When its consumer went away, while it has none.
    left_at: Option<Instant>,
    /// When somebody last asked how it is.
    asked_at: Instant,
}

/// Lives through one execution to its end. A task of its own then keeps the output, as long as there is any.
pub async fn live(terms: Terms, asks: Asks, spool: Spool, mut seat: Seat, subreapers: Arc<Subreapers>, spec: JobSpec) {
    let now = Instant::now();
    let mut body = Body { terms, asks, spool, left_at: None, asked_at: now };
    let started = waiting::wait_for_turn(&mut body, &mut seat).await;
    let mut ending = match started {
        Err(ending) => ending,
        Ok(()) => {
            let program = spec.argv.first().cloned().unwrap_or_default();
            match Process::start(&subreapers, spec, body.terms.pty) {
                Ok(process) => following::follow(process, &program, &mut body, &seat).await,
                Err(error) => no_shim(&body.terms, &error),
            }
        }
    };
    if ending.reason == Reason::Disconnected {
        ending.message = Some(disconnected(&body.terms, ending.elapsed_ms.is_some()));
    }
    info!(event = "process.finished", execution_id:% = body.terms.id, status = ending.status.as_str(), reason = ending.reason.as_str(),
        exit_code:serde = ending.exit_code, signal:serde = ending.signal, stdout_bytes:serde = ending.bytes.stdout,
        stderr_bytes:serde = ending.bytes.stderr, leftovers = ending.leftovers, ms:serde = ending.elapsed_ms; "process finished");
    kept::end(body, ending, seat);
}

/// Why an execution was ended that nobody followed.
fn disconnected(terms: &Terms, ran: bool) -> String {
    let why = match terms.detach {
        Some(Detach { detach_ms, .. }) => {
            format!("nobody attached for {} s", Duration::from_millis(detach_ms).as_secs_f64())
        }
        None => "its client went away".to_owned(),
    };
    if ran { why } else { format!("{why}; it was ended before its turn came") }
}

/// The service itself is short of something: processes, descriptors, memory.
fn no_shim(terms: &Terms, error: &std::io::Error) -> Ending {
    log::error!(event = "shim.not_started", execution_id:% = terms.id; "cannot start a shim: {error}");
    let ending = last::not_started(126, format!("the backend cannot start another process: {error}"));
    debug_assert_eq!(ending.reason, Reason::NotStarted);
    ending
}

/// How an execution stands, for somebody who comes now or asks.
#[derive(Clone)]
struct Stand {
    /// Whether a consumer that comes now is told at once. One that comes while the command is being started waits with
    /// those before it, for a moment.
    is_told: bool,
    status: Status,
    position: Option<u64>,
    alive: Alive,
}

impl Stand {
    /// What a consumer is told first.
    fn first_word(&self, terms: &Terms) -> Word {
        let wanted = api::Terms {
            heartbeat_ms: Some(millis(terms.heartbeat)),
            may_detach: terms.detach.is_some(),
            acknowledge_bytes: terms.detach.map(|_| terms.ring_bytes as u64 / ACKNOWLEDGEMENTS_A_RING),
            claude: terms.prompt.is_some(),
            instance: Some(terms.instance),
            // The spool knows it.
            hold: None,
        };
        match self.position {
            Some(position) => Word::Queued(Queued { position, terms: wanted }),
            None => Word::Started(Started {
                execution_id: terms.id,
                executor: terms.executor.clone(),
                status: self.status,
                terms: wanted,
                alive: self.alive.clone(),
            }),
        }
    }
}

impl Body {
    /// Takes an ask that is the same in every part of its life. Gives back any other. An ask whose asker is
    /// gone does nothing: an attach that waited here too long must not throw the holder out.
    fn common(&mut self, ask: Ask, stand: impl FnOnce() -> Stand, ending: Option<&Ending>) -> Option<Ask> {
        if ask.is_abandoned() {
            debug!(event = "ask.abandoned", execution_id:% = self.terms.id; "whoever asked is gone");
            return None;
        }
        match ask {
            Ask::Attach(consumer, answer) => {
                let stand = stand();
                // One that ended before it ran has its end as its first word.
                let never_ran = ending.is_some_and(|ending| ending.elapsed_ms.is_none());
                let first = (stand.is_told && !never_ran).then(|| stand.first_word(&self.terms));
                let attached = self.spool.attach(*consumer, first);
                if let Ok(Claimed::New | Claimed::Same) = attached {
                    self.left_at = None;
                    self.asked_at = Instant::now();
                    info!(event = "execution.attached", execution_id:% = self.terms.id, status = stand.status.as_str(),
                        hold = self.spool.holds().newest(); "a consumer attached");
                }
                // Whoever asked may have gone in this moment: then its consumer has, too.
                let _ = answer.send(attached.map(drop));
            }
            Ask::Acknowledge((offsets, claim), answer) => {
                let _ = answer.send(self.spool.holds().check(claim).and_then(|()| self.spool.acknowledge(offsets)));
            }
            Ask::Withdraw { claim, grace_ms, reason, answer } => {
                let checked = match ending {
                    Some(_) => Err(ErrorObject::new(code::NOT_RUNNING, "it has ended")),
                    None => self.spool.holds().check(claim),
                };
                let accepted = checked.is_ok();
                let _ = answer.send(checked);
                return accepted.then_some(Ask::Cancel { grace_ms, reason });
            }
            Ask::Describe(answer) => {
                self.asked_at = Instant::now();
                self.spool.is_known_to_live(true);
                let _ = answer.send(self.describe(stand(), ending));
            }
            other => return Some(other),
        }
        None
    }

    fn describe(&self, stand: Stand, ending: Option<&Ending>) -> Snapshot {
        Snapshot {
            execution_id: self.terms.id,
            executor: self.terms.executor.clone(),
            status: stand.status,
            position: stand.position,
            scope: (stand.status == Status::Paused).then_some(Scope::Process),
            attached: self.spool.is_attached(),
            hold: Some(self.spool.holds().newest()),
            instance: Some(self.terms.instance),
            alive: stand.alive,
            offsets: self.spool.written(),
            ending: ending.cloned(),
        }
    }

    /// Its consumer is gone. True if it must be ended for that.
    fn left(&mut self, moved: Moved) -> bool {
        let why = if moved == Moved::Vanished { "vanished" } else { "gone" };
        self.spool.dismiss(Dismissal::Vanished);
        let Some(Detach { detach_ms, .. }) = self.terms.detach else { return true };
        self.left_at = Some(Instant::now());
        info!(event = "execution.detached", execution_id:% = self.terms.id, detach_ms = detach_ms;
            "the consumer is {why}: it goes on without one");
        false
    }

    /// Its heartbeat: a gateway that has not asked for long must show by its connection that it lives.
    fn look_after_consumer(&mut self) {
        if self.asked_at.elapsed() > self.terms.consumer_stall {
            self.spool.is_known_to_live(false);
        }
    }

    /// When it has been without a consumer for too long.
    fn detached_until(&self) -> Option<Instant> {
        Some(self.left_at? + Duration::from_millis(self.terms.detach?.detach_ms))
    }
}

/// Refuses an ask that only a process can be asked.
fn refuse(ask: Ask, why: &str) {
    let error = || Err(ErrorObject::new(code::NOT_RUNNING, why));
    match ask {
        Ask::Signal(_, answer)
        | Ask::Pause(answer)
        | Ask::Resume(answer)
        | Ask::Resize(_, answer)
        | Ask::Withdraw { answer, .. }
        | Ask::Input { answer, .. } => {
            // Whoever asked may be gone.
            let _ = answer.send(error());
        }
        Ask::Cancel { .. } | Ask::Attach(..) | Ask::Acknowledge(..) | Ask::Describe(_) => {}
    }
}

/// How often a ring's content is acknowledged while it fills.
const ACKNOWLEDGEMENTS_A_RING: u64 = 4;

/// The grace of an execution that is ended without anybody having named one.
const GRACE_MS: u64 = DEFAULT_GRACE_MS;

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::spool::{Feed, Policy};

    fn body() -> (Body, Feed) {
        let (consumer, feed) = Consumer::new(PerStream::default(), true);
        let terms = Terms {
            id: ExecutionId::random(),
            instance: InstanceId::random(),
            executor: "shell".to_owned(),
            timeout_ms: None,
            stall_timeout_ms: None,
            heartbeat: Duration::from_secs(15),
            detach: None,
            pty: None,
            consumer_stall: Duration::from_secs(90),
            claude_exit: Duration::from_secs(45),
            ring_bytes: 100,
            prompt: None,
        };
        let spool = Spool::new(Policy::Overwrite, PerStream { stdout: 100, stderr: 100 }, consumer);
        let asks = Asks::none();
        (Body { terms, asks, spool, left_at: None, asked_at: Instant::now() }, feed)
    }

    fn running() -> Stand {
        Stand { is_told: true, status: Status::Running, position: None, alive: Alive::default() }
    }

    #[test]
    fn an_ask_whose_asker_is_gone_does_nothing() {
        let (mut body, mut feed) = body();
        let attach = |asker_stays: bool, body: &mut Body| {
            let (consumer, other) = Consumer::new(PerStream::default(), true);
            let (answer, asker) = oneshot::channel();
            let asker = asker_stays.then_some(asker);
            assert!(body.common(Ask::Attach(Box::new(consumer), answer), running, None).is_none());
            (other, asker)
        };
        attach(false, &mut body);
        assert!(feed.dismissed.try_recv().is_err(), "the holder stays");
        assert_eq!(body.spool.holds().newest(), 1);
        let (answer, asker) = oneshot::channel();
        drop(asker);
        assert!(body.common(Ask::Pause(answer), running, None).is_none(), "nor is anything else done");
        let (_other, asker) = attach(true, &mut body);
        assert_eq!(feed.dismissed.try_recv(), Ok(Dismissal::TakenOver));
        assert_eq!((asker.unwrap().try_recv(), body.spool.holds().newest()), (Ok(Ok(())), 2));
    }

    #[test]
    fn a_withdrawal_ends_only_what_its_holder_still_has() {
        let (mut body, _feed) = body();
        let mut withdraw = |claim: Claim, ending: Option<&Ending>| {
            let (answer, mut asker) = oneshot::channel();
            let ask = Ask::Withdraw { claim, grace_ms: 7, reason: CancelReason::Canceled, answer };
            let left = body.common(ask, running, ending);
            (matches!(left, Some(Ask::Cancel { grace_ms: 7, .. })), asker.try_recv().unwrap().is_ok())
        };
        assert_eq!(withdraw(Claim::Number(2), None), (false, false));
        assert_eq!(withdraw(Claim::Number(1), None), (true, true));
        let ending = last::never_ran(Status::Cancelled, Reason::Canceled, "it was canceled");
        assert_eq!(withdraw(Claim::Number(1), Some(&ending)), (false, false), "its ending stands");
    }
}
