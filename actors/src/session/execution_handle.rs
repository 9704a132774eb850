//! The execution actor of a session, and its heartbeat timer. Dropping the handle releases the execution.

use actix::{Addr, SpawnHandle};

use crate::{
    client::ClientName,
    execution::{Execution, messages::Release},
    id::{ExecutionId, SessionId},
    supervisor::{ExecutionFinished, Supervisor},
};

/// The session's execution. Dropping the handle releases the execution and its entry in the supervisor.
pub(super) struct ExecutionHandle {
    pub(super) id: ExecutionId,
    pub(super) session: SessionId,
    pub(super) client: ClientName,
    pub(super) execution: Addr<Execution>,
    pub(super) supervisor: Addr<Supervisor>,
    /// The timer that repeats the newest status.
    pub(super) heartbeat: SpawnHandle,
}

impl Drop for ExecutionHandle {
    fn drop(&mut self) {
        self.execution.do_send(Release);
        let (execution, session, client) = (self.id, self.session, self.client.clone());
        self.supervisor.do_send(ExecutionFinished { execution, session, client });
    }
}
