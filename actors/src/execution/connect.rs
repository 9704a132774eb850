//! Opens the backend's stream of an execution, and finds an execution again whose stream broke off.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    legacy::LegacyStream,
    messages::{ExecutionPurpose, StreamStart},
};
use crate::{
    backend_api::{
        BackendEvent, Heartbeat, StreamInfo,
        multiplex::{Decoder, StreamPart},
    },
    backend_client::{BackendClient, BackendError, HoldIdentity, OpenedStream, ResponseBody},
    id::ExecutionId,
    outcome::{Outcome, Status},
    protocol::CLAUDE_EXECUTOR,
    rpc::code,
    stream::PerStream,
};

/// The longest time to find an execution again. Below a second, because a lost backend is reported within one.
const FIND_PATIENCE: Duration = Duration::from_millis(900);

/// The interval between two attempts, while the backend does not answer.
const FIND_INTERVAL: Duration = Duration::from_millis(50);

/// The open stream of an execution.
pub(super) enum BackendStream {
    /// From a native backend.
    Native(EventStream),
    /// From the legacy image.
    Legacy(LegacyStream),
}

/// The end of a stream.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum ExecutionEnd {
    /// The execution ended.
    Ended(Box<Outcome>),
    /// Another consumer holds the execution, which continues.
    TakenOver,
}

/// Why no stream was opened.
pub(super) enum ConnectError {
    /// The backend refused, did not answer, or sent no event.
    Failed(BackendError),
    /// The execution ended, for this consumer, with its first event.
    End(ExecutionEnd),
}

impl From<BackendError> for ConnectError {
    fn from(error: BackendError) -> Self {
        ConnectError::Failed(error)
    }
}

/// A multiplexed stream, part by part.
pub(super) struct EventStream {
    body: ResponseBody,
    decoder: Decoder,
}

impl EventStream {
    pub(super) fn new(body: ResponseBody) -> Self {
        EventStream { body, decoder: Decoder::default() }
    }

    /// The next part that is already here, or `None` until [`EventStream::fill`] returns. The error says how the stream
    /// is broken.
    pub(super) fn ready(&mut self) -> Result<Option<StreamPart>, String> {
        self.decoder.next_part().map_err(|error| {
            format!("invalid data in the backend's stream: {error}; check CC_EXECUTOR_BACKEND_URL (or CLAUDE_API_URL), and for a proxy in between")
        })
    }

    /// Waits for more of the stream. The error says how the stream ended.
    pub(super) async fn fill(&mut self) -> Result<(), String> {
        match self.body.next().await {
            Some(Ok(chunk)) => {
                self.decoder.push(chunk);
                Ok(())
            }
            Some(Err(error)) => Err(format!("the backend's stream broke off: {error}")),
            None if self.decoder.is_between_frames() => Err("the backend's stream ended without an outcome".to_owned()),
            None => Err("the backend's stream ended in the middle of a frame".to_owned()),
        }
    }

    /// Waits for the first event.
    async fn first_event(mut self, holder: &HoldIdentity) -> Result<(EventStream, StreamStart), ConnectError> {
        loop {
            let Some(part) = self.ready().map_err(BackendError::BrokeOff)? else {
                self.fill().await.map_err(BackendError::BrokeOff)?;
                continue;
            };
            let start = match part {
                StreamPart::Event(event) => match parse_event(&event).map_err(BackendError::BrokeOff)? {
                    BackendEvent::Started(started) => StreamStart {
                        status: started.status,
                        position: None,
                        terms: started.terms,
                        alive: started.alive,
                    },
                    BackendEvent::Queued(queued) => StreamStart {
                        status: Status::Queued,
                        position: Some(queued.position),
                        terms: queued.terms,
                        alive: Heartbeat::default(),
                    },
                    BackendEvent::Exit(outcome) => {
                        return Err(ConnectError::End(ExecutionEnd::Ended(Box::new(outcome))));
                    }
                    BackendEvent::TakenOver(_) => return Err(ConnectError::End(ExecutionEnd::TakenOver)),
                    BackendEvent::Alive(_) | BackendEvent::Status(_) => continue,
                    BackendEvent::Gap(_) => return Err(too_early().into()),
                },
                StreamPart::Output(..) => return Err(too_early().into()),
            };
            holder.record(start.terms.hold);
            return Ok((self, start));
        }
    }
}

/// Reads one event of the backend.
pub(super) fn parse_event(event: &[u8]) -> Result<BackendEvent, String> {
    serde_json::from_slice(event).map_err(|error| {
        format!(
            "the backend sent an event that is not understood: {error}; run gateway and backend of the same release"
        )
    })
}

/// Requests an execution and waits for the first event, without a bound.
pub(super) async fn open(
    backend: &BackendClient,
    id: ExecutionId,
    purpose: &ExecutionPurpose,
    holder: &HoldIdentity,
) -> Result<(BackendStream, StreamStart), ConnectError> {
    let body = match purpose {
        ExecutionPurpose::Run(execute) => match backend.execute(id, execute, holder).await? {
            OpenedStream::Native(body) => body,
            OpenedStream::Legacy(body, end) => {
                // The legacy image runs no other agent.
                let agent = execute.run.executor.as_deref().filter(|name| *name == CLAUDE_EXECUTOR);
                let terms = StreamInfo::default().with_agent(agent);
                let start = StreamStart { status: Status::Running, position: None, terms, alive: Heartbeat::default() };
                return Ok((BackendStream::Legacy(LegacyStream::new(body, end, &execute.run)), start));
            }
        },
        ExecutionPurpose::Follow(attach) if attach.observe => backend.observe(id, attach.offsets, holder).await?,
        ExecutionPurpose::Follow(attach) => backend.attach(id, attach.offsets, holder).await?,
    };
    let (events, start) = EventStream::new(body).first_event(holder).await?;
    Ok((BackendStream::Native(events), start))
}

/// Whether another consumer holds an execution whose stream broke off. A backend that does not answer in time counts
/// as lost.
pub(super) async fn is_taken_over(backend: &BackendClient, id: ExecutionId, holder: &HoldIdentity) -> bool {
    let Some(own) = holder.number() else { return false };
    let answer = timeout(FIND_PATIENCE, backend.snapshot(id)).await;
    matches!(answer, Ok(Ok(snapshot)) if snapshot.hold.is_some_and(|hold| hold != own))
}

/// Attaches again to an execution whose stream broke off, as an observer if the stream was that of one. Repeats that
/// while the backend does not answer.
pub(super) async fn find(
    backend: &BackendClient,
    id: ExecutionId,
    offsets: PerStream<u64>,
    holder: &HoldIdentity,
    observes: bool,
) -> Result<(EventStream, StreamStart), ConnectError> {
    let until = Instant::now() + FIND_PATIENCE;
    loop {
        let attached = async {
            let body = match observes {
                true => backend.observe(id, offsets, holder).await?,
                false => backend.attach_again(id, offsets, holder).await?,
            };
            EventStream::new(body).first_event(holder).await
        };
        match timeout_at(until, attached).await {
            Ok(Err(ConnectError::Failed(BackendError::Unreachable(_) | BackendError::BrokeOff(_))))
                if Instant::now() + FIND_INTERVAL < until =>
            {
                sleep(FIND_INTERVAL).await;
            }
            Ok(found) => return found,
            Err(_) => return Err(BackendError::Unreachable("the backend does not answer".to_owned()).into()),
        }
    }
}

/// The message for an execution whose stream was lost by this fault and that [`find`] has not found.
pub(super) fn not_found(fault: &str, id: ExecutionId, error: &BackendError) -> String {
    match error {
        BackendError::Refused(error) if error.code == code::UNKNOWN_EXECUTION => {
            format!("{fault}; the backend no longer knows execution {id}")
        }
        error => format!("{fault}; {error}; execution {id} may still run: attach to it later"),
    }
}

fn too_early() -> BackendError {
    BackendError::BrokeOff("the backend sent output before its first event".to_owned())
}
