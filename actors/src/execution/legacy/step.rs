//! The decisions on a stream of the legacy image. No I/O and no clock: time is a parameter.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::{
    activity::Activity,
    agent::SharedProgress,
    clock::Stopwatch,
    outcome::{CancelReport, Outcome, Reason, Status},
};

/// An event of the stream.
pub(super) enum LegacyEvent {
    /// Output arrived.
    Chunk(Bytes),
    /// The body has ended. awc reports a cut as a proper end; `is_complete` comes from below awc.
    Ended { is_complete: bool },
    /// Reading failed, with this message.
    Failed(String),
    /// An unfinished line has waited long enough.
    LineQuiet,
    /// The delivery was paused.
    Paused,
    /// The agent did not exit in time after its last event.
    ExitOverdue,
    /// The stall time-out has passed.
    StallOverdue,
}

/// The relay's next step.
#[derive(PartialEq, Debug)]
pub(super) enum LegacyStep {
    /// Release unfinished lines.
    FlushQuiet,
    /// Hand on output.
    Feed(Bytes),
    /// Hand on the rest, and report [`LegacyState::outcome`].
    Complete,
    /// Hand on the rest, and report this outcome.
    Stalled(Outcome),
}

/// The clocks of the stream. They run only while the relay waits for the backend, because the backend is not read while
/// the relay waits for the client.
pub(super) struct LegacyState {
    stall_timeout: Option<Duration>,
    silence: Stopwatch,
    progress: Option<SharedProgress>,
}

impl LegacyState {
    pub(super) fn new(stall_timeout: Option<Duration>, progress: Option<SharedProgress>, now: Instant) -> Self {
        LegacyState { stall_timeout, silence: Stopwatch::started(now), progress }
    }

    /// Runs the clocks, or stops them.
    pub(super) fn run_clocks(&mut self, runs: bool, now: Instant) {
        self.silence.run(runs, now);
        if let Some(progress) = &self.progress {
            progress.borrow_mut().run_clock(runs, now);
        }
    }

    /// When [`LegacyEvent::StallOverdue`] is due.
    pub(super) fn stall_due(&self) -> Option<Instant> {
        self.silence.due_at(self.stall_timeout?)
    }

    /// When [`LegacyEvent::ExitOverdue`] is due.
    pub(super) fn exit_due(&self) -> Option<Instant> {
        self.progress.as_ref()?.borrow().exit_due(None)
    }

    /// Takes an event. The error says how the stream broke off.
    pub(super) fn on(&mut self, event: LegacyEvent, now: Instant) -> Result<LegacyStep, String> {
        self.run_clocks(false, now);
        match event {
            LegacyEvent::Chunk(chunk) => {
                self.silence.reset(now);
                if let Some(progress) = &self.progress {
                    progress.borrow_mut().set_arrival(now);
                }
                Ok(LegacyStep::Feed(chunk))
            }
            LegacyEvent::LineQuiet | LegacyEvent::Paused => Ok(LegacyStep::FlushQuiet),
            // The agent has reported its result, and this stream may never end by itself.
            LegacyEvent::ExitOverdue | LegacyEvent::Ended { is_complete: true } => Ok(LegacyStep::Complete),
            LegacyEvent::Ended { is_complete: false } => Err("the backend's stream was cut off".to_owned()),
            LegacyEvent::Failed(error) => Err(format!("the backend's stream broke off: {error}")),
            LegacyEvent::StallOverdue => {
                let silent_ms = self.silence.elapsed(now).as_millis();
                let message = format!(
                    "nothing was written for {silent_ms} ms; this backend cannot report whether processes remain"
                );
                let cancel = Some(CancelReport::unknown(0));
                Ok(LegacyStep::Stalled(Outcome { cancel, ..Outcome::failed(Reason::Stalled, message) }))
            }
        }
    }

    /// The agent's activity, if it has changed since the last call.
    pub(super) fn changed_activity(&self) -> Option<Activity> {
        let mut progress = self.progress.as_ref()?.borrow_mut();
        progress.take_change().then(|| progress.activity())
    }

    /// The outcome of an execution whose stream ended properly: COMPLETED, unless its agent reported otherwise.
    pub(super) fn outcome(&self, now: Instant) -> Outcome {
        let mut outcome = Outcome::without_process(Status::Completed, Reason::Exit, None);
        if let Some(progress) = &self.progress {
            let mut progress = progress.borrow_mut();
            progress.finish(now);
            if let Some((status, reason, message)) = progress.verdict(true) {
                outcome = Outcome::without_process(status, reason, (!message.is_empty()).then_some(message));
            }
            outcome.result = progress.result().cloned().map(Box::new);
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agent::{Agent, ReaderOptions, claude::Claude},
        id::ExecutionId,
        output::{EventSink, EventStep},
        protocol::Framing,
    };

    struct NoClient;

    impl EventSink for NoClient {
        fn advance(&mut self, _: u64) {}
        fn text(&mut self, _: &[u8], _: u64) {}
        fn event(&mut self, _: ExecutionId, _: &str, _: u64) {}
    }

    #[test]
    fn each_event_has_its_step() {
        let start = Instant::now();
        let stalled = Outcome {
            cancel: Some(CancelReport::unknown(0)),
            ..Outcome::failed(
                Reason::Stalled,
                "nothing was written for 3000 ms; this backend cannot report whether processes remain",
            )
        };
        for (event, step) in [
            (LegacyEvent::Chunk(Bytes::from("x")), Ok(LegacyStep::Feed(Bytes::from("x")))),
            (LegacyEvent::LineQuiet, Ok(LegacyStep::FlushQuiet)),
            (LegacyEvent::Paused, Ok(LegacyStep::FlushQuiet)),
            (LegacyEvent::ExitOverdue, Ok(LegacyStep::Complete)),
            (LegacyEvent::Ended { is_complete: true }, Ok(LegacyStep::Complete)),
            (LegacyEvent::Ended { is_complete: false }, Err("the backend's stream was cut off".to_owned())),
            (LegacyEvent::Failed("x".to_owned()), Err("the backend's stream broke off: x".to_owned())),
            (LegacyEvent::StallOverdue, Ok(LegacyStep::Stalled(stalled))),
        ] {
            let mut state = LegacyState::new(None, None, start);
            assert_eq!(state.on(event, start + Duration::from_secs(3)), step);
        }
        let outcome = LegacyState::new(None, None, start).outcome(start);
        assert_eq!((outcome.status, outcome.reason), (Status::Completed, Reason::Exit));
    }

    #[test]
    fn only_the_time_in_which_the_backend_is_waited_for_counts_as_stalled() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut state = LegacyState::new(Some(Duration::from_secs(5)), None, start);
        assert_eq!(state.stall_due(), Some(at(5)));
        state.on(LegacyEvent::LineQuiet, at(2)).unwrap();
        assert_eq!(state.stall_due(), None, "output is handed on");
        state.run_clocks(true, at(10));
        assert_eq!(state.stall_due(), Some(at(13)));
        state.on(LegacyEvent::Chunk(Bytes::from("x")), at(11)).unwrap();
        state.run_clocks(true, at(20));
        assert_eq!(state.stall_due(), Some(at(25)), "output arrived");
    }

    #[test]
    fn an_agent_has_its_patience_to_exit_after_its_result() {
        const RESULT: &str = "{\"type\":\"result\",\"subtype\":\"success\",\"is_error\":false,\"result\":\"ok\"}\n";
        let start = Instant::now();
        let patience = Duration::from_secs(9);
        let options = ReaderOptions { framing: Framing::Chunk, start: 0, events_of: None };
        let (mut reader, progress) = Claude.reader_with_progress(options, patience, start);
        let mut state = LegacyState::new(None, Some(progress), start);
        assert_eq!(state.exit_due(), None);
        state.on(LegacyEvent::Chunk(Bytes::from(RESULT)), start).unwrap();
        reader.feed(RESULT.as_bytes());
        while reader.step(&mut NoClient) != EventStep::Dry {}
        state.run_clocks(true, start);
        assert_eq!(state.changed_activity(), Some(Activity { activity: None, turns: 0 }));
        assert_eq!(state.changed_activity(), None);
        assert_eq!(state.exit_due(), Some(start + patience));
        assert_eq!(state.on(LegacyEvent::ExitOverdue, start + patience), Ok(LegacyStep::Complete));
        let outcome = state.outcome(start + patience);
        assert_eq!((outcome.status, outcome.reason), (Status::Completed, Reason::Exit));
        assert!(outcome.result.is_some());
    }
}
