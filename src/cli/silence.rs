//! Notices a connection on which no frame arrives any more.
//!
//! A stopped service, or a network that drops every packet, closes no connection. So the client expects a frame in every
//! period: a heartbeat, output, or the pong to its own ping.

use std::time::{Duration, Instant};

/// The period if the heartbeat is not known: the service's default heartbeat.
const DEFAULT_PERIOD: Duration = Duration::from_secs(15);

/// The shortest heartbeat that a service lets a client ask for.
const SHORTEST_PERIOD: Duration = Duration::from_secs(1);

/// The connection is broken after this many periods without a frame.
const MAX_MISSED: u32 = 3;

/// Counts the periods without a frame. A period counts only while the client reads, so a client that reads nothing for
/// an hour does not take that hour for silence.
#[derive(Debug)]
pub(super) struct Silence {
    period: Duration,
    missed: u32,
    due_at: Instant,
}

/// What to do when no frame came in a period.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Overdue {
    /// Send a ping.
    Ping,
    /// Give the connection up: no frame came for this time.
    Broken(Duration),
}

impl Silence {
    pub(super) fn new(now: Instant) -> Self {
        Silence { period: DEFAULT_PERIOD, missed: 0, due_at: now + DEFAULT_PERIOD }
    }

    /// Sets the period. It never exceeds the default, because pings are answered at once.
    pub(super) fn expect_every(&mut self, period: Duration, now: Instant) {
        self.period = period.clamp(SHORTEST_PERIOD, DEFAULT_PERIOD);
        self.record_frame(now);
    }

    /// Records a frame.
    pub(super) fn record_frame(&mut self, now: Instant) {
        self.missed = 0;
        self.due_at = now + self.period;
    }

    /// The end of the current period.
    pub(super) fn due_at(&self) -> Instant {
        self.due_at
    }

    /// Records a period without a frame.
    pub(super) fn overdue(&mut self, now: Instant) -> Overdue {
        self.missed += 1;
        self.due_at = now + self.period;
        if self.missed >= MAX_MISSED { Overdue::Broken(self.period * self.missed) } else { Overdue::Ping }
    }
}

/// The shortest time between two updates that counts as a heartbeat: the shortest heartbeat less some delay.
const SHORTEST_OBSERVED: Duration = Duration::from_millis(900);

/// The period of the service's heartbeats, as far as it is known.
#[derive(Debug)]
pub(super) enum HeartbeatEstimate {
    /// The period that this client requested; `None` is the service's default.
    Requested(Option<Duration>),
    /// The client that started the execution chose the period. The longest time between two updates is the best
    /// estimate, because a change of the status is an update, too.
    Observed {
        /// The longest time so far, over all connections.
        longest: Option<Duration>,
        /// When the newest update came over this connection.
        updated_at: Option<Instant>,
    },
}

impl HeartbeatEstimate {
    /// Begins a connection. Returns its period, if that is known.
    pub(super) fn begin_connection(&mut self) -> Option<Duration> {
        match self {
            HeartbeatEstimate::Requested(period) => *period,
            HeartbeatEstimate::Observed { longest, updated_at } => {
                *updated_at = None;
                *longest
            }
        }
    }

    /// Records a status update. Returns the period from now on, if that changes.
    pub(super) fn record_update(&mut self, now: Instant) -> Option<Duration> {
        let HeartbeatEstimate::Observed { longest, updated_at } = self else { return None };
        let since = now - updated_at.replace(now)?;
        let is_longest = longest.is_none_or(|known| since > known);
        (since >= SHORTEST_OBSERVED && is_longest).then(|| *longest.insert(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_time_between_two_updates_is_the_heartbeat_of_an_attached_client() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut heartbeat = HeartbeatEstimate::Observed { longest: None, updated_at: None };
        assert_eq!(heartbeat.begin_connection(), None);
        for (now, expected) in [(0, None), (500, None), (2_500, Some(2_000)), (4_000, None), (7_000, Some(3_000))] {
            assert_eq!(heartbeat.record_update(at(now)), expected.map(Duration::from_millis), "{now} ms");
        }
        assert_eq!(heartbeat.begin_connection(), Some(Duration::from_secs(3)));
        assert_eq!(heartbeat.record_update(at(60_000)), None, "the time between two connections is no heartbeat");
        let mut heartbeat = HeartbeatEstimate::Requested(Some(Duration::from_secs(5)));
        assert_eq!(heartbeat.begin_connection(), Some(Duration::from_secs(5)));
        assert_eq!([heartbeat.record_update(at(0)), heartbeat.record_update(at(9_000))], [None, None]);
    }

    #[test]
    fn three_periods_in_a_row_without_a_frame_are_a_broken_connection() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut silence = Silence::new(start);
        silence.expect_every(Duration::from_secs(2), start);
        assert_eq!((silence.due_at(), silence.overdue(at(2))), (at(2), Overdue::Ping));
        assert_eq!((silence.due_at(), silence.overdue(at(4))), (at(4), Overdue::Ping));
        silence.record_frame(at(5));
        assert_eq!((silence.due_at(), silence.overdue(at(7))), (at(7), Overdue::Ping));
        // Nothing was read for an hour, which counts as one period.
        assert_eq!(silence.overdue(at(3_600)), Overdue::Ping);
        assert_eq!(
            (silence.due_at(), silence.overdue(at(3_602))),
            (at(3_602), Overdue::Broken(Duration::from_secs(6)))
        );
    }

    #[test]
    fn a_period_is_between_the_shortest_and_the_default_heartbeat() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        for (period, expected) in [(0, 1), (1, 1), (5, 5), (60, 15)] {
            silence.expect_every(Duration::from_secs(period), start);
            assert_eq!(silence.due_at(), start + Duration::from_secs(expected), "{period} s");
        }
    }
}
