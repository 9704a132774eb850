//! One command, as its session sees it: an actor that owns the HTTP stream of one execution.
//!
//! It is a `temporary` child in OTP's sense: never restarted, since a command is not idempotent. Its
//! end is told exactly once, by a guard, whatever happens to the actor. It knows its parent only as
//! two recipients.
//!
//! The stream is read by a future, the pump, beside the mailbox: a cancellation is heard while the pump
//! waits for the client.

pub mod messages;
mod open;
mod pump;
pub mod text;

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, ResponseFuture, SpawnHandle, WrapFuture,
};
use log::{debug, info};
use serde_json::Value;

use self::{
    messages::{Cancel, Fact, Parent, Release, Report, SendSignal},
    open::{Refusal, Stream},
    pump::Clock,
};
use crate::{
    backend::{Backend, BackendError, api::Alive},
    id::{ExecutionId, SessionId},
    protocol::{
        method::Execute,
        rpc::{ErrorObject, code},
    },
    terminate::{CancelReason, CancelReport, Ending, Reason, Status},
};

/// How long a POST that was given up may take to be withdrawn at the backend.
const WITHDRAW_PATIENCE: Duration = Duration::from_secs(10);

/// One execution of one session.
pub struct Execution {
    id: ExecutionId,
    session: SessionId,
    execute: Box<Execute>,
    backend: Backend,
    state: State,
    notice: Notice,
    asked_at: Instant,
}

/// Where an execution stands. A handle exists only where there is something to stop.
enum State {
    /// The backend has not said a word.
    Starting(SpawnHandle),
    /// Our own backend streams; it says the last word itself.
    Ours,
    /// The original's image streams; time-outs and cancellation are done from here.
    Plain(Rc<Clock>),
    /// The POST was given up; what came of it is being asked.
    Withdrawing,
    /// The end has been told.
    Ended,
}

impl Execution {
    /// An execution that starts as soon as its actor does.
    pub fn new(id: ExecutionId, session: SessionId, execute: Box<Execute>, backend: Backend, parent: Parent) -> Self {
        Execution {
            id,
            session,
            execute,
            backend,
            state: State::Ended,
            notice: Notice { id, parent: Some(parent) },
            asked_at: Instant::now(),
        }
    }

    fn on_opened(&mut self, opened: Result<Stream, Refusal>, ctx: &mut Context<Self>) {
        match opened {
            Ok(stream) => {
                let Some(parent) = self.notice.parent.clone() else { return };
                info!(event = "execution.started", session_id:% = self.session, execution_id:% = self.id,
                    ms = millis(self.asked_at.elapsed()); "execution started");
                self.notice.tell(Fact::Started);
                self.state = match &stream {
                    Stream::Ours(_) => State::Ours,
                    Stream::Plain(..) => State::Plain(self.watch_original(ctx)),
                };
                let clock = match &self.state {
                    State::Plain(clock) => Rc::clone(clock),
                    _ => Rc::default(),
                };
                let pump = pump::run(stream, self.id, self.execute.framing, parent, clock);
                ctx.spawn(pump.into_actor(self).map(|ending, actor, ctx| actor.finish(ending, ctx)));
            }
            Err(Refusal::Ended(ending)) => self.finish(ending, ctx),
            Err(Refusal::Backend(BackendError::Refused(error))) => {
                info!(event = "execution.refused", session_id:% = self.session, execution_id:% = self.id,
                    code = error.code; "execution refused: {}", error.message);
                self.notice.refused(error);
                self.state = State::Ended;
                ctx.stop();
            }
            Err(Refusal::Backend(BackendError::Unreachable(message))) => {
                self.finish(Ending::failed(Reason::BackendUnreachable, message), ctx);
            }
            Err(Refusal::Backend(BackendError::Rejected(message))) => {
                self.finish(Ending::failed(Reason::BackendRejected, message), ctx);
            }
            Err(Refusal::Silent(message)) => {
                // Nobody knows whether it runs: it is withdrawn by its id. The client has waited long
                // enough and does not wait for that.
                let (backend, id) = (self.backend.clone(), self.id);
                actix_rt::spawn(async move { backend.cancel(id, 0, CancelReason::Canceled).await.map(drop) });
                let mut ending = Ending::failed(Reason::BackendUnreachable, message);
                ending.cancel = Some(unverified(0));
                self.finish(ending, ctx);
            }
        }
    }

    /// The original's image has no clock of its own: its time-out and its signs of life are made here.
    fn watch_original(&mut self, ctx: &mut Context<Self>) -> Rc<Clock> {
        let clock = Rc::<Clock>::default();
        if let Some(timeout_ms) = self.execute.run.timeout_ms {
            ctx.run_later(Duration::from_millis(timeout_ms), move |actor, ctx| {
                let message =
                    format!("the total time-out of {timeout_ms} ms passed; this backend cannot say what is left of it");
                let mut ending = Ending::failed(Reason::Timeout, message);
                ending.elapsed_ms = Some(timeout_ms);
                ending.cancel = Some(unverified(0));
                actor.finish(ending, ctx);
            });
        }
        let ticking = Rc::clone(&clock);
        ctx.run_interval(Duration::from_millis(self.execute.run.heartbeat_ms), move |actor, ctx| {
            let backend = actor.backend.clone();
            let clock = Rc::clone(&ticking);
            let asked = async move { backend.describe().await.is_ok() };
            ctx.spawn(asked.into_actor(actor).map(move |answered, actor, _| {
                if answered {
                    let (elapsed_ms, since_output_ms) = clock.read();
                    actor.notice.tell(Fact::Alive(Alive { elapsed_ms, since_output_ms }));
                }
            }));
        });
        clock
    }

    /// Gives up a POST without an answer, and makes sure that its execution does not run.
    fn withdraw(&mut self, ctx: &mut Context<Self>, mut ending: Ending, reason: CancelReason) {
        self.state = State::Withdrawing;
        let (backend, id) = (self.backend.clone(), self.id);
        let withdrawn = async move {
            let asked = async { Some(backend.cancel(id, 0, reason).await.map(|accepted| accepted.finished())) };
            match tokio::time::timeout(WITHDRAW_PATIENCE, asked).await.ok().flatten()? {
                Ok(finished) => report_of(&finished.await?),
                // The backend knows nothing of it, and will refuse its POST should that still come.
                Err(BackendError::Refused(error)) if error.code == code::UNKNOWN_EXECUTION => {
                    Some(CancelReport { verified: true, survivors: Some(0), grace_ms: 0, escalated: false })
                }
                Err(_) => None,
            }
        };
        ctx.spawn(withdrawn.into_actor(self).map(|report, actor, ctx| {
            ending.cancel = Some(report.unwrap_or_else(|| unverified(0)));
            actor.finish(ending, ctx);
        }));
    }

    fn finish(&mut self, ending: Ending, ctx: &mut Context<Self>) {
        info!(event = "execution.finished", session_id:% = self.session, execution_id:% = self.id,
            status = ending.status.as_str(), reason = ending.reason.as_str(), exit_code:serde = ending.exit_code,
            signal:serde = ending.signal, stdout_bytes:serde = ending.bytes.stdout, stderr_bytes:serde = ending.bytes.stderr,
            ms = millis(self.asked_at.elapsed()); "execution finished");
        self.notice.exited(ending);
        self.state = State::Ended;
        ctx.stop();
    }
}

impl Actor for Execution {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        debug!(event = "execution.command", session_id:% = self.session, execution_id:% = self.id,
            command = self.execute.run.command.as_str(), env:serde = self.execute.run.env; "execution asked for");
        let opened = open::open(self.backend.clone(), self.id, self.execute.run.clone());
        let post = ctx.spawn(opened.into_actor(self).map(|opened, actor, ctx| actor.on_opened(opened, ctx)));
        self.state = State::Starting(post);
    }
}

impl Handler<Cancel> for Execution {
    type Result = ResponseFuture<Result<Status, ErrorObject>>;

    fn handle(&mut self, cancel: Cancel, ctx: &mut Self::Context) -> Self::Result {
        info!(event = "cancel.requested", session_id:% = self.session, execution_id:% = self.id,
            grace_ms = cancel.grace_ms, reason = cancel.reason.as_str(); "cancel requested");
        let outcome = match &self.state {
            State::Starting(post) => {
                ctx.cancel_future(*post);
                let ending = Ending::without_process(
                    Status::Cancelled,
                    cancel.reason.into(),
                    "canceled before the backend had answered".to_owned(),
                );
                self.withdraw(ctx, ending, cancel.reason);
                Ok(Status::Cancelling)
            }
            State::Withdrawing => Ok(Status::Cancelling),
            State::Ended => Err(ended()),
            State::Plain(clock) => {
                let message = "canceled by dropping its stream; this backend cannot say what is left of it";
                let mut ending = Ending::without_process(Status::Cancelled, cancel.reason.into(), message.to_owned());
                ending.elapsed_ms = Some(clock.read().0);
                ending.cancel = Some(unverified(cancel.grace_ms));
                self.finish(ending, ctx);
                Ok(Status::Cancelled)
            }
            State::Ours => {
                let (backend, id) = (self.backend.clone(), self.id);
                return Box::pin(async move {
                    let accepted = backend.cancel(id, cancel.grace_ms, cancel.reason).await;
                    accepted.map(|_| Status::Cancelling).map_err(BackendError::into_error)
                });
            }
        };
        Box::pin(std::future::ready(outcome))
    }
}

impl Handler<SendSignal> for Execution {
    type Result = ResponseFuture<Result<Status, ErrorObject>>;

    fn handle(&mut self, SendSignal(signal): SendSignal, _: &mut Self::Context) -> Self::Result {
        let outcome = match self.state {
            State::Ours => {
                let (backend, id) = (self.backend.clone(), self.id);
                return Box::pin(async move {
                    backend.signal(id, signal).await.map(|()| Status::Running).map_err(BackendError::into_error)
                });
            }
            State::Plain(_) => Err(ErrorObject::new(
                code::NOT_ALLOWED,
                format!("this backend cannot send {}: it can only be canceled", signal.name()),
            )),
            State::Starting(_) | State::Withdrawing | State::Ended => Err(ended()),
        };
        Box::pin(std::future::ready(outcome))
    }
}

impl Handler<Release> for Execution {
    type Result = ();

    /// Stopping drops the stream. The backend then does what the execution asked for: it is ended.
    fn handle(&mut self, Release: Release, ctx: &mut Self::Context) {
        match &self.state {
            State::Ended => {}
            State::Starting(post) => {
                // The backend may have begun without a word: it must not run for nobody.
                ctx.cancel_future(*post);
                self.notice.parent = None;
                let ending = Ending::without_process(Status::Cancelled, Reason::Disconnected, None);
                self.withdraw(ctx, ending, CancelReason::Canceled);
            }
            State::Withdrawing => self.notice.parent = None,
            State::Ours | State::Plain(_) => {
                info!(event = "execution.finished", session_id:% = self.session, execution_id:% = self.id,
                    status = Status::Cancelled.as_str(), reason = Reason::Disconnected.as_str(),
                    ms = millis(self.asked_at.elapsed()); "execution left to its backend: the client is gone");
                self.notice.parent = None;
                ctx.stop();
            }
        }
    }
}

/// Tells the parent how it ended, exactly once: by the normal path, or when the actor is dropped.
struct Notice {
    id: ExecutionId,
    parent: Option<Parent>,
}

impl Notice {
    fn tell(&self, fact: Fact) {
        if let Some(parent) = &self.parent {
            parent.reports.do_send(Report { execution_id: self.id, fact });
        }
    }

    fn exited(&mut self, ending: Ending) {
        self.tell(Fact::Exited(ending));
        self.parent = None;
    }

    fn refused(&mut self, error: ErrorObject) {
        self.tell(Fact::Refused(error));
        self.parent = None;
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        let message = "the service lost track of this execution through a fault of its own; its backend ends it";
        self.exited(Ending::failed(Reason::BackendLost, message));
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
    CancelReport { verified: false, survivors: None, grace_ms, escalated: false }
}

fn report_of(answer: &Value) -> Option<CancelReport> {
    serde_json::from_value(answer.clone()).ok()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
