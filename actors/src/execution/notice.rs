//! Reports the end of an execution exactly once.

use super::messages::{ExecutionEvent, Parent};
use crate::{
    id::ExecutionId,
    outcome::{Outcome, Reason},
};

/// Reports the events of an execution to its parent: the end exactly once, at the latest when the actor is dropped.
pub(super) struct ExitNotice {
    id: ExecutionId,
    /// `None` once the end was reported, or the parent is gone.
    pub(super) parent: Option<Parent>,
}

impl ExitNotice {
    pub(super) fn new(id: ExecutionId, parent: Parent) -> Self {
        ExitNotice { id, parent: Some(parent) }
    }

    /// Reports an event that is not the end.
    pub(super) fn report(&self, event: ExecutionEvent) {
        if let Some(parent) = &self.parent {
            parent.report(self.id, event);
        }
    }

    /// Reports the end.
    pub(super) fn end(&mut self, event: ExecutionEvent) {
        self.report(event);
        self.parent = None;
    }
}

impl Drop for ExitNotice {
    fn drop(&mut self) {
        let message = format!(
            "internal error of the gateway: execution {} is no longer followed; if it may detach, attach again, otherwise the backend ends it; see the gateway's log",
            self.id
        );
        self.end(ExecutionEvent::Exited(Outcome::failed(Reason::BackendLost, message)));
    }
}
