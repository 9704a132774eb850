//! Which executions of a caller are listed, in pages.

use cc_executor_actors::{backend_api::MAX_LISTED, id::ExecutionId, name::ExecutionRef};

use super::{
    record::Record,
    retention::listing::{ListPage, ListPlace},
    state::{JobStage, RegistryState},
};
use crate::server::caller::Caller;

/// Which executions of the caller are listed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ListQuery {
    /// All after this place.
    After(Option<ListPlace<ExecutionId>>),
    /// Those to which a text refers, at most [`MAX_LISTED`].
    Matching(ExecutionRef),
}

/// An entry of a list.
pub(super) struct ListedExecution {
    pub(super) id: ExecutionId,
    /// Of an ended execution: its record, and whether a consumer reads its output.
    pub(super) ended: Option<(Record, bool)>,
}

/// A page of the caller's executions, the place after which the next one begins, and how many there are.
pub(super) fn page(
    state: &RegistryState,
    caller: &Caller,
    query: &ListQuery,
    most: usize,
    now_ms: u64,
) -> (Vec<ListedExecution>, Option<ListPlace<ExecutionId>>, usize) {
    let owner = match caller {
        Caller::Client(name) => Some(name),
        Caller::Operator => None,
    };
    let page = match query {
        ListQuery::After(after) => state.model.list(owner, *after, most, now_ms),
        ListQuery::Matching(reference) => {
            let found = state.lookup.find(caller, reference).filter(|id| state.model.get(*id, now_ms).is_some());
            let mut ids: Vec<_> = found.take(MAX_LISTED).collect();
            let total = ids.len();
            ids.truncate(most);
            ListPage { ids, next: None, total }
        }
    };
    let listed = page.ids.into_iter().filter_map(|id| {
        let entry = state.model.get(id, now_ms)?;
        let ended = match &entry.value.stage {
            JobStage::Ended(record, _) => Some((record.clone(), entry.is_followed())),
            JobStage::Live(_) => None,
        };
        Some(ListedExecution { id, ended })
    });
    (listed.collect(), page.next, page.total)
}
