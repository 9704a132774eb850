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
pub mod retained;
pub(super) mod running;
mod shared;
mod stdin;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cc_executor_actors::{
    outcome::{Outcome, Reason},
    protocol::execute::DetachOptions,
};
use log::info;

use self::{clocks::ConsumerClock, shared::JobShared};
pub use self::{clocks::JobLimits, shared::JobContext};
use super::{
    output_buffer::OutputBuffer,
    process::Process,
    registry::{JobInbox, Slot},
    shim::protocol::{JobSpec, StartError},
    subreaper::handle::Subreapers,
};

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
    outcome::not_started(StartError::no_process(error))
}
