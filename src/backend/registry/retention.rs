//! Decides which executions are remembered, whose output is evicted, and whether another execution is admitted.
//!
//! An ending is remembered for the whole retention. Fetched output is evicted when memory is short, the oldest first;
//! unfetched output and output that a consumer reads is not. What then finds no room is refused. Executions that run
//! at that moment may still exceed the memory limit when they end.
//!
//! Pure: time is a parameter, in milliseconds since any fixed moment, and never goes back. Every order is a sorted
//! set, because a scan of all entries would make a million executions quadratic.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    hash::Hash,
};

use super::error::RegistryError;
use crate::backend::output_buffer::RetainedOutput;

/// The limits of a registry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegistryLimits {
    /// How long an execution is remembered after its end, in milliseconds.
    pub retention_ms: u64,
    /// How many executions are remembered at the most, running ones included.
    pub max_entries: usize,
    /// How much memory retained output may take before some is evicted or executions are refused, in bytes.
    pub max_kept_bytes: usize,
}

/// All remembered executions, by their ids.
#[derive(Debug)]
pub struct RegistryModel<K, T> {
    limits: RegistryLimits,
    // Boxed, because a map that grows moves its values under the lock.
    entries: HashMap<K, Box<RegistryEntry<T>>>,
    next_number: u64,
    /// Executions that have not ended or are read by a consumer. They are not forgotten by time.
    active: BTreeSet<K>,
    /// All other executions, by the time from which their retention counts.
    by_age: BTreeSet<(u64, K)>,
    /// The executions in `by_age` whose output may be evicted.
    evictable: BTreeSet<(u64, K)>,
    held_bytes: usize,
    fetched_bytes: usize,
}

/// One execution.
#[derive(Debug)]
pub struct RegistryEntry<T> {
    /// Unique over all entries, also over those with the same id.
    pub number: u64,
    /// The value of the caller.
    pub value: T,
    state: EntryState,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum EntryState {
    Live,
    Ended { since_ms: u64, output: RetainedOutput },
}

impl<K: Copy + Ord + Hash, T> RegistryModel<K, T> {
    /// An empty registry.
    pub fn new(limits: RegistryLimits) -> Self {
        RegistryModel {
            limits,
            entries: HashMap::new(),
            next_number: 0,
            active: BTreeSet::new(),
            by_age: BTreeSet::new(),
            evictable: BTreeSet::new(),
            held_bytes: 0,
            fetched_bytes: 0,
        }
    }

    /// Whether another execution is admitted.
    ///
    /// # Errors
    ///
    /// The limit of entries is reached, or the execution may detach and there is no memory for the output that it would
    /// leave.
    pub fn accepts(&self, may_detach: bool, now_ms: u64) -> Result<(), RegistryError> {
        let RegistryLimits { retention_ms, max_entries, max_kept_bytes } = self.limits;
        if self.entries.len() >= max_entries {
            let next_in_ms = self.by_age.first().map(|(since, _)| (since + retention_ms).saturating_sub(now_ms));
            return Err(RegistryError::TooManyEnded { max_ended: max_entries, next_in_ms });
        }
        if may_detach && self.held_bytes > max_kept_bytes {
            return Err(RegistryError::TooMuchUnfetched { held: self.held_bytes, max: max_kept_bytes });
        }
        Ok(())
    }

    /// How many executions were ever added, and how many bytes of output are retained.
    pub fn usage(&self) -> (u64, usize) {
        (self.next_number, self.held_bytes + self.fetched_bytes)
    }

    /// Adds an execution whose id is unknown, and returns its number.
    pub fn insert(&mut self, id: K, value: T) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        // An entry that is due to be forgotten may still be there.
        self.remove(id);
        self.entries.insert(id, Box::new(RegistryEntry { number, value, state: EntryState::Live }));
        self.index(id, EntryState::Live, true);
        number
    }

    /// The entry of an execution, unless it is due to be forgotten.
    pub fn get(&self, id: K, now_ms: u64) -> Option<&RegistryEntry<T>> {
        self.entries.get(&id).map(|entry| &**entry).filter(|entry| !self.is_over(entry.state, now_ms))
    }

    /// The mutable entry of an execution, unless it is due to be forgotten.
    pub fn get_mut(&mut self, id: K, now_ms: u64) -> Option<&mut RegistryEntry<T>> {
        let retention_ms = self.limits.retention_ms;
        self.entries.get_mut(&id).map(|entry| &mut **entry).filter(|entry| !entry.state.is_over(retention_ms, now_ms))
    }

    /// Records that an execution has ended, or that its retained output has changed. The retention counts from the end,
    /// and again from the time when a consumer leaves.
    pub fn retain(&mut self, id: K, output: RetainedOutput, now_ms: u64) {
        let Some(entry) = self.entries.get(&id) else { return };
        let since_ms = match entry.state {
            EntryState::Live | EntryState::Ended { output: RetainedOutput::Followed(_), .. } => now_ms,
            EntryState::Ended { since_ms, .. } => since_ms,
        };
        self.change(id, EntryState::Ended { since_ms, output });
    }

    /// Records that a consumer attaches to an execution that has ended.
    pub fn follow(&mut self, id: K, now_ms: u64) {
        let Some(EntryState::Ended { output, .. }) = self.entries.get(&id).map(|entry| entry.state) else { return };
        // Where nothing is retained the record answers at once, and no consumer stays.
        self.change(id, EntryState::Ended { since_ms: now_ms, output: output.followed() });
    }

    /// Evicts fetched output, the oldest first, until the rest fits or there is no more. Returns the executions.
    pub fn evict(&mut self) -> Vec<K> {
        let mut evicted = Vec::new();
        while self.held_bytes + self.fetched_bytes > self.limits.max_kept_bytes
            && let Some(&(since_ms, id)) = self.evictable.first()
        {
            self.change(id, EntryState::Ended { since_ms, output: RetainedOutput::Nothing });
            evicted.push(id);
        }
        evicted
    }

    /// Forgets up to `most` executions whose retention is over, the oldest first, and returns them.
    pub fn forget(&mut self, most: usize, now_ms: u64) -> Vec<(K, T)> {
        let mut forgotten = Vec::new();
        while forgotten.len() < most
            && let Some(&(since_ms, id)) = self.by_age.first()
            && since_ms + self.limits.retention_ms <= now_ms
        {
            forgotten.extend(self.remove(id).map(|value| (id, value)));
        }
        forgotten
    }

    /// Up to `most` ids: first the active executions, then the others, beginning with the last that ended.
    pub fn newest(&self, most: usize, now_ms: u64) -> Vec<K> {
        let over = |since_ms: u64| EntryState::Ended { since_ms, output: RetainedOutput::Nothing };
        let ended = self.by_age.iter().rev().filter(|(since_ms, _)| !self.is_over(over(*since_ms), now_ms));
        self.active.iter().copied().chain(ended.map(|(_, id)| *id)).take(most).collect()
    }

    /// The executions that have not ended or are read by a consumer.
    pub fn active(&self) -> impl Iterator<Item = K> {
        self.active.iter().copied()
    }

    fn is_over(&self, state: EntryState, now_ms: u64) -> bool {
        state.is_over(self.limits.retention_ms, now_ms)
    }

    fn remove(&mut self, id: K) -> Option<T> {
        let entry = self.entries.remove(&id)?;
        self.index(id, entry.state, false);
        Some(entry.value)
    }

    fn change(&mut self, id: K, to: EntryState) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let from = std::mem::replace(&mut entry.state, to);
        self.index(id, from, false);
        self.index(id, to, true);
    }

    /// Adds an entry in this state to the sorted sets and the sums, or removes it.
    fn index(&mut self, id: K, state: EntryState, is_known: bool) {
        let EntryState::Ended { since_ms, output } = state else { return put(&mut self.active, id, is_known) };
        match output {
            RetainedOutput::Followed(_) => put(&mut self.active, id, is_known),
            _ => put(&mut self.by_age, (since_ms, id), is_known),
        }
        let (sum, bytes) = match output {
            RetainedOutput::Nothing => return,
            RetainedOutput::Followed(bytes) | RetainedOutput::Unfetched(bytes) => (&mut self.held_bytes, bytes),
            RetainedOutput::Fetched(bytes) => {
                put(&mut self.evictable, (since_ms, id), is_known);
                (&mut self.fetched_bytes, bytes)
            }
        };
        if is_known { *sum += bytes } else { *sum -= bytes }
    }
}

/// Adds a value to a set, or removes it.
fn put<T: Ord>(set: &mut BTreeSet<T>, value: T, is_member: bool) {
    if is_member {
        set.insert(value);
    } else {
        set.remove(&value);
    }
}

impl EntryState {
    fn is_over(self, retention_ms: u64, now_ms: u64) -> bool {
        match self {
            EntryState::Live | EntryState::Ended { output: RetainedOutput::Followed(_), .. } => false,
            EntryState::Ended { since_ms, .. } => since_ms + retention_ms <= now_ms,
        }
    }
}

/// Ids that were canceled before their requests arrived. They are remembered for a while.
#[derive(Debug)]
pub struct WithdrawnIds<K> {
    for_ms: u64,
    at: HashMap<K, u64>,
    by_age: VecDeque<(u64, K)>,
}

impl<K: Copy + Eq + Hash> WithdrawnIds<K> {
    /// Remembers each id for this many milliseconds.
    pub fn new(for_ms: u64) -> Self {
        WithdrawnIds { for_ms, at: HashMap::new(), by_age: VecDeque::new() }
    }

    /// Remembers an id from now on.
    pub fn insert(&mut self, id: K, now_ms: u64) {
        while let Some(&(at, id)) = self.by_age.front()
            && at + self.for_ms <= now_ms
        {
            self.by_age.pop_front();
            // The id may have been inserted again since.
            if self.at.get(&id) == Some(&at) {
                self.at.remove(&id);
            }
        }
        if self.at.insert(id, now_ms) != Some(now_ms) {
            self.by_age.push_back((now_ms, id));
        }
    }

    /// Whether an id is remembered.
    pub fn contains(&self, id: K, now_ms: u64) -> bool {
        self.at.get(&id).is_some_and(|at| at + self.for_ms > now_ms)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: RegistryLimits = RegistryLimits { retention_ms: 100, max_entries: 1_000, max_kept_bytes: 100 };

    fn ended(registry: &mut RegistryModel<u32, ()>, id: u32, output: RetainedOutput, now_ms: u64) {
        registry.insert(id, ());
        registry.retain(id, output, now_ms);
    }

    #[test]
    fn fetched_output_is_evicted_the_oldest_first_and_no_other() {
        let mut registry = RegistryModel::new(LIMITS);
        for (id, output) in [
            (1, RetainedOutput::Fetched(30)),
            (2, RetainedOutput::Unfetched(30)),
            (3, RetainedOutput::Fetched(30)),
            (4, RetainedOutput::Followed(30)),
            (5, RetainedOutput::Nothing),
        ] {
            ended(&mut registry, id, output, u64::from(id));
        }
        assert_eq!(registry.evict(), [1]);
        registry.retain(1, RetainedOutput::Nothing, 6);
        ended(&mut registry, 6, RetainedOutput::Unfetched(50), 6);
        assert_eq!(registry.evict(), [3]);
        assert_eq!(registry.evict(), [0; 0], "110 bytes are held");
        assert_eq!(registry.accepts(true, 6), Err(RegistryError::TooMuchUnfetched { held: 110, max: 100 }));
        assert_eq!(registry.accepts(false, 6), Ok(()));
        assert!((1..=6).all(|id| registry.get(id, 6).is_some()), "all endings are known");
        registry.retain(2, RetainedOutput::Fetched(30), 7);
        assert_eq!(registry.accepts(true, 7), Ok(()), "what was fetched makes room");
    }

    #[test]
    fn the_retention_begins_anew_when_a_consumer_leaves() {
        let mut registry = RegistryModel::new(LIMITS);
        ended(&mut registry, 1, RetainedOutput::Unfetched(10), 0);
        ended(&mut registry, 2, RetainedOutput::Nothing, 0);
        registry.follow(1, 90);
        registry.follow(2, 90);
        assert_eq!(registry.forget(10, 189), [], "one is followed, and the other gave its ending at 90");
        assert_eq!(registry.forget(10, 190), [(2, ())]);
        assert!(registry.get(1, 10_000).is_some(), "one that is followed is not forgotten");
        registry.retain(1, RetainedOutput::Followed(10), 9_000);
        registry.retain(1, RetainedOutput::Unfetched(10), 10_000);
        registry.retain(1, RetainedOutput::Fetched(10), 10_050);
        assert!(registry.get(1, 10_099).is_some());
        assert!(registry.get(1, 10_100).is_none(), "an acknowledgement is no leaving");
        assert_eq!(registry.forget(10, 10_100), [(1, ())]);
        assert_eq!((registry.held_bytes, registry.fetched_bytes), (0, 0));
    }

    #[test]
    fn more_than_may_be_known_is_refused_until_the_oldest_is_forgotten() {
        let mut registry = RegistryModel::new(RegistryLimits { max_entries: 2, ..LIMITS });
        registry.insert(1, ());
        registry.insert(2, ());
        let refused = |next_in_ms| Err(RegistryError::TooManyEnded { max_ended: 2, next_in_ms });
        assert_eq!(registry.accepts(false, 10), refused(None), "none has ended");
        registry.retain(1, RetainedOutput::Nothing, 10);
        registry.retain(2, RetainedOutput::Nothing, 20);
        assert_eq!(registry.accepts(false, 20), refused(Some(90)));
        assert_eq!(registry.newest(10, 20), [2, 1]);
        assert_eq!(registry.newest(10, 110), [2], "it is not listed though it is still there");
        assert_eq!(registry.forget(1, 110), [(1, ())]);
        assert_eq!(registry.accepts(false, 110), Ok(()));
    }

    #[test]
    fn an_id_that_is_due_to_be_forgotten_is_a_new_one() {
        let mut registry = RegistryModel::new(LIMITS);
        registry.insert(1, "old");
        registry.retain(1, RetainedOutput::Unfetched(10), 0);
        let number = registry.get(1, 99).unwrap().number;
        assert!(registry.get(1, 100).is_none());
        assert_ne!(registry.insert(1, "new"), number);
        assert_eq!(registry.held_bytes, 0);
        assert_eq!(registry.forget(10, 1_000), []);
        assert_eq!(registry.get(1, 1_000).unwrap().value, "new");
    }

    #[test]
    fn a_hundred_thousand_entries_slow_nothing() {
        const N: u32 = 100_000;
        let limits = RegistryLimits { max_entries: N as usize, max_kept_bytes: 1_000, ..LIMITS };
        let mut registry = RegistryModel::new(limits);
        let start = std::time::Instant::now();
        for id in 0..N {
            assert_eq!(registry.accepts(true, 0), Ok(()));
            ended(
                &mut registry,
                id,
                if id % 2 == 0 { RetainedOutput::Fetched(10) } else { RetainedOutput::Nothing },
                0,
            );
            registry.evict();
            assert_eq!(registry.newest(2, 0).len().min(1), 1);
        }
        assert!(registry.accepts(false, 0).is_err());
        assert_eq!(registry.forget(usize::MAX, 100).len(), N as usize);
        // Looking at all of them each time would take minutes.
        assert!(start.elapsed() < std::time::Duration::from_secs(20), "{:?}", start.elapsed());
    }

    #[test]
    fn a_withdrawn_id_is_remembered_for_its_time_from_the_last_withdrawal() {
        let mut withdrawn = WithdrawnIds::new(60);
        withdrawn.insert(1, 0);
        withdrawn.insert(1, 0);
        withdrawn.insert(2, 10);
        withdrawn.insert(1, 50);
        assert!(withdrawn.contains(1, 109) && withdrawn.contains(2, 69));
        assert!(!withdrawn.contains(1, 110) && !withdrawn.contains(2, 70) && !withdrawn.contains(3, 0));
        withdrawn.insert(3, 200);
        assert_eq!((withdrawn.at.len(), withdrawn.by_age.len()), (1, 1));
    }

    /// What an entry of the model is.
    #[derive(Clone, Copy, Debug)]
    struct Known {
        since_ms: u64,
        output: Option<RetainedOutput>,
    }

    fn bytes_of(output: RetainedOutput) -> (usize, usize) {
        match output {
            RetainedOutput::Nothing => (0, 0),
            RetainedOutput::Followed(bytes) | RetainedOutput::Unfetched(bytes) => (bytes, 0),
            RetainedOutput::Fetched(bytes) => (0, bytes),
        }
    }

    proptest! {
        /// In every order of calls the result is that of a scan of all entries.
        #[test]
        fn it_decides_as_a_scan_of_all_entries_does(
            moves in prop::collection::vec((0u32..12, 0..7, 0usize..60, 0u64..40), 1..200),
        ) {
            let limits = RegistryLimits { retention_ms: 100, max_entries: 8, max_kept_bytes: 100 };
            let mut registry = RegistryModel::new(limits);
            let mut model = std::collections::BTreeMap::<u32, Known>::new();
            let mut now = 0;
            for (id, what, bytes, passed) in moves {
                now += passed;
                let followed = |known: &Known| matches!(known.output, None | Some(RetainedOutput::Followed(_)));
                let is_known = |known: &Known| followed(known) || known.since_ms + 100 > now;
                model.retain(|_, known| is_known(known));
                registry.forget(usize::MAX, now);
                for id in 0..12 {
                    prop_assert_eq!(registry.get(id, now).is_some(), model.contains_key(&id));
                }
                let sums = |model: &std::collections::BTreeMap<u32, Known>| {
                    let each = model.values().map(|known| bytes_of(known.output.unwrap_or(RetainedOutput::Nothing)));
                    each.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
                };
                let output = [RetainedOutput::Nothing, RetainedOutput::Followed(bytes), RetainedOutput::Unfetched(bytes), RetainedOutput::Fetched(bytes)];
                match (what, model.get(&id).copied()) {
                    (0, None) => {
                        let full = model.len() >= 8;
                        prop_assert_eq!(registry.accepts(false, now).is_err(), full);
                        prop_assert_eq!(registry.accepts(true, now).is_err(), full || sums(&model).0 > 100);
                        if !full {
                            registry.insert(id, ());
                            model.insert(id, Known { since_ms: 0, output: None });
                        }
                    }
                    (1..=4, Some(known)) => {
                        let output = output[what as usize - 1];
                        let since_ms = if followed(&known) { now } else { known.since_ms };
                        registry.retain(id, output, now);
                        model.insert(id, Known { since_ms, output: Some(output) });
                    }
                    (5, Some(Known { output: Some(before), .. })) => {
                        let (held, fetched) = bytes_of(before);
                        let output = if before == RetainedOutput::Nothing { before } else { RetainedOutput::Followed(held + fetched) };
                        registry.follow(id, now);
                        model.insert(id, Known { since_ms: now, output: Some(output) });
                    }
                    _ => {}
                }
                let mut evicted = Vec::new();
                while { let (held, fetched) = sums(&model); held + fetched > 100 } {
                    let fetched = model.iter().filter(|(_, known)| matches!(known.output, Some(RetainedOutput::Fetched(_))));
                    let Some(id) = fetched.min_by_key(|(id, known)| (known.since_ms, **id)).map(|(id, _)| *id) else { break };
                    model.get_mut(&id).unwrap().output = Some(RetainedOutput::Nothing);
                    evicted.push(id);
                }
                prop_assert_eq!(registry.evict(), evicted);
                prop_assert_eq!((registry.held_bytes, registry.fetched_bytes), sums(&model));
                prop_assert_eq!(registry.newest(100, now).len(), model.len());
            }
        }
    }
}
