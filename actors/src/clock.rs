//! A clock that can be stopped. It never looks at the time itself: every call is given it.

use std::time::{Duration, Instant};

/// Measures how long something ran, and not how long it stood still.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stopwatch {
    ran: Duration,
    since: Option<Instant>,
}

impl Stopwatch {
    /// One that has run for no time, and runs from now on.
    pub fn started(now: Instant) -> Self {
        Stopwatch { ran: Duration::ZERO, since: Some(now) }
    }

    /// Begins again from nothing. It keeps running, or standing.
    pub fn reset(&mut self, now: Instant) {
        self.ran = Duration::ZERO;
        self.since = self.since.map(|_| now);
    }

    /// Lets it run, or stand still. Saying so twice changes nothing.
    pub fn run(&mut self, running: bool, now: Instant) {
        if running {
            self.since.get_or_insert(now);
        } else {
            self.ran = self.elapsed(now);
            self.since = None;
        }
    }

    /// How long it has run.
    pub fn elapsed(&self, now: Instant) -> Duration {
        self.ran + self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// When it will have run for so long; `None` while it stands.
    pub fn due_at(&self, limit: Duration) -> Option<Instant> {
        self.since.map(|since| since + limit.saturating_sub(self.ran))
    }
}

/// A duration in whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_only_while_it_runs() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut watch = Stopwatch::started(start);
        watch.run(false, at(3));
        watch.run(false, at(4));
        assert_eq!((watch.elapsed(at(9)), watch.due_at(Duration::from_secs(5))), (Duration::from_secs(3), None));
        watch.run(true, at(10));
        watch.run(true, at(11));
        assert_eq!(watch.elapsed(at(11)), Duration::from_secs(4));
        assert_eq!(watch.due_at(Duration::from_secs(5)), Some(at(12)));
        watch.reset(at(12));
        assert_eq!(watch.due_at(Duration::from_secs(5)), Some(at(17)));
        watch.run(false, at(13));
        watch.reset(at(14));
        assert_eq!((watch.elapsed(at(20)), watch.due_at(Duration::ZERO)), (Duration::ZERO, None));
    }
}
