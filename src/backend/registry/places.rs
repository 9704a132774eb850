//! Places to run and places in the queue, shared by the clients.
//!
//! Who asks for a place gets it at once, waits, or is refused. Pure: no task, no clock.

use std::hash::Hash;

use cc_executor_actors::{
    client::ClientName,
    id::SessionId,
    share::{ShareExceeded, Shares},
};

use super::fair_queue::FairQueue;

/// The places of a registry.
#[derive(Debug)]
pub struct Places<K> {
    running: Shares,
    queued: Shares,
    queue: FairQueue<K>,
}

/// Why there is no place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoPlace {
    /// The client, or all clients, run what they may, and nothing may wait.
    ToRun(ShareExceeded),
    /// Nor is there a place in the queue.
    InQueue(ShareExceeded),
}

/// The place that an execution got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TakenPlace {
    /// It may run.
    ToRun,
    /// It waits.
    InQueue,
}

impl<K: Copy + Eq + Hash> Places<K> {
    /// So many may run, and so many may wait.
    pub fn new(max_running: usize, max_queued: usize) -> Self {
        Places {
            running: Shares::new(max_running as u64),
            queued: Shares::new(max_queued as u64),
            queue: FairQueue::default(),
        }
    }

    /// How many run.
    pub fn n_running(&self) -> usize {
        self.running.total() as usize
    }

    /// The waiting executions.
    pub fn queue(&self) -> &FairQueue<K> {
        &self.queue
    }

    /// Whether there is a place for an execution of this client.
    ///
    /// # Errors
    ///
    /// Neither to run nor to wait.
    pub fn admits(&self, client: &ClientName) -> Result<TakenPlace, NoPlace> {
        // Free places were already offered to every queued client, so a client that has nothing queued may take one at
        // once.
        let running = self.running.admits(client, 1, self.queue.others_wait(client));
        if running.is_ok() && !self.queue.waits(client) {
            return Ok(TakenPlace::ToRun);
        }
        let queued = self.queued.admits(client, 1, false);
        queued.map(|()| TakenPlace::InQueue).map_err(|queued| no_place(running.err(), queued))
    }

    /// Whether there is a place for a client that has none yet.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn admits_newcomer(&self) -> Result<(), NoPlace> {
        let Err(running) = self.running.admits_newcomer(1) else { return Ok(()) };
        self.queued.admits_newcomer(1).map_err(|queued| no_place(Some(running), queued))
    }

    /// Takes a place that [`Places::admits`] has found.
    pub fn take(&mut self, place: TakenPlace, client: &ClientName, session: Option<SessionId>, id: K) {
        match place {
            TakenPlace::ToRun => self.running.add(client, 1),
            TakenPlace::InQueue => {
                self.queued.add(client, 1);
                self.queue.push(client, session, id);
            }
        }
    }

    /// Frees the place of an execution that has ended.
    pub fn leave(&mut self, client: &ClientName, id: K) {
        if self.queue.remove(id) {
            self.queued.remove(client, 1);
        } else {
            self.running.remove(client, 1);
        }
    }

    /// Gives a free place to the execution whose turn it is.
    pub fn promote(&mut self) -> Option<K> {
        let Places { running, queued, queue } = self;
        let n_waiting_clients = queue.n_clients();
        let (id, client) = queue.pop(|client| running.admits(client, 1, n_waiting_clients > 1).is_ok())?;
        queued.remove(&client, 1);
        running.add(&client, 1);
        Some(id)
    }
}

/// The refusal: of the queue, or of the places to run if there is no queue.
fn no_place(running: Option<ShareExceeded>, queued: ShareExceeded) -> NoPlace {
    match running {
        Some(running) if queued.limit == 0 => NoPlace::ToRun(running),
        _ => NoPlace::InQueue(queued),
    }
}

#[cfg(test)]
mod tests {
    use cc_executor_actors::share::ShareScope;
    use proptest::prelude::*;

    use super::*;

    fn client(n: u32) -> ClientName {
        ClientName::of_user(n)
    }

    fn take(places: &mut Places<u32>, client: &ClientName, id: u32) -> Result<TakenPlace, NoPlace> {
        let place = places.admits(client)?;
        places.take(place, client, None, id);
        Ok(place)
    }

    #[test]
    fn a_client_that_takes_everything_leaves_a_quarter_more_to_others() {
        let (mut places, [a, b, c]) = (Places::new(4, 4), [1, 2, 3].map(client));
        for id in 0..4 {
            assert_eq!(take(&mut places, &a, id), Ok(TakenPlace::ToRun));
        }
        for id in 4..8 {
            assert_eq!(take(&mut places, &a, id), Ok(TakenPlace::InQueue));
        }
        let full = |scope| NoPlace::InQueue(ShareExceeded { scope, limit: 4, used: 4 });
        assert_eq!(take(&mut places, &a, 8), Err(full(ShareScope::Client)));
        assert_eq!(places.admits_newcomer(), Ok(()));
        assert_eq!(take(&mut places, &b, 9), Ok(TakenPlace::ToRun));
        assert_eq!(take(&mut places, &b, 10), Ok(TakenPlace::InQueue));
        assert!(
            matches!(take(&mut places, &c, 11), Err(NoPlace::InQueue(exceeded)) if exceeded.scope == ShareScope::Service)
        );
        assert!(places.admits_newcomer().is_err());
        assert_eq!((places.n_running(), places.queue().len()), (5, 5));
        places.leave(&a, 0);
        assert_eq!(places.promote(), None, "the limit is still used up");
        places.leave(&a, 1);
        assert_eq!((places.promote(), places.promote()), (Some(4), None), "it has less than its share again");
        places.leave(&a, 2);
        assert_eq!((places.promote(), places.promote()), (Some(10), None), "the other client's turn");
    }

    #[test]
    fn without_a_queue_the_refusal_names_the_places_to_run() {
        let mut places = Places::new(1, 0);
        assert_eq!(take(&mut places, &client(1), 1), Ok(TakenPlace::ToRun));
        let full = NoPlace::ToRun(ShareExceeded { scope: ShareScope::Client, limit: 1, used: 1 });
        assert_eq!(take(&mut places, &client(1), 2), Err(full));
        assert!(matches!(places.admits_newcomer(), Err(NoPlace::ToRun(_))));
    }

    proptest! {
        /// While something waits, no client that could run waits; at most a quarter more than the limit runs; and when
        /// everything ends one by one, everything had its turn.
        #[test]
        fn no_place_is_left_free_and_nobody_starves(
            (max_running, max_queued) in (1usize..9, 0usize..9),
            moves in prop::collection::vec((0u32..4, any::<bool>(), any::<prop::sample::Index>()), 1..100),
        ) {
            let mut places = Places::new(max_running, max_queued);
            let mut running: Vec<(u32, ClientName)> = Vec::new();
            let mut waiting: Vec<(u32, ClientName)> = Vec::new();
            let promote = |places: &mut Places<u32>, running: &mut Vec<_>, waiting: &mut Vec<(u32, ClientName)>| {
                while let Some(id) = places.promote() {
                    let at = waiting.iter().position(|(other, _)| *other == id).expect("it waits");
                    running.push(waiting.remove(at));
                }
            };
            for (id, (n, ends, which)) in (0..).zip(moves) {
                if ends && !running.is_empty() {
                    let (id, client) = running.swap_remove(which.index(running.len()));
                    places.leave(&client, id);
                } else if ends && !waiting.is_empty() {
                    let (id, client) = waiting.swap_remove(which.index(waiting.len()));
                    places.leave(&client, id);
                } else {
                    match take(&mut places, &client(n), id) {
                        Ok(TakenPlace::ToRun) => running.push((id, client(n))),
                        Ok(TakenPlace::InQueue) => waiting.push((id, client(n))),
                        Err(_) => prop_assert!(!places.queue().is_empty() || max_queued == 0),
                    }
                }
                promote(&mut places, &mut running, &mut waiting);
                prop_assert_eq!((places.n_running(), places.queue().len()), (running.len(), waiting.len()));
                prop_assert!(running.len() <= max_running + max_running / 4);
                prop_assert!(waiting.len() <= max_queued + max_queued / 4);
                let runs_if_any_waits = waiting.is_empty() || !running.is_empty();
                prop_assert!(runs_if_any_waits, "an execution is queued only while another one runs");
            }
            while let Some((id, client)) = running.pop() {
                places.leave(&client, id);
                promote(&mut places, &mut running, &mut waiting);
            }
            prop_assert!(waiting.is_empty() && places.queue().is_empty());
        }
    }
}
