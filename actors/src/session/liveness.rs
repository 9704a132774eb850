//! Whether a client is there: pings and pongs, and whether its socket takes anything.
//!
//! A ping also carries how far each stream had been sent before it. Client libraries answer pings
//! themselves and in order, so the pong says that all before it has arrived.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{id::ExecutionId, stream::PerStream};

/// How often within the stall time a ping is sent, and how often everything is looked at.
const PINGS: u32 = 3;
const LOOKS: u32 = 6;

/// A pong may be late by a second for each so many bytes that were sent before it.
const BYTES_A_SECOND: u64 = 64 * 1024;

/// Pings without answer that are remembered. A client that reads and never answers one is bounded by
/// this; one that does not read is closed long before.
pub const MAX_UNANSWERED: usize = 1_024;

/// Decides whether a client is still connected and reading.
#[derive(Debug)]
pub struct Liveness {
    stall: Duration,
    sign_at: Instant,
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

/// What had been sent of an execution's streams before a ping.
pub type SentOffsets = (ExecutionId, PerStream<u64>);

/// The result of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LivenessAction {
    /// Nothing.
    Fine,
    /// It should be asked for a sign of life.
    Ping,
    /// It answers nothing.
    Lifeless,
    /// It accepts nothing.
    Stalled,
}

impl Liveness {
    /// A client that has just come, and that may be without a sign of life for so long.
    pub fn new(stall: Duration, now: Instant) -> Self {
        Liveness {
            stall,
            sign_at: now,
            taken: 0,
            pinged_at: now,
            n_pings: 0,
            unanswered: VecDeque::new(),
            sent_since_pong: 0,
            blocked_since: None,
        }
    }

    /// How often [`Liveness::tick`] is to be called.
    pub fn cadence(stall: Duration) -> Duration {
        stall / LOOKS
    }

    /// A frame came from the client.
    pub fn record_life(&mut self, now: Instant) {
        self.sign_at = now;
    }

    /// Output was handed to the client's outbox.
    pub fn sent(&mut self, n_bytes: usize) {
        self.sent_since_pong += n_bytes as u64;
    }

    /// Makes a ping, after what was sent before.
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

    /// Takes a pong, and gives what it says to have arrived. One that answers no ping of ours says
    /// nothing (RFC 6455 section 5.5.3 allows it).
    pub fn pong(&mut self, payload: &[u8]) -> Option<SentOffsets> {
        let at = self.unanswered.iter().position(|ping| ping.payload == payload)?;
        self.sent_since_pong = 0;
        // A client may answer only the latest of several.
        self.unanswered.drain(..=at).next_back()?.sent
    }

    /// Checks the client: `taken` is what its socket has accepted so far, `blocked` whether output waits for it.
    pub fn tick(&mut self, taken: u64, blocked: bool, now: Instant) -> LivenessAction {
        // Progress of the socket proves that the client reads only if the socket was full before, because the kernel
        // buffers megabytes for a client that is gone.
        if std::mem::replace(&mut self.taken, taken) != taken && self.blocked_since.take().is_some() {
            self.sign_at = now;
        }
        if !blocked {
            self.blocked_since = None;
        } else if now.saturating_duration_since(*self.blocked_since.get_or_insert(now)) >= self.stall {
            return LivenessAction::Stalled;
        }
        let Some(oldest) = self.unanswered.front() else {
            let due = now.saturating_duration_since(self.pinged_at) >= self.stall / PINGS;
            return if due { LivenessAction::Ping } else { LivenessAction::Fine };
        };
        let patience = self.stall + Duration::from_secs(self.sent_since_pong / BYTES_A_SECOND);
        if now.saturating_duration_since(oldest.sent_at.max(self.sign_at)) >= patience {
            LivenessAction::Lifeless
        } else {
            LivenessAction::Fine
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
    fn a_quiet_client_is_pinged_and_one_that_answers_lives() {
        let (mut live, clock) = new();
        for n in 0..10 {
            assert_eq!(live.tick(n, false, clock.at(n * 20 + 19)), LivenessAction::Fine);
            assert_eq!(live.tick(n, false, clock.at(n * 20 + 20)), LivenessAction::Ping);
            let payload = live.ping(None, clock.at(n * 20 + 20));
            assert_eq!(live.pong(&payload), None);
        }
    }

    #[test]
    fn without_an_answer_it_is_lifeless_after_the_stall_time_and_any_sign_begins_it_anew() {
        let (mut live, clock) = new();
        live.ping(None, clock.at(20));
        assert_eq!(
            live.tick(1, false, clock.at(79)),
            LivenessAction::Fine,
            "the kernel took the ping: that says nothing"
        );
        live.record_life(clock.at(79));
        assert_eq!(live.tick(2, false, clock.at(138)), LivenessAction::Fine);
        assert_eq!(live.tick(3, false, clock.at(139)), LivenessAction::Lifeless);
    }

    #[test]
    fn a_pong_may_be_late_by_what_was_sent_before_it() {
        let (mut live, clock) = new();
        live.ping(None, clock.at(0));
        live.sent(640 * 1024);
        assert_eq!(live.tick(0, false, clock.at(69)), LivenessAction::Fine);
        assert_eq!(live.tick(0, false, clock.at(70)), LivenessAction::Lifeless);
    }

    #[test]
    fn a_client_that_accepts_nothing_is_stalled_however_much_was_sent() {
        let (mut live, clock) = new();
        live.sent(10 << 20);
        assert_eq!(live.tick(7, true, clock.at(5)), LivenessAction::Fine);
        live.ping(None, clock.at(20));
        assert_eq!(live.tick(7, true, clock.at(64)), LivenessAction::Fine);
        assert_eq!(live.tick(7, true, clock.at(65)), LivenessAction::Stalled);
        assert_eq!(live.tick(8, true, clock.at(65)), LivenessAction::Fine, "it took something");
    }

    #[test]
    fn a_pong_says_what_has_arrived_and_answers_what_came_before() {
        let (mut live, clock) = new();
        let id = ExecutionId::random();
        let sent = |stdout| Some((id, PerStream { stdout, stderr: 0 }));
        let first = live.ping(sent(1), clock.at(1));
        let second = live.ping(sent(2), clock.at(2));
        let third = live.ping(sent(3), clock.at(3));
        assert_eq!(live.pong(b"unsolicited"), None);
        assert_eq!(live.pong(&second), sent(2));
        assert_eq!(live.pong(&first), None, "answered by the later one");
        assert_eq!(live.pong(&third), sent(3));
        assert!(live.unanswered.is_empty());
    }

    #[test]
    fn pings_that_are_never_answered_do_not_pile_up() {
        let (mut live, clock) = new();
        for _ in 0..10_000 {
            live.ping(None, clock.at(0));
        }
        assert_eq!(live.unanswered.len(), MAX_UNANSWERED);
    }
}
