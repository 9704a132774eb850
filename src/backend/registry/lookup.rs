//! Finds the executions of a client by their names and by the beginnings of their ids. Pure.

use std::collections::{BTreeMap, BTreeSet};

use cc_executor_actors::{
    client::ClientName,
    id::ExecutionId,
    name::{ExecutionName, ExecutionRef},
};

use crate::server::caller::Caller;

/// The ids and names of all remembered executions. Sorted, because a scan of all of them for each request would be
/// quadratic.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    owners: BTreeMap<ClientName, OwnedIds>,
}

/// The ids and names of the executions of one client.
#[derive(Debug, Default)]
struct OwnedIds {
    ids: BTreeSet<ExecutionId>,
    /// By their names and numbers, which grow.
    named: BTreeMap<(ExecutionName, u64), ExecutionId>,
}

impl Lookup {
    /// Adds an execution with its number.
    pub(super) fn insert(&mut self, owner: &ClientName, id: ExecutionId, name: Option<&ExecutionName>, number: u64) {
        let owned = self.owners.entry(owner.clone()).or_default();
        owned.ids.insert(id);
        owned.named.extend(name.map(|name| ((name.clone(), number), id)));
    }

    /// Removes an execution.
    pub(super) fn remove(&mut self, owner: &ClientName, id: ExecutionId, name: Option<&ExecutionName>, number: u64) {
        let Some(owned) = self.owners.get_mut(owner) else { return };
        owned.ids.remove(&id);
        if let Some(name) = name {
            owned.named.remove(&(name.clone(), number));
        }
        if owned.ids.is_empty() {
            self.owners.remove(owner);
        }
    }

    /// The newest execution of a client that has this name.
    pub(super) fn newest_named(&self, owner: &ClientName, name: &ExecutionName) -> Option<ExecutionId> {
        self.owners.get(owner)?.newest_named(name)
    }

    /// The executions of the caller to which a text refers. Of those of a client that have the name only the newest
    /// counts, because a name may be used again after the end.
    pub(super) fn find(&self, caller: &Caller, reference: &ExecutionRef) -> impl Iterator<Item = ExecutionId> {
        let owned = self.owners.iter().filter(|(owner, _)| caller.may_touch(owner)).map(|(_, owned)| owned);
        owned.flat_map(move |owned| {
            let (named, range) = match reference {
                ExecutionRef::Id(id) => (None, Some(*id..=*id)),
                ExecutionRef::Name(name) => (owned.newest_named(name), None),
                ExecutionRef::Prefix(prefix) => (None, Some(prefix.range())),
            };
            named.into_iter().chain(range.into_iter().flat_map(|range| owned.ids.range(range).copied()))
        })
    }
}

impl OwnedIds {
    fn newest_named(&self, name: &ExecutionName) -> Option<ExecutionId> {
        let all = (name.clone(), 0)..=(name.clone(), u64::MAX);
        self.named.range(all).next_back().map(|(_, id)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_finds_its_own_executions_by_name_and_by_the_beginning_of_an_id() {
        let client = |name: &str| name.parse::<ClientName>().unwrap();
        let id = |digits: &str| format!("{digits}-0000-4000-8000-000000000000").parse::<ExecutionId>().unwrap();
        let name = |text: &str| text.parse::<ExecutionName>().unwrap();
        let (ann, bob) = (client("ann"), client("bob"));
        let (first, second, third, other) = (id("aaaa0000"), id("aaaa1111"), id("bbbb0000"), id("aaaa2222"));
        let mut lookup = Lookup::default();
        for (owner, id, called, number) in [
            (&ann, first, Some(name("build")), 1),
            (&ann, second, Some(name("build")), 2),
            (&ann, third, None, 3),
            (&bob, other, Some(name("build")), 4),
        ] {
            lookup.insert(owner, id, called.as_ref(), number);
        }
        let found = |lookup: &Lookup, caller: &Caller, text: &str| {
            lookup.find(caller, &text.parse().unwrap()).collect::<Vec<_>>()
        };
        let caller = Caller::Client(ann.clone());
        for (text, expected) in [
            ("build", vec![second]),
            ("buil", vec![]),
            ("aaaa", vec![first, second]),
            ("AAAA1", vec![second]),
            ("aaaa1111-0", vec![second]),
            ("aaaa2", vec![]),
            (&third.to_string(), vec![third]),
            (&other.to_string(), vec![]),
        ] {
            assert_eq!(found(&lookup, &caller, text), expected, "{text}");
        }
        assert_eq!(found(&lookup, &Caller::Operator, "build"), [second, other], "an operator sees all");
        lookup.remove(&ann, second, Some(&name("build")), 2);
        assert_eq!(found(&lookup, &caller, "build"), [first]);
        assert_eq!((found(&lookup, &caller, "aaaa"), lookup.newest_named(&ann, &name("x"))), (vec![first], None));
        lookup.remove(&bob, other, Some(&name("build")), 4);
        assert!(lookup.owners.len() == 1 && found(&lookup, &Caller::Client(bob), "build").is_empty());
    }
}
