//! The channel from the registry to the task of one execution.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::mpsc;

use crate::backend::job_request::JobRequest;

/// The registry's end. Dropping all of them ends the task as soon as it has served its consumer.
#[derive(Clone)]
pub(super) struct TaskHandle {
    requests: mpsc::UnboundedSender<JobRequest>,
    unreceived_attaches: Arc<AtomicUsize>,
}

/// The task's end.
pub struct JobInbox {
    requests: mpsc::UnboundedReceiver<JobRequest>,
    unreceived_attaches: Arc<AtomicUsize>,
}

impl TaskHandle {
    pub(super) fn new() -> (TaskHandle, JobInbox) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let unreceived_attaches = Arc::<AtomicUsize>::default();
        let inbox = JobInbox { requests: receiver, unreceived_attaches: Arc::clone(&unreceived_attaches) };
        (TaskHandle { requests: sender, unreceived_attaches }, inbox)
    }

    /// Sends a request, or returns it if the task has ended.
    pub(super) fn send(&self, request: JobRequest) -> Result<(), JobRequest> {
        let n_attaches = usize::from(matches!(request, JobRequest::Attach(..)));
        self.unreceived_attaches.fetch_add(n_attaches, Ordering::AcqRel);
        self.requests.send(request).map_err(|mpsc::error::SendError(request)| request)
    }

    /// Whether a consumer is on its way to the task. A report of the task then does not include that consumer.
    pub(super) fn has_unreceived_attach(&self) -> bool {
        self.unreceived_attaches.load(Ordering::Acquire) > 0
    }
}

impl JobInbox {
    /// A closed channel, for an execution without a task.
    pub fn none() -> Self {
        TaskHandle::new().1
    }

    /// The next request; `None` when the registry has released the task. Cancel safe.
    pub async fn recv(&mut self) -> Option<JobRequest> {
        let request = self.requests.recv().await?;
        let n_attaches = usize::from(matches!(request, JobRequest::Attach(..)));
        self.unreceived_attaches.fetch_sub(n_attaches, Ordering::AcqRel);
        Some(request)
    }
}
