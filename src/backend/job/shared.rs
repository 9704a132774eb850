//! The state that a job has in every phase (queued, running, ended): its inbox, its output and its consumer. Also
//! answers the requests that mean the same in every phase.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cc_executor_actors::{
    backend_api::{self, BackendEvent, Heartbeat, QueuedEvent, Snapshot, StartedEvent},
    clock::millis,
    id::{ExecutionId, InstanceId},
    outcome::{Outcome, Scope, Status, Storage},
    protocol::{
        control::{ControlRequest, TerminalSize},
        execute::DetachOptions,
    },
    stream::Stream,
};
use log::{debug, info};

use super::{
    clocks::{ConsumerClock, JobLimits},
    disk::JobStorage,
};
use crate::backend::{
    agent::AgentJob,
    config::BackendConfig,
    holds::ClaimResult,
    job_request::{JobError, JobRequest, Poller, ReadableOutput},
    output_buffer::{ConsumerChange, ConsumerError, DismissReason, OutputBuffer},
    registry::JobInbox,
    storage::StateDir,
};

/// How many acknowledgements a gateway sends while a ring fills once.
const ACKNOWLEDGEMENTS_A_RING: u64 = 4;

/// After how long without room for its output a command counts as held back: a client that reads has made room before.
const HELD_BACK: Duration = Duration::from_secs(1);

/// The constant properties of an execution.
#[derive(Clone, Debug)]
pub struct JobContext {
    /// Its id.
    pub id: ExecutionId,
    /// The backend's process that runs it.
    pub instance: InstanceId,
    /// The name of its executor.
    pub executor: String,
    /// How much time it has.
    pub limits: JobLimits,
    /// How the execution continues without a consumer. `None` if it is ended then.
    pub detach: Option<DetachOptions>,
    /// The size of its terminal, if it runs on one.
    pub pty: Option<TerminalSize>,
    /// The agent, if the command is one.
    pub agent: Option<AgentJob>,
    /// The configuration of the backend.
    pub config: Arc<BackendConfig>,
}

/// The state that a job has in every phase.
pub(super) struct JobShared {
    pub(super) context: JobContext,
    pub(super) requests: JobInbox,
    pub(super) output_buffer: OutputBuffer,
    pub(super) consumer_clock: ConsumerClock,
    /// Since when output of the running command is not read; `None` while it is.
    pub(super) held_since: Option<Instant>,
    /// The way to disk, as long as it works.
    pub(super) storage: Option<JobStorage>,
    /// Where the files are of an execution whose storage has failed.
    pub(super) failed_storage: Option<Arc<StateDir>>,
    /// What clients are told of it.
    pub(super) storage_state: Option<Storage>,
}

/// The state of a job at one moment, for a consumer that attaches or polls.
#[derive(Clone)]
pub(super) struct JobSnapshot {
    /// Whether a consumer that attaches gets an event at once. While the command is being started it waits for the
    /// report of the start.
    pub(super) is_reported: bool,
    pub(super) status: Status,
    pub(super) position: Option<u64>,
    pub(super) alive: Heartbeat,
}

impl JobSnapshot {
    /// The first event of a consumer's stream.
    pub(super) fn first_event(&self, context: &JobContext) -> BackendEvent {
        let info = backend_api::StreamInfo {
            heartbeat_ms: Some(millis(context.limits.heartbeat)),
            may_detach: context.detach.is_some(),
            acknowledge_bytes: context.detach.map(|_| context.config.ring_bytes as u64 / ACKNOWLEDGEMENTS_A_RING),
            instance: Some(context.instance),
            // `OutputBuffer` sets the hold, because it numbers the holds.
            ..backend_api::StreamInfo::default()
        }
        .with_agent(context.agent.as_ref().map(|job| job.agent.executor()));
        match self.position {
            Some(position) => BackendEvent::Queued(QueuedEvent { position, terms: info }),
            None => BackendEvent::Started(StartedEvent {
                execution_id: context.id,
                executor: context.executor.clone(),
                status: self.status,
                terms: info,
                alive: self.alive.clone(),
            }),
        }
    }
}

impl JobShared {
    /// Answers a request that means the same in every phase. Returns any other. A request whose client is gone is
    /// dropped, because a late attach must not take the execution from its holder.
    pub(super) fn answer_common(
        &mut self,
        request: JobRequest,
        snapshot: impl FnOnce() -> JobSnapshot,
        ending: Option<&Outcome>,
    ) -> Option<JobRequest> {
        if request.is_abandoned() {
            debug!(event = "ask.abandoned", execution_id:% = self.context.id; "the client of a request is gone: it is dropped");
            return None;
        }
        match request {
            JobRequest::Attach(consumer, answer) => {
                let snapshot = snapshot();
                let attached = self.output_buffer.attach(*consumer, self.first_event(&snapshot, ending));
                if let Ok(ClaimResult::New | ClaimResult::Same) = attached {
                    self.consumer_clock = ConsumerClock::attached(Instant::now());
                    info!(event = "execution.attached", execution_id:% = self.context.id, status = snapshot.status.as_str(),
                        hold = self.output_buffer.holds().newest(); "a consumer attached");
                }
                // Fails if the client has just left; its consumer is gone then, too.
                let _ = answer.send(attached.map(drop).map_err(JobError::from));
            }
            JobRequest::Observe(observer, answer) => {
                let snapshot = snapshot();
                let first = self.first_event(&snapshot, ending);
                let observed = self.output_buffer.observe(*observer, first, self.context.config.max_observers);
                if observed.is_ok() {
                    info!(event = "execution.observed", execution_id:% = self.context.id, status = snapshot.status.as_str(),
                        observers = self.output_buffer.n_observers(); "an observer attached");
                }
                let _ = answer.send(observed.map_err(JobError::from));
            }
            JobRequest::Acknowledge((offsets, claim), answer) => {
                let checked = self.output_buffer.holds().check(claim).map_err(ConsumerError::from);
                let acknowledged = checked.and_then(|()| Ok(self.output_buffer.acknowledge(offsets)?));
                let _ = answer.send(acknowledged.map_err(JobError::from));
            }
            JobRequest::Withdraw { claim, cancel, answer } => {
                let checked = match ending {
                    Some(_) => Err(JobError::Ended(self.context.id)),
                    None => {
                        self.output_buffer.holds().check(claim).map_err(ConsumerError::from).map_err(JobError::from)
                    }
                };
                let accepted = checked.is_ok();
                let _ = answer.send(checked);
                return accepted.then_some(JobRequest::Cancel(cancel));
            }
            JobRequest::Describe(poller, answer) => {
                if poller == Poller::Anyone {
                    self.consumer_clock.record_poll(Instant::now());
                    self.output_buffer.set_consumer_alive(true);
                }
                let _ = answer.send(self.describe(snapshot(), ending));
            }
            JobRequest::ViewOutput(stream, answer) => {
                let _ = answer.send(self.view(stream, snapshot().status, ending));
            }
            JobRequest::ReadRing { stream, from, most, answer } => {
                let _ = answer.send(self.output_buffer.ring_piece(stream, from, most).to_vec());
            }
            JobRequest::Control(ControlRequest::Keep { detach_ms }, reply) => {
                let _ = reply.send(self.keep(detach_ms, ending));
            }
            other => return Some(other),
        }
        None
    }

    /// Sets how long the job continues without a consumer, until one attaches.
    fn keep(&mut self, detach_ms: Option<u64>, ending: Option<&Outcome>) -> Result<(), JobError> {
        if ending.is_some() {
            return Err(JobError::Ended(self.context.id));
        }
        if self.context.detach.is_none() {
            return Err(JobError::NotDetachable);
        }
        let limit = self.context.config.max_detach_ms;
        let asked = detach_ms.unwrap_or(limit);
        if asked > limit {
            return Err(JobError::DetachTooLong { asked, limit });
        }
        self.consumer_clock.keep_for((asked > 0).then(|| Duration::from_millis(asked)));
        Ok(())
    }

    /// How long the job continues without a consumer; `None` if it is ended then.
    fn detached_for(&self) -> Option<Duration> {
        let limit = self.context.detach.map(|DetachOptions { detach_ms, .. }| Duration::from_millis(detach_ms));
        self.consumer_clock.detached_for(limit)
    }

    /// The first event of a consumer or observer that attaches now. A job that never ran sends only its outcome.
    fn first_event(&self, snapshot: &JobSnapshot, ending: Option<&Outcome>) -> Option<BackendEvent> {
        let never_ran = ending.is_some_and(|ending| ending.elapsed_ms.is_none());
        (snapshot.is_reported && !never_ran).then(|| snapshot.first_event(&self.context))
    }

    fn view(&self, stream: Stream, status: Status, ending: Option<&Outcome>) -> ReadableOutput {
        let extent = self.output_buffer.extent(stream);
        let is_whole = extent.there == (0..extent.written) && self.storage_state != Some(Storage::Altered);
        // Not while it is still being computed.
        let sha256 = ending.and_then(|ending| ending.sha256.get(stream).clone()).filter(|sha256| sha256.len() == 64);
        ReadableOutput { status, extent, sha256: sha256.filter(|_| is_whole) }
    }

    fn describe(&self, snapshot: JobSnapshot, ending: Option<&Outcome>) -> Snapshot {
        Snapshot {
            execution_id: self.context.id,
            executor: self.context.executor.clone(),
            status: snapshot.status,
            held_back: ending.is_none() && self.held_since.is_some_and(|since| since.elapsed() >= HELD_BACK),
            position: snapshot.position,
            scope: (snapshot.status == Status::Paused).then_some(Scope::Process),
            attached: self.output_buffer.is_attached(),
            observers: self.output_buffer.n_observers(),
            hold: Some(self.output_buffer.holds().newest()),
            instance: Some(self.context.instance),
            alive: snapshot.alive,
            offsets: self.output_buffer.written(),
            storage: self.storage_state,
            // The registry knows them.
            name: None,
            command: None,
            age_ms: None,
            ending: ending.cloned(),
        }
    }

    /// Handles the loss of the consumer. Returns whether the job must be ended for it.
    pub(super) fn must_end_without_consumer(&mut self, change: ConsumerChange) -> bool {
        let why = match change {
            ConsumerChange::Vanished => "the consumer has stopped reading",
            ConsumerChange::Gone | ConsumerChange::Room => "the consumer's connection was closed",
        };
        self.output_buffer.dismiss(DismissReason::Vanished);
        let Some(detach_ms) = self.detached_for().map(millis) else { return true };
        self.consumer_clock.record_leave(Instant::now());
        info!(event = "execution.detached", execution_id:% = self.context.id, detach_ms = detach_ms;
            "{why}; the execution continues without a consumer");
        false
    }

    /// Applies the connection's time-out to a gateway that has not polled for long. Called with each heartbeat.
    pub(super) fn check_consumer(&mut self, now: Instant) {
        if now.saturating_duration_since(self.consumer_clock.polled_at()) > self.context.config.consumer_stall {
            self.output_buffer.set_consumer_alive(false);
        }
    }

    /// When the job has been without a consumer for too long.
    pub(super) fn detached_until(&self) -> Option<Instant> {
        let limit = self.context.detach.map(|DetachOptions { detach_ms, .. }| Duration::from_millis(detach_ms));
        self.consumer_clock.detached_until(limit)
    }
}

/// Waits until this time, or for ever.
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

    use super::{super::outcome, *};
    use crate::backend::{
        holds::Claim,
        job_request::CancelOrder,
        output_buffer::{Consumer, ConsumerFeed, ConsumerItem, UnreadPolicy},
    };

    fn shared() -> (JobShared, ConsumerFeed) {
        let (consumer, feed) = Consumer::new(PerStream::default(), true);
        let context = JobContext {
            id: ExecutionId::random(),
            instance: InstanceId::random(),
            executor: "shell".to_owned(),
            limits: JobLimits { timeout: None, stall: None, heartbeat: Duration::from_secs(15) },
            detach: None,
            pty: None,
            agent: None,
            config: Arc::new(BackendConfig::for_tests()),
        };
        let output_buffer =
            OutputBuffer::new(UnreadPolicy::Overwrite, PerStream { stdout: 100, stderr: 100 }, None, consumer);
        let requests = JobInbox::none();
        let consumer_clock = ConsumerClock::attached(Instant::now());
        (
            JobShared {
                context,
                requests,
                output_buffer,
                consumer_clock,
                held_since: None,
                storage: None,
                failed_storage: None,
                storage_state: None,
            },
            feed,
        )
    }

    fn running() -> JobSnapshot {
        JobSnapshot { is_reported: true, status: Status::Running, position: None, alive: Heartbeat::default() }
    }

    #[test]
    fn a_request_whose_client_is_gone_does_nothing() {
        let (mut shared, mut feed) = shared();
        let attach = |client_stays: bool, shared: &mut JobShared| {
            let (consumer, other) = Consumer::new(PerStream::default(), true);
            let (answer, client) = oneshot::channel();
            let client = client_stays.then_some(client);
            assert!(shared.answer_common(JobRequest::Attach(Box::new(consumer), answer), running, None).is_none());
            (other, client)
        };
        attach(false, &mut shared);
        assert!(feed.dismissed.try_recv().is_err(), "the holder stays");
        assert_eq!(shared.output_buffer.holds().newest(), 1);
        let (answer, client) = oneshot::channel();
        drop(client);
        let pause = JobRequest::Control(ControlRequest::Pause, answer);
        assert!(shared.answer_common(pause, running, None).is_none(), "another request is dropped, too");
        let (_other, client) = attach(true, &mut shared);
        assert_eq!(feed.dismissed.try_recv(), Ok(DismissReason::TakenOver));
        assert_eq!((client.unwrap().try_recv(), shared.output_buffer.holds().newest()), (Ok(Ok(())), 2));
    }

    #[test]
    fn an_observer_is_not_taken_for_the_consumer() {
        let (mut shared, mut feed) = shared();
        let long_ago = Instant::now() - Duration::from_secs(3_600);
        shared.consumer_clock = ConsumerClock::attached(long_ago);
        shared.consumer_clock.record_leave(long_ago);
        let observe = |shared: &mut JobShared| {
            let (observer, feed) = Consumer::new(PerStream::default(), true);
            let (answer, client) = oneshot::channel();
            (JobRequest::Observe(Box::new(observer), answer), shared.context.id, feed, client)
        };
        let (request, _, _gone, client) = observe(&mut shared);
        drop(client);
        assert!(shared.answer_common(request, running, None).is_none());
        assert_eq!(shared.output_buffer.n_observers(), 0, "its client has left");
        let (request, id, mut observed, mut client) = observe(&mut shared);
        assert!(shared.answer_common(request, running, None).is_none());
        assert_eq!(client.try_recv(), Ok(Ok(())));
        let mut describe = |poller| {
            let (answer, mut client) = oneshot::channel();
            assert!(shared.answer_common(JobRequest::Describe(poller, answer), running, None).is_none());
            (client.try_recv().unwrap(), shared.consumer_clock.polled_at())
        };
        let (snapshot, polled_at) = describe(Poller::Observer);
        assert_eq!((snapshot.observers, snapshot.hold, polled_at), (1, Some(1), long_ago));
        assert!(describe(Poller::Anyone).1 > long_ago);
        assert_eq!(shared.consumer_clock.detached_until(Some(Duration::ZERO)), Some(long_ago), "it runs on");
        assert!(feed.dismissed.try_recv().is_err(), "the holder stays");
        shared.output_buffer.deliver();
        match observed.items.try_recv() {
            Ok(ConsumerItem::Event(BackendEvent::Started(started))) => {
                assert_eq!((started.execution_id, started.terms.hold), (id, None));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_withdrawal_ends_only_an_execution_that_its_claim_holds() {
        let (mut shared, _feed) = shared();
        let mut withdraw = |claim: Claim, ending: Option<&Outcome>| {
            let (answer, mut client) = oneshot::channel();
            let request = JobRequest::Withdraw {
                claim,
                cancel: CancelOrder { grace_ms: 7, reason: CancelReason::Canceled },
                answer,
            };
            let left = shared.answer_common(request, running, ending);
            let is_canceled = matches!(left, Some(JobRequest::Cancel(CancelOrder { grace_ms: 7, .. })));
            (is_canceled, client.try_recv().unwrap().is_ok())
        };
        assert_eq!(withdraw(Claim::Number(2), None), (false, false));
        assert_eq!(withdraw(Claim::Number(1), None), (true, true));
        let ending = outcome::never_ran(Status::Cancelled, Reason::Canceled, "it was canceled");
        assert_eq!(withdraw(Claim::Number(1), Some(&ending)), (false, false), "its ending stands");
    }
}
