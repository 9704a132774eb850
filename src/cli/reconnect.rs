//! When a client connects again after its connection broke, and when it gives up. No I/O and no clock: time is a
//! parameter.

use std::time::{Duration, Instant};

/// The first and the longest pause between two attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The time from a broken connection until the service accepts the client again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Absence {
    patience: Duration,
    until: Instant,
    pause: Duration,
}

/// The next attempt to connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ConnectAttempt {
    /// The pause before it.
    pub(super) after: Duration,
    /// When it is given up; `None` leaves that to the time-outs of the connection.
    pub(super) until: Option<Instant>,
}

impl ConnectAttempt {
    /// The first connection of a client, which is attempted at once.
    pub(super) const FIRST: ConnectAttempt = ConnectAttempt { after: Duration::ZERO, until: None };
}

impl Absence {
    pub(super) fn begin(patience: Duration, now: Instant) -> Self {
        Absence { patience, until: now + patience, pause: FIRST_PAUSE }
    }

    /// When the client gives up.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// For how long the client tries.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// The next attempt, after a longer pause than the one before; `None` when the time is over.
    pub(super) fn next_attempt(&mut self, now: Instant) -> Option<ConnectAttempt> {
        if now > self.until {
            return None;
        }
        let after = self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Some(ConnectAttempt { after, until: Some(self.until) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_second_until_the_time_is_over() {
        let start = Instant::now();
        let mut absence = Absence::begin(Duration::from_secs(4), start);
        let mut now = start;
        for pause in [50, 100, 200, 400, 800, 1_000, 1_000] {
            let attempt = absence.next_attempt(now).unwrap();
            let until = Some(start + Duration::from_secs(4));
            assert_eq!(attempt, ConnectAttempt { after: Duration::from_millis(pause), until });
            now += attempt.after;
        }
        assert_eq!(absence.next_attempt(start + Duration::from_millis(4_001)), None);
    }
}
