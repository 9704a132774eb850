//! One execution in the backend: it waits for its turn (`queued`), follows its command to the end (`running`), and
//! holds the output for a while ([`retained`]).
//!
//! It is one task. Requests, clocks, the shim, the pipes and the consumers are all handled in it, so no state is
//! locked. Who decides COMPLETED: `outcome`, from the last state of `life`.

mod clocks;
mod closing;
mod disk;
mod life;
mod outcome;
mod pipes;
mod queued;
pub mod restored;
pub mod retained;
pub(super) mod running;
mod shared;
mod stdin;
mod storing;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cc_executor_actors::{
    outcome::{Outcome, Reason, Storage},
    protocol::execute::DetachOptions,
};
use log::info;

use self::{clocks::ConsumerClock, shared::JobShared};
pub use self::{clocks::JobLimits, disk::JobStorage, shared::JobContext};
use super::{
    output_buffer::OutputBuffer,
    process::Process,
    registry::{JobInbox, Slot},
    shim::protocol::{JobSpec, StartError},
    subreaper::handle::Subreapers,
};

/// Runs one execution to its end, and starts the task that then holds its output.
pub async fn live(
    context: JobContext,
    requests: JobInbox,
    output_buffer: OutputBuffer,
    storage: Option<JobStorage>,
    mut slot: Slot,
    subreapers: Arc<Subreapers>,
    spec: JobSpec,
) {
    let now = Instant::now();
    let consumer_clock = ConsumerClock::attached(now);
    let storage_state = storage.as_ref().map(|_| Storage::Disk);
    let mut shared = JobShared {
        context,
        requests,
        output_buffer,
        consumer_clock,
        held_since: None,
        storage,
        failed_storage: None,
        storage_state,
    };
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
        stderr_bytes:serde = ending.bytes.stderr, leftovers = ending.leftovers, ms:serde = ending.elapsed_ms,
        cpu_user_ms:serde = ending.usage.map(|usage| usage.cpu_user_ms),
        cpu_system_ms:serde = ending.usage.map(|usage| usage.cpu_system_ms),
        max_process_rss_bytes:serde = ending.usage.map(|usage| usage.max_process_rss_bytes),
        peak_tree_bytes:serde = ending.usage.and_then(|usage| usage.peak_tree_bytes); "process finished");
    closing::record_end(&mut shared, &mut ending, &slot).await;
    retained::end(shared, ending, slot);
}

/// Why an execution without a consumer was ended.
fn disconnected(context: &JobContext, ran: bool) -> String {
    let why = match context.detach {
        Some(DetachOptions { detach_ms, .. }) => {
            format!("no client attached for {} s", Duration::from_millis(detach_ms).as_secs_f64())
        }
        None => "its client left".to_owned(),
    };
    if ran { why } else { format!("{why}; the command never ran: the execution was still queued") }
}

/// The outcome if the service is short of processes, descriptors or memory.
fn no_shim(context: &JobContext, error: &std::io::Error) -> Outcome {
    log::error!(event = "shim.not_started", execution_id:% = context.id; "cannot start a shim: {error}; raise the limits of processes and open files, or lower --max-executions");
    outcome::not_started(StartError::no_process(error))
}
