//! Whether a client is connected and reading: pings, pongs, and the progress of its socket.
//!
//! A ping records the offsets that were sent before it. Client libraries answer pings by themselves and in order, so
//! the pong shows that everything before the ping has arrived.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{id::ExecutionId, stream::PerStream};

/// The number of pings in one stall time.
const PINGS: u32 = 3;

/// The number of checks in one stall time.
const TICKS: u32 = 6;

/// The slowest link for which time is allowed: a pong may be late by a second for each portion of this many bytes that was
/// sent before it, and a message that long may take a second more to arrive.
pub const BYTES_PER_SECOND: u64 = 64 * 1024;

/// The most unanswered pings that are remembered. Bounds the memory of a client that reads and never answers; a client
/// that does not read is closed long before.
pub const MAX_UNANSWERED: usize = 1_024;

/// Decides whether a client is still connected and reading.
#[derive(Debug)]
pub struct Liveness {
    stall: Duration,
    /// The newest sign that the client is alive.
    life_at: Instant,
    /// The bytes that its socket had accepted at the last check.
    taken: u64,
    pinged_at: Instant,
    n_pings: u64,
    unanswered: VecDeque<PendingPing>,
    sent_since_pong: u64,
    blocked_since: Option<Instant>,
}

#[derive(Debug)]
struct PendingPing {
    payload: Bytes,
    sent_at: Instant,
    sent: Option<SentOffsets>,
}

/// The offsets of an execution's streams that were sent before a ping.
pub type SentOffsets = (ExecutionId, PerStream<u64>);

/// The result of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LivenessAction {
    /// Nothing to do.
    Wait,
    /// Send a ping.
    Ping,
    /// Close the session: the client does not answer.
    Unresponsive,
    /// Close the session: the client does not read.
    Stalled,
}

impl Liveness {
    /// The liveness of a client that has just connected. `stall` is the longest time without a sign of life.
    pub fn new(stall: Duration, now: Instant) -> Self {
        Liveness {
            stall,
            life_at: now,
            taken: 0,
            pinged_at: now,
            n_pings: 0,
            unanswered: VecDeque::new(),
            sent_since_pong: 0,
            blocked_since: None,
        }
    }

    /// The time between two calls of [`Liveness::tick`].
    pub fn tick_period(stall: Duration) -> Duration {
        stall / TICKS
    }

    /// The client sent a frame.
    pub fn record_life(&mut self, now: Instant) {
        self.life_at = now;
    }

    /// Output was put into the client's outbox.
    pub fn sent(&mut self, n_bytes: usize) {
        self.sent_since_pong += n_bytes as u64;
    }

    /// Returns the payload of a new ping. `sent` are the offsets that were sent before it.
    pub fn ping(&mut self, sent: Option<SentOffsets>, now: Instant) -> Bytes {
        self.n_pings += 1;
        let PerStream { stdout, stderr } = sent.map(|(_, offsets)| offsets).unwrap_or_default();
        let payload = Bytes::from(format!("{} {stdout} {stderr}", self.n_pings));
        if self.unanswered.len() == MAX_UNANSWERED {
            self.unanswered.pop_front();
        }
        self.unanswered.push_back(PendingPing { payload: payload.clone(), sent_at: now, sent });
        self.pinged_at = now;
        payload
    }

    /// Handles a pong. Returns the offsets that have arrived, or `None` if it answers no ping (RFC 6455 section 5.5.3
    /// allows that).
    pub fn pong(&mut self, payload: &[u8]) -> Option<SentOffsets> {
        let at = self.unanswered.iter().position(|ping| ping.payload == payload)?;
        self.sent_since_pong = 0;
        // A client may answer only the latest of several pings.
        self.unanswered.drain(..=at).next_back()?.sent
    }

    /// Checks the client: `taken` is the number of bytes that its socket has accepted so far, `blocked` whether
    /// messages wait for it.
    pub fn tick(&mut self, taken: u64, blocked: bool, now: Instant) -> LivenessAction {
        // Progress of the socket proves that the client reads only if the socket was full before, because the kernel
        // buffers megabytes for a client that is gone.
        if std::mem::replace(&mut self.taken, taken) != taken && self.blocked_since.take().is_some() {
            self.life_at = now;
        }
        if !blocked {
            self.blocked_since = None;
        } else if now.saturating_duration_since(*self.blocked_since.get_or_insert(now)) >= self.stall {
            return LivenessAction::Stalled;
        }
        let Some(oldest) = self.unanswered.front() else {
            let is_due = now.saturating_duration_since(self.pinged_at) >= self.stall / PINGS;
            return if is_due { LivenessAction::Ping } else { LivenessAction::Wait };
        };
        let patience = self.stall + Duration::from_secs(self.sent_since_pong / BYTES_PER_SECOND);
        if now.saturating_duration_since(oldest.sent_at.max(self.life_at)) >= patience {
            LivenessAction::Unresponsive
        } else {
            LivenessAction::Wait
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(60);

    struct Clock(Instant);

    impl Clock {
        fn at(&self, seconds: u64) -> Instant {
            self.0 + Duration::from_secs(seconds)
        }
    }

    fn new() -> (Liveness, Clock) {
        let start = Instant::now();
        (Liveness::new(STALL, start), Clock(start))
    }

    #[test]
    fn a_quiet_client_that_answers_pings_is_alive() {
        let (mut live, clock) = new();
        for n in 0..10 {
            assert_eq!(live.tick(n, false, clock.at(n * 20 + 19)), LivenessAction::Wait);
            assert_eq!(live.tick(n, false, clock.at(n * 20 + 20)), LivenessAction::Ping);
            let payload = live.ping(None, clock.at(n * 20 + 20));
            assert_eq!(live.pong(&payload), None);
        }
    }

    #[test]
    fn a_client_without_a_frame_for_the_stall_time_is_unresponsive() {
        let (mut live, clock) = new();
        live.ping(None, clock.at(20));
        assert_eq!(
            live.tick(1, false, clock.at(79)),
            LivenessAction::Wait,
            "the kernel took the ping, which proves nothing"
        );
        live.record_life(clock.at(79));
        assert_eq!(live.tick(2, false, clock.at(138)), LivenessAction::Wait);
        assert_eq!(live.tick(3, false, clock.at(139)), LivenessAction::Unresponsive);
    }

    #[test]
    fn a_pong_may_be_late_in_proportion_to_the_bytes_before_it() {
        let (mut live, clock) = new();
        live.ping(None, clock.at(0));
        live.sent(640 * 1024);
        assert_eq!(live.tick(0, false, clock.at(69)), LivenessAction::Wait);
        assert_eq!(live.tick(0, false, clock.at(70)), LivenessAction::Unresponsive);
    }

    #[test]
    fn a_client_that_reads_nothing_is_stalled_after_the_stall_time() {
        let (mut live, clock) = new();
        live.sent(10 << 20);
        assert_eq!(live.tick(7, true, clock.at(5)), LivenessAction::Wait);
        live.ping(None, clock.at(20));
        assert_eq!(live.tick(7, true, clock.at(64)), LivenessAction::Wait);
        assert_eq!(live.tick(7, true, clock.at(65)), LivenessAction::Stalled);
        assert_eq!(live.tick(8, true, clock.at(65)), LivenessAction::Wait, "the socket accepted bytes");
    }

    #[test]
    fn a_pong_answers_its_ping_and_all_before_it() {
        let (mut live, clock) = new();
        let id = ExecutionId::random();
        let sent = |stdout| Some((id, PerStream { stdout, stderr: 0 }));
        let first = live.ping(sent(1), clock.at(1));
        let second = live.ping(sent(2), clock.at(2));
        let third = live.ping(sent(3), clock.at(3));
        assert_eq!(live.pong(b"unsolicited"), None);
        assert_eq!(live.pong(&second), sent(2));
        assert_eq!(live.pong(&first), None, "answered by the later pong");
        assert_eq!(live.pong(&third), sent(3));
        assert!(live.unanswered.is_empty());
    }

    #[test]
    fn the_number_of_unanswered_pings_is_bounded() {
        let (mut live, clock) = new();
        for _ in 0..10_000 {
            live.ping(None, clock.at(0));
        }
        assert_eq!(live.unanswered.len(), MAX_UNANSWERED);
    }
}
