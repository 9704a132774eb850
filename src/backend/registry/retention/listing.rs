//! The order in which executions are listed, in pages: first those that have not ended or are read by a consumer, then
//! the others, each the newest first. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Bound,
    str::FromStr,
};

/// Executions in the order of their listing.
#[derive(Debug)]
pub(super) struct Listing<K> {
    /// By number.
    active: BTreeMap<u64, K>,
    /// By the time from which the retention counts.
    ended: BTreeSet<(u64, K)>,
}

/// The place of an execution in the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListPlace<K> {
    /// Its number, while it is active.
    Active(u64),
    /// The time from which its retention counts.
    Ended(u64, K),
}

/// A part of the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListPage<K> {
    /// The executions.
    pub ids: Vec<K>,
    /// The place of the last one, if more follow.
    pub next: Option<ListPlace<K>>,
    /// How many the whole list has.
    pub total: usize,
}

impl<K: Copy + Ord> Listing<K> {
    pub(super) fn new() -> Self {
        Listing { active: BTreeMap::new(), ended: BTreeSet::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.active.is_empty() && self.ended.is_empty()
    }

    /// Adds an execution at its place, or removes it.
    pub(super) fn put(&mut self, place: ListPlace<K>, id: K, is_member: bool) {
        match place {
            ListPlace::Active(number) if is_member => drop(self.active.insert(number, id)),
            ListPlace::Active(number) => drop(self.active.remove(&number)),
            ListPlace::Ended(since_ms, id) if is_member => drop(self.ended.insert((since_ms, id))),
            ListPlace::Ended(since_ms, id) => drop(self.ended.remove(&(since_ms, id))),
        }
    }

    /// The active executions.
    pub(super) fn active(&self) -> impl Iterator<Item = K> {
        self.active.values().copied()
    }

    /// Up to `most` executions after this place, of which `is_listed` is true.
    pub(super) fn page(&self, after: Option<ListPlace<K>>, most: usize, is_listed: impl Fn(K) -> bool) -> ListPage<K> {
        let active_below = match after {
            None => u64::MAX,
            Some(ListPlace::Active(number)) => number,
            Some(ListPlace::Ended(..)) => 0,
        };
        let ended_below = match after {
            Some(ListPlace::Ended(since_ms, id)) => Bound::Excluded((since_ms, id)),
            _ => Bound::Unbounded,
        };
        let active = self.active.range(..active_below).rev().map(|(number, id)| (ListPlace::Active(*number), *id));
        let ended = self.ended.range((Bound::Unbounded, ended_below)).rev();
        let ended =
            ended.filter(|(_, id)| is_listed(*id)).map(|(since_ms, id)| (ListPlace::Ended(*since_ms, *id), *id));
        let mut listed = active.chain(ended);
        let (mut ids, mut last) = (Vec::new(), None);
        for (place, id) in listed.by_ref().take(most) {
            ids.push(id);
            last = Some(place);
        }
        let next = last.filter(|_| listed.next().is_some());
        ListPage { ids, next, total: self.active.len() + self.ended.len() }
    }
}

impl<K: fmt::Display> fmt::Display for ListPlace<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListPlace::Active(number) => write!(f, "a{number}"),
            ListPlace::Ended(since_ms, id) => write!(f, "e{since_ms}.{id}"),
        }
    }
}

/// The text is not the place of an execution in the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not the `next` of an earlier page")]
pub struct InvalidListPlace;

impl<K: FromStr> FromStr for ListPlace<K> {
    type Err = InvalidListPlace;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let active = text.strip_prefix('a').and_then(|number| number.parse().ok()).map(ListPlace::Active);
        let ended = || {
            let (since_ms, id) = text.strip_prefix('e')?.split_once('.')?;
            Some(ListPlace::Ended(since_ms.parse().ok()?, id.parse().ok()?))
        };
        active.or_else(ended).ok_or(InvalidListPlace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_while_executions_end() {
        let mut listing = Listing::new();
        for (place, id) in [
            (ListPlace::Active(1), 1),
            (ListPlace::Active(7), 7),
            (ListPlace::Active(9), 9),
            (ListPlace::Ended(10, 2), 2),
            (ListPlace::Ended(20, 3), 3),
            (ListPlace::Ended(20, 4), 4),
        ] {
            listing.put(place, id, true);
        }
        let page = |listing: &Listing<u32>, after| listing.page(after, 2, |_| true);
        let first = page(&listing, None);
        assert_eq!(first, ListPage { ids: vec![9, 7], next: Some(ListPlace::Active(7)), total: 6 });
        listing.put(ListPlace::Active(1), 1, false);
        listing.put(ListPlace::Ended(30, 1), 1, true);
        let second = page(&listing, first.next);
        assert_eq!(second, ListPage { ids: vec![1, 4], next: Some(ListPlace::Ended(20, 4)), total: 6 });
        let third = page(&listing, second.next);
        assert_eq!(third, ListPage { ids: vec![3, 2], next: None, total: 6 });
        assert_eq!(listing.page(None, 10, |id| id != 2).ids, [9, 7, 1, 4, 3], "one is over");
    }

    #[test]
    fn a_place_is_read_as_it_was_written() {
        for place in [ListPlace::Active(12), ListPlace::Ended(34, 56)] {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        for text in ["", "a", "a-1", "e1", "e1.x", "x1", "e.1"] {
            assert_eq!(text.parse::<ListPlace<u32>>(), Err(InvalidListPlace), "{text}");
        }
    }
}
