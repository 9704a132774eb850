//! The life of an execution's processes, from the order to start the command until all of them are gone.
//!
//! One enum and one function that handles every event in every state. Pure: it holds no process and no clock; time is a
//! parameter. The outcome that follows from the last state is in [`super::outcome`].

use std::time::{Duration, Instant};

use cc_executor_actors::outcome::{CancelReason, Evidence};

use crate::backend::{
    deadlines::COMPLETE_AFTER,
    shim::protocol::{LeaderExit, StartError, TreeGone},
};

/// How much later than its deadline a shim may report the end before the job stops waiting. The link has a silent shim
/// killed long before, see [`crate::backend::deadlines`].
const SHIM_BOUND: Duration = Duration::from_secs(8);

/// How long the sweep after a lost shim may take: as long as the subreaper tries, and again if that is lost, too.
const SWEEP_BOUND: Duration = Duration::from_secs(15);

/// The life of an execution's processes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Life {
    /// The shim was ordered to execute the command. A slow file system can delay that.
    Starting,
    /// The command runs, or is paused.
    Running {
        /// Whether the tree is stopped.
        paused: bool,
    },
    /// The command has exited by itself. Processes that it left behind may write for a while.
    Leftovers {
        /// How it exited.
        exit: LeaderExit,
    },
    /// The processes are being ended.
    Ending {
        /// Why.
        why: EndReason,
        /// How the command exited, once it has.
        exit: Option<LeaderExit>,
        /// The process that ends them.
        guard: Guardian,
        /// When the job stops waiting for the end.
        deadline: Instant,
    },
    /// The processes are gone, or their end can no longer be established. The pipes hold the rest of the output.
    Gone {
        /// Why it was ended, if it was.
        why: Option<EndReason>,
        /// How the command exited, if that is known.
        exit: Option<LeaderExit>,
        /// What is known of the processes.
        gone: TreeGone,
    },
    /// The command could not be executed.
    NotStarted(StartError),
}

/// Why the service ended an execution.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EndCause {
    /// A request, of a client or of the service itself.
    Asked(CancelReason),
    /// The total time-out passed.
    Timeout,
    /// Nothing was written for the stall time-out.
    Stalled,
    /// Its consumer went away.
    Disconnected,
    /// An agent has reported its result and has not exited.
    Done,
}

impl EndCause {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            EndCause::Asked(reason) => reason.as_str(),
            EndCause::Timeout => "timeout",
            EndCause::Stalled => "stalled",
            EndCause::Disconnected => "disconnected",
            EndCause::Done => "done",
        }
    }
}

/// Why the service ends processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EndReason {
    /// An end was ordered.
    Wanted {
        /// The first cause.
        cause: EndCause,
        /// The shortest time between TERM and KILL that was ordered, in milliseconds.
        grace_ms: u64,
    },
    /// The command has exited and has left these processes behind.
    LeftBehind,
    /// The shim or its subreaper was killed, by another process or because it did not obey. So nothing guards the
    /// processes any more.
    GuardLost,
}

/// The process that ends the tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Guardian {
    /// The shim.
    Shim,
    /// The subreaper, since the shim was lost.
    Subreaper,
}

/// An event in the life of the processes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum LifeEvent {
    /// The shim has executed the command.
    Started,
    /// The shim could not execute the command.
    NotStarted(StartError),
    /// The command itself has exited.
    Exited(LeaderExit),
    /// The whole tree was stopped, or continued.
    Paused(bool),
    /// The shim or the subreaper has ended the processes, as far as it could.
    Gone(TreeGone),
    /// The shim is gone, and has not sent its last event.
    Lost,
    /// The shim is ending the tree, because its subreaper is gone.
    Unguarded,
    /// The end is ordered.
    Wanted {
        /// Why.
        cause: EndCause,
        /// Milliseconds between TERM and KILL.
        grace_ms: u64,
    },
    /// The leftovers were quiet for long enough, or have had all of their time.
    LeftoversQuiet,
    /// The deadline of the end has passed.
    Overdue,
}

/// An action that follows from an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LifeAction {
    /// Have the shim end the tree: TERM, then KILL after the grace.
    End {
        /// Milliseconds between the two.
        grace_ms: u64,
    },
    /// Have the shim kill the leftovers.
    KillLeftovers,
    /// Have the subreaper end the processes of the lost shim.
    Sweep,
}

impl Life {
    /// Whether the last state is reached.
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Life::Gone { .. } | Life::NotStarted(_))
    }

    /// Whether it is being ended for another reason than leftovers.
    pub(super) fn is_canceling(&self) -> bool {
        matches!(self, Life::Ending { why: EndReason::Wanted { .. } | EndReason::GuardLost, .. })
    }

    /// The cause that has ended it, or is about to.
    pub(super) fn cause(&self) -> Option<EndCause> {
        match self {
            Life::Ending { why: EndReason::Wanted { cause, .. }, .. }
            | Life::Gone { why: Some(EndReason::Wanted { cause, .. }), .. } => Some(*cause),
            _ => None,
        }
    }

    /// When [`LifeEvent::Overdue`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Life::Ending { deadline, .. } => Some(*deadline),
            _ => None,
        }
    }

    /// Applies an event. Returns the action that follows.
    pub(super) fn on(&mut self, event: LifeEvent, now: Instant) -> Option<LifeAction> {
        let (next, action) = std::mem::replace(self, Life::Starting).next(event, now);
        *self = next;
        action
    }

    fn next(self, event: LifeEvent, now: Instant) -> (Life, Option<LifeAction>) {
        match (self, event) {
            (over @ (Life::Gone { .. } | Life::NotStarted(_)), _) => (over, None),
            (life, LifeEvent::Gone(gone)) => (life.gone(gone), None),

            (Life::Starting, LifeEvent::Started) => (Life::Running { paused: false }, None),
            (Life::Starting, LifeEvent::NotStarted(error)) => (Life::NotStarted(error), None),
            // The end was ordered before, so its cause is reported. No process was started.
            (life, LifeEvent::NotStarted(_)) => (life.gone(TreeGone::proven(Evidence::NeverStarted)), None),

            (Life::Running { .. }, LifeEvent::Paused(paused)) => (Life::Running { paused }, None),
            (Life::Starting | Life::Running { .. }, LifeEvent::Exited(exit)) => (Life::Leftovers { exit }, None),
            (Life::Ending { why, guard, deadline, .. }, LifeEvent::Exited(exit)) => {
                (Life::Ending { why, exit: Some(exit), guard, deadline }, None)
            }

            (Life::Starting | Life::Running { .. }, LifeEvent::Wanted { cause, grace_ms }) => {
                let why = EndReason::Wanted { cause, grace_ms };
                (Life::ending(why, None, shim_deadline(grace_ms, now)), Some(LifeAction::End { grace_ms }))
            }
            // The command's own exit stands. Only the leftovers are ended, without a grace.
            (Life::Leftovers { exit }, LifeEvent::LeftoversQuiet | LifeEvent::Wanted { .. }) => (
                Life::ending(EndReason::LeftBehind, Some(exit), shim_deadline(0, now)),
                Some(LifeAction::KillLeftovers),
            ),
            // The first cause is reported; a shorter grace takes effect.
            (
                Life::Ending {
                    why: EndReason::Wanted { cause, grace_ms: planned },
                    exit,
                    guard: Guardian::Shim,
                    deadline,
                },
                LifeEvent::Wanted { grace_ms, .. },
            ) => {
                let why = EndReason::Wanted { cause, grace_ms: planned.min(grace_ms) };
                let deadline = deadline.min(shim_deadline(grace_ms, now));
                let action = (grace_ms < planned).then_some(LifeAction::End { grace_ms });
                (Life::Ending { why, exit, guard: Guardian::Shim, deadline }, action)
            }

            (Life::Starting | Life::Running { .. }, LifeEvent::Unguarded) => {
                (Life::ending(EndReason::GuardLost, None, shim_deadline(0, now)), None)
            }
            (Life::Leftovers { exit }, LifeEvent::Unguarded) => {
                (Life::ending(EndReason::LeftBehind, Some(exit), shim_deadline(0, now)), None)
            }

            (Life::Starting | Life::Running { .. }, LifeEvent::Lost) => Life::swept(EndReason::GuardLost, None, now),
            (Life::Leftovers { exit }, LifeEvent::Lost) => Life::swept(EndReason::LeftBehind, Some(exit), now),
            (Life::Ending { why, exit, guard: Guardian::Shim, .. }, LifeEvent::Lost) => Life::swept(why, exit, now),

            (life @ Life::Ending { .. }, LifeEvent::Overdue) => (life.gone(TreeGone::UNKNOWN), None),
            (life, _) => (life, None),
        }
    }

    fn ending(why: EndReason, exit: Option<LeaderExit>, deadline: Instant) -> Life {
        Life::Ending { why, exit, guard: Guardian::Shim, deadline }
    }

    fn swept(why: EndReason, exit: Option<LeaderExit>, now: Instant) -> (Life, Option<LifeAction>) {
        (Life::Ending { why, exit, guard: Guardian::Subreaper, deadline: now + SWEEP_BOUND }, Some(LifeAction::Sweep))
    }

    fn gone(self, gone: TreeGone) -> Life {
        match self {
            Life::Starting | Life::Running { .. } => Life::Gone { why: None, exit: None, gone },
            Life::Leftovers { exit } => Life::Gone { why: None, exit: Some(exit), gone },
            Life::Ending { why, exit, .. } => Life::Gone { why: Some(why), exit, gone },
            over @ (Life::Gone { .. } | Life::NotStarted(_)) => over,
        }
    }
}

fn shim_deadline(grace_ms: u64, now: Instant) -> Instant {
    now + Duration::from_millis(grace_ms) + COMPLETE_AFTER + SHIM_BOUND
}

#[cfg(test)]
mod tests {
    use cc_executor_actors::outcome::CancelReason;
    use proptest::prelude::*;

    use super::*;

    const CANCEL: EndCause = EndCause::Asked(CancelReason::Canceled);
    const EXIT: LeaderExit = LeaderExit::Code(3);

    fn wanted(cause: EndCause, grace_ms: u64) -> LifeEvent {
        LifeEvent::Wanted { cause, grace_ms }
    }

    fn missing() -> StartError {
        StartError { exit_code: StartError::NOT_FOUND, message: "no".to_owned() }
    }

    fn not_started() -> LifeEvent {
        LifeEvent::NotStarted(missing())
    }

    fn gone() -> LifeEvent {
        LifeEvent::Gone(TreeGone::proven(Evidence::Echild))
    }

    /// Applies events one second apart. Returns the last state and all actions.
    fn play(events: impl IntoIterator<Item = LifeEvent>) -> (Life, Vec<LifeAction>) {
        let start = Instant::now();
        let mut life = Life::Starting;
        let actions = events.into_iter().enumerate();
        let actions = actions.filter_map(|(n, event)| life.on(event, start + Duration::from_secs(n as u64))).collect();
        (life, actions)
    }

    #[test]
    fn each_order_of_events_has_its_end() {
        let proven = TreeGone::proven(Evidence::Echild);
        let ended = |why, exit| Life::Gone { why, exit, gone: proven };
        let cancel = Some(EndReason::Wanted { cause: CANCEL, grace_ms: 5 });
        let table: [(&str, Vec<LifeEvent>, Life, Vec<LifeAction>); 12] = [
            (
                "its subreaper is lost: a command that the shim then kills has not ended by itself",
                vec![LifeEvent::Started, LifeEvent::Unguarded, LifeEvent::Exited(LeaderExit::Signal(9)), gone()],
                ended(Some(EndReason::GuardLost), Some(LeaderExit::Signal(9))),
                vec![],
            ),
            ("by itself", vec![LifeEvent::Started, LifeEvent::Exited(EXIT), gone()], ended(None, Some(EXIT)), vec![]),
            (
                "with leftovers",
                vec![LifeEvent::Started, LifeEvent::Exited(EXIT), LifeEvent::LeftoversQuiet, gone()],
                ended(Some(EndReason::LeftBehind), Some(EXIT)),
                vec![LifeAction::KillLeftovers],
            ),
            (
                "canceled after its own exit, which is reported",
                vec![LifeEvent::Started, LifeEvent::Exited(EXIT), wanted(CANCEL, 5), wanted(CANCEL, 0), gone()],
                ended(Some(EndReason::LeftBehind), Some(EXIT)),
                vec![LifeAction::KillLeftovers],
            ),
            (
                "canceled: its exit starts no time limit of leftovers",
                vec![LifeEvent::Started, wanted(CANCEL, 5), LifeEvent::Exited(EXIT), LifeEvent::LeftoversQuiet, gone()],
                ended(cancel, Some(EXIT)),
                vec![LifeAction::End { grace_ms: 5 }],
            ),
            (
                "the first cause is reported, the shortest grace counts",
                vec![LifeEvent::Started, wanted(CANCEL, 9), wanted(EndCause::Timeout, 5), wanted(CANCEL, 7), gone()],
                ended(cancel, None),
                vec![LifeAction::End { grace_ms: 9 }, LifeAction::End { grace_ms: 5 }],
            ),
            (
                "canceled while it starts",
                vec![wanted(CANCEL, 5), LifeEvent::Started, gone()],
                ended(cancel, None),
                vec![LifeAction::End { grace_ms: 5 }],
            ),
            (
                "canceled, and then it could not be started",
                vec![wanted(CANCEL, 5), not_started()],
                Life::Gone { why: cancel, exit: None, gone: TreeGone::proven(Evidence::NeverStarted) },
                vec![LifeAction::End { grace_ms: 5 }],
            ),
            ("not started", vec![not_started(), wanted(CANCEL, 5), gone()], Life::NotStarted(missing()), vec![]),
            (
                "its shim is lost while it starts: it may have started",
                vec![LifeEvent::Lost, gone()],
                ended(Some(EndReason::GuardLost), None),
                vec![LifeAction::Sweep],
            ),
            (
                "its shim is lost while it is canceled",
                vec![
                    LifeEvent::Started,
                    wanted(CANCEL, 5),
                    LifeEvent::Lost,
                    LifeEvent::Lost,
                    wanted(CANCEL, 0),
                    gone(),
                ],
                ended(cancel, None),
                vec![LifeAction::End { grace_ms: 5 }, LifeAction::Sweep],
            ),
            (
                "neither shim nor subreaper answers",
                vec![LifeEvent::Started, LifeEvent::Lost, LifeEvent::Overdue, gone()],
                Life::Gone { why: Some(EndReason::GuardLost), exit: None, gone: TreeGone::UNKNOWN },
                vec![LifeAction::Sweep],
            ),
        ];
        for (what, events, life, actions) in table {
            assert_eq!(play(events), (life, actions), "{what}");
        }
    }

    fn any_event() -> impl Strategy<Value = LifeEvent> {
        prop_oneof![
            Just(LifeEvent::Started),
            Just(not_started()),
            any::<u8>().prop_map(|code| LifeEvent::Exited(LeaderExit::Code(code.into()))),
            any::<bool>().prop_map(LifeEvent::Paused),
            Just(gone()),
            Just(LifeEvent::Lost),
            Just(LifeEvent::Unguarded),
            (0u64..20_000).prop_map(|grace_ms| wanted(CANCEL, grace_ms)),
            (0u64..20_000).prop_map(|grace_ms| wanted(EndCause::Timeout, grace_ms)),
            (0u64..20_000).prop_map(|grace_ms| wanted(EndCause::Disconnected, grace_ms)),
            Just(LifeEvent::LeftoversQuiet),
            Just(LifeEvent::Overdue),
        ]
    }

    proptest! {
        /// In every order of events: an end that has begun is over within a bounded time, the first cause and the
        /// command's own exit are never replaced, and a lost shim gets no order.
        #[test]
        fn it_ends_once_and_in_time(events in prop::collection::vec((any_event(), 0u64..3_000), 0..60)) {
            let mut now = Instant::now();
            let mut life = Life::Starting;
            let (mut first, mut is_lost) = (None, false);
            for (event, ms) in events {
                now += Duration::from_millis(ms);
                let (before, was_lost) = (life.clone(), is_lost);
                is_lost |= event == LifeEvent::Lost && !before.is_over();
                let action = life.on(event, now);
                if before.is_over() {
                    prop_assert_eq!(&life, &before);
                    prop_assert_eq!(action, None);
                }
                if matches!(action, Some(LifeAction::End { .. } | LifeAction::KillLeftovers)) {
                    prop_assert!(!was_lost, "an order to a shim that is lost");
                }
                prop_assert_eq!(matches!(action, Some(LifeAction::Sweep)), is_lost && !was_lost, "swept once");
                if let Some(cause) = life.cause() {
                    prop_assert_eq!(*first.get_or_insert(cause), cause);
                }
                if let Life::Leftovers { exit } = before {
                    match life {
                        Life::Leftovers { exit: now } => prop_assert_eq!(now, exit),
                        Life::Ending { exit: now, why, .. } => {
                            prop_assert_eq!((now, why), (Some(exit), EndReason::LeftBehind));
                        }
                        Life::Gone { exit: now, why, .. } => prop_assert_eq!((now, why), (Some(exit), None)),
                        _ => prop_assert!(false, "{:?}", life),
                    }
                }
            }
            // The end is ordered, and no process answers.
            life.on(wanted(CANCEL, 20_000), now);
            let until = now + Duration::from_secs(60);
            while let Some(deadline) = life.deadline() {
                prop_assert!(deadline <= until, "it is bounded");
                life.on(LifeEvent::Overdue, deadline);
            }
            prop_assert!(life.is_over());
        }
    }
}
