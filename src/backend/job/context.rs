//! What every stage of an execution shares: what was asked for, its inbox, its output, its consumer.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cc_executor_actors::{
    backend_api::{self, BackendEvent, Heartbeat, QueuedEvent, Snapshot, StartedEvent},
    clock::millis,
    id::{ExecutionId, InstanceId},
    outcome::{Outcome, Scope, Status},
    protocol::{
        DEFAULT_GRACE_MS,
        method::{DetachOptions, TerminalSize},
    },
};
use log::{debug, info};

use crate::backend::{
    holds::ClaimResult,
    job_request::{JobError, JobRequest},
    output_buffer::{ConsumerChange, DismissReason, OutputBuffer},
    registry::JobInbox,
};

/// How often a ring's content is acknowledged while it fills.
const ACKNOWLEDGEMENTS_A_RING: u64 = 4;

/// The grace of an execution that is ended without anybody having named one.
pub(super) const GRACE_MS: u64 = DEFAULT_GRACE_MS;

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
    /// How long Claude may take to exit after its last event.
    pub claude_exit: Duration,
    /// How much of each stream is kept, in bytes.
    pub ring_bytes: usize,
    /// What is written to its standard input, and nothing else: a prompt, and its output is Claude's events.
    pub prompt: Option<Bytes>,
}

/// What every part of an execution's life needs.
pub(super) struct JobShared {
    pub(super) terms: JobContext,
    pub(super) asks: JobInbox,
    pub(super) output_buffer: OutputBuffer,
    /// When its consumer went away, while it has none.
    pub(super) left_at: Option<Instant>,
    /// When somebody last asked how it is.
    pub(super) asked_at: Instant,
}

/// How an execution stands, for somebody who comes now or asks.
#[derive(Clone)]
pub(super) struct JobSnapshot {
    /// Whether a consumer that comes now is told at once. One that comes while the command is being started waits with
    /// those before it, for a moment.
    pub(super) is_told: bool,
    pub(super) status: Status,
    pub(super) position: Option<u64>,
    pub(super) alive: Heartbeat,
}

impl JobSnapshot {
    /// What a consumer is told first.
    pub(super) fn first_word(&self, terms: &JobContext) -> BackendEvent {
        let wanted = backend_api::StreamInfo {
            heartbeat_ms: Some(millis(terms.heartbeat)),
            may_detach: terms.detach.is_some(),
            acknowledge_bytes: terms.detach.map(|_| terms.ring_bytes as u64 / ACKNOWLEDGEMENTS_A_RING),
            claude: terms.prompt.is_some(),
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
    pub(super) fn common(
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
                let _ = answer.send(attached.map(drop).map_err(JobError::from));
            }
            JobRequest::Acknowledge((offsets, claim), answer) => {
                let checked = self.output_buffer.holds().check(claim).map_err(JobError::from);
                let _ = answer.send(checked.and_then(|()| Ok(self.output_buffer.acknowledge(offsets)?)));
            }
            JobRequest::Withdraw { claim, grace_ms, reason, answer } => {
                let checked = match ending {
                    Some(_) => Err(JobError::NotNow("it has ended")),
                    None => self.output_buffer.holds().check(claim).map_err(JobError::from),
                };
                let accepted = checked.is_ok();
                let _ = answer.send(checked);
                return accepted.then_some(JobRequest::Cancel { grace_ms, reason });
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
    pub(super) fn left(&mut self, moved: ConsumerChange) -> bool {
        let why = if moved == ConsumerChange::Vanished { "vanished" } else { "gone" };
        self.output_buffer.dismiss(DismissReason::Vanished);
        let Some(DetachOptions { detach_ms, .. }) = self.terms.detach else { return true };
        self.left_at = Some(Instant::now());
        info!(event = "execution.detached", execution_id:% = self.terms.id, detach_ms = detach_ms;
            "the consumer is {why}: it goes on without one");
        false
    }

    /// Its heartbeat: a gateway that has not asked for long must show by its connection that it lives.
    pub(super) fn look_after_consumer(&mut self) {
        if self.asked_at.elapsed() > self.terms.consumer_stall {
            self.output_buffer.is_known_to_live(false);
        }
    }

    /// When it has been without a consumer for too long.
    pub(super) fn detached_until(&self) -> Option<Instant> {
        Some(self.left_at? + Duration::from_millis(self.terms.detach?.detach_ms))
    }
}

pub(super) async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use cc_executor_actors::{
        outcome::{CancelReason, Reason},
        stream::PerStream,
    };
    use tokio::sync::oneshot;

    use super::*;
    use crate::backend::{
        holds::Claim,
        job::outcome,
        output_buffer::{Consumer, ConsumerFeed, UnreadPolicy},
    };

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
            prompt: None,
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
        assert!(body.common(JobRequest::Pause(answer), running, None).is_none(), "nor is anything else done");
        let (_other, asker) = attach(true, &mut body);
        assert_eq!(feed.dismissed.try_recv(), Ok(DismissReason::TakenOver));
        assert_eq!((asker.unwrap().try_recv(), body.output_buffer.holds().newest()), (Ok(Ok(())), 2));
    }

    #[test]
    fn a_withdrawal_ends_only_what_its_holder_still_has() {
        let (mut body, _feed) = body();
        let mut withdraw = |claim: Claim, ending: Option<&Outcome>| {
            let (answer, mut asker) = oneshot::channel();
            let ask = JobRequest::Withdraw { claim, grace_ms: 7, reason: CancelReason::Canceled, answer };
            let left = body.common(ask, running, ending);
            (matches!(left, Some(JobRequest::Cancel { grace_ms: 7, .. })), asker.try_recv().unwrap().is_ok())
        };
        assert_eq!(withdraw(Claim::Number(2), None), (false, false));
        assert_eq!(withdraw(Claim::Number(1), None), (true, true));
        let ending = outcome::never_ran(Status::Cancelled, Reason::Canceled, "it was canceled");
        assert_eq!(withdraw(Claim::Number(1), Some(&ending)), (false, false), "its ending stands");
    }
}
