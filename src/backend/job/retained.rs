//! An execution that has ended: consumers that come back get its output and its ending.
//!
//! A task keeps the output, while there is any or a consumer reads it. After that [`answer`] takes each ask, from the
//! registry's record.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cc_executor_actors::{
    agent,
    backend_api::{BackendEvent, Heartbeat},
    id::{ExecutionId, InstanceId},
    outcome::Outcome,
    protocol::execute::{DetachOptions, Overflow},
};
use log::debug;

use super::{JobContext, JobRequest, JobShared, JobSnapshot, refuse};
use crate::backend::{
    BackendConfig,
    agent::AgentJob,
    holds::Holds,
    output_buffer::{ConsumerChange, DismissReason, OutputBuffer},
    registry::{JobInbox, Retained, Slot, record::Record},
};

/// Memory that a kept execution takes besides its output, in bytes: its task, its channel, and what they hold.
/// Measured at 7 200 bytes each, over 2 000 executions of `echo x`.
pub const FIXED_BYTES: usize = 8 * 1024;

/// Gives up the execution's place, and has its output kept.
pub(super) fn end(mut body: JobShared, ending: Outcome, slot: Slot) {
    body.output_buffer.end();
    if let Some(job) = &mut body.terms.agent {
        // A prompt can be as long as a message, and nobody needs it any more.
        job.prompt = Bytes::new();
    }
    let JobContext { executor, heartbeat, detach, agent, .. } = &body.terms;
    let heartbeat_ms = cc_executor_actors::clock::millis(*heartbeat);
    let mut record = Record::new(executor.as_str().into(), heartbeat_ms, detach.is_some(), agent.is_some(), &ending);
    record.set_newest_hold(body.output_buffer.holds().remembered());
    let kept = slot.end(record, body.output_buffer.kept(FIXED_BYTES), body.asks.n_attaches());
    // A task of its own, because one that has run a command is larger than one that keeps its output.
    actix_web::rt::spawn(keep(Box::new(body), ending, kept));
}

/// Delivers the rest and the last word, to the consumer that follows it now and to those that come, until the registry
/// releases it: its retention is over, its output is evicted, or nothing is left to keep.
async fn keep(mut body: Box<JobShared>, ending: Outcome, mut kept: Retained) {
    let stand = JobSnapshot::ended(&ending);
    let mut is_kept = true;
    loop {
        body.output_buffer.deliver_last(|| BackendEvent::Exit(ending.clone()));
        kept.report(
            body.output_buffer.kept(FIXED_BYTES),
            body.output_buffer.holds().remembered(),
            body.asks.n_attaches(),
        );
        // A consumer is served to the end, even if the registry has released the task.
        if !is_kept && !body.output_buffer.is_attached() {
            break;
        }
        tokio::select! {
            biased;
            ask = body.asks.recv(), if is_kept => match ask {
                None => is_kept = false,
                Some(ask) => {
                    if let Some(ask) = body.common(ask, || stand.clone(), Some(&ending)) {
                        refuse(ask, "it has ended");
                    }
                }
            },
            moved = body.output_buffer.moved(body.terms.consumer_stall, body.asked_at) => {
                if moved != ConsumerChange::Room {
                    body.output_buffer.dismiss(DismissReason::Vanished);
                }
            }
        }
    }
    debug!(event = "execution.output_released", execution_id:% = body.terms.id; "output released");
}

/// Answers an ask of an execution whose output is gone: with its ending, and with a gap for what is missing. It may make
/// a new hold.
pub fn answer(record: &mut Record, id: ExecutionId, instance: InstanceId, config: &BackendConfig, ask: JobRequest) {
    let ending = record.ending();
    let terms = JobContext {
        id,
        instance,
        executor: record.executor.to_string(),
        timeout_ms: None,
        stall_timeout_ms: None,
        heartbeat: Duration::from_millis(record.heartbeat_ms.into()),
        detach: record.may_detach.then_some(DetachOptions { detach_ms: 0, overflow: Overflow::Wait }),
        pty: None,
        consumer_stall: config.consumer_stall,
        claude_exit: config.claude_exit,
        ring_bytes: config.ring_bytes,
        agent: agent::of_stream(record.has_events).map(|agent| AgentJob { agent, prompt: Bytes::new() }),
    };
    let output_buffer = OutputBuffer::without_output(record.written(), Holds::since(record.newest_hold()));
    let mut body = JobShared { terms, asks: JobInbox::none(), output_buffer, left_at: None, asked_at: Instant::now() };
    if let Some(ask) = body.common(ask, || JobSnapshot::ended(&ending), Some(&ending)) {
        refuse(ask, "it has ended");
    }
    body.output_buffer.deliver_last(|| BackendEvent::Exit(ending));
    record.set_newest_hold(body.output_buffer.holds().remembered());
    debug_assert!(!body.output_buffer.is_attached(), "all that is said of it fits in a consumer's slots");
}

impl JobSnapshot {
    fn ended(ending: &Outcome) -> JobSnapshot {
        JobSnapshot {
            is_told: true,
            status: ending.status,
            position: None,
            alive: Heartbeat { elapsed_ms: ending.elapsed_ms.unwrap_or(0), ..Heartbeat::default() },
        }
    }
}
