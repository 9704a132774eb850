//! Decides which executions are remembered, whose output is evicted, and whether another execution is admitted.
//!
//! An ending is remembered for the whole retention. Fetched output is evicted when memory is short, that of the client
//! with most first, and of it the oldest; unfetched output and output that a consumer reads is not. What then finds no
//! room is refused. The clients share both limits. Executions that run at that moment may still exceed the memory limit
//! when they end.
//!
//! Pure: time is a parameter, in milliseconds since any fixed moment, and never goes back. Every order is a sorted
//! set, because a scan of all entries would make a million executions quadratic.

mod entry;
mod kept_bytes;
pub mod listing;
mod no_room;

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
};

use cc_executor_actors::{
    client::ClientName,
    share::{ShareExceeded, ShareScope, Shares},
};

pub use self::{
    entry::RegistryEntry,
    no_room::{NoRoom, Resource},
};
use self::{
    entry::{EntryKeys, EntryState},
    kept_bytes::KeptBytes,
    listing::{ListPage, ListPlace, Listing},
};
use crate::backend::output_buffer::RetainedOutput;

/// The limits of a registry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegistryLimits {
    /// How long an execution is remembered after its end, in milliseconds.
    pub retention_ms: u64,
    /// The same for an execution whose output is on disk.
    pub stored_retention_ms: u64,
    /// How many executions are remembered at the most, running ones included.
    pub max_entries: usize,
    /// How much memory retained output may take before some is evicted or executions are refused, in bytes.
    pub max_kept_bytes: usize,
    /// How much disk space output may take before some is evicted or executions are refused, in bytes.
    pub max_stored_bytes: u64,
}

/// How many bytes every running execution may have on disk, however much others have.
const LEAST_STORED: u64 = 1 << 20;

/// All remembered executions, by their ids.
#[derive(Debug)]
pub struct RegistryModel<K, T> {
    limits: RegistryLimits,
    // Boxed, because a map that grows moves its values under the lock.
    entries: HashMap<K, Box<RegistryEntry<T>>>,
    next_number: u64,
    /// The executions of all clients. The active ones are not forgotten by time.
    all: Listing<K>,
    owners: HashMap<ClientName, OwnedExecutions<K>>,
    n_entries: Shares,
    /// Output in memory.
    kept: KeptBytes,
    /// Output on disk, that of running executions included.
    stored: KeptBytes,
    /// The executions that are forgotten by time, by that time.
    expiring: BTreeSet<(u64, K)>,
}

/// The executions of one client.
#[derive(Debug)]
struct OwnedExecutions<K> {
    listing: Listing<K>,
    /// The executions whose output may be evicted from memory, by the time from which their retention counts.
    evictable: BTreeSet<(u64, K)>,
    /// The executions whose output may be evicted from disk, by their numbers.
    stored_evictable: BTreeSet<(u64, K)>,
    /// Those that are forgotten by time, by that time.
    expiring: BTreeSet<(u64, K)>,
}

/// Where output was evicted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Evicted<K> {
    /// From memory.
    Memory(K),
    /// From disk.
    Disk(K),
}

impl<K: Copy + Ord + Hash, T> RegistryModel<K, T> {
    /// An empty registry.
    pub fn new(limits: RegistryLimits) -> Self {
        RegistryModel {
            limits,
            entries: HashMap::new(),
            next_number: 0,
            all: Listing::new(),
            owners: HashMap::new(),
            n_entries: Shares::new(limits.max_entries as u64),
            kept: KeptBytes::new(limits.max_kept_bytes as u64),
            stored: KeptBytes::new(limits.max_stored_bytes),
            expiring: BTreeSet::new(),
        }
    }

    /// Whether another execution of this client is admitted.
    ///
    /// # Errors
    ///
    /// The limit of entries is reached, or the execution may detach and there is no memory for the output that it would
    /// leave.
    pub fn accepts(&self, owner: &ClientName, may_detach: bool, now_ms: u64) -> Result<(), NoRoom> {
        let no_room = |resource, exceeded| self.no_room(resource, exceeded, Some(owner), now_ms);
        self.n_entries.admits(owner, 1, false).map_err(|exceeded| no_room(Resource::Entries, exceeded))?;
        if !may_detach {
            return Ok(());
        }
        // On disk the limit is kept also by running executions, so at the limit there is room for nothing.
        self.stored.admits(owner, 1).map_err(|exceeded| no_room(Resource::StoredBytes, exceeded))?;
        self.kept.admits(owner, 0).map_err(|exceeded| no_room(Resource::UnfetchedBytes, exceeded))
    }

    /// Whether an execution of a client that has none is admitted, unless it may detach.
    ///
    /// # Errors
    ///
    /// The limit of entries is reached.
    pub fn accepts_newcomer(&self, now_ms: u64) -> Result<(), NoRoom> {
        let admitted = self.n_entries.admits_newcomer(1);
        admitted.map_err(|exceeded| self.no_room(Resource::Entries, exceeded, None, now_ms))
    }

    fn no_room(&self, resource: Resource, exceeded: ShareExceeded, owner: Option<&ClientName>, now_ms: u64) -> NoRoom {
        let within = match (resource, exceeded.scope) {
            (Resource::Entries, ShareScope::Client) => {
                owner.and_then(|owner| self.owners.get(owner)).map(|owned| &owned.expiring)
            }
            (Resource::Entries, ShareScope::Service) => Some(&self.expiring),
            (Resource::UnfetchedBytes | Resource::StoredBytes, _) => None,
        };
        let next_in_ms = within.and_then(BTreeSet::first).map(|(at_ms, _)| at_ms.saturating_sub(now_ms));
        NoRoom { resource, exceeded, next_in_ms }
    }

    /// How many executions were ever added, and how many bytes of output are retained.
    pub fn usage(&self) -> (u64, u64) {
        (self.next_number, self.kept.total())
    }

    /// Adds an execution of a client whose id is unknown, and returns its number.
    pub fn insert(&mut self, id: K, owner: &ClientName, value: T) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        // An entry that is due to be forgotten may still be there.
        self.remove(id);
        // The name that the client's other entries share.
        let owner = self.owners.get_key_value(owner).map_or(owner, |(shared, _)| shared).clone();
        self.n_entries.add(&owner, 1);
        let retention_ms = self.limits.retention_ms;
        let (state, stored) = (EntryState::Live, RetainedOutput::Nothing);
        let entry = RegistryEntry { number, owner, value, state, stored, retention_ms };
        self.index(id, &EntryKeys::of(&entry), true);
        self.entries.insert(id, Box::new(entry));
        number
    }

    /// The entry of an execution, unless it is due to be forgotten.
    pub fn get(&self, id: K, now_ms: u64) -> Option<&RegistryEntry<T>> {
        self.entries.get(&id).map(|entry| &**entry).filter(|entry| !entry.is_over(now_ms))
    }

    /// The mutable entry of an execution, unless it is due to be forgotten.
    pub fn get_mut(&mut self, id: K, now_ms: u64) -> Option<&mut RegistryEntry<T>> {
        self.entries.get_mut(&id).map(|entry| &mut **entry).filter(|entry| !entry.is_over(now_ms))
    }

    /// The value of an execution, even if it is due to be forgotten.
    pub fn value_mut(&mut self, id: K) -> Option<&mut T> {
        self.entries.get_mut(&id).map(|entry| &mut entry.value)
    }

    /// Records that an execution has ended, or that its retained output has changed. The retention counts from the end,
    /// and again from the time when a consumer leaves.
    pub fn retain(&mut self, id: K, output: RetainedOutput, now_ms: u64) {
        let Some(entry) = self.entries.get(&id) else { return };
        let since_ms = match entry.state {
            // As long as a consumer stays, the time has no meaning, and keeping it makes a repeated report no change.
            EntryState::Ended { since_ms, output: before } if output.is_followed() || !before.is_followed() => since_ms,
            EntryState::Live | EntryState::Ended { .. } => now_ms,
        };
        self.set_state(id, EntryState::Ended { since_ms, output });
    }

    /// Records how much of an execution's output is on disk. An execution that has some is remembered for longer.
    /// With `is_whole` false its output is not, so that it is remembered as if it were in memory.
    pub fn store(&mut self, id: K, output: RetainedOutput, is_whole: bool) {
        let RegistryLimits { retention_ms, stored_retention_ms, .. } = self.limits;
        self.change(id, |entry| {
            entry.stored = output;
            if output != RetainedOutput::Nothing {
                entry.retention_ms = if is_whole { stored_retention_ms } else { retention_ms };
            }
        });
    }

    /// How many bytes an execution may have on disk, because of the limit of all.
    pub fn allows(&self, id: K) -> u64 {
        let Some(entry) = self.entries.get(&id) else { return 0 };
        self.stored.allows(&entry.owner, entry.stored.bytes() as u64, LEAST_STORED)
    }

    /// How many bytes are on disk, and whether they reach the limit.
    pub fn stored_total(&self) -> (u64, bool) {
        (self.stored.total(), self.stored.total() >= self.limits.max_stored_bytes)
    }

    /// Records that a consumer attaches to an execution that has ended.
    pub fn follow(&mut self, id: K, now_ms: u64) {
        let Some(EntryState::Ended { output, .. }) = self.entries.get(&id).map(|entry| entry.state) else { return };
        // Where nothing is retained the record answers at once, and no consumer stays.
        self.set_state(id, EntryState::Ended { since_ms: now_ms, output: output.followed() });
    }

    /// Evicts fetched output until the rest fits or no more may be evicted. Returns the executions.
    pub fn evict(&mut self) -> Vec<Evicted<K>> {
        let mut evicted = Vec::new();
        while let Some(owner) = self.kept.next_to_evict(0)
            && let Some(&(since_ms, id)) = self.owners.get(owner).and_then(|owned| owned.evictable.first())
        {
            self.set_state(id, EntryState::Ended { since_ms, output: RetainedOutput::Nothing });
            evicted.push(Evicted::Memory(id));
        }
        // At its limit, too, because an execution may wait for disk space.
        while let Some(owner) = self.stored.next_to_evict_beyond(1)
            && let Some(&(_, id)) = self.owners.get(owner).and_then(|owned| owned.stored_evictable.first())
        {
            self.change(id, |entry| entry.stored = RetainedOutput::Nothing);
            evicted.push(Evicted::Disk(id));
        }
        evicted
    }

    /// Forgets up to `most` executions whose retention is over, the oldest first, and returns them.
    pub fn forget(&mut self, most: usize, now_ms: u64) -> Vec<(K, RegistryEntry<T>)> {
        let mut forgotten = Vec::new();
        while forgotten.len() < most
            && let Some(&(at_ms, id)) = self.expiring.first()
            && at_ms <= now_ms
        {
            forgotten.extend(self.remove(id).map(|entry| (id, entry)));
        }
        forgotten
    }

    /// Up to `most` executions of a client, or of all, after this place of the list.
    pub fn list(
        &self,
        owner: Option<&ClientName>,
        after: Option<ListPlace<K>>,
        most: usize,
        now_ms: u64,
    ) -> ListPage<K> {
        let is_listed = |id| self.get(id, now_ms).is_some();
        match owner {
            None => self.all.page(after, most, is_listed),
            Some(owner) => match self.owners.get(owner) {
                Some(owned) => owned.listing.page(after, most, is_listed),
                None => ListPage { ids: Vec::new(), next: None, total: 0 },
            },
        }
    }

    /// The executions that have not ended or are read by a consumer.
    pub fn active(&self) -> impl Iterator<Item = K> {
        self.all.active()
    }

    /// Forgets an execution at once.
    pub fn remove(&mut self, id: K) -> Option<RegistryEntry<T>> {
        let entry = *self.entries.remove(&id)?;
        self.index(id, &EntryKeys::of(&entry), false);
        self.n_entries.remove(&entry.owner, 1);
        if self.owners.get(&entry.owner).is_some_and(|owned| owned.listing.is_empty()) {
            self.owners.remove(&entry.owner);
        }
        Some(entry)
    }

    fn set_state(&mut self, id: K, to: EntryState) {
        // Most reports repeat the one before, and the sorted sets are changed under the registry's lock.
        if self.entries.get(&id).is_some_and(|entry| entry.state != to) {
            self.change(id, |entry| entry.state = to);
        }
    }

    fn change(&mut self, id: K, change: impl FnOnce(&mut RegistryEntry<T>)) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let from = EntryKeys::of(entry);
        change(entry);
        let to = EntryKeys::of(entry);
        self.index(id, &from, false);
        self.index(id, &to, true);
    }

    /// Adds an entry to the sorted sets and the sums, or removes it.
    fn index(&mut self, id: K, keys: &EntryKeys, is_known: bool) {
        let EntryKeys { number, owner, state, stored, retention_ms } = keys;
        let owned = self.owners.entry(owner.clone()).or_insert_with(OwnedExecutions::new);
        let place = match *state {
            EntryState::Ended { since_ms, output } if !output.is_followed() => {
                let expiry = (since_ms.saturating_add(*retention_ms), id);
                put(&mut self.expiring, expiry, is_known);
                put(&mut owned.expiring, expiry, is_known);
                ListPlace::Ended(since_ms, id)
            }
            _ => ListPlace::Active(*number),
        };
        self.all.put(place, id, is_known);
        owned.listing.put(place, id, is_known);
        self.stored.count(owner, *stored, is_known);
        if matches!(stored, RetainedOutput::Fetched(_)) {
            put(&mut owned.stored_evictable, (*number, id), is_known);
        }
        let EntryState::Ended { since_ms, output } = *state else { return };
        self.kept.count(owner, output, is_known);
        if matches!(output, RetainedOutput::Fetched(_)) {
            put(&mut owned.evictable, (since_ms, id), is_known);
        }
    }
}

impl<K: Copy + Ord> OwnedExecutions<K> {
    fn new() -> Self {
        OwnedExecutions {
            listing: Listing::new(),
            evictable: BTreeSet::new(),
            stored_evictable: BTreeSet::new(),
            expiring: BTreeSet::new(),
        }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: RegistryLimits = RegistryLimits {
        retention_ms: 100,
        stored_retention_ms: 300,
        max_entries: 1_000,
        max_kept_bytes: 100,
        max_stored_bytes: 200,
    };

    fn owner() -> ClientName {
        ClientName::of_user(1)
    }

    fn refused(resource: Resource, limit: u64, used: u64, next_in_ms: Option<u64>) -> Result<(), NoRoom> {
        let exceeded = ShareExceeded { scope: ShareScope::Client, limit, used };
        Err(NoRoom { resource, exceeded, next_in_ms })
    }

    fn listed(registry: &RegistryModel<u32, ()>, most: usize, now_ms: u64) -> Vec<u32> {
        let of_owner = registry.list(Some(&owner()), None, most, now_ms);
        assert_eq!(registry.list(None, None, most, now_ms), of_owner, "there is one client");
        of_owner.ids
    }

    fn forgotten<T>(registry: &mut RegistryModel<u32, T>, most: usize, now_ms: u64) -> Vec<u32> {
        registry.forget(most, now_ms).into_iter().map(|(id, _)| id).collect()
    }

    fn ended(registry: &mut RegistryModel<u32, ()>, id: u32, output: RetainedOutput, now_ms: u64) {
        registry.insert(id, &owner(), ());
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
        assert_eq!(registry.evict(), [Evicted::Memory(1)]);
        registry.retain(1, RetainedOutput::Nothing, 6);
        ended(&mut registry, 6, RetainedOutput::Unfetched(50), 6);
        assert_eq!(registry.evict(), [Evicted::Memory(3)]);
        assert_eq!(registry.evict(), [], "110 bytes are held");
        assert_eq!(registry.accepts(&owner(), true, 6), refused(Resource::UnfetchedBytes, 100, 110, None));
        assert_eq!(registry.accepts(&owner(), false, 6), Ok(()));
        assert!((1..=6).all(|id| registry.get(id, 6).is_some()), "all endings are known");
        registry.retain(2, RetainedOutput::Fetched(30), 7);
        assert_eq!(registry.accepts(&owner(), true, 7), Ok(()), "what was fetched makes room");
    }

    #[test]
    fn what_is_on_disk_has_its_own_limit_and_a_longer_retention() {
        let mut registry = RegistryModel::new(LIMITS);
        for id in 1..=3 {
            ended(&mut registry, id, RetainedOutput::Nothing, 0);
        }
        registry.store(1, RetainedOutput::Fetched(60), true);
        registry.store(2, RetainedOutput::Unfetched(60), true);
        registry.insert(4, &owner(), ());
        registry.store(4, RetainedOutput::Unfetched(90), true);
        assert_eq!(registry.stored_total(), (210, true), "it runs, and counts");
        assert_eq!(registry.evict(), [Evicted::Disk(1)]);
        registry.store(4, RetainedOutput::Unfetched(140), true);
        assert_eq!(registry.evict(), [], "nobody's unfetched output goes");
        assert_eq!(registry.accepts(&owner(), true, 1), refused(Resource::StoredBytes, 200, 200, None));
        assert_eq!(registry.accepts(&owner(), false, 1), Ok(()));
        registry.retain(4, RetainedOutput::Nothing, 50);
        assert_eq!(forgotten(&mut registry, 10, 100), [3]);
        registry.store(2, RetainedOutput::Unfetched(60), false);
        assert_eq!(forgotten(&mut registry, 10, 100), [2], "the disk did not take all of it");
        assert_eq!(forgotten(&mut registry, 10, 300), [1]);
        assert!(forgotten(&mut registry, 10, 349).is_empty());
        assert_eq!(forgotten(&mut registry, 10, 350), [4]);
        assert_eq!((registry.stored.total(), registry.expiring.len(), registry.owners.len()), (0, 0, 0));
    }

    #[test]
    fn the_retention_begins_anew_when_a_consumer_leaves() {
        let mut registry = RegistryModel::new(LIMITS);
        ended(&mut registry, 1, RetainedOutput::Unfetched(10), 0);
        ended(&mut registry, 2, RetainedOutput::Nothing, 0);
        registry.follow(1, 90);
        registry.follow(2, 90);
        assert!(forgotten(&mut registry, 10, 189).is_empty(), "one is followed, and the other gave its ending at 90");
        assert_eq!(forgotten(&mut registry, 10, 190), [2]);
        assert!(registry.get(1, 10_000).is_some(), "one that is followed is not forgotten");
        registry.retain(1, RetainedOutput::Followed(10), 9_000);
        registry.retain(1, RetainedOutput::Unfetched(10), 10_000);
        registry.retain(1, RetainedOutput::Fetched(10), 10_050);
        assert!(registry.get(1, 10_099).is_some());
        assert!(registry.get(1, 10_100).is_none(), "an acknowledgement is no leaving");
        assert_eq!(forgotten(&mut registry, 10, 10_100), [1]);
        assert_eq!((registry.kept.total(), registry.owners.len(), registry.n_entries.total()), (0, 0, 0));
    }

    #[test]
    fn more_than_may_be_known_is_refused_until_the_oldest_is_forgotten() {
        let mut registry = RegistryModel::new(RegistryLimits { max_entries: 2, ..LIMITS });
        registry.insert(1, &owner(), ());
        registry.insert(2, &owner(), ());
        let refused = |next_in_ms| refused(Resource::Entries, 2, 2, next_in_ms);
        assert_eq!(registry.accepts(&owner(), false, 10), refused(None), "none has ended");
        registry.retain(1, RetainedOutput::Nothing, 10);
        registry.retain(2, RetainedOutput::Nothing, 20);
        assert_eq!(registry.accepts(&owner(), false, 20), refused(Some(90)));
        assert_eq!(listed(&registry, 10, 20), [2, 1]);
        assert_eq!(listed(&registry, 10, 110), [2], "it is not listed though it is still there");
        assert_eq!(forgotten(&mut registry, 1, 110), [1]);
        assert_eq!(registry.accepts(&owner(), false, 110), Ok(()));
    }

    #[test]
    fn clients_share_the_entries_and_see_their_own_only() {
        let mut registry = RegistryModel::new(RegistryLimits { max_entries: 4, ..LIMITS });
        let [a, b] = [1, 2].map(ClientName::of_user);
        for id in 0..4u32 {
            registry.insert(id, &a, ());
            registry.retain(id, RetainedOutput::Nothing, 10 + u64::from(id));
        }
        assert_eq!(registry.accepts(&a, false, 20), refused(Resource::Entries, 4, 4, Some(90)));
        assert_eq!((registry.accepts(&b, false, 20), registry.accepts_newcomer(20)), (Ok(()), Ok(())));
        registry.insert(9, &b, ());
        let over = registry.accepts(&b, false, 20).unwrap_err();
        assert_eq!((over.exceeded.scope, over.next_in_ms), (ShareScope::Service, Some(90)));
        assert_eq!(registry.accepts_newcomer(20).unwrap_err().exceeded.scope, ShareScope::Service);
        let list = |owner| registry.list(owner, None, 3, 20).ids;
        assert_eq!((list(Some(&a)), list(Some(&b)), list(None)), (vec![3, 2, 1], vec![9], vec![9, 3, 2]));
        assert!((0..4).all(|id| registry.get(id, 20).is_some()), "nothing was forgotten");
        let owners = [0, 1].map(|id| registry.get(id, 20).unwrap().owner.as_str().as_ptr());
        assert_eq!(owners[0], owners[1], "one name for all of its entries");
    }

    #[test]
    fn an_id_that_is_due_to_be_forgotten_is_a_new_one() {
        let mut registry = RegistryModel::new(LIMITS);
        registry.insert(1, &owner(), "old");
        registry.retain(1, RetainedOutput::Unfetched(10), 0);
        let number = registry.get(1, 99).unwrap().number;
        assert!(registry.get(1, 100).is_none());
        assert_ne!(registry.insert(1, &owner(), "new"), number);
        assert_eq!(registry.kept.total(), 0);
        assert!(forgotten(&mut registry, 10, 1_000).is_empty());
        assert_eq!(registry.get(1, 1_000).unwrap().value, "new");
    }

    #[test]
    fn a_hundred_thousand_entries_slow_nothing() {
        const N: u32 = 100_000;
        let limits = RegistryLimits { max_entries: N as usize, max_kept_bytes: 1_000, ..LIMITS };
        let mut registry = RegistryModel::new(limits);
        let start = std::time::Instant::now();
        for id in 0..N {
            assert_eq!(registry.accepts(&owner(), true, 0), Ok(()));
            ended(
                &mut registry,
                id,
                if id % 2 == 0 { RetainedOutput::Fetched(10) } else { RetainedOutput::Nothing },
                0,
            );
            registry.evict();
            assert!(!listed(&registry, 2, 0).is_empty());
        }
        assert!(registry.accepts(&owner(), false, 0).is_err());
        assert_eq!(registry.forget(usize::MAX, 100).len(), N as usize);
        // Looking at all of them each time would take minutes.
        assert!(start.elapsed() < std::time::Duration::from_secs(20), "{:?}", start.elapsed());
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
            moves in prop::collection::vec((0u32..12, 0..7, 1usize..60, 0u64..40), 1..200),
        ) {
            let limits = RegistryLimits { max_entries: 8, ..LIMITS };
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
                        prop_assert_eq!(registry.accepts(&owner(), false, now).is_err(), full);
                        prop_assert_eq!(registry.accepts(&owner(), true, now).is_err(), full || sums(&model).0 > 100);
                        if !full {
                            registry.insert(id, &owner(), ());
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
                    evicted.push(Evicted::Memory(id));
                }
                prop_assert_eq!(registry.evict(), evicted);
                prop_assert_eq!(registry.kept.total() as usize, sums(&model).0 + sums(&model).1);
                prop_assert_eq!(listed(&registry, 100, now).len(), model.len());
            }
        }
    }
}
