//! One command, as its session sees it: an actor that owns the HTTP stream of one execution.
//!
//! It is a `temporary` child in OTP's sense: never restarted, since a command is not idempotent. Its
//! end is told exactly once, by a guard, whatever happens to the actor. It knows its parent only as
//! two recipients.
//!
//! The stream is read by a future, the pump, beside the mailbox: a cancellation is heard while the pump
//! waits for the client.

mod connect;
mod control;
mod legacy;
pub mod messages;
mod relay;

use std::{
    collections::VecDeque,
    rc::Rc,
    time::{Duration, Instant},
};

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, ResponseFuture, SpawnHandle, WrapFuture,
};
use log::{debug, info};
use tokio::sync::oneshot;

use self::{
    connect::{BackendStream, ConnectError},
    control::{Acknowledger, PendingInput},
    legacy::LegacyClocks,
    messages::{ControlAnswer, ExecutionEvent, ExecutionPurpose, ExecutionReport, Parent, Release, StreamStart},
    relay::{RelayConfig, RelayEnd},
};
use crate::{
    agent::{self, Agent},
    backend_client::{BackendClient, BackendError, HoldIdentity, WithdrawResult},
    clock::millis,
    id::{ExecutionId, SessionId},
    outcome::{CancelReason, CancelReport, Outcome, Reason, Status},
    protocol::{
        DEFAULT_HEARTBEAT_MS,
        control::{ControlReply, ControlRequest},
    },
    rpc::{ErrorObject, code},
    stream::PerStream,
};

/// How long the backend may take to say its first word.
const FIRST_WORD_PATIENCE: Duration = Duration::from_secs(10);

/// How long it may take to learn how an execution ended that was canceled before that word.
const WITHDRAW_PATIENCE: Duration = Duration::from_secs(10);

/// How long that may take where the client has waited for the first word in vain.
const GIVE_UP_PATIENCE: Duration = Duration::from_secs(1);

/// How long an answer that is under way when the execution ends may take to come.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// Heartbeats of the legacy image that may be missed before it is given up.
const MISSED_HEARTBEATS: u32 = 6;

/// One execution of one session.
pub struct Execution {
    id: ExecutionId,
    session: SessionId,
    purpose: ExecutionPurpose,
    backend: BackendClient,
    /// In whose name the backend is asked for it.
    holder: Rc<HoldIdentity>,
    state: ExecutionState,
    notice: ExitNotice,
    asked_at: Instant,
    /// Whether it goes on in its backend without a client, as far as that is known.
    may_detach: bool,
    /// The agent whose events its standard output is.
    agent: Option<&'static dyn Agent>,
    fed: VecDeque<PendingInput>,
    acknowledging: Acknowledger,
    /// Why it was given up here without anybody having asked for that.
    given_up: Option<String>,
    /// What was asked for last, should the backend not have heard it.
    canceled: Option<Cancellation>,
}

/// A cancellation that was asked for.
#[derive(Clone, Copy)]
struct Cancellation {
    /// Milliseconds between TERM and KILL.
    grace_ms: u64,
    /// What the ending will say.
    reason: CancelReason,
}

/// Where an execution stands. A handle exists only where there is something to stop.
enum ExecutionState {
    /// No event of the backend has arrived yet.
    Starting(SpawnHandle),
    /// Our own backend streams; it says the last word itself.
    Native,
    /// The legacy image streams; time-outs and cancellation are done from here.
    Legacy(Rc<LegacyClocks>, Option<SpawnHandle>),
    /// The backend was asked to end it before it had said a word.
    Withdrawing(Box<Withdrawal>),
    /// The end has been told.
    Ended,
}

/// An execution that is being ended before the backend has said a word about it. Nothing is dropped
/// before the backend has decided, because a command whose request is dropped is ended as disconnected.
struct Withdrawal {
    /// The request, while its stream may still begin. That stream has the true ending.
    post: Option<SpawnHandle>,
    /// What the backend said to the withdrawal; the error is that it did not say anything.
    answer: Option<Result<WithdrawResult, BackendError>>,
    cancel: Cancellation,
    /// What is told where nothing becomes known.
    unknown: Outcome,
}

impl Execution {
    /// An execution that starts as soon as its actor does.
    pub fn new(
        id: ExecutionId,
        session: SessionId,
        purpose: ExecutionPurpose,
        backend: BackendClient,
        parent: Parent,
    ) -> Self {
        Execution {
            id,
            session,
            may_detach: matches!(&purpose, ExecutionPurpose::Run(execute) if execute.run.detach.is_some()),
            purpose,
            backend,
            holder: Rc::default(),
            state: ExecutionState::Ended,
            notice: ExitNotice { id, parent: Some(parent) },
            asked_at: Instant::now(),
            agent: None,
            fed: VecDeque::new(),
            acknowledging: Acknowledger::default(),
            given_up: None,
            canceled: None,
        }
    }

    /// What was asked for, as far as it is known here.
    fn run_heartbeat(&self) -> Option<u64> {
        match &self.purpose {
            ExecutionPurpose::Run(execute) => Some(execute.run.heartbeat_ms()),
            ExecutionPurpose::Follow(_) => None,
        }
    }

    fn on_opened(&mut self, opened: Result<(BackendStream, StreamStart), ConnectError>, ctx: &mut Context<Self>) {
        match (&mut self.state, opened) {
            (ExecutionState::Starting(_), opened) => self.on_first_word(opened, ctx),
            (ExecutionState::Withdrawing(withdrawal), opened) => {
                withdrawal.post = None;
                self.on_late_word(opened, ctx);
            }
            (ExecutionState::Native | ExecutionState::Legacy(..) | ExecutionState::Ended, _) => {}
        }
    }

    fn on_first_word(&mut self, opened: Result<(BackendStream, StreamStart), ConnectError>, ctx: &mut Context<Self>) {
        match opened {
            Ok((stream, standing)) => self.on_stream(stream, standing, ctx),
            Err(ConnectError::Backend(BackendError::Refused(error))) => self.refuse(error, ctx),
            // Nothing is known of it but that it cannot be followed from here.
            Err(ConnectError::Backend(error)) if matches!(self.purpose, ExecutionPurpose::Follow(_)) => {
                self.refuse(error.into_error(), ctx);
            }
            Err(ConnectError::Silent(message) | ConnectError::Lost(message))
                if matches!(self.purpose, ExecutionPurpose::Follow(_)) =>
            {
                self.refuse(ErrorObject::new(code::BACKEND, message), ctx);
            }
            Err(ConnectError::Backend(BackendError::Restarted(message))) => {
                self.finish(Outcome::failed(Reason::BackendLost, message), ctx);
            }
            Err(ConnectError::Backend(BackendError::Unsure(message)) | ConnectError::Silent(message)) => {
                self.give_up(message, None, ctx);
            }
            Err(ConnectError::Ended(ending)) => self.finish(ending, ctx),
            Err(ConnectError::TakenOver) => self.on_last(RelayEnd::TakenOver, ctx),
            Err(ConnectError::Lost(message)) if self.may_detach => self.look_again(message, ctx),
            Err(ConnectError::Lost(message)) => self.finish(Outcome::failed(Reason::BackendLost, message), ctx),
            Err(ConnectError::Backend(BackendError::Unreachable(message))) => {
                self.finish(Outcome::failed(Reason::BackendUnreachable, message), ctx);
            }
            Err(ConnectError::Backend(error)) => {
                self.finish(Outcome::failed(Reason::BackendRejected, error.to_string()), ctx);
            }
        }
    }

    /// Nobody knows whether it runs: it is withdrawn, and what the backend says of it is told. The client
    /// has waited long enough and does not wait long for that.
    fn give_up(&mut self, message: String, post: Option<SpawnHandle>, ctx: &mut Context<Self>) {
        let unknown = Outcome::failed(Reason::BackendUnreachable, message.clone());
        self.given_up = Some(message);
        let cancel = Cancellation { grace_ms: 0, reason: CancelReason::Canceled };
        self.withdraw(Withdrawal { post, answer: None, cancel, unknown }, GIVE_UP_PATIENCE, false, ctx);
    }

    /// Has the backend end an execution of which it has not said a word. What it then says of it is told:
    /// on the stream, should that begin after all, or by the id.
    fn withdraw(&mut self, withdrawal: Withdrawal, patience: Duration, for_client: bool, ctx: &mut Context<Self>) {
        let (backend, id, holder) = (self.backend.clone(), self.id, Rc::clone(&self.holder));
        let Cancellation { grace_ms, reason } = withdrawal.cancel;
        self.state = ExecutionState::Withdrawing(Box::new(withdrawal));
        let (answer, answered) = oneshot::channel();
        // It goes on where this actor does not wait for it any longer.
        actix_rt::spawn(async move {
            let _ = answer.send(backend.withdraw(id, grace_ms, reason, &holder, for_client).await);
        });
        ctx.spawn(answered.into_actor(self).map(|answer, actor, ctx| {
            if let Ok(answer) = answer {
                actor.on_withdrawn(answer, ctx);
            }
        }));
        ctx.run_later(patience, |actor, ctx| {
            let ExecutionState::Withdrawing(withdrawal) = &mut actor.state else { return };
            if let Some(post) = withdrawal.post.take().filter(|_| withdrawal.answer.is_some()) {
                ctx.cancel_future(post);
                return actor.settle(ctx);
            }
            let ending = withdrawal.unknown(unverified(withdrawal.cancel.grace_ms));
            actor.finish(ending, ctx);
        });
    }

    fn on_withdrawn(&mut self, answer: Result<WithdrawResult, BackendError>, ctx: &mut Context<Self>) {
        match (&mut self.state, answer) {
            (ExecutionState::Withdrawing(withdrawal), Ok(WithdrawResult::NeverRan))
                if matches!(self.purpose, ExecutionPurpose::Run(_)) =>
            {
                let ending = withdrawal.unknown(CancelReport::never_ran(withdrawal.cancel.grace_ms));
                self.finish(ending, ctx);
            }
            // There is nothing to wait for: this kind is canceled by dropping its request.
            (ExecutionState::Withdrawing(withdrawal), Err(_)) if !self.backend.knows_ids() => {
                let ending = withdrawal.unknown(unverified(withdrawal.cancel.grace_ms));
                self.finish(ending, ctx);
            }
            (ExecutionState::Withdrawing(withdrawal), answer) => {
                withdrawal.answer = Some(answer);
                self.settle(ctx);
            }
            // The stream has begun meanwhile, and this did not reach its backend.
            (ExecutionState::Native, Err(_)) => self.cancel_again(ctx),
            (
                ExecutionState::Starting(_)
                | ExecutionState::Native
                | ExecutionState::Legacy(..)
                | ExecutionState::Ended,
                _,
            ) => {}
        }
    }

    /// The stream of an execution that is being withdrawn has begun, or never will.
    fn on_late_word(&mut self, opened: Result<(BackendStream, StreamStart), ConnectError>, ctx: &mut Context<Self>) {
        let ExecutionState::Withdrawing(withdrawal) = &self.state else { return };
        match opened {
            Ok((stream @ BackendStream::Native(_), standing)) => {
                let is_unheard = matches!(withdrawal.answer, Some(Err(_)));
                self.on_stream(stream, standing, ctx);
                if is_unheard {
                    self.cancel_again(ctx);
                }
            }
            // Dropping its stream is all that can be done.
            Ok((BackendStream::Legacy(..), _)) => {
                let ending = withdrawal.unknown(unverified(withdrawal.cancel.grace_ms));
                self.finish(ending, ctx);
            }
            Err(ConnectError::Ended(ending)) => self.finish(ending, ctx),
            Err(ConnectError::TakenOver) => self.on_last(RelayEnd::TakenOver, ctx),
            // The withdrawal came first.
            Err(ConnectError::Backend(BackendError::Refused(error)))
                if error.code == code::NOT_RUNNING && matches!(self.purpose, ExecutionPurpose::Run(_)) =>
            {
                let ending = withdrawal.unknown(CancelReport::never_ran(withdrawal.cancel.grace_ms));
                self.finish(ending, ctx);
            }
            Err(ConnectError::Backend(BackendError::Refused(error))) => self.refuse(error, ctx),
            Err(ConnectError::Backend(BackendError::Restarted(message))) => {
                self.finish(Outcome::failed(Reason::BackendLost, message), ctx);
            }
            Err(_) => self.settle(ctx),
        }
    }

    /// The request's stream will not begin, and the backend has said what it makes of the withdrawal: so the
    /// execution is followed by its id, for what it wrote and for its ending.
    fn settle(&mut self, ctx: &mut Context<Self>) {
        let ExecutionState::Withdrawing(withdrawal) = &mut self.state else { return };
        if withdrawal.post.is_some() {
            return;
        }
        let Some(answer) = withdrawal.answer.take() else { return };
        let unknown = withdrawal.unknown(unverified(withdrawal.cancel.grace_ms));
        match answer {
            Ok(WithdrawResult::TakenOver) => return self.on_last(RelayEnd::TakenOver, ctx),
            Ok(WithdrawResult::NeverRan) | Err(_) => return self.finish(unknown, ctx),
            Ok(WithdrawResult::Ended | WithdrawResult::Accepted) => {}
        }
        let (backend, id, holder) = (self.backend.clone(), self.id, Rc::clone(&self.holder));
        let found = async move { connect::again(&backend, id, PerStream::default(), &holder).await };
        ctx.spawn(found.into_actor(self).map(|found, actor, ctx| {
            if !matches!(actor.state, ExecutionState::Withdrawing(_)) {
                return;
            }
            match found {
                Ok((words, standing)) => actor.on_stream(BackendStream::Native(words), standing, ctx),
                Err(ConnectError::Ended(ending)) => actor.finish(ending, ctx),
                Err(ConnectError::TakenOver) => actor.on_last(RelayEnd::TakenOver, ctx),
                Err(_) => actor.finish(unknown, ctx),
            }
        }));
    }

    /// Asks for what was asked for already and was not heard.
    fn cancel_again(&mut self, ctx: &mut Context<Self>) {
        // It goes on here, or is ended because somebody asked for that.
        self.given_up = None;
        let Some(Cancellation { grace_ms, reason }) = self.canceled else { return };
        let (backend, id) = (self.backend.clone(), self.id);
        let asked = async move { backend.control(id, ControlRequest::Cancel { grace_ms, reason }).await };
        // One that fails is on a backend that is lost, which its stream shows.
        ctx.spawn(asked.into_actor(self).map(|_, _, _| ()));
    }

    /// Has it ended. Answered when its backend has accepted that.
    fn cancel(&mut self, cancel: Cancellation, ctx: &mut Context<Self>) -> ResponseFuture<ControlAnswer> {
        info!(event = "cancel.requested", session_id:% = self.session, execution_id:% = self.id,
            grace_ms = cancel.grace_ms, reason = cancel.reason.as_str(); "cancel requested");
        self.canceled = Some(cancel);
        self.given_up = None;
        let outcome = match &self.state {
            ExecutionState::Starting(post) => {
                let unknown = Outcome::without_process(
                    Status::Cancelled,
                    cancel.reason.into(),
                    "canceled before the backend had answered".to_owned(),
                );
                // A client's CANCEL applies whichever consumer holds the execution. A drain cancels only executions that
                // this gateway holds.
                let for_client = cancel.reason == CancelReason::Canceled;
                let withdrawal = Withdrawal { post: Some(*post), answer: None, cancel, unknown };
                self.withdraw(withdrawal, WITHDRAW_PATIENCE, for_client, ctx);
                Ok(Status::Cancelling)
            }
            ExecutionState::Withdrawing(_) => {
                // A shorter grace takes effect.
                self.cancel_again(ctx);
                Ok(Status::Cancelling)
            }
            ExecutionState::Ended => Err(ended()),
            ExecutionState::Legacy(legacy, _) => {
                let message = "canceled by dropping its stream; this backend cannot say what is left of it";
                let mut ending = Outcome::without_process(Status::Cancelled, cancel.reason.into(), message.to_owned());
                ending.elapsed_ms = Some(legacy.alive(Instant::now()).elapsed_ms);
                ending.cancel = Some(unverified(cancel.grace_ms));
                self.finish(ending, ctx);
                Ok(Status::Cancelled)
            }
            ExecutionState::Native => {
                let (backend, id) = (self.backend.clone(), self.id);
                return Box::pin(async move {
                    let Cancellation { grace_ms, reason } = cancel;
                    let request = ControlRequest::Cancel { grace_ms, reason };
                    backend.control(id, request).await.map_err(BackendError::into_error)
                });
            }
        };
        control::answered(outcome.map(ControlReply::Status))
    }

    fn on_stream(&mut self, stream: BackendStream, standing: StreamStart, ctx: &mut Context<Self>) {
        // Whoever wanted it is gone: its stream is dropped, which its backend notices.
        let Some(parent) = self.notice.parent.clone() else { return self.stop(ctx) };
        info!(event = "execution.started", session_id:% = self.session, execution_id:% = self.id,
            status = standing.status.as_str(), attached = matches!(self.purpose, ExecutionPurpose::Follow(_)),
            ms = millis(self.asked_at.elapsed()); "execution started");
        let heartbeat = self.run_heartbeat().or(standing.terms.heartbeat_ms).unwrap_or(DEFAULT_HEARTBEAT_MS);
        let (framing, offsets, events) = match &self.purpose {
            ExecutionPurpose::Run(execute) => (execute.framing, PerStream::default(), execute.events),
            ExecutionPurpose::Follow(attach) => (attach.framing, attach.offsets, attach.events),
        };
        self.may_detach |= standing.terms.may_detach;
        self.agent = standing.terms.agent().and_then(agent::named);
        let wiring = RelayConfig {
            id: self.id,
            backend: self.backend.clone(),
            holder: Rc::clone(&self.holder),
            has_id: matches!(stream, BackendStream::Native(_)),
            parent,
            framing,
            agent: self.agent,
            events,
            offsets,
            heartbeat: Duration::from_millis(heartbeat),
            may_detach: self.may_detach,
        };
        self.notice.tell(ExecutionEvent::Held(standing));
        match stream {
            BackendStream::Native(words) => {
                self.state = ExecutionState::Native;
                ctx.spawn(relay::ours(words, wiring).into_actor(self).map(|last, actor, ctx| actor.on_last(last, ctx)));
            }
            BackendStream::Legacy(body, end) => {
                let (legacy, stall) = self.start_legacy_clocks(ctx);
                let pump = relay::plain(body, end, wiring, Rc::clone(&legacy), stall);
                ctx.spawn(pump.into_actor(self).map(move |mut ending, actor, ctx| {
                    ending.elapsed_ms = Some(legacy.alive(Instant::now()).elapsed_ms);
                    if ending.reason == Reason::Stalled {
                        ending.cancel = Some(unverified(0));
                    }
                    actor.finish(ending, ctx);
                }));
            }
        }
    }

    /// The stream ended before its first word. It may run on all the same.
    fn look_again(&mut self, why: String, ctx: &mut Context<Self>) {
        let (backend, id, holder) = (self.backend.clone(), self.id, Rc::clone(&self.holder));
        let found = async move { connect::again(&backend, id, PerStream::default(), &holder).await };
        let looking = ctx.spawn(found.into_actor(self).map(move |found, actor, ctx| {
            let lost = |why: String| ConnectError::Backend(BackendError::Restarted(why));
            let found = match found {
                Ok((words, standing)) => Ok((BackendStream::Native(words), standing)),
                Err(refusal @ (ConnectError::Ended(_) | ConnectError::TakenOver)) => Err(refusal),
                Err(_) => Err(lost(format!("{why}; it may still run: attach to it later"))),
            };
            actor.on_opened(found, ctx);
        }));
        self.state = ExecutionState::Starting(looking);
    }

    fn on_last(&mut self, last: RelayEnd, ctx: &mut Context<Self>) {
        match last {
            RelayEnd::Ended(ending) => self.finish(ending, ctx),
            RelayEnd::TakenOver => {
                info!(event = "execution.taken_over", session_id:% = self.session, execution_id:% = self.id,
                    ms = millis(self.asked_at.elapsed()); "another consumer has taken the execution over");
                self.notice.taken_over();
                self.stop(ctx);
            }
        }
    }

    /// The legacy image has no clock of its own: its time-outs and its signs of life are made here.
    fn start_legacy_clocks(&mut self, ctx: &mut Context<Self>) -> (Rc<LegacyClocks>, Option<Duration>) {
        let (timeout_ms, stall_timeout_ms, heartbeat_ms) = match &self.purpose {
            ExecutionPurpose::Run(execute) => {
                (execute.run.timeout_ms, execute.run.stall_timeout_ms, execute.run.heartbeat_ms())
            }
            ExecutionPurpose::Follow(_) => (None, None, DEFAULT_HEARTBEAT_MS),
        };
        let legacy = Rc::new(LegacyClocks::started(Instant::now(), timeout_ms));
        self.state = ExecutionState::Legacy(Rc::clone(&legacy), None);
        self.arm_timeout(ctx);
        let heartbeat = Duration::from_millis(heartbeat_ms);
        let ticking = Rc::clone(&legacy);
        ctx.run_interval(heartbeat, move |actor, ctx| {
            if ticking.unheard(Instant::now()) > heartbeat * MISSED_HEARTBEATS {
                let waited = (heartbeat * MISSED_HEARTBEATS).as_secs();
                let message = format!("the backend gave no sign of life for {waited} s");
                return actor.finish(Outcome::failed(Reason::BackendLost, message), ctx);
            }
            let backend = actor.backend.clone();
            let legacy = Rc::clone(&ticking);
            let asked = async move { backend.answers().await };
            ctx.spawn(asked.into_actor(actor).map(move |answered, actor, _| {
                if answered {
                    legacy.record_life(Instant::now());
                    actor.notice.tell(ExecutionEvent::Alive(legacy.alive(Instant::now())));
                }
            }));
        });
        (legacy, stall_timeout_ms.map(Duration::from_millis))
    }

    /// Sets the total time-out of the legacy image, or takes it back while it stands still.
    fn arm_timeout(&mut self, ctx: &mut Context<Self>) {
        let ExecutionState::Legacy(legacy, armed) = &mut self.state else { return };
        if let Some(armed) = armed.take() {
            ctx.cancel_future(armed);
        }
        *armed = legacy.time_left(Instant::now()).map(|left| {
            ctx.run_later(left, |actor, ctx| {
                let ExecutionState::Legacy(legacy, _) = &actor.state else { return };
                let message = "the total time-out passed; this backend cannot say what is left of it";
                let mut ending = Outcome::failed(Reason::Timeout, message);
                ending.elapsed_ms = Some(legacy.alive(Instant::now()).elapsed_ms);
                ending.cancel = Some(unverified(0));
                actor.finish(ending, ctx);
            })
        });
    }

    fn log_released(&self) {
        let ms = millis(self.asked_at.elapsed());
        if self.may_detach {
            info!(event = "execution.released", session_id:% = self.session, execution_id:% = self.id, ms = ms;
                "execution left to its backend, where it goes on: the client is gone");
        } else {
            info!(event = "execution.finished", session_id:% = self.session, execution_id:% = self.id,
                status = Status::Cancelled.as_str(), reason = Reason::Disconnected.as_str(), ms = ms;
                "execution left to its backend, which ends it: the client is gone");
        }
    }

    fn refuse(&mut self, error: ErrorObject, ctx: &mut Context<Self>) {
        info!(event = "execution.refused", session_id:% = self.session, execution_id:% = self.id,
            code = error.code; "execution refused: {}", error.message);
        self.notice.refused(error);
        self.stop(ctx);
    }

    fn finish(&mut self, mut ending: Outcome, ctx: &mut Context<Self>) {
        if self.agent.is_some() {
            // It is of the events, which the client does not have.
            ending.sha256.stdout = None;
        }
        if let Some(message) = self.given_up.take().filter(|_| ending.reason == Reason::Canceled) {
            // Nobody but this gateway canceled it, and this is why.
            ending.status = Status::Failed;
            ending.reason = Reason::BackendUnreachable;
            ending.message = Some(message);
        }
        info!(event = "execution.finished", session_id:% = self.session, execution_id:% = self.id,
            status = ending.status.as_str(), reason = ending.reason.as_str(), exit_code:serde = ending.exit_code,
            signal:serde = ending.signal, stdout_bytes:serde = ending.bytes.stdout, stderr_bytes:serde = ending.bytes.stderr,
            ms = millis(self.asked_at.elapsed()); "execution finished");
        self.notice.exited(ending);
        self.stop(ctx);
    }

    /// It is over. Input that the command has read may have its answer under way, on a connection of its
    /// own: that is waited for, and the end is not said before.
    fn stop(&mut self, ctx: &mut Context<Self>) {
        self.state = ExecutionState::Ended;
        if self.fed.is_empty() {
            ctx.stop();
        } else {
            ctx.run_later(ANSWER_PATIENCE, |_, ctx| ctx.stop());
        }
    }
}

impl Actor for Execution {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if let ExecutionPurpose::Run(execute) = &self.purpose {
            debug!(event = "execution.command", session_id:% = self.session, execution_id:% = self.id,
                command = execute.run.command.as_str(), env:serde = execute.run.env.keys().collect::<Vec<_>>();
                "execution asked for");
        }
        let (backend, id, purpose) = (self.backend.clone(), self.id, self.purpose.clone());
        let holder = Rc::clone(&self.holder);
        let opened = async move { connect::open(&backend, id, &purpose, &holder).await };
        let post = ctx.spawn(opened.into_actor(self).map(|opened, actor, ctx| actor.on_opened(opened, ctx)));
        self.state = ExecutionState::Starting(post);
        ctx.run_later(FIRST_WORD_PATIENCE, |actor, ctx| {
            let ExecutionState::Starting(post) = actor.state else { return };
            let message =
                format!("the backend accepted the connection and said nothing for {} s", FIRST_WORD_PATIENCE.as_secs());
            if matches!(actor.purpose, ExecutionPurpose::Follow(_)) {
                actor.refuse(ErrorObject::new(code::BACKEND, message), ctx);
            } else {
                actor.give_up(message, Some(post), ctx);
            }
        });
    }
}

impl Handler<Release> for Execution {
    type Result = ();

    /// Stopping drops the stream. The backend then does what the execution asked for: it is ended, or
    /// goes on without a consumer.
    fn handle(&mut self, Release: Release, ctx: &mut Self::Context) {
        let runs_for_nobody = !self.may_detach && matches!(self.purpose, ExecutionPurpose::Run(_));
        match &self.state {
            ExecutionState::Ended => {}
            ExecutionState::Starting(post) if runs_for_nobody => {
                // The backend may have begun without a word: it must not run for nobody.
                ctx.cancel_future(*post);
                self.notice.parent = None;
                let unknown = Outcome::without_process(Status::Cancelled, Reason::Disconnected, None);
                let cancel = Cancellation { grace_ms: 0, reason: CancelReason::Canceled };
                let withdrawal = Withdrawal { post: None, answer: None, cancel, unknown };
                self.withdraw(withdrawal, WITHDRAW_PATIENCE, false, ctx);
            }
            ExecutionState::Withdrawing(_) => self.notice.parent = None,
            ExecutionState::Starting(_) | ExecutionState::Native | ExecutionState::Legacy(..) => {
                self.log_released();
                self.notice.parent = None;
                ctx.stop();
            }
        }
    }
}

/// Tells the parent how it ended, exactly once: by the normal path, or when the actor is dropped.
struct ExitNotice {
    id: ExecutionId,
    parent: Option<Parent>,
}

impl ExitNotice {
    fn tell(&self, fact: ExecutionEvent) {
        if let Some(parent) = &self.parent {
            parent.reports.do_send(ExecutionReport { execution_id: self.id, fact });
        }
    }

    fn exited(&mut self, ending: Outcome) {
        self.tell(ExecutionEvent::Exited(ending));
        self.parent = None;
    }

    fn taken_over(&mut self) {
        self.tell(ExecutionEvent::TakenOver);
        self.parent = None;
    }

    fn refused(&mut self, error: ErrorObject) {
        self.tell(ExecutionEvent::Refused(error));
        self.parent = None;
    }
}

impl Drop for ExitNotice {
    fn drop(&mut self) {
        let message = "the service lost track of this execution through a fault of its own; its backend ends it";
        self.exited(Outcome::failed(Reason::BackendLost, message));
    }
}

impl From<CancelReason> for Reason {
    fn from(reason: CancelReason) -> Reason {
        match reason {
            CancelReason::Canceled => Reason::Canceled,
            CancelReason::Drained => Reason::Drained,
        }
    }
}

fn ended() -> ErrorObject {
    ErrorObject::new(code::NOT_RUNNING, "it has ended already, or has not started yet")
}

fn unverified(grace_ms: u64) -> CancelReport {
    CancelReport::unknown(grace_ms)
}

impl Withdrawal {
    /// What is told where the backend has not said how it ended.
    fn unknown(&self, report: CancelReport) -> Outcome {
        let mut ending = self.unknown.clone();
        ending.cancel = Some(report);
        ending
    }
}
