//! How many bytes of output each client's ended executions retain, and whose fetched output is evicted next. Pure.
//!
//! Executions that end later may exceed every limit, because nobody's unfetched output is evicted. What one client
//! retains beyond the whole limit is therefore not counted against the others.

use std::collections::{BTreeSet, HashMap};

use cc_executor_actors::{
    client::ClientName,
    share::{ShareExceeded, ShareScope, Shares},
};

use crate::backend::output_buffer::RetainedOutput;

/// The retained bytes of all clients.
#[derive(Debug)]
pub(super) struct KeptBytes {
    limit: u64,
    owners: HashMap<ClientName, OwnerBytes>,
    /// Unfetched output, of each client up to one byte more than the limit.
    unfetched: Shares,
    total: u64,
    /// The sum over the clients, of each up to the limit.
    counted: u64,
    /// The clients that have fetched output, by their bytes of both kinds.
    evictable: BTreeSet<(u64, ClientName)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct OwnerBytes {
    /// Output that is not evicted.
    held: u64,
    /// Output that may be evicted.
    fetched: u64,
}

impl OwnerBytes {
    fn sum(self) -> u64 {
        self.held + self.fetched
    }
}

impl KeptBytes {
    pub(super) fn new(limit: u64) -> Self {
        KeptBytes {
            limit,
            owners: HashMap::new(),
            unfetched: Shares::new(limit),
            total: 0,
            counted: 0,
            evictable: BTreeSet::new(),
        }
    }

    /// How many bytes are retained.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Whether a client may leave this many more bytes of unfetched output.
    pub(super) fn admits(&self, owner: &ClientName, amount: u64) -> Result<(), ShareExceeded> {
        let held = self.owners.get(owner).map_or(0, |bytes| bytes.held);
        self.unfetched.admits(owner, amount, false).map_err(|exceeded| match exceeded.scope {
            ShareScope::Client => ShareExceeded { used: held, ..exceeded },
            ShareScope::Service => exceeded,
        })
    }

    /// How many bytes one output of a client may have, if it has so many now. It never has nothing, because its client
    /// would wait for ever, and a client within the reserve is not held back by what others keep.
    pub(super) fn allows(&self, owner: &ClientName, own: u64, least: u64) -> u64 {
        let reserve = self.unfetched.reserve();
        let held = self.owners.get(owner).map_or(0, |bytes| bytes.held);
        let limit = if held <= reserve { self.limit.saturating_add(reserve) } else { self.limit };
        limit.saturating_sub(self.total.saturating_sub(own)).max(least)
    }

    /// The client whose output is evicted next because all together take more than the limit, without a reserve.
    pub(super) fn next_to_evict_beyond(&self, more: u64) -> Option<&ClientName> {
        let is_over = self.total.saturating_add(more) > self.limit;
        self.evictable.last().filter(|_| is_over).map(|(_, owner)| owner)
    }

    /// Counts an output, or no longer.
    pub(super) fn count(&mut self, owner: &ClientName, output: RetainedOutput, is_kept: bool) {
        let change = match output {
            RetainedOutput::Nothing => return,
            RetainedOutput::Followed(bytes) | RetainedOutput::Unfetched(bytes) => {
                OwnerBytes { held: bytes as u64, fetched: 0 }
            }
            RetainedOutput::Fetched(bytes) => OwnerBytes { held: 0, fetched: bytes as u64 },
        };
        let before = self.owners.get(owner).copied().unwrap_or_default();
        let after = if is_kept {
            OwnerBytes { held: before.held + change.held, fetched: before.fetched + change.fetched }
        } else {
            OwnerBytes { held: before.held - change.held, fetched: before.fetched - change.fetched }
        };
        self.total = self.total + after.sum() - before.sum();
        self.counted = self.counted + after.sum().min(self.limit) - before.sum().min(self.limit);
        self.unfetched.remove(owner, before.held.min(self.limit + 1));
        self.unfetched.add(owner, after.held.min(self.limit + 1));
        if before.fetched > 0 {
            self.evictable.remove(&(before.sum(), owner.clone()));
        }
        if after.fetched > 0 {
            self.evictable.insert((after.sum(), owner.clone()));
        }
        if after == OwnerBytes::default() {
            self.owners.remove(owner);
        } else {
            self.owners.insert(owner.clone(), after);
        }
    }

    /// The client whose fetched output is evicted next: the one that retains most. Returns `None` if all output and `more`
    /// further bytes fit, and if no client retains more than the reserve for newcomers.
    pub(super) fn next_to_evict(&self, more: u64) -> Option<&ClientName> {
        let reserve = self.unfetched.reserve();
        let (sum, owner) = self.evictable.last().filter(|_| self.total.saturating_add(more) > self.limit)?;
        (*sum > reserve || self.counted.saturating_add(more) > self.limit + reserve).then_some(owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetched(bytes: usize) -> RetainedOutput {
        RetainedOutput::Fetched(bytes)
    }

    fn unfetched(bytes: usize) -> RetainedOutput {
        RetainedOutput::Unfetched(bytes)
    }

    #[test]
    fn a_client_beyond_all_limits_takes_nothing_from_another() {
        let (mut kept, [a, b, c]) = (KeptBytes::new(100), [1, 2, 3].map(ClientName::of_user));
        kept.count(&a, unfetched(500), true);
        let exceeded = |limit, used| Err(ShareExceeded { scope: ShareScope::Client, limit, used });
        assert_eq!((kept.admits(&a, 0), kept.admits(&b, 0)), (exceeded(100, 500), Ok(())));
        kept.count(&b, fetched(20), true);
        assert_eq!(kept.next_to_evict(0), None, "it has less than the reserve");
        kept.count(&b, unfetched(10), true);
        assert_eq!(kept.next_to_evict(0), Some(&b));
        kept.count(&b, fetched(20), false);
        assert_eq!((kept.admits(&a, 0), kept.admits(&b, 0)), (exceeded(75, 500), Ok(())));
        kept.count(&b, unfetched(20), true);
        assert_eq!(kept.admits(&b, 0).unwrap_err().scope, ShareScope::Service, "it has more than the reserve");
        assert_eq!(kept.admits(&c, 0).unwrap_err().scope, ShareScope::Service);
        kept.count(&a, unfetched(500), false);
        kept.count(&b, unfetched(10), false);
        kept.count(&b, unfetched(20), false);
        assert_eq!((kept.total(), kept.counted, kept.owners.len(), kept.unfetched.total()), (0, 0, 0, 0));
        assert_eq!((kept.evictable.len(), kept.admits(&a, 0)), (0, Ok(())));
    }

    #[test]
    fn fetched_output_of_the_client_with_most_goes_first() {
        let (mut kept, [a, b]) = (KeptBytes::new(100), [1, 2].map(ClientName::of_user));
        kept.count(&a, fetched(40), true);
        kept.count(&b, fetched(50), true);
        assert_eq!(kept.next_to_evict(0), None, "all of it fits");
        kept.count(&a, unfetched(20), true);
        assert_eq!(kept.next_to_evict(0), Some(&a));
        kept.count(&a, fetched(40), false);
        assert_eq!(kept.next_to_evict(0), None);
        kept.count(&b, fetched(40), true);
        assert_eq!(kept.next_to_evict(0), Some(&b), "what cannot be evicted is no choice");
    }

    #[test]
    fn on_disk_one_output_may_have_what_the_others_leave_and_a_newcomer_the_reserve() {
        let (mut kept, [a, b]) = (KeptBytes::new(100), [1, 2].map(ClientName::of_user));
        kept.count(&a, unfetched(60), true);
        kept.count(&a, fetched(30), true);
        assert_eq!((kept.allows(&a, 60, 5), kept.allows(&b, 0, 5)), (70, 35));
        assert_eq!((kept.next_to_evict_beyond(10), kept.next_to_evict_beyond(11)), (None, Some(&a)));
        kept.count(&a, unfetched(60), true);
        assert_eq!((kept.allows(&a, 60, 5), kept.allows(&b, 0, 5)), (10, 5), "never nothing");
    }
}
