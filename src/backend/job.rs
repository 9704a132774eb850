//! One execution in the backend: it waits for its turn, follows its command to the end, and keeps what
//! the command wrote for a while after.
//!
//! It is one task, and everything that happens to it comes through it: orders, clocks, the shim, the
//! pipes, and consumers that come and go. So nothing here is locked, and nothing has to be. When there is nothing left
//! to keep or to say, the task ends, and the registry's record answers ([`retained`]).

mod clocks;
mod life;
mod outcome;
mod pipes;
mod queued;
mod request;
pub mod retained;
pub(super) mod running;
mod shared;
mod stdin;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cc_executor_actors::{
    id::{ExecutionId, InstanceId},
    outcome::{Outcome, Reason},
    protocol::{DEFAULT_GRACE_MS, control::TerminalSize, execute::DetachOptions},
};
use log::info;

use self::{
    clocks::{ConsumerClock, JobLimits},
    shared::{JobShared, JobSnapshot},
};
pub use self::{
    request::{JobRequest, ReplySender},
    running::READ,
};
use super::{
    output_buffer::OutputBuffer,
    process::Process,
    registry::{JobInbox, Slot},
    shim::protocol::JobSpec,
    subreaper::handle::Subreapers,
};

/// What an execution needs to know of itself.
#[derive(Clone, Debug)]
pub struct JobContext {
    /// Its id.
    pub id: ExecutionId,
    /// The backend's process that has it.
    pub instance: InstanceId,
    /// What runs it.
    pub executor: String,
    /// Total time-out, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// The longest time without output, in milliseconds.
    pub stall_timeout_ms: Option<u64>,
    /// How often a sign of life is sent.
    pub heartbeat: Duration,
    /// How it goes on without a consumer; it is ended if absent.
    pub detach: Option<DetachOptions>,
    /// The size of its terminal, if it runs on one.
    pub pty: Option<TerminalSize>,
    /// How long a consumer may take nothing while nobody asks for it.
    pub consumer_stall: Duration,
    /// How long Claude may take to exit after its last event.
    pub claude_exit: Duration,
    /// How much of each stream is kept, in bytes.
    pub ring_bytes: usize,
    /// What is written to its standard input, and nothing else: a prompt, and its output is Claude's events.
    pub prompt: Option<Bytes>,
}

impl JobContext {
    fn limits(&self) -> JobLimits {
        JobLimits {
            timeout: self.timeout_ms.map(Duration::from_millis),
            stall: self.stall_timeout_ms.map(Duration::from_millis),
            heartbeat: self.heartbeat,
        }
    }
}

/// Lives through one execution to its end. A task of its own then keeps the output, as long as there is any.
pub async fn live(
    context: JobContext,
    requests: JobInbox,
    output_buffer: OutputBuffer,
    mut slot: Slot,
    subreapers: Arc<Subreapers>,
    spec: JobSpec,
) {
    let now = Instant::now();
    let mut shared = JobShared { context, requests, output_buffer, consumer_clock: ConsumerClock::attached(now) };
    let started = queued::wait_for_turn(&mut shared, &mut slot).await;
    let mut ending = match started {
        Err(ending) => ending,
        Ok(()) => {
            let program = spec.argv.first().cloned().unwrap_or_default();
            match Process::start(&subreapers, spec, shared.context.pty) {
                Ok(process) => running::follow(process, &program, &mut shared, &slot).await,
                Err(error) => no_shim(&shared.context, &error),
            }
        }
    };
    if ending.reason == Reason::Disconnected {
        ending.message = Some(disconnected(&shared.context, ending.elapsed_ms.is_some()));
    }
    info!(event = "process.finished", execution_id:% = shared.context.id, status = ending.status.as_str(), reason = ending.reason.as_str(),
        exit_code:serde = ending.exit_code, signal:serde = ending.signal, stdout_bytes:serde = ending.bytes.stdout,
        stderr_bytes:serde = ending.bytes.stderr, leftovers = ending.leftovers, ms:serde = ending.elapsed_ms; "process finished");
    retained::end(shared, ending, slot);
}

/// Why an execution was ended that nobody followed.
fn disconnected(context: &JobContext, ran: bool) -> String {
    let why = match context.detach {
        Some(DetachOptions { detach_ms, .. }) => {
            format!("nobody attached for {} s", Duration::from_millis(detach_ms).as_secs_f64())
        }
        None => "its client went away".to_owned(),
    };
    if ran { why } else { format!("{why}; it was ended before its turn came") }
}

/// The service itself is short of something: processes, descriptors, memory.
fn no_shim(context: &JobContext, error: &std::io::Error) -> Outcome {
    log::error!(event = "shim.not_started", execution_id:% = context.id; "cannot start a shim: {error}");
    let ending = outcome::not_started(126, format!("the backend cannot start another process: {error}"));
    debug_assert_eq!(ending.reason, Reason::NotStarted);
    ending
}

/// The grace of an execution that is ended without anybody having named one.
const GRACE_MS: u64 = DEFAULT_GRACE_MS;

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
