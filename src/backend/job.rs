//! One execution in the backend: it waits for its turn, follows its command to the end, and keeps what
//! the command wrote for a while after.
//!
//! It is one task, and everything that happens to it comes through it: orders, clocks, the shim, the
//! pipes, and consumers that come and go. So nothing here is locked, and nothing has to be. When there is nothing left
//! to keep or to say, the task ends, and the registry's record answers ([`retained`]).

mod life;
mod outcome;
mod queued;
pub mod retained;
pub(super) mod running;
mod stdin;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cc_executor_actors::{
    backend_api::{self, BackendEvent, Heartbeat, QueuedEvent, Snapshot, StartedEvent},
    clock::millis,
    id::{ExecutionId, InstanceId},
    outcome::{Outcome, Reason, Scope, Status},
    protocol::{
        DEFAULT_GRACE_MS,
        control::{ControlRequest, TerminalSize},
        execute::DetachOptions,
    },
    rpc::{ErrorObject, code},
    stream::PerStream,
};
use log::{debug, info};
use tokio::sync::oneshot;

pub use self::running::READ;
use super::{
    agent::AgentJob,
    holds::{Claim, ClaimResult},
    output_buffer::{Consumer, ConsumerChange, DismissReason, OutputBuffer},
    process::Process,
    registry::{JobInbox, Slot},
    shim::protocol::JobSpec,
    subreaper::handle::Subreapers,
};

/// Where the outcome of an ask goes.
pub type ReplySender = oneshot::Sender<Result<(), ErrorObject>>;

/// What others ask of an execution.
#[derive(Debug)]
pub enum JobRequest {
    /// Do this to it. Who wants to know what comes of it is told; a cancellation has nobody who does.
    Control(ControlRequest, Option<ReplySender>),
    /// End it, if whoever gave the request for it up still has it. Answered when that is decided.
    Withdraw {
        /// Who has it, in the asker's eyes.
        claim: Claim,
        /// The cancellation.
        cancel: ControlRequest,
        /// Who wants to know.
        answer: ReplySender,
    },
    /// Follow it from now on.
    Attach(Box<Consumer>, ReplySender),
    /// The client of this holder has this much.
    Acknowledge((PerStream<u64>, Claim), ReplySender),
    /// Tell how it is. A gateway asks that for as long as its client does not read.
    Describe(oneshot::Sender<Snapshot>),
}

impl JobRequest {
    /// Whether nobody waits for what comes of it any more. What a client has received stays true all the
    /// same, and a cancellation waits for no answer.
    fn is_abandoned(&self) -> bool {
        match self {
            JobRequest::Attach(_, answer) | JobRequest::Withdraw { answer, .. } => answer.is_closed(),
            JobRequest::Control(_, answer) => answer.as_ref().is_some_and(ReplySender::is_closed),
            JobRequest::Describe(answer) => answer.is_closed(),
            JobRequest::Acknowledge(..) => false,
        }
    }
}

/// What an execution needs to know of itself.
#[derive(Clone, Debug)]
pub struct JobContext {
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
    pub detach: Option<DetachOptions>,
    /// The size of its terminal, if it runs on one.
    pub pty: Option<TerminalSize>,
    /// How long a consumer may take nothing while nobody asks for it.
    pub consumer_stall: Duration,
    /// How long an agent may take to exit after its last event.
    pub claude_exit: Duration,
    /// How much of each stream is kept, in bytes.
    pub ring_bytes: usize,
    /// The agent that it is, if it is one.
    pub agent: Option<AgentJob>,
}

/// What every part of an execution's life needs.
struct JobShared {
    terms: JobContext,
    asks: JobInbox,
    output_buffer: OutputBuffer,
    /// When its consumer went away, while it has none.
    left_at: Option<Instant>,
    /// When somebody last asked how it is.
    asked_at: Instant,
}

/// Lives through one execution to its end. A task of its own then keeps the output, as long as there is any.
pub async fn live(
    terms: JobContext,
    asks: JobInbox,
    output_buffer: OutputBuffer,
    mut slot: Slot,
    subreapers: Arc<Subreapers>,
    spec: JobSpec,
) {
    let now = Instant::now();
    let mut body = JobShared { terms, asks, output_buffer, left_at: None, asked_at: now };
    let started = queued::wait_for_turn(&mut body, &mut slot).await;
    let mut ending = match started {
        Err(ending) => ending,
        Ok(()) => {
            let program = spec.argv.first().cloned().unwrap_or_default();
            match Process::start(&subreapers, spec, body.terms.pty) {
                Ok(process) => running::follow(process, &program, &mut body, &slot).await,
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
    retained::end(body, ending, slot);
}

/// Why an execution was ended that nobody followed.
fn disconnected(terms: &JobContext, ran: bool) -> String {
    let why = match terms.detach {
        Some(DetachOptions { detach_ms, .. }) => {
            format!("nobody attached for {} s", Duration::from_millis(detach_ms).as_secs_f64())
        }
        None => "its client went away".to_owned(),
    };
    if ran { why } else { format!("{why}; it was ended before its turn came") }
}

/// The service itself is short of something: processes, descriptors, memory.
fn no_shim(terms: &JobContext, error: &std::io::Error) -> Outcome {
    log::error!(event = "shim.not_started", execution_id:% = terms.id; "cannot start a shim: {error}");
    let ending = outcome::not_started(126, format!("the backend cannot start another process: {error}"));
    debug_assert_eq!(ending.reason, Reason::NotStarted);
    ending
}

/// How an execution stands, for somebody who comes now or asks.
#[derive(Clone)]
struct JobSnapshot {
    /// Whether a consumer that comes now is told at once. One that comes while the command is being started waits with
    /// those before it, for a moment.
    is_told: bool,
    status: Status,
    position: Option<u64>,
    alive: Heartbeat,
}

impl JobSnapshot {
    /// What a consumer is told first.
    fn first_word(&self, terms: &JobContext) -> BackendEvent {
        let wanted = backend_api::StreamInfo {
            heartbeat_ms: Some(millis(terms.heartbeat)),
            may_detach: terms.detach.is_some(),
            acknowledge_bytes: terms.detach.map(|_| terms.ring_bytes as u64 / ACKNOWLEDGEMENTS_A_RING),
            claude: terms.agent.is_some(),
            instance: Some(terms.instance),
            // The output_buffer knows it.
            hold: None,
        };
        match self.position {
            Some(position) => BackendEvent::Queued(QueuedEvent { position, terms: wanted }),
            None => BackendEvent::Started(StartedEvent {
                execution_id: terms.id,
                executor: terms.executor.clone(),
                status: self.status,
                terms: wanted,
                alive: self.alive.clone(),
            }),
        }
    }
}

impl JobShared {
    /// Takes an ask that is the same in every part of its life. Gives back any other. An ask whose asker is
    /// gone does nothing: an attach that waited here too long must not throw the holder out.
    fn common(
        &mut self,
        ask: JobRequest,
        stand: impl FnOnce() -> JobSnapshot,
        ending: Option<&Outcome>,
    ) -> Option<JobRequest> {
        if ask.is_abandoned() {
            debug!(event = "ask.abandoned", execution_id:% = self.terms.id; "whoever asked is gone");
            return None;
        }
        match ask {
            JobRequest::Attach(consumer, answer) => {
                let stand = stand();
                // One that ended before it ran has its end as its first word.
                let never_ran = ending.is_some_and(|ending| ending.elapsed_ms.is_none());
                let first = (stand.is_told && !never_ran).then(|| stand.first_word(&self.terms));
                let attached = self.output_buffer.attach(*consumer, first);
                if let Ok(ClaimResult::New | ClaimResult::Same) = attached {
                    self.left_at = None;
                    self.asked_at = Instant::now();
                    info!(event = "execution.attached", execution_id:% = self.terms.id, status = stand.status.as_str(),
                        hold = self.output_buffer.holds().newest(); "a consumer attached");
                }
                // Whoever asked may have gone in this moment: then its consumer has, too.
                let _ = answer.send(attached.map(drop));
            }
            JobRequest::Acknowledge((offsets, claim), answer) => {
                let _ = answer.send(
                    self.output_buffer.holds().check(claim).and_then(|()| self.output_buffer.acknowledge(offsets)),
                );
            }
            JobRequest::Withdraw { claim, cancel, answer } => {
                let checked = match ending {
                    Some(_) => Err(ErrorObject::new(code::NOT_RUNNING, "it has ended")),
                    None => self.output_buffer.holds().check(claim),
                };
                let accepted = checked.is_ok();
                let _ = answer.send(checked);
                return accepted.then_some(JobRequest::Control(cancel, None));
            }
            JobRequest::Describe(answer) => {
                self.asked_at = Instant::now();
                self.output_buffer.is_known_to_live(true);
                let _ = answer.send(self.describe(stand(), ending));
            }
            other => return Some(other),
        }
        None
    }

    fn describe(&self, stand: JobSnapshot, ending: Option<&Outcome>) -> Snapshot {
        Snapshot {
            execution_id: self.terms.id,
            executor: self.terms.executor.clone(),
            status: stand.status,
            position: stand.position,
            scope: (stand.status == Status::Paused).then_some(Scope::Process),
            attached: self.output_buffer.is_attached(),
            hold: Some(self.output_buffer.holds().newest()),
            instance: Some(self.terms.instance),
            alive: stand.alive,
            offsets: self.output_buffer.written(),
            ending: ending.cloned(),
        }
    }

    /// Its consumer is gone. True if it must be ended for that.
    fn left(&mut self, moved: ConsumerChange) -> bool {
        let why = if moved == ConsumerChange::Vanished { "vanished" } else { "gone" };
        self.output_buffer.dismiss(DismissReason::Vanished);
        let Some(DetachOptions { detach_ms, .. }) = self.terms.detach else { return true };
        self.left_at = Some(Instant::now());
        info!(event = "execution.detached", execution_id:% = self.terms.id, detach_ms = detach_ms;
            "the consumer is {why}: it goes on without one");
        false
    }

    /// Its heartbeat: a gateway that has not asked for long must show by its connection that it lives.
    fn look_after_consumer(&mut self) {
        if self.asked_at.elapsed() > self.terms.consumer_stall {
            self.output_buffer.is_known_to_live(false);
        }
    }

    /// When it has been without a consumer for too long.
    fn detached_until(&self) -> Option<Instant> {
        Some(self.left_at? + Duration::from_millis(self.terms.detach?.detach_ms))
    }
}

/// Refuses an ask that only a process can be asked.
fn refuse(ask: JobRequest, why: &str) {
    if let JobRequest::Control(_, Some(answer)) | JobRequest::Withdraw { answer, .. } = ask {
        // Whoever asked may be gone.
        let _ = answer.send(Err(ErrorObject::new(code::NOT_RUNNING, why)));
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
    use crate::backend::output_buffer::{ConsumerFeed, UnreadPolicy};

    fn body() -> (JobShared, ConsumerFeed) {
        let (consumer, feed) = Consumer::new(PerStream::default(), true);
        let terms = JobContext {
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
            agent: None,
        };
        let output_buffer =
            OutputBuffer::new(UnreadPolicy::Overwrite, PerStream { stdout: 100, stderr: 100 }, consumer);
        let asks = JobInbox::none();
        (JobShared { terms, asks, output_buffer, left_at: None, asked_at: Instant::now() }, feed)
    }

    fn running() -> JobSnapshot {
        JobSnapshot { is_told: true, status: Status::Running, position: None, alive: Heartbeat::default() }
    }

    #[test]
    fn an_ask_whose_asker_is_gone_does_nothing() {
        let (mut body, mut feed) = body();
        let attach = |asker_stays: bool, body: &mut JobShared| {
            let (consumer, other) = Consumer::new(PerStream::default(), true);
            let (answer, asker) = oneshot::channel();
            let asker = asker_stays.then_some(asker);
            assert!(body.common(JobRequest::Attach(Box::new(consumer), answer), running, None).is_none());
            (other, asker)
        };
        attach(false, &mut body);
        assert!(feed.dismissed.try_recv().is_err(), "the holder stays");
        assert_eq!(body.output_buffer.holds().newest(), 1);
        let (answer, asker) = oneshot::channel();
        drop(asker);
        assert!(
            body.common(JobRequest::Control(ControlRequest::Pause, Some(answer)), running, None).is_none(),
            "nor is anything else done"
        );
        let (_other, asker) = attach(true, &mut body);
        assert_eq!(feed.dismissed.try_recv(), Ok(DismissReason::TakenOver));
        assert_eq!((asker.unwrap().try_recv(), body.output_buffer.holds().newest()), (Ok(Ok(())), 2));
    }

    #[test]
    fn a_withdrawal_ends_only_what_its_holder_still_has() {
        let (mut body, _feed) = body();
        let mut withdraw = |claim: Claim, ending: Option<&Outcome>| {
            let (answer, mut asker) = oneshot::channel();
            let ask = JobRequest::Withdraw { claim, cancel: ControlRequest::cancel(7), answer };
            let left = body.common(ask, running, ending);
            (
                matches!(left, Some(JobRequest::Control(ControlRequest::Cancel { grace_ms: 7, .. }, None))),
                asker.try_recv().unwrap().is_ok(),
            )
        };
        assert_eq!(withdraw(Claim::Number(2), None), (false, false));
        assert_eq!(withdraw(Claim::Number(1), None), (true, true));
        let ending = outcome::never_ran(Status::Cancelled, Reason::Canceled, "it was canceled");
        assert_eq!(withdraw(Claim::Number(1), Some(&ending)), (false, false), "its ending stands");
    }
}
