//! The deadlines of orders to shims and of requests to subreapers, and the action when one passes. Pure: time is a
//! parameter.
//!
//! A command of the same user can stop its shim and its subreaper. So each order must be acknowledged soon. If it is
//! not, the receiver is continued, then killed if it is stopped, and killed in any case after a silence that no load
//! explains. An order to end processes must also be complete in time.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

/// How long an acknowledgement may take before the receiver is continued.
pub const CONTINUE_AFTER: Duration = Duration::from_millis(500);

/// How long it may take before the receiver is killed if it is stopped. Repeated at this interval.
pub const KILL_STOPPED_AFTER: Duration = Duration::from_millis(1_000);

/// How long it may take before the receiver is killed in any case.
pub const KILL_AFTER: Duration = Duration::from_secs(5);

/// How much longer than its grace an order to end processes may take.
pub const COMPLETE_AFTER: Duration = Duration::from_secs(5);

/// What to do with a receiver that does not obey.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchAction {
    /// Continue it: it may be stopped.
    Continue,
    /// Kill it if it is stopped.
    KillIfStopped,
    /// Kill it.
    Kill,
}

impl WatchAction {
    /// The signal to send, if any.
    pub fn signal(self, is_stopped: impl FnOnce() -> bool) -> Option<Signal> {
        match self {
            WatchAction::Continue => Some(Signal::CONT),
            WatchAction::KillIfStopped => is_stopped().then_some(Signal::KILL),
            WatchAction::Kill => Some(Signal::KILL),
        }
    }
}

/// The orders that one receiver has not acknowledged.
#[derive(Debug, Default)]
pub struct OrderWatch {
    /// Oldest first.
    sent: VecDeque<PendingOrder>,
    /// How many actions were taken because of the oldest.
    n_actions: u32,
    complete_by: Option<Instant>,
}

#[derive(Debug)]
struct PendingOrder {
    number: u64,
    at: Instant,
    /// Whether a missing acknowledgement alone leads to KILL. False for an inspection, which may be lost.
    is_firm: bool,
}

impl OrderWatch {
    /// An order was sent. A firm one must be acknowledged in any case, any other only by a receiver that is not
    /// stopped.
    pub fn sent(&mut self, number: u64, now: Instant, is_firm: bool) {
        self.sent.push_back(PendingOrder { number, at: now, is_firm });
    }

    /// An order was acknowledged.
    pub fn acknowledged(&mut self, number: u64) {
        self.sent.retain(|sent| sent.number != number);
        self.n_actions = 0;
    }

    /// Whether all orders were acknowledged.
    pub fn is_idle(&self) -> bool {
        self.sent.is_empty()
    }

    /// The ordered end must be complete by this time. The earliest of several times counts.
    pub fn completes_by(&mut self, at: Instant) {
        self.complete_by = Some(self.complete_by.map_or(at, |planned| planned.min(at)));
    }

    /// When [`OrderWatch::act`] must be called next.
    pub fn due(&self) -> Option<Instant> {
        let unacknowledged = self.sent.front().map(|oldest| {
            let after = match self.n_actions {
                0 => CONTINUE_AFTER,
                n => CONTINUE_AFTER + (KILL_STOPPED_AFTER - CONTINUE_AFTER) * n,
            };
            oldest.at + after
        });
        [unacknowledged, self.complete_by].into_iter().flatten().min()
    }

    /// The action that is due now, if any.
    pub fn act(&mut self, now: Instant) -> Option<WatchAction> {
        if self.complete_by.is_some_and(|at| at <= now) {
            // Not at once again, because the loss of a killed receiver is noticed elsewhere.
            self.complete_by = Some(now + COMPLETE_AFTER);
            return Some(WatchAction::Kill);
        }
        if self.due().is_none_or(|due| due > now) {
            return None;
        }
        let is_overdue = self.sent.iter().any(|sent| sent.is_firm && now >= sent.at + KILL_AFTER);
        let action = match self.n_actions {
            _ if is_overdue => WatchAction::Kill,
            0 => WatchAction::Continue,
            _ => WatchAction::KillIfStopped,
        };
        self.n_actions += 1;
        Some(action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actions(watch: &mut OrderWatch, start: Instant, until_ms: u64) -> Vec<(u64, WatchAction)> {
        let mut done = Vec::new();
        for ms in 0..=until_ms {
            while let Some(action) = watch.act(start + Duration::from_millis(ms)) {
                done.push((ms, action));
            }
        }
        done
    }

    #[test]
    fn a_silent_receiver_is_continued_then_killed_if_stopped_then_killed() {
        let start = Instant::now();
        let mut watch = OrderWatch::default();
        watch.sent(1, start, true);
        let done = actions(&mut watch, start, 5_000);
        assert_eq!(
            done[..3],
            [(500, WatchAction::Continue), (1_000, WatchAction::KillIfStopped), (1_500, WatchAction::KillIfStopped)]
        );
        assert_eq!(done.last(), Some(&(5_000, WatchAction::Kill)));
        assert!(done[..done.len() - 1].iter().all(|(_, action)| *action != WatchAction::Kill));
    }

    #[test]
    fn silence_after_an_inspection_kills_no_running_receiver() {
        let start = Instant::now();
        let mut watch = OrderWatch::default();
        watch.sent(1, start, false);
        assert!(actions(&mut watch, start, 60_000).iter().all(|(_, action)| *action != WatchAction::Kill));
        // An order after it is firm, and counts from its own time.
        watch.sent(2, start + Duration::from_secs(60), true);
        let later = actions(&mut watch, start + Duration::from_millis(60_001), 5_500);
        let first_kill = later.iter().find(|(_, action)| *action == WatchAction::Kill).map(|(ms, _)| *ms);
        assert!(first_kill.is_some_and(|ms| (4_990..5_500).contains(&ms)), "{first_kill:?}");
    }

    #[test]
    fn an_acknowledged_order_needs_no_action() {
        let start = Instant::now();
        let mut watch = OrderWatch::default();
        watch.sent(1, start, true);
        watch.sent(2, start, true);
        assert_eq!(watch.act(start + CONTINUE_AFTER), Some(WatchAction::Continue));
        watch.acknowledged(1);
        assert!(!watch.is_idle());
        assert_eq!(
            watch.act(start + CONTINUE_AFTER),
            Some(WatchAction::Continue),
            "the second order counts from its own time"
        );
        watch.acknowledged(2);
        assert_eq!((watch.is_idle(), watch.due()), (true, None));
    }

    #[test]
    fn an_ordered_end_must_be_complete_at_the_earliest_time() {
        let start = Instant::now();
        let mut watch = OrderWatch::default();
        watch.completes_by(start + Duration::from_secs(9));
        watch.completes_by(start + Duration::from_secs(7));
        watch.completes_by(start + Duration::from_secs(8));
        assert_eq!(actions(&mut watch, start, 8_000), [(7_000, WatchAction::Kill)]);
    }
}
