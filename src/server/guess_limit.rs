//! Slows wrong tokens down, for each peer. A right token is never counted, so it is never delayed, not even from an
//! address that guesses. Pure: no lock, no clock.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use cc_executor_actors::peer::PeerBlock;

/// How many wrong tokens a peer may send in a row before it is slowed down. Enough for many clients behind one address
/// that still have an old token.
const BURST: u32 = 60;

/// The time after which a peer may send one more.
const PERIOD: Duration = Duration::from_secs(1);

/// The largest number of peers that are remembered. Beyond it the one that is forgiven soonest is forgotten.
const MAX_PEERS: usize = 4_096;

/// The wrong tokens of all peers.
#[derive(Debug, Default)]
pub struct GuessLimit {
    /// When each peer will have no wrong token to its name, if it sends no more.
    forgiven_at: HashMap<PeerBlock, Instant>,
}

impl GuessLimit {
    /// Counts a wrong token. Returns the time after which the peer may send the next one, if it has sent too many.
    pub fn count(&mut self, peer: PeerBlock, now: Instant) -> Option<Duration> {
        let forgiven_at = self.forgiven_at.get(&peer).copied().unwrap_or(now).max(now);
        let owed = forgiven_at.duration_since(now);
        let allowed = PERIOD * (BURST - 1);
        if owed > allowed {
            return Some(owed - allowed);
        }
        if !self.forgiven_at.contains_key(&peer) {
            self.make_room(now);
        }
        self.forgiven_at.insert(peer, forgiven_at + PERIOD);
        None
    }

    fn make_room(&mut self, now: Instant) {
        if self.forgiven_at.len() < MAX_PEERS {
            return;
        }
        self.forgiven_at.retain(|_, forgiven_at| *forgiven_at > now);
        if self.forgiven_at.len() >= MAX_PEERS {
            let soonest = self.forgiven_at.iter().min_by_key(|(_, forgiven_at)| **forgiven_at);
            if let Some(peer) = soonest.map(|(peer, _)| *peer) {
                self.forgiven_at.remove(&peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_burst_is_answered_and_then_one_a_second() {
        let (mut limit, start, peer) = (GuessLimit::default(), Instant::now(), PeerBlock::V4(1));
        for n in 0..BURST {
            assert_eq!(limit.count(peer, start), None, "{n}");
        }
        for (after, verdict) in [
            (0, Some(ms(1_000))),
            (0, Some(ms(1_000))),
            (600, Some(ms(400))),
            (1_000, None),
            (1_000, Some(ms(1_000))),
            (3_000, None),
            (3_000, None),
            (3_000, Some(ms(1_000))),
        ] {
            assert_eq!(limit.count(peer, start + ms(after)), verdict, "after {after} ms");
        }
        assert_eq!(limit.count(PeerBlock::V4(2), start), None, "another peer");
        let later = start + ms(3_000) + PERIOD * BURST;
        for n in 0..BURST {
            assert_eq!(limit.count(peer, later), None, "everything is forgiven: {n}");
        }
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_is_forgiven_soonest() {
        let (mut limit, start) = (GuessLimit::default(), Instant::now());
        for _ in 0..BURST {
            limit.count(PeerBlock::V4(0), start);
        }
        for n in 1..3 * MAX_PEERS as u64 {
            assert_eq!(limit.count(PeerBlock::V6(n), start), None);
            assert!(limit.forgiven_at.len() <= MAX_PEERS);
        }
        assert!(limit.count(PeerBlock::V4(0), start).is_some(), "many others do not have the worst peer forgotten");
        limit.count(PeerBlock::V4(9), start + PERIOD * (BURST + 1));
        assert_eq!(limit.forgiven_at.len(), 1, "the forgiven ones are gone");
    }

    proptest! {
        #[test]
        fn no_window_has_more_than_the_burst_and_one_a_second(gaps in prop::collection::vec(0u64..1_500, 1..300)) {
            let (mut limit, start, mut now) = (GuessLimit::default(), Instant::now(), 0);
            let mut answered: Vec<u64> = Vec::new();
            for gap in gaps {
                // Most guesses come at once.
                now += gap.saturating_sub(1_400) * 15;
                if limit.count(PeerBlock::Unknown, start + ms(now)).is_none() {
                    answered.push(now);
                }
            }
            for (at, from) in answered.iter().enumerate() {
                for (n, to) in answered[at..].iter().enumerate() {
                    prop_assert!(n as u64 <= u64::from(BURST) + (to - from) / 1_000);
                }
            }
        }
    }
}
