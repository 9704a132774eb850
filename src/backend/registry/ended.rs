//! Executions that ended with an earlier backend, as entries of the registry.

use std::sync::Arc;

use cc_executor_actors::{client::ClientName, excerpt::excerpt, id::ExecutionId, name::ExecutionName};

use super::{
    inbox::{JobInbox, TaskHandle},
    record::{Record, RequestDigest},
    slot::Retained,
    state::{JobStage, KnownExecution, RegistryShared},
};
use crate::backend::output_buffer::RetainedOutput;

/// An execution of an earlier backend.
pub struct EndedExecution {
    /// Its id.
    pub id: ExecutionId,
    /// The client that it belongs to.
    pub owner: ClientName,
    /// The digest of its request.
    pub request: RequestDigest,
    /// Its command.
    pub command: String,
    /// The name that its client gave it.
    pub name: Option<ExecutionName>,
    /// When it was requested, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it ended, in milliseconds since 1970.
    pub ended_ms: u64,
    /// How it ended.
    pub record: Record,
}

impl EndedExecution {
    /// Adds it. With `has_task` a task serves it until the registry releases the inbox.
    pub(super) fn add(self, shared: &Arc<RegistryShared>, has_task: bool) -> (Retained, JobInbox) {
        let EndedExecution { id, owner, request, command, name, created_ms, ended_ms, record } = self;
        let mut state = shared.lock();
        let (task, inbox) = TaskHandle::new();
        let (stored, is_whole) = (record.stored_output(), record.is_whole_on_disk());
        let stage = JobStage::Ended(record, has_task.then_some(task));
        let known = KnownExecution { request, command: excerpt(&command).into(), name, created_ms, stage };
        let number = state.insert(id, &owner, known);
        state.model.store(id, stored, is_whole);
        let now_ms = shared.now_ms();
        let output = if has_task { RetainedOutput::Followed(0) } else { RetainedOutput::Nothing };
        state.model.retain(id, output, ended_ms.min(now_ms));
        shared.evict(&mut state);
        (Retained::new(Arc::clone(shared), id, number), inbox)
    }
}
