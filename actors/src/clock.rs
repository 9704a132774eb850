//! A stopwatch for time-outs that stand still at times. The caller passes the current time.

use std::time::{Duration, Instant};

/// Measures the time while it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stopwatch {
    ran: Duration,
    since: Option<Instant>,
}

impl Stopwatch {
    /// A stopwatch that starts now.
    pub fn started(now: Instant) -> Self {
        Stopwatch { ran: Duration::ZERO, since: Some(now) }
    }

    /// Sets the measured time to zero, and keeps running or stopped.
    pub fn reset(&mut self, now: Instant) {
        self.ran = Duration::ZERO;
        self.since = self.since.map(|_| now);
    }

    /// Starts or stops it. Repetition has no effect.
    pub fn run(&mut self, running: bool, now: Instant) {
        if running {
            self.since.get_or_insert(now);
        } else {
            self.ran = self.elapsed(now);
            self.since = None;
        }
    }

    /// The measured time.
    pub fn elapsed(&self, now: Instant) -> Duration {
        self.ran + self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// The time at which it will have measured `limit`; `None` while it is stopped.
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
