//! The clocks of a job: its time-outs, the time of its leftovers, its heartbeat, and the time without a consumer. Each
//! clock stands still while its time does not count.
//!
//! Pure: time is a parameter. [`JobClocks::due`] returns the next deadlines.

use std::time::{Duration, Instant};

use cc_executor_actors::{
    clock::{Stopwatch, millis},
    protocol::{DEFAULT_GRACE_MS, execute::ExecutionSpec},
};

use super::life::{EndCause, Life, LifeEvent};

/// The grace when the service itself ends an execution, in milliseconds.
pub(super) const GRACE_MS: u64 = DEFAULT_GRACE_MS;

/// How long after the start a command that has not been executed is reported as queued: longer than it takes to wake a
/// stopped shim, and less than a gateway waits for the first message.
const START_PATIENCE: Duration = Duration::from_secs(2);

/// How long leftovers may be quiet, after the command's own exit, before they are ended.
const QUIET: Duration = Duration::from_secs(2);

/// How long leftovers may write at all after the command's own exit.
const LEFTOVERS_CAP: Duration = Duration::from_secs(10);

/// How much time a job has.
#[derive(Clone, Copy, Debug)]
pub struct JobLimits {
    /// The longest time since its start, without pauses.
    pub timeout: Option<Duration>,
    /// The longest time without output.
    pub stall: Option<Duration>,
    /// The time between two heartbeats.
    pub heartbeat: Duration,
}

impl JobLimits {
    /// The limits that a request asks for.
    pub fn of(spec: &ExecutionSpec) -> JobLimits {
        JobLimits {
            timeout: spec.timeout_ms.map(Duration::from_millis),
            stall: spec.stall_timeout_ms.map(Duration::from_millis),
            heartbeat: Duration::from_millis(spec.heartbeat_ms()),
        }
    }
}

/// The clocks of a command that was started.
#[derive(Debug)]
pub(super) struct JobClocks {
    limits: JobLimits,
    started_at: Instant,
    output_at: Instant,
    heartbeat_at: Instant,
    start_report_at: Instant,
    /// Stands still while paused.
    total: Stopwatch,
    /// Since the last output; stands still while paused, and while reading is held back.
    quiet: Stopwatch,
    /// Since the command's own exit; stands still while reading is held back.
    leftovers: Stopwatch,
}

/// Deadlines that [`JobClocks`] does not keep itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OtherDeadlines {
    /// When the job has been without a consumer for too long.
    pub(super) detached_until: Option<Instant>,
    /// Whether the start was not reported to the consumer yet.
    pub(super) start_is_unreported: bool,
    /// When an agent must exit.
    pub(super) agent_exit: AgentExit,
}

/// When an agent must exit, as its events show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AgentExit {
    /// The agent works, or the command is not an agent.
    NotExpected,
    /// It has reported its result, so its time-outs are over, and it must exit by this time. `None` while that clock
    /// stands still.
    ExpectedBy(Option<Instant>),
}

/// The event of a deadline that has passed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum ClockEvent {
    /// An event in the life of the processes.
    Life(LifeEvent),
    /// The command has not been executed for so long that it is reported as queued.
    StartReport,
    /// A heartbeat.
    Heartbeat,
}

/// The next deadlines.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct NextDeadlines {
    /// A deadline that a busy pipe must not delay.
    pub(super) urgent: (Instant, ClockEvent),
    /// A deadline that applies only if there is no output to read.
    pub(super) when_quiet: Option<(Instant, LifeEvent)>,
}

impl JobClocks {
    pub(super) fn started(limits: JobLimits, now: Instant) -> Self {
        JobClocks {
            limits,
            started_at: now,
            output_at: now,
            heartbeat_at: now + limits.heartbeat,
            start_report_at: now + START_PATIENCE,
            total: Stopwatch::started(now),
            quiet: Stopwatch::started(now),
            leftovers: Stopwatch::started(now),
        }
    }

    /// The command was executed. The clock of the total time-out is not restarted, because the shim may report this
    /// late.
    pub(super) fn record_execution(&mut self, now: Instant) {
        (self.started_at, self.output_at) = (now, now);
        (self.quiet, self.leftovers) = (Stopwatch::started(now), Stopwatch::started(now));
    }

    /// The command wrote something.
    pub(super) fn record_output(&mut self, now: Instant) {
        self.output_at = now;
        self.quiet.reset(now);
    }

    /// The command itself has exited, so the time of its leftovers begins.
    pub(super) fn record_exit(&mut self, now: Instant) {
        self.quiet.reset(now);
        self.leftovers.reset(now);
    }

    /// A heartbeat is sent.
    pub(super) fn record_heartbeat(&mut self, now: Instant) {
        self.heartbeat_at = now + self.limits.heartbeat;
    }

    /// Lets each clock run exactly while its time counts. Reading is held back while a pipe is not read because of a
    /// slow consumer.
    pub(super) fn run(&mut self, is_paused: bool, is_held_back: bool, now: Instant) {
        self.total.run(!is_paused, now);
        self.quiet.run(!is_paused && !is_held_back, now);
        self.leftovers.run(!is_held_back, now);
    }

    /// Lets the total run, or stand still, from this moment on.
    pub(super) fn run_total(&mut self, runs: bool, now: Instant) {
        self.total.run(runs, now);
    }

    /// Since when the command runs.
    pub(super) fn started_at(&self) -> Instant {
        self.started_at
    }

    /// When it last wrote, or was started.
    pub(super) fn output_at(&self) -> Instant {
        self.output_at
    }

    /// How many milliseconds of the total time-out are left; `None` without one.
    pub(super) fn deadline_ms(&self, now: Instant) -> Option<u64> {
        Some(millis(self.limits.timeout?).saturating_sub(millis(self.total.elapsed(now))))
    }

    /// How much time the command has.
    pub(super) fn limits(&self) -> JobLimits {
        self.limits
    }

    /// When the total time-out passes; `None` while it stands still.
    pub(super) fn timeout_at(&self) -> Option<Instant> {
        self.total.due_at(self.limits.timeout?)
    }

    fn stalled_at(&self) -> Option<Instant> {
        self.quiet.due_at(self.limits.stall?)
    }

    fn leftovers_quiet_at(&self) -> Option<Instant> {
        let quiet = self.quiet.due_at(QUIET)?;
        Some(quiet.min(self.leftovers.due_at(LEFTOVERS_CAP)?))
    }

    /// The next deadlines in this state.
    pub(super) fn due(&self, life: &Life, other: OtherDeadlines) -> NextDeadlines {
        let wanted = |cause| LifeEvent::Wanted { cause, grace_ms: GRACE_MS };
        let (mut timeout, mut stalled, mut when_quiet) = (None, None, None);
        match (life, other.agent_exit) {
            (Life::Starting, _) => timeout = self.timeout_at(),
            (Life::Running { .. }, AgentExit::NotExpected) => {
                (timeout, stalled) = (self.timeout_at(), self.stalled_at());
            }
            (Life::Running { .. }, AgentExit::ExpectedBy(at)) => {
                when_quiet = at.map(|at| (at, wanted(EndCause::Done)));
            }
            (Life::Leftovers { .. }, _) => {
                when_quiet = self.leftovers_quiet_at().map(|at| (at, LifeEvent::LeftoversQuiet));
            }
            (Life::Ending { .. } | Life::Gone { .. } | Life::NotStarted(_), _) => {}
        }
        let is_disconnected = life.cause() == Some(EndCause::Disconnected);
        let detached = other.detached_until.filter(|_| !is_disconnected);
        let reports_start = matches!(life, Life::Starting) && other.start_is_unreported;
        // In the order of precedence: of several causes that are due at once the first is reported.
        let others = [
            timeout.map(|at| (at, ClockEvent::Life(wanted(EndCause::Timeout)))),
            stalled.map(|at| (at, ClockEvent::Life(wanted(EndCause::Stalled)))),
            detached.map(|at| (at, ClockEvent::Life(wanted(EndCause::Disconnected)))),
            life.deadline().map(|at| (at, ClockEvent::Life(LifeEvent::Overdue))),
            reports_start.then_some((self.start_report_at, ClockEvent::StartReport)),
        ];
        let heartbeat = (self.heartbeat_at, ClockEvent::Heartbeat);
        let first = others.into_iter().flatten().min_by_key(|(at, _)| *at);
        let urgent = match first {
            Some(first) if first.0 <= heartbeat.0 => first,
            _ => heartbeat,
        };
        NextDeadlines { urgent, when_quiet }
    }
}

/// How long a job has been without a consumer, and how long its gateway has not polled.
#[derive(Debug)]
pub(super) struct ConsumerClock {
    /// When the last consumer left; `None` while a consumer is attached, or when the job does not wait for one.
    left_at: Option<Instant>,
    /// For how long the job continues without a consumer, in place of the time that it was started with.
    kept_for: Option<Duration>,
    polled_at: Instant,
}

impl ConsumerClock {
    /// A consumer is attached.
    pub(super) fn attached(now: Instant) -> Self {
        ConsumerClock { left_at: None, kept_for: None, polled_at: now }
    }

    /// The consumer has left.
    pub(super) fn record_leave(&mut self, now: Instant) {
        self.left_at = Some(now);
    }

    /// A client has chosen how long the job continues without a consumer, until one attaches. `None` is the time that the
    /// job was started with.
    pub(super) fn keep_for(&mut self, time: Option<Duration>) {
        self.kept_for = time;
    }

    /// For how long a job that was started with this limit continues without a consumer.
    pub(super) fn detached_for(&self, limit: Option<Duration>) -> Option<Duration> {
        limit.map(|limit| self.kept_for.unwrap_or(limit))
    }

    /// A gateway has polled the state of the job.
    pub(super) fn record_poll(&mut self, now: Instant) {
        self.polled_at = now;
    }

    /// The job does not wait for a consumer any more.
    pub(super) fn stop_waiting(&mut self) {
        self.left_at = None;
    }

    /// When a gateway last polled.
    pub(super) fn polled_at(&self) -> Instant {
        self.polled_at
    }

    /// When a job that may be detached for `limit` is ended; `None` while a consumer is attached.
    pub(super) fn detached_until(&self, limit: Option<Duration>) -> Option<Instant> {
        Some(self.left_at? + self.detached_for(limit)?)
    }
}

#[cfg(test)]
mod tests {
    use cc_executor_actors::outcome::CancelReason;

    use super::*;
    use crate::backend::shim::protocol::{LeaderExit, StartError};

    const NOTHING: OtherDeadlines =
        OtherDeadlines { detached_until: None, start_is_unreported: false, agent_exit: AgentExit::NotExpected };

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn wanted(cause: EndCause) -> LifeEvent {
        LifeEvent::Wanted { cause, grace_ms: GRACE_MS }
    }

    fn ends(cause: EndCause) -> ClockEvent {
        ClockEvent::Life(wanted(cause))
    }

    /// Clocks with a total time-out of 10 s, a stall time-out of 4 s and a heartbeat every 60 s.
    fn clocks(start: Instant) -> JobClocks {
        JobClocks::started(JobLimits { timeout: Some(secs(10)), stall: Some(secs(4)), heartbeat: secs(60) }, start)
    }

    #[test]
    fn each_state_has_its_deadlines() {
        let start = Instant::now();
        let at = |seconds| start + secs(seconds);
        let running = Life::Running { paused: false };
        let leftovers = Life::Leftovers { exit: LeaderExit::Code(0) };
        let ending = |cause, seconds| {
            let mut life = running.clone();
            life.on(wanted(cause), start);
            let Life::Ending { deadline, .. } = &mut life else { unreachable!("it is being ended") };
            *deadline = at(seconds);
            life
        };
        let canceled = ending(EndCause::Asked(CancelReason::Canceled), 30);
        let detached = OtherDeadlines { detached_until: Some(at(3)), ..NOTHING };
        let unreported = OtherDeadlines { start_is_unreported: true, ..NOTHING };
        let exits = |by: Option<u64>| OtherDeadlines { agent_exit: AgentExit::ExpectedBy(by.map(at)), ..NOTHING };
        for (what, life, other, urgent, when_quiet) in [
            ("starting", Life::Starting, NOTHING, (10, ends(EndCause::Timeout)), None),
            ("starting in silence", Life::Starting, unreported, (2, ClockEvent::StartReport), None),
            ("running", running.clone(), NOTHING, (4, ends(EndCause::Stalled)), None),
            ("running has been reported", running.clone(), unreported, (4, ends(EndCause::Stalled)), None),
            ("detached", running.clone(), detached, (3, ends(EndCause::Disconnected)), None),
            (
                "the agent must exit",
                running.clone(),
                exits(Some(8)),
                (60, ClockEvent::Heartbeat),
                Some((8, wanted(EndCause::Done))),
            ),
            ("the agent's time stands still", running.clone(), exits(None), (60, ClockEvent::Heartbeat), None),
            ("left behind", leftovers, NOTHING, (60, ClockEvent::Heartbeat), Some((2, LifeEvent::LeftoversQuiet))),
            ("being ended", canceled.clone(), NOTHING, (30, ClockEvent::Life(LifeEvent::Overdue)), None),
            ("detached while being ended", canceled, detached, (3, ends(EndCause::Disconnected)), None),
            (
                "being ended because it is detached",
                ending(EndCause::Disconnected, 30),
                detached,
                (30, ClockEvent::Life(LifeEvent::Overdue)),
                None,
            ),
        ] {
            let due = clocks(start).due(&life, other);
            let expected = NextDeadlines {
                urgent: (at(urgent.0), urgent.1),
                when_quiet: when_quiet.map(|(seconds, event)| (at(seconds), event)),
            };
            assert_eq!(due, expected, "{what}");
        }
    }

    #[test]
    fn a_pause_stops_the_time_outs_and_a_slow_consumer_only_the_stall() {
        let start = Instant::now();
        let at = |seconds| start + secs(seconds);
        let running = Life::Running { paused: false };
        let mut paused = clocks(start);
        paused.run(true, false, at(1));
        assert_eq!((paused.timeout_at(), paused.stalled_at()), (None, None));
        assert_eq!(paused.due(&running, NOTHING).urgent, (at(60), ClockEvent::Heartbeat));
        assert_eq!(paused.deadline_ms(at(50)), Some(9_000));
        paused.run(false, false, at(51));
        assert_eq!((paused.timeout_at(), paused.stalled_at()), (Some(at(60)), Some(at(54))));
        let mut held_back = clocks(start);
        held_back.run(false, true, at(1));
        assert_eq!((held_back.timeout_at(), held_back.stalled_at()), (Some(at(10)), None));
    }

    #[test]
    fn leftovers_have_ten_seconds_however_much_they_write() {
        let start = Instant::now();
        let at = |seconds| start + secs(seconds);
        let mut clocks = clocks(start);
        clocks.record_exit(at(5));
        assert_eq!(clocks.leftovers_quiet_at(), Some(at(7)));
        clocks.record_output(at(12));
        assert_eq!(clocks.leftovers_quiet_at(), Some(at(14)));
        clocks.record_output(at(14));
        assert_eq!(clocks.leftovers_quiet_at(), Some(at(15)));
        clocks.run(false, true, at(14));
        assert_eq!(clocks.leftovers_quiet_at(), None, "unread output");
    }

    #[test]
    fn the_total_counts_from_the_order_to_start_and_the_rest_from_the_execution() {
        let start = Instant::now();
        let at = |seconds| start + secs(seconds);
        let mut clocks = clocks(start);
        clocks.record_execution(at(3));
        assert_eq!((clocks.started_at(), clocks.output_at()), (at(3), at(3)));
        assert_eq!((clocks.timeout_at(), clocks.stalled_at()), (Some(at(10)), Some(at(7))));
        assert_eq!(clocks.due(&Life::NotStarted(StartError::new(String::new())), NOTHING).urgent.0, at(60));
        clocks.record_heartbeat(at(61));
        assert_eq!(clocks.heartbeat_at, at(121));
    }

    #[test]
    fn a_job_is_detached_from_its_consumers_leave_to_the_next_one() {
        let start = Instant::now();
        let mut clock = ConsumerClock::attached(start);
        assert_eq!(clock.detached_until(Some(secs(5))), None);
        clock.record_leave(start + secs(1));
        assert_eq!(clock.detached_until(Some(secs(5))), Some(start + secs(6)));
        assert_eq!(clock.detached_until(None), None, "it may not go on without a consumer");
        clock.record_poll(start + secs(2));
        assert_eq!((clock.polled_at(), clock.detached_until(Some(secs(5)))), (start + secs(2), Some(start + secs(6))));
        clock.keep_for(Some(secs(60)));
        assert_eq!(clock.detached_until(Some(secs(5))), Some(start + secs(61)), "a client has asked for it");
        assert_eq!(clock.detached_until(None), None, "it may still not go on without a consumer");
        clock.keep_for(None);
        assert_eq!(clock.detached_until(Some(secs(5))), Some(start + secs(6)));
        clock.stop_waiting();
        assert_eq!(clock.detached_until(Some(secs(5))), None);
    }
}
