//! Which connections a listener keeps, so that those of strangers never take the descriptors or the memory that work
//! needs. Pure: no socket, no lock, no clock.
//!
//! A connection is a stranger's until a request on it is authorized. From then on it works while a request is carried
//! out, and is idle between two requests. A newcomer is always let in: at a bound another connection is closed for it,
//! first one whose request was refused, then the stranger that has sent nothing for the longest time, then one that has
//! been idle for so long that its client no longer uses it. A connection that works is never closed.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use cc_executor_actors::{
    peer::PeerBlock,
    share::{ShareExceeded, ShareScope},
};

/// A stranger that sent nothing for this long is closed for a newcomer at the bounds of strangers. Many clients may
/// connect at once, and each of them needs a moment to send its request.
const GRACE: Duration = Duration::from_secs(1);

/// How long the rest of a refused request is read. The peer gets its answer in this time, if it reads at all.
const LINGER: Duration = Duration::from_secs(5);

/// A gateway keeps a connection for 15 s after its last request (`IDLE_CONNECTION` in
/// actors/src/backend_client/client.rs), so from this time on nobody meets a closed one.
const UNUSED: Duration = Duration::from_secs(20);

/// The longest time between two requests. Longer than both roles keep connections alive, so this only ends those whose
/// peer sends a request byte by byte.
const MAX_IDLE: Duration = Duration::from_secs(90);

/// How many times as many strangers as may stay are let in at once, because many clients may connect at the same moment. A
/// stranger that sends requests that need no authorization keeps its moment, so this also bounds those.
const BURST: usize = 8;

/// The least number of strangers that are let in at once, whatever number may stay. A gateway may open 64 connections for
/// each worker at the same moment (`MAX_REQUESTS` in actors/src/backend_client/request_gate.rs); this is enough for four.
const MIN_BURST: usize = 256;

/// How long the end of a response may take to be read: what the kernel and actix buffer of it, 4 MiB at most, at 16 KiB/s.
const LAST_BYTES: Duration = Duration::from_secs(300);

/// A connection of a listener.
pub type ConnectionId = u64;

/// The bounds of a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionBounds {
    /// All connections.
    pub connections: usize,
    /// Those on which a request was authorized.
    pub authorized: usize,
    /// Those of strangers, also of those that have only just connected.
    pub strangers_at_once: usize,
    /// Those of strangers that have had a moment to send a request.
    pub strangers: usize,
    /// Those of strangers with the same address.
    pub strangers_of_peer: usize,
    /// How long a request may take to arrive.
    pub patience: Duration,
}

impl ConnectionBounds {
    /// The bounds of clients' connections to a gateway. A session takes two descriptors, one of them to the backend, so
    /// they take less than a third of those of the process, also while some are being closed.
    pub fn of_gateway(descriptors: u64, strangers: usize, patience: Duration) -> Self {
        let connections = places(descriptors / 6);
        Self::new(connections, connections - connections / 4, connections, strangers, patience)
    }

    /// The bounds of connections to a backend. Its authorized connections are the streams of executions, so they may
    /// take half of the descriptors. Strangers may take a third, while there are few others.
    pub fn of_backend(descriptors: u64, strangers: usize, patience: Duration) -> Self {
        let connections = places(descriptors / 16 * 5);
        Self::new(connections, connections - connections / 5, places(descriptors / 6), strangers, patience)
    }

    /// The bounds of connections to a backend inside a gateway. Its authorized connections are the gateway's own, which
    /// the bounds of sessions limit. Its strangers take a ninth of the descriptors, and with those of the gateway less
    /// than a third.
    pub fn of_embedded(descriptors: u64, strangers: usize, patience: Duration) -> Self {
        Self::new(usize::MAX, usize::MAX, places(descriptors / 9), strangers, patience)
    }

    /// `at_once` is the number of strangers for which there are descriptors.
    fn new(connections: usize, authorized: usize, at_once: usize, strangers: usize, patience: Duration) -> Self {
        let burst = strangers.saturating_mul(BURST).max(MIN_BURST);
        let strangers_at_once = burst.min(at_once).min(connections);
        let strangers = strangers.min(strangers_at_once);
        let strangers_of_peer = (strangers / 4).max(1);
        ConnectionBounds { connections, authorized, strangers_at_once, strangers, strangers_of_peer, patience }
    }
}

fn places(descriptors: u64) -> usize {
    usize::try_from(descriptors).unwrap_or(usize::MAX).max(8)
}

/// The state of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    /// A request was refused, and the connection is being closed.
    Refused(Instant),
    /// No request was authorized. Since it connected, or sent the last request that needs no authorization.
    Stranger(Instant),
    /// The last authorized request ended at `ended_at`, and its response was last seen being sent at `since`.
    Idle { since: Instant, ended_at: Instant },
    /// An authorized request is being carried out.
    Working,
}

impl Standing {
    fn is_authorized(self) -> bool {
        matches!(self, Standing::Idle { .. } | Standing::Working)
    }

    /// The place in the order in which connections are closed.
    fn key(self, id: ConnectionId) -> Option<Key> {
        let (rank, since) = match self {
            Standing::Refused(since) => (Rank::Refused, since),
            Standing::Stranger(since) => (Rank::Stranger, since),
            Standing::Idle { since, .. } => (Rank::Idle, since),
            Standing::Working => return None,
        };
        Some(Key { rank, since, id })
    }
}

/// The kinds of connections that may be closed, in the order in which they are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Rank {
    Refused,
    Stranger,
    Idle,
}

/// A place in the order in which connections are closed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Key {
    rank: Rank,
    since: Instant,
    id: ConnectionId,
}

impl Key {
    /// Whether a stranger has had its moment.
    fn is_spent(&self, now: Instant) -> bool {
        match self.rank {
            Rank::Refused => true,
            Rank::Stranger => has_passed(self.since, GRACE, now),
            Rank::Idle => false,
        }
    }

    /// Whether the connection may be closed where there is no place for another one.
    fn is_closable(&self, now: Instant) -> bool {
        self.rank != Rank::Idle || self.is_unused(now)
    }

    /// Whether the connection has been idle for so long that its client no longer uses it.
    fn is_unused(&self, now: Instant) -> bool {
        self.rank == Rank::Idle && has_passed(self.since, UNUSED, now)
    }
}

/// The connections of a listener.
#[derive(Debug)]
pub struct ConnectionTable {
    bounds: ConnectionBounds,
    connections: HashMap<ConnectionId, (PeerBlock, Standing)>,
    /// All but the working ones, in the order in which they are closed.
    waiting: BTreeSet<Key>,
    /// The refused ones and the strangers of each peer, in the same order.
    of_peer: HashMap<PeerBlock, BTreeSet<Key>>,
    n_authorized: usize,
    next_id: ConnectionId,
}

impl ConnectionTable {
    /// No connections.
    pub fn new(bounds: ConnectionBounds) -> Self {
        ConnectionTable {
            bounds,
            connections: HashMap::new(),
            waiting: BTreeSet::new(),
            of_peer: HashMap::new(),
            n_authorized: 0,
            next_id: 0,
        }
    }

    /// Lets a new connection in. Returns the connections that must be closed for it.
    pub fn arrive(&mut self, peer: PeerBlock, now: Instant) -> (ConnectionId, Vec<ConnectionId>) {
        let id = self.next_id;
        self.next_id += 1;
        self.set(id, peer, Standing::Stranger(now));
        let mut closed = Vec::new();
        while let Some(victim) = self.victim(id, peer, now) {
            self.leave(victim);
            closed.push(victim);
        }
        (id, closed)
    }

    /// The connection to close next for a newcomer. A peer that has more than its quarter makes room for itself, so that
    /// its newcomers displace no other peer.
    fn victim(&self, newcomer: ConnectionId, peer: PeerBlock, now: Instant) -> Option<ConnectionId> {
        let of_peer = self.of_peer.get(&peer)?;
        let ConnectionBounds { connections, strangers_at_once, strangers, strangers_of_peer, .. } = self.bounds;
        let n_strangers = self.connections.len() - self.n_authorized;
        let is_peer_over = of_peer.len() > strangers_of_peer;
        let is_over = is_peer_over || n_strangers > strangers;
        let is_full = self.connections.len() > connections || n_strangers > strangers_at_once;
        let gives_way =
            |key: &&Key| key.id != newcomer && (is_full && key.is_closable(now) || is_over && key.is_spent(now));
        // The newcomer itself may be the first.
        let candidates = if is_peer_over { of_peer } else { &self.waiting };
        candidates.iter().take(2).find(gives_way).map(|key| key.id)
    }

    /// An authorized request begins. Returns an idle connection that must be closed for it.
    ///
    /// # Errors
    ///
    /// Too many authorized connections are in use.
    pub fn begin(&mut self, id: ConnectionId, now: Instant) -> Result<Option<ConnectionId>, ShareExceeded> {
        // A connection that is being closed has no place any more. Its request fails without this.
        let Some((peer, standing)) = self.connections.get(&id).copied() else { return Ok(None) };
        let mut closed = None;
        if !standing.is_authorized() && self.n_authorized >= self.bounds.authorized {
            let idle = self.waiting.iter().find(|key| key.rank == Rank::Idle);
            let (limit, used) = (self.bounds.authorized as u64, self.n_authorized as u64);
            let full = ShareExceeded { scope: ShareScope::Service, limit, used };
            let oldest = idle.filter(|key| key.is_unused(now)).ok_or(full)?.id;
            self.leave(oldest);
            closed = Some(oldest);
        }
        self.set(id, peer, Standing::Working);
        Ok(closed)
    }

    /// An authorized request has ended.
    pub fn end(&mut self, id: ConnectionId, now: Instant) {
        if let Some((peer, Standing::Working)) = self.connections.get(&id).copied() {
            self.set(id, peer, Standing::Idle { since: now, ended_at: now });
        }
    }

    /// The connections that are idle for so long that [`ConnectionTable::keep_sending`] must be called, if the last bytes
    /// of their responses are still being sent.
    pub fn resting(&self, now: Instant) -> Vec<ConnectionId> {
        let resting =
            self.waiting.iter().filter(|key| key.rank == Rank::Idle && has_passed(key.since, UNUSED / 2, now));
        resting.map(|key| key.id).collect()
    }

    /// The last bytes of a response on an idle connection are still being sent, because its client reads slowly.
    pub fn keep_sending(&mut self, id: ConnectionId, now: Instant) {
        if let Some((peer, Standing::Idle { ended_at, .. })) = self.connections.get(&id).copied()
            && !has_passed(ended_at, LAST_BYTES, now)
        {
            self.set(id, peer, Standing::Idle { since: now, ended_at });
        }
    }

    /// A request that needs no authorization has come.
    pub fn probe(&mut self, id: ConnectionId, now: Instant) {
        if let Some((peer, Standing::Stranger(_))) = self.connections.get(&id).copied() {
            self.set(id, peer, Standing::Stranger(now));
        }
    }

    /// A request was refused, so the connection is closed after the answer.
    pub fn refuse(&mut self, id: ConnectionId, now: Instant) {
        if let Some((peer, _)) = self.connections.get(&id).copied() {
            self.set(id, peer, Standing::Refused(now));
        }
    }

    /// The connection is closed.
    pub fn leave(&mut self, id: ConnectionId) {
        if let Some((peer, standing)) = self.connections.remove(&id) {
            self.forget(id, peer, standing);
        }
    }

    /// The connections whose time is over. They must be closed.
    pub fn take_overdue(&mut self, now: Instant) -> Vec<ConnectionId> {
        let is_overdue = |key: &&Key| {
            let patience = match key.rank {
                Rank::Refused => LINGER,
                // After the patience the connection itself answers 408; this is for those that cannot be answered.
                Rank::Stranger => self.bounds.patience + GRACE,
                Rank::Idle => MAX_IDLE,
            };
            has_passed(key.since, patience, now)
        };
        let overdue: Vec<_> = self.waiting.iter().filter(is_overdue).map(|key| key.id).collect();
        overdue.iter().for_each(|id| self.leave(*id));
        overdue
    }

    fn set(&mut self, id: ConnectionId, peer: PeerBlock, standing: Standing) {
        if let Some((peer, old)) = self.connections.insert(id, (peer, standing)) {
            self.forget(id, peer, old);
        }
        self.n_authorized += usize::from(standing.is_authorized());
        if let Some(key) = standing.key(id) {
            self.waiting.insert(key);
            if !standing.is_authorized() {
                self.of_peer.entry(peer).or_default().insert(key);
            }
        }
    }

    fn forget(&mut self, id: ConnectionId, peer: PeerBlock, standing: Standing) {
        self.n_authorized -= usize::from(standing.is_authorized());
        let Some(key) = standing.key(id) else { return };
        self.waiting.remove(&key);
        if let Some(of_peer) = self.of_peer.get_mut(&peer) {
            of_peer.remove(&key);
            if of_peer.is_empty() {
                self.of_peer.remove(&peer);
            }
        }
    }
}

fn has_passed(since: Instant, time: Duration, now: Instant) -> bool {
    now.saturating_duration_since(since) >= time
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Bounds that no test reaches by accident.
    const ROOMY: ConnectionBounds = ConnectionBounds {
        connections: 100,
        authorized: 80,
        strangers_at_once: 100,
        strangers: 100,
        strangers_of_peer: 100,
        patience: PATIENCE,
    };

    /// No connections, and these bounds.
    fn table(bounds: ConnectionBounds) -> (ConnectionTable, Instant) {
        (ConnectionTable::new(bounds), Instant::now())
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    const A: PeerBlock = PeerBlock::V4(1);
    const B: PeerBlock = PeerBlock::V4(2);

    #[test]
    fn the_stranger_that_was_silent_for_longest_is_closed_for_a_newcomer() {
        let (mut table, start) = table(ConnectionBounds { connections: 4, authorized: 3, ..ROOMY });
        let ids: Vec<_> = (0..4).map(|n| table.arrive(A, start + secs(n)).0).collect();
        table.probe(ids[0], start + secs(4));
        table.begin(ids[1], start + secs(4)).unwrap();
        assert_eq!(table.arrive(A, start + secs(5)).1, [ids[2]], "0 has sent a probe, and 1 works");
        table.refuse(ids[0], start + secs(5));
        assert_eq!(table.arrive(B, start + secs(5)).1, [ids[0]], "a refused one first");
    }

    #[test]
    fn strangers_of_one_peer_do_not_displace_those_of_another() {
        let (mut table, start) = table(ConnectionBounds { strangers_of_peer: 2, ..ROOMY });
        let other = table.arrive(B, start).0;
        let first = table.arrive(A, start).0;
        let second = table.arrive(A, start).0;
        let (third, closed) = table.arrive(A, start);
        assert!(closed.is_empty(), "many may connect at the same moment");
        let (_, closed) = table.arrive(A, start + GRACE);
        assert_eq!(closed, [first, second]);
        table.refuse(third, start + GRACE);
        let (fourth, closed) = table.arrive(A, start + GRACE);
        assert_eq!(closed, [third], "a refused one has no moment");
        table.leave(other);
        table.leave(fourth);
        assert_eq!(table.connections.len(), 1);
    }

    #[test]
    fn a_peer_over_its_quarter_makes_room_for_itself() {
        let (start, later) = (Instant::now(), Instant::now() + 2 * GRACE);
        // Over the number that may stay, and over the number that is let in at once.
        for (strangers, strangers_at_once, n_closed) in [(4, 100, 0), (100, 4, 10)] {
            let bounds = ConnectionBounds { strangers, strangers_at_once, strangers_of_peer: 2, ..ROOMY };
            let mut table = ConnectionTable::new(bounds);
            let other = table.arrive(B, start).0;
            let own: Vec<_> = (0..3).map(|_| table.arrive(A, later).0).collect();
            let closed: Vec<_> = (0..10).flat_map(|_| table.arrive(A, later).1).collect();
            assert!(!closed.contains(&other), "{closed:?}");
            assert_eq!(closed.len(), n_closed, "those that have only just connected stay where there is room");
            assert!(own.iter().take(n_closed).eq(closed.iter().take(own.len())), "the oldest first: {closed:?}");
        }
    }

    #[test]
    fn authorized_connections_are_bounded_and_give_way_only_when_they_are_unused() {
        let (mut table, start) = table(ConnectionBounds { connections: 4, authorized: 2, ..ROOMY });
        let ids: Vec<_> = (0..3).map(|_| table.arrive(A, start).0).collect();
        assert_eq!(table.begin(ids[0], start), Ok(None));
        assert_eq!(table.begin(ids[1], start), Ok(None));
        let full = ShareExceeded { scope: ShareScope::Service, limit: 2, used: 2 };
        assert_eq!(table.begin(ids[2], start), Err(full));
        table.end(ids[0], start);
        assert_eq!(table.begin(ids[0], start), Ok(None), "its own place");
        table.end(ids[0], start);
        let nearly = start + UNUSED - Duration::from_millis(1);
        assert_eq!(table.begin(ids[2], nearly), Err(full), "its client may still use it");
        assert_eq!(table.begin(ids[2], start + UNUSED), Ok(Some(ids[0])));
        assert_eq!(table.begin(ids[0], start + UNUSED), Ok(None), "it is being closed");
        assert_eq!(table.n_authorized, 2);
    }

    #[test]
    fn connections_whose_time_is_over_are_closed() {
        let (mut table, start) = table(ROOMY);
        let [refused, stranger, idle, working] = [(); 4].map(|()| table.arrive(A, start).0);
        table.refuse(refused, start);
        table.begin(idle, start).unwrap();
        table.end(idle, start);
        table.begin(working, start).unwrap();
        let mut over = Vec::new();
        for n in 0..1_000 {
            over.extend(table.take_overdue(start + secs(n)).into_iter().map(|id| (id, n)));
        }
        assert_eq!(over, [(refused, 5), (stranger, 11), (idle, 90)]);
        assert_eq!(table.connections.len(), 1);
    }

    /// The bounds of all listeners, for this limit of descriptors.
    fn all_bounds(descriptors: u64, strangers: usize) -> [ConnectionBounds; 3] {
        [
            ConnectionBounds::of_gateway(descriptors, strangers, PATIENCE),
            ConnectionBounds::of_backend(descriptors, strangers, PATIENCE),
            ConnectionBounds::of_embedded(descriptors, strangers, PATIENCE),
        ]
    }

    #[test]
    fn two_thirds_of_the_descriptors_are_never_strangers() {
        for descriptors in [64, 300, 1_024, 4_096, 524_288, 1 << 20, u64::MAX] {
            let all @ [gateway, backend, embedded] = all_bounds(descriptors, 512);
            for bounds in [gateway, backend] {
                assert!(bounds.connections - bounds.authorized >= 2, "{bounds:?}");
            }
            for bounds in all {
                assert!(bounds.strangers_at_once as u64 <= descriptors / 3, "{descriptors}: {bounds:?}");
            }
            // With fewer, each listener still has 8 places.
            if descriptors >= 300 {
                let strangers = (gateway.strangers_at_once + embedded.strangers_at_once) as u64;
                assert!(strangers <= descriptors / 3, "{descriptors}: {gateway:?} {embedded:?}");
            }
        }
        let [gateway, ..] = all_bounds(300, 512);
        let strangers = gateway.connections - gateway.authorized;
        assert!(2 * gateway.authorized + strangers <= 100, "{gateway:?}");
    }

    #[test]
    fn one_peer_has_a_quarter_of_the_strangers_that_may_stay() {
        for (descriptors, strangers, stay) in [(300, 512, [50, 50, 33]), (1 << 20, 512, [512; 3]), (1 << 20, 1, [1; 3])]
        {
            for (bounds, stay) in all_bounds(descriptors, strangers).into_iter().zip(stay) {
                assert_eq!((bounds.strangers, bounds.strangers_of_peer), (stay, (stay / 4).max(1)), "{bounds:?}");
            }
        }
    }

    #[test]
    fn strangers_are_bounded_also_if_they_send_probes() {
        for (strangers, at_once) in [(512, 4_096), (40, 320), (1, 256)] {
            for bounds in all_bounds(1 << 20, strangers) {
                let (mut table, start) = table(bounds);
                for n in 0..10_000 {
                    let now = start + Duration::from_millis(n);
                    let (id, _) = table.arrive(PeerBlock::V4(n as u32 % 3), now);
                    table.probe(id, now);
                    for other in (id.saturating_sub(5_000)..id).step_by(100) {
                        table.probe(other, now);
                    }
                    assert!(table.connections.len() <= at_once, "{} of {bounds:?}", table.connections.len());
                }
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Event {
        Arrive(u32),
        Begin(usize),
        End(usize),
        Probe(usize),
        Refuse(usize),
        Leave(usize),
        Sweep,
    }

    fn event() -> impl Strategy<Value = Event> {
        let at = 0usize..40;
        prop_oneof![
            6 => (0u32..4).prop_map(Event::Arrive),
            4 => at.clone().prop_map(Event::Begin),
            3 => at.clone().prop_map(Event::End),
            1 => at.clone().prop_map(Event::Probe),
            1 => at.clone().prop_map(Event::Refuse),
            1 => at.prop_map(Event::Leave),
            1 => Just(Event::Sweep),
        ]
    }

    proptest! {
        #[test]
        fn bounds_hold_newcomers_enter_and_work_is_never_closed(
            events in prop::collection::vec((event(), 0u64..4_000), 0..300),
            connections in 4usize..20,
            strangers in 1usize..20,
            strangers_at_once in 2usize..20,
        ) {
            let strangers_of_peer = strangers.div_ceil(2);
            let authorized = connections - 2;
            let bounds =
                ConnectionBounds { connections, authorized, strangers_at_once, strangers, strangers_of_peer, ..ROOMY };
            let (mut table, mut now) = table(bounds);
            let mut ids = Vec::new();
            for (event, gap) in events {
                now += Duration::from_millis(gap);
                let before = table.connections.clone();
                let id = |at: usize| ids.get(at % ids.len().max(1)).copied().unwrap_or(0);
                let mut closed = Vec::new();
                match event.clone() {
                    Event::Arrive(peer) => {
                        let (id, victims) = table.arrive(PeerBlock::V4(peer), now);
                        prop_assert!(table.connections.contains_key(&id));
                        closed = victims;
                        ids.push(id);
                    }
                    Event::Begin(at) => closed.extend(table.begin(id(at), now).unwrap_or_default()),
                    Event::End(at) => table.end(id(at), now),
                    Event::Probe(at) => table.probe(id(at), now),
                    Event::Refuse(at) => table.refuse(id(at), now),
                    Event::Leave(at) => table.leave(id(at)),
                    Event::Sweep => closed = table.take_overdue(now),
                }
                for id in closed {
                    match before.get(&id) {
                        Some((_, Standing::Refused(_) | Standing::Stranger(_))) => {}
                        Some((_, Standing::Idle { since, .. })) => prop_assert!(has_passed(*since, UNUSED, now)),
                        other => prop_assert!(false, "closed {:?}", other),
                    }
                }
                let all = table.connections.values();
                prop_assert!(table.connections.len() <= connections);
                if matches!(event, Event::Arrive(_)) {
                    prop_assert!(table.connections.len() - table.n_authorized <= strangers_at_once);
                }
                prop_assert_eq!(table.n_authorized, all.clone().filter(|(_, s)| s.is_authorized()).count());
                prop_assert!(table.n_authorized <= bounds.authorized);
                prop_assert_eq!(table.waiting.len(), all.clone().filter(|(_, s)| *s != Standing::Working).count());
                let of_peers: usize = table.of_peer.values().map(BTreeSet::len).sum();
                prop_assert_eq!(of_peers, all.filter(|(_, s)| !s.is_authorized()).count());
            }
        }
    }
}
