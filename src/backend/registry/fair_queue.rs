//! The order in which waiting executions start: the clients in turn, within one client its sessions in turn, and within
//! one session first come first served.
//!
//! A client that comes goes behind all that wait, so no client waits for more than one execution of each other client
//! at a time. A session that comes is served in the next round of its client. Pure: no task, no clock. The place of an
//! execution among those of its client is the number of a round and the number of its session, so a position is found
//! by a binary search. It changes only if an earlier execution of the session is removed: then it is one round earlier.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

use cc_executor_actors::{client::ClientName, id::SessionId};

/// Waiting executions with ids of this type.
#[derive(Debug)]
pub struct FairQueue<K> {
    clients: HashMap<ClientName, WaitingClient<K>>,
    /// The clients that wait, the next one first.
    turns: VecDeque<ClientName>,
    places: HashMap<K, (ClientName, QueuePlace)>,
}

/// The place of an execution among those of its client. Each round serves each session once, in the order in which the
/// sessions came.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct QueuePlace {
    round: u64,
    session: u64,
}

#[derive(Debug)]
struct WaitingClient<K> {
    /// Sorted by place. Those of one session are in rounds that follow each other.
    waiting: VecDeque<(QueuePlace, K, Option<SessionId>)>,
    sessions: HashMap<SessionId, WaitingSession>,
    /// The round of the last execution that left by its turn.
    round: u64,
    next_session: u64,
}

#[derive(Debug)]
struct WaitingSession {
    last: QueuePlace,
    n_waiting: usize,
}

impl<K> Default for FairQueue<K> {
    fn default() -> Self {
        FairQueue { clients: HashMap::new(), turns: VecDeque::new(), places: HashMap::new() }
    }
}

impl<K: Copy + Eq + Hash> FairQueue<K> {
    /// How many executions wait.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether no execution waits.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// How many clients wait.
    pub fn n_clients(&self) -> usize {
        self.turns.len()
    }

    /// Whether another client than this one waits.
    pub fn others_wait(&self, client: &ClientName) -> bool {
        match self.turns.len() {
            0 => false,
            1 => self.turns[0] != *client,
            _ => true,
        }
    }

    /// Whether this client waits.
    pub fn waits(&self, client: &ClientName) -> bool {
        self.clients.contains_key(client)
    }

    /// Adds an execution. Without a session it counts as a session of its own.
    pub fn push(&mut self, client: &ClientName, session: Option<SessionId>, id: K) {
        let waiting = self.clients.entry(client.clone()).or_insert_with(|| {
            self.turns.push_back(client.clone());
            WaitingClient { waiting: VecDeque::new(), sessions: HashMap::new(), round: 0, next_session: 0 }
        });
        let place = waiting.push(session, id);
        self.places.insert(id, (client.clone(), place));
    }

    /// Removes the next execution whose client is admitted. A client that is not keeps its turn.
    pub fn pop(&mut self, mut is_admitted: impl FnMut(&ClientName) -> bool) -> Option<(K, ClientName)> {
        let at = self.turns.iter().position(&mut is_admitted)?;
        let client = self.turns.remove(at)?;
        let waiting = self.clients.get_mut(&client)?;
        let (place, id, session) = waiting.waiting.pop_front()?;
        waiting.round = place.round;
        waiting.leave(session);
        self.places.remove(&id);
        if waiting.waiting.is_empty() {
            self.clients.remove(&client);
        } else {
            self.turns.push_back(client.clone());
        }
        Some((id, client))
    }

    /// Removes an execution that is not to start. Returns whether it waited.
    pub fn remove(&mut self, id: K) -> bool {
        let Some((client, place)) = self.places.remove(&id) else { return false };
        if let Some(waiting) = self.clients.get_mut(&client) {
            waiting.remove(place, |moved, place| {
                self.places.entry(moved).and_modify(|(_, current)| *current = place);
            });
            if waiting.waiting.is_empty() {
                self.clients.remove(&client);
                self.turns.retain(|turn| *turn != client);
            }
        }
        true
    }

    /// How many executions start up to and including this one, if every client is admitted and no other execution comes.
    pub fn position(&self, id: K) -> Option<u64> {
        let (client, place) = self.places.get(&id)?;
        let own = self.clients.get(client)?.find(*place)?;
        let mut before = own;
        let mut is_before = true;
        for other in &self.turns {
            if other == client {
                is_before = false;
            } else {
                let turns = own + usize::from(is_before);
                before += self.clients.get(other).map_or(0, |other| other.waiting.len()).min(turns);
            }
        }
        Some(before as u64 + 1)
    }

    /// All waiting executions, in no order.
    pub fn ids(&self) -> impl Iterator<Item = K> {
        self.places.keys().copied()
    }
}

impl<K: Copy> WaitingClient<K> {
    fn push(&mut self, session: Option<SessionId>, id: K) -> QueuePlace {
        let known = session.and_then(|session| self.sessions.get_mut(&session));
        let place = match known {
            Some(known) => {
                known.last.round += 1;
                known.n_waiting += 1;
                known.last
            }
            None => {
                // In the next round, because a session that was served in this round waits for that one, and new
                // sessions must not overtake it again and again.
                let place = QueuePlace { round: self.round + 1, session: self.next_session };
                self.next_session += 1;
                if let Some(session) = session {
                    self.sessions.insert(session, WaitingSession { last: place, n_waiting: 1 });
                }
                place
            }
        };
        let at = self.waiting.partition_point(|(other, ..)| *other < place);
        self.waiting.insert(at, (place, id, session));
        place
    }

    fn find(&self, place: QueuePlace) -> Option<usize> {
        self.waiting.binary_search_by_key(&place, |(place, ..)| *place).ok()
    }

    /// Removes the execution at a place. Each later execution of its session moves up one round, because the session has
    /// not used the turn of the removed one. Calls `on_moved` with each of them and its new place.
    fn remove(&mut self, place: QueuePlace, mut on_moved: impl FnMut(K, QueuePlace)) {
        let Some(mut at) = self.find(place) else { return };
        let session = self.waiting[at].2;
        let mut free = place;
        while let Some(next) = self.find(QueuePlace { round: free.round + 1, ..free }) {
            let (later, moved, _) = self.waiting[next];
            self.waiting[at].1 = moved;
            on_moved(moved, free);
            (at, free) = (next, later);
        }
        self.waiting.remove(at);
        if let Some(known) = session.and_then(|session| self.sessions.get_mut(&session)) {
            known.last.round -= 1;
        }
        self.leave(session);
    }

    fn leave(&mut self, session: Option<SessionId>) {
        if let Some(session) = session
            && let Some(known) = self.sessions.get_mut(&session)
        {
            known.n_waiting -= 1;
            if known.n_waiting == 0 {
                self.sessions.remove(&session);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn client(n: u32) -> ClientName {
        ClientName::of_user(n)
    }

    fn sessions<const N: usize>() -> [SessionId; N] {
        [(); N].map(|()| SessionId::random())
    }

    /// Removes all executions by their turns.
    fn drained(queue: &mut FairQueue<u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop(|_| true)).map(|(id, _)| id).collect()
    }

    #[test]
    fn clients_and_their_sessions_are_served_in_turn() {
        let [a, b, c] = sessions();
        // The client and the session of each execution, in the order in which they come, and the order in which they go.
        type Waiting<'a> = &'a [(u32, Option<SessionId>)];
        let table: [(&str, Waiting<'_>, &[u32]); 6] = [
            ("one session", &[(1, Some(a)), (1, Some(a)), (1, Some(a))], &[0, 1, 2]),
            ("no sessions", &[(1, None), (1, None), (1, None)], &[0, 1, 2]),
            ("two sessions", &[(1, Some(a)), (1, Some(a)), (1, Some(b)), (1, Some(b))], &[0, 2, 1, 3]),
            ("two clients", &[(1, None), (1, None), (1, None), (2, None), (2, None)], &[0, 3, 1, 4, 2]),
            (
                "two clients with three sessions",
                &[(1, Some(a)), (1, Some(a)), (1, Some(b)), (2, Some(c)), (2, Some(c))],
                &[0, 3, 2, 4, 1],
            ),
            ("with and without", &[(1, Some(a)), (1, Some(a)), (1, None), (1, Some(a))], &[0, 2, 1, 3]),
        ];
        for (name, executions, expected) in table {
            let mut queue = FairQueue::default();
            for (id, (client_number, session)) in executions.iter().enumerate() {
                queue.push(&client(*client_number), *session, id as u32);
            }
            let positions: Vec<_> = expected.iter().map(|id| queue.position(*id).unwrap()).collect();
            assert_eq!(positions, (1..=expected.len() as u64).collect::<Vec<_>>(), "{name}");
            assert_eq!(drained(&mut queue), expected, "{name}");
            assert!(queue.is_empty() && queue.clients.is_empty() && queue.turns.is_empty(), "{name}");
        }
    }

    #[test]
    fn a_client_that_is_not_admitted_keeps_its_turn() {
        let mut queue = FairQueue::default();
        for (id, n) in [(0, 1), (1, 1), (2, 2), (3, 2)] {
            queue.push(&client(n), None, id);
        }
        assert!(queue.others_wait(&client(1)) && queue.others_wait(&client(3)));
        assert_eq!(queue.pop(|name| *name != client(1)), Some((2, client(2))));
        assert_eq!(queue.pop(|_| false), None);
        assert_eq!(queue.position(0), Some(1));
        assert_eq!(drained(&mut queue), [0, 3, 1]);
        assert!(!queue.others_wait(&client(1)));
    }

    #[test]
    fn a_hundred_thousand_executions_of_one_client_cost_little() {
        const N: u32 = 100_000;
        let start = std::time::Instant::now();
        let mut queue = FairQueue::default();
        for id in 0..N {
            queue.push(&client(1), Some(SessionId::random()), id);
            assert_eq!(queue.position(id), Some(u64::from(id) + 1));
        }
        for id in (0..N).step_by(2) {
            assert!(queue.remove(id));
        }
        assert_eq!(drained(&mut queue), (1..N).step_by(2).collect::<Vec<_>>());
        // Looking at all of them each time would take minutes.
        assert!(start.elapsed() < std::time::Duration::from_secs(20), "{:?}", start.elapsed());
    }

    #[test]
    fn later_executions_of_a_session_take_the_turn_of_a_removed_one() {
        let [a, b, c] = sessions();
        let of = client(1);
        for (removed, pushed, expected) in [
            (0, c, [1, 3, 5, 2, 4]),
            (1, c, [0, 3, 5, 2, 4]),
            (2, c, [0, 3, 5, 1, 4]),
            (3, b, [0, 4, 1, 5, 2]),
            (4, b, [0, 3, 1, 5, 2]),
        ] {
            let mut queue = FairQueue::default();
            for (id, session) in [(0, a), (1, a), (2, a), (3, b), (4, b)] {
                queue.push(&of, Some(session), id);
            }
            assert!(queue.remove(removed));
            queue.push(&of, Some(pushed), 5);
            assert_eq!(expected.map(|id| queue.position(id)), [1, 2, 3, 4, 5].map(Some), "{removed}");
            assert_eq!(drained(&mut queue), expected, "{removed}");
        }
    }

    /// The order without places: the clients, the next one first.
    #[derive(Default)]
    struct ModelQueue(VecDeque<(ClientName, ModelClient)>);

    /// The executions of each session by its number: of those that are served in this round, and in the next.
    #[derive(Default)]
    struct ModelClient {
        rounds: [BTreeMap<u64, Vec<u32>>; 2],
        numbers: BTreeMap<SessionId, u64>,
        next_number: u64,
    }

    impl ModelQueue {
        fn push(&mut self, name: &ClientName, session: Option<SessionId>, id: u32) {
            if !self.0.iter().any(|(waiting, _)| waiting == name) {
                self.0.push_back((name.clone(), ModelClient::default()));
            }
            let Some((_, client)) = self.0.iter_mut().find(|(waiting, _)| waiting == name) else { return };
            let known = session.and_then(|session| client.numbers.get(&session)).copied();
            let number = known.unwrap_or(client.next_number);
            client.next_number = client.next_number.max(number + 1);
            client.numbers.extend(session.map(|session| (session, number)));
            let round = usize::from(!client.rounds[0].contains_key(&number));
            client.rounds[round].entry(number).or_default().push(id);
        }

        fn pop(&mut self) -> Option<u32> {
            let (name, mut client) = self.0.pop_front()?;
            if client.rounds[0].is_empty() {
                client.rounds.swap(0, 1);
            }
            let (number, mut ids) = client.rounds[0].pop_first()?;
            let id = ids.remove(0);
            client.rounds[1].insert(number, ids);
            self.0.push_back((name, client));
            self.tidy();
            Some(id)
        }

        fn remove(&mut self, id: u32) {
            let rounds = self.0.iter_mut().flat_map(|(_, client)| &mut client.rounds);
            rounds.flat_map(BTreeMap::values_mut).for_each(|ids| ids.retain(|other| *other != id));
            self.tidy();
        }

        /// Forgets the sessions and clients that do not wait any more.
        fn tidy(&mut self) {
            for (_, client) in &mut self.0 {
                client.rounds.iter_mut().for_each(|round| round.retain(|_, ids| !ids.is_empty()));
                client.numbers.retain(|_, number| client.rounds.iter().any(|round| round.contains_key(number)));
            }
            self.0.retain(|(_, client)| client.rounds.iter().any(|round| !round.is_empty()));
        }
    }

    proptest! {
        /// In every order of calls: the executions go in the order of the model, the positions are that order, each
        /// session's executions go in the order in which they came, and an execution waits for at most one of each
        /// other client at a time.
        #[test]
        fn positions_are_exact_and_nobody_starves(
            moves in prop::collection::vec((0u32..4, prop::option::of(0usize..3), 0u8..6), 1..120),
        ) {
            let sessions: [SessionId; 12] = sessions();
            let (mut queue, mut model) = (FairQueue::default(), ModelQueue::default());
            let mut came = BTreeMap::<u32, (ClientName, Option<SessionId>)>::new();
            for (id, (n, session, what)) in (0..).zip(moves) {
                let session = session.map(|session| sessions[3 * n as usize + session]);
                match what {
                    0 => {
                        let popped = queue.pop(|_| true).map(|(id, _)| id);
                        prop_assert_eq!(popped, model.pop());
                        prop_assert_eq!(popped.is_none(), came.is_empty());
                        popped.map(|id| came.remove(&id));
                    }
                    1 => {
                        let some = came.keys().nth(id as usize % came.len().max(1)).copied();
                        if let Some(some) = some {
                            prop_assert!(queue.remove(some) && !queue.remove(some));
                            model.remove(some);
                            came.remove(&some);
                        }
                    }
                    _ => {
                        queue.push(&client(n), session, id);
                        model.push(&client(n), session, id);
                        came.insert(id, (client(n), session));
                    }
                }
                prop_assert_eq!(queue.len(), came.len());
            }
            let mut positions: Vec<_> = came.keys().map(|id| (queue.position(*id).unwrap(), *id)).collect();
            positions.sort_unstable();
            prop_assert!(positions.iter().map(|(position, _)| *position).eq(1..=came.len() as u64));
            let order: Vec<u32> = positions.into_iter().map(|(_, id)| id).collect();
            prop_assert_eq!(&drained(&mut queue), &order);
            let of_model: Vec<u32> = std::iter::from_fn(|| model.pop()).collect();
            prop_assert_eq!(&of_model, &order);
            let mut last = BTreeMap::new();
            for id in &order {
                let (client, session) = &came[id];
                if let Some(session) = session
                    && let Some(earlier) = last.insert((client, session), id)
                {
                    prop_assert!(earlier < id, "the order of a session is kept");
                }
            }
            // Between two executions of one client each other client that still waits has exactly one.
            for client in came.values().map(|(client, _)| client) {
                let of = |id: &u32| &came[id].0;
                let own: Vec<usize> = (0..order.len()).filter(|at| of(&order[*at]) == client).collect();
                for pair in own.windows(2) {
                    let between = order[pair[0] + 1..pair[1]].iter().map(of).collect::<Vec<_>>();
                    let waiting = order[pair[0] + 1..].iter().map(of).filter(|other| *other != client);
                    let waiting = waiting.collect::<std::collections::BTreeSet<_>>();
                    prop_assert_eq!(between.len(), waiting.len());
                }
            }
        }
    }
}
