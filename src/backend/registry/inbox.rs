//! The channel from the registry to the task of one execution.

use tokio::sync::mpsc;

use crate::backend::job_request::JobRequest;

/// The registry's end of an execution's task. Dropping it ends the task as soon as the task has served its consumer.
pub(super) struct TaskHandle {
    pub(super) asks: mpsc::UnboundedSender<JobRequest>,
    /// Attaches that were sent to it. The task's report counts only if it has received all of them.
    pub(super) n_attaches: u64,
}

/// The task's end: the asks that reach it. Attaches are counted here, because the task may drop one unanswered and
/// must still agree with the registry on how many have come.
pub struct JobInbox {
    receiver: mpsc::UnboundedReceiver<JobRequest>,
    n_attaches: u64,
}

impl JobInbox {
    /// A closed channel, for an execution without a task.
    pub fn none() -> Self {
        TaskHandle::new().1
    }

    /// The next ask; `None` when the registry has released the task. Cancel safe.
    pub async fn recv(&mut self) -> Option<JobRequest> {
        let ask = self.receiver.recv().await?;
        self.n_attaches += u64::from(matches!(ask, JobRequest::Attach(..)));
        Some(ask)
    }

    /// How many consumers have come.
    pub fn n_attaches(&self) -> u64 {
        self.n_attaches
    }
}

impl TaskHandle {
    pub(super) fn new() -> (TaskHandle, JobInbox) {
        let (asks, receiver) = mpsc::unbounded_channel();
        (TaskHandle { asks, n_attaches: 0 }, JobInbox { receiver, n_attaches: 0 })
    }

    pub(super) fn send(&mut self, ask: JobRequest) -> Result<(), JobRequest> {
        let is_attach = matches!(ask, JobRequest::Attach(..));
        self.asks.send(ask).map_err(|mpsc::error::SendError(ask)| ask)?;
        self.n_attaches += u64::from(is_attach);
        Ok(())
    }
}
