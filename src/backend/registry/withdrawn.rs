//! Ids that clients canceled before their requests arrived. The requests are refused for a while.
//!
//! The number is bounded, per client and in all: at the bound the cancellation is refused, because the promise that
//! nothing will run could not be kept. Pure: time is a parameter, and never goes back.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

use cc_executor_actors::{
    client::ClientName,
    share::{ShareExceeded, Shares},
};

/// The ids of each client that were canceled before their requests arrived.
#[derive(Debug)]
pub struct WithdrawnIds<K> {
    for_ms: u64,
    shares: Shares,
    at: HashMap<(ClientName, K), u64>,
    by_age: VecDeque<(u64, ClientName, K)>,
}

/// Too many ids are remembered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooManyWithdrawn {
    /// The limit.
    pub exceeded: ShareExceeded,
    /// When the oldest is forgotten, in milliseconds.
    pub retry_in_ms: u64,
}

impl<K: Copy + Eq + Hash> WithdrawnIds<K> {
    /// Remembers each id for this many milliseconds, and so many ids.
    pub fn new(for_ms: u64, max_ids: u64) -> Self {
        WithdrawnIds { for_ms, shares: Shares::new(max_ids), at: HashMap::new(), by_age: VecDeque::new() }
    }

    /// Remembers an id from now on.
    ///
    /// # Errors
    ///
    /// The client, or all clients, have canceled too many.
    pub fn insert(&mut self, client: &ClientName, id: K, now_ms: u64) -> Result<(), TooManyWithdrawn> {
        self.forget(now_ms);
        // Each insertion counts, because it takes a place in the order even if the id is known.
        self.shares.admits(client, 1, false).map_err(|exceeded| {
            let oldest = self.by_age.front().map_or(now_ms, |(at, ..)| *at);
            TooManyWithdrawn { exceeded, retry_in_ms: (oldest + self.for_ms).saturating_sub(now_ms) }
        })?;
        if self.at.insert((client.clone(), id), now_ms) != Some(now_ms) {
            self.shares.add(client, 1);
            self.by_age.push_back((now_ms, client.clone(), id));
        }
        Ok(())
    }

    /// Whether an id of this client is remembered.
    pub fn contains(&self, client: &ClientName, id: K, now_ms: u64) -> bool {
        self.at.get(&(client.clone(), id)).is_some_and(|at| at + self.for_ms > now_ms)
    }

    fn forget(&mut self, now_ms: u64) {
        while let Some((at, ..)) = self.by_age.front()
            && at + self.for_ms <= now_ms
            && let Some((at, client, id)) = self.by_age.pop_front()
        {
            self.shares.remove(&client, 1);
            let key = (client, id);
            // The id may have been inserted again since.
            if self.at.get(&key) == Some(&at) {
                self.at.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use cc_executor_actors::share::ShareScope;

    use super::*;

    #[test]
    fn a_withdrawn_id_is_remembered_for_its_time_from_the_last_withdrawal() {
        let (mut withdrawn, a) = (WithdrawnIds::new(60, 100), ClientName::of_user(1));
        for (id, now_ms) in [(1, 0), (1, 0), (2, 10), (1, 50)] {
            withdrawn.insert(&a, id, now_ms).unwrap();
        }
        let contains = |withdrawn: &WithdrawnIds<i32>, id, now_ms| withdrawn.contains(&a, id, now_ms);
        assert!(contains(&withdrawn, 1, 109) && contains(&withdrawn, 2, 69));
        assert!(!contains(&withdrawn, 1, 110) && !contains(&withdrawn, 2, 70) && !contains(&withdrawn, 3, 0));
        assert!(!withdrawn.contains(&ClientName::of_user(2), 1, 60), "it is another client's");
        withdrawn.insert(&a, 3, 200).unwrap();
        assert_eq!((withdrawn.at.len(), withdrawn.by_age.len(), withdrawn.shares.total()), (1, 1, 1));
    }

    #[test]
    fn more_ids_than_the_share_are_refused_until_the_oldest_is_forgotten() {
        let (mut withdrawn, [a, b]) = (WithdrawnIds::new(60, 4), [1, 2].map(ClientName::of_user));
        for id in 0..4 {
            withdrawn.insert(&a, id, 5).unwrap();
        }
        let refused = withdrawn.insert(&a, 4, 15).unwrap_err();
        assert_eq!((refused.exceeded.scope, refused.exceeded.used, refused.retry_in_ms), (ShareScope::Client, 4, 50));
        withdrawn.insert(&b, 4, 15).unwrap();
        assert!(withdrawn.contains(&a, 0, 15), "nothing is forgotten before its time");
        withdrawn.insert(&a, 4, 65).unwrap();
    }
}
