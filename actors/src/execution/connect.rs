//! Opens the backend's stream of an execution, and reopens a stream that broke off.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::{Instant, sleep, timeout_at};

use super::messages::{ExecutionPurpose, StreamStart};
use crate::{
    backend_api::{
        BackendEvent, Heartbeat, StreamInfo,
        multiplex::{Decoder, StreamPart},
    },
    backend_client::{BackendClient, BackendError, BodyEnd, HoldIdentity, OpenedStream, ResponseBody},
    id::ExecutionId,
    outcome::{Outcome, Status},
    protocol::CLAUDE_EXECUTOR,
    stream::PerStream,
};

/// The longest time to reopen a stream that broke off. Below a second, because a lost backend is reported within one.
const AGAIN_PATIENCE: Duration = Duration::from_millis(900);

/// The interval between two attempts, while the backend does not answer.
const AGAIN_CADENCE: Duration = Duration::from_millis(50);

/// The open stream of an execution.
pub(super) enum BackendStream {
    /// From our own backend.
    Native(EventStream),
    /// From the legacy image.
    Legacy(ResponseBody, BodyEnd),
}

/// Why no stream was opened.
pub(super) enum ConnectError {
    /// The backend's answer was not an execution.
    Backend(BackendError),
    /// The backend did not say anything in time.
    Silent(String),
    /// The stream ended before its first event, or began with something else.
    Lost(String),
    /// Another consumer attached at the same time.
    TakenOver,
    /// The first event was the execution's ending.
    Ended(Outcome),
}

/// A multiplexed stream, part by part.
pub(super) struct EventStream {
    body: ResponseBody,
    decoder: Decoder,
}

/// What comes next in a multiplexed stream.
#[derive(Debug)]
pub(super) enum NextPart {
    /// Output or a word.
    Part(StreamPart),
    /// Nothing is there without waiting.
    Dry,
    /// The stream ended or is broken, with what a person should know.
    Lost(String),
}

impl EventStream {
    fn new(body: ResponseBody) -> Self {
        EventStream { body, decoder: Decoder::default() }
    }

    /// The next part that is already here, without waiting.
    pub(super) fn ready(&mut self) -> NextPart {
        match self.decoder.next_part() {
            Ok(Some(part)) => NextPart::Part(part),
            Ok(None) => NextPart::Dry,
            Err(error) => NextPart::Lost(format!("the backend's stream is garbled: {error}")),
        }
    }

    /// Waits for more of the stream.
    pub(super) async fn fill(&mut self) -> Result<(), String> {
        match self.body.next().await {
            Some(Ok(chunk)) => {
                self.decoder.push(chunk);
                Ok(())
            }
            Some(Err(error)) => Err(format!("the backend's stream broke off: {error}")),
            None if self.decoder.is_between_frames() => {
                Err("the backend's stream ended without its last word".to_owned())
            }
            None => Err("the backend's stream ended in the middle of a frame".to_owned()),
        }
    }
}

/// Asks for an execution and waits for the backend's first word, however long that takes.
pub(super) async fn open(
    backend: &BackendClient,
    id: ExecutionId,
    purpose: &ExecutionPurpose,
    holder: &HoldIdentity,
) -> Result<(BackendStream, StreamStart), ConnectError> {
    match purpose {
        ExecutionPurpose::Run(execute) => {
            match backend.execute(id, execute, holder).await.map_err(ConnectError::Backend)? {
                OpenedStream::Legacy(body, end) => {
                    // The flag names Claude's events alone.
                    let claude = execute.run.executor.as_deref() == Some(CLAUDE_EXECUTOR);
                    let standing = StreamStart::running();
                    let terms = StreamInfo { claude, ..standing.terms };
                    Ok((BackendStream::Legacy(body, end), StreamStart { terms, ..standing }))
                }
                OpenedStream::Native(body) => first_word(EventStream::new(body), holder).await,
            }
        }
        ExecutionPurpose::Follow(attach) => {
            let body = backend.attach(id, attach.offsets, holder).await.map_err(ConnectError::Backend)?;
            first_word(EventStream::new(body), holder).await
        }
    }
}

/// Whether another consumer has an execution whose stream broke off. A backend that does not say so in time
/// is as good as lost.
pub(super) async fn is_anothers(backend: &BackendClient, id: ExecutionId, holder: &HoldIdentity) -> bool {
    let Some(own) = holder.number() else { return false };
    let asked = tokio::time::timeout(AGAIN_PATIENCE, backend.snapshot(id)).await;
    matches!(asked, Ok(Ok(snapshot)) if snapshot.hold.is_some_and(|hold| hold != own))
}

/// Looks for an execution whose stream broke off. Only a backend that does not answer is asked again;
/// the error says why there is none.
pub(super) async fn again(
    backend: &BackendClient,
    id: ExecutionId,
    offsets: PerStream<u64>,
    holder: &HoldIdentity,
) -> Result<(EventStream, StreamStart), ConnectError> {
    let until = Instant::now() + AGAIN_PATIENCE;
    loop {
        let attached = async {
            let body = backend.attach_again(id, offsets, holder).await.map_err(ConnectError::Backend)?;
            first_word(EventStream::new(body), holder).await
        };
        match timeout_at(until, attached).await {
            Ok(Ok((BackendStream::Native(words), standing))) => return Ok((words, standing)),
            Ok(Ok((BackendStream::Legacy(..), _))) => {
                return Err(ConnectError::Lost("another kind of backend answers".to_owned()));
            }
            Ok(Err(ConnectError::Backend(BackendError::Unreachable(_)) | ConnectError::Lost(_)))
                if Instant::now() + AGAIN_CADENCE < until =>
            {
                sleep(AGAIN_CADENCE).await;
            }
            Ok(Err(refusal)) => return Err(refusal),
            Err(_) => return Err(ConnectError::Silent("the backend does not answer".to_owned())),
        }
    }
}

async fn first_word(
    mut words: EventStream,
    holder: &HoldIdentity,
) -> Result<(BackendStream, StreamStart), ConnectError> {
    loop {
        match words.ready() {
            NextPart::Part(StreamPart::Word(word)) => match serde_json::from_slice(&word) {
                Ok(BackendEvent::Started(started)) => {
                    holder.record(started.terms.hold);
                    let standing = StreamStart {
                        status: started.status,
                        position: None,
                        terms: started.terms,
                        alive: started.alive,
                    };
                    return Ok((BackendStream::Native(words), standing));
                }
                Ok(BackendEvent::Queued(queued)) => {
                    holder.record(queued.terms.hold);
                    let position = Some(queued.position);
                    let standing = StreamStart {
                        status: Status::Queued,
                        position,
                        terms: queued.terms,
                        alive: Heartbeat::default(),
                    };
                    return Ok((BackendStream::Native(words), standing));
                }
                Ok(BackendEvent::Exit(ending)) => return Err(ConnectError::Ended(ending)),
                Ok(BackendEvent::Alive(_) | BackendEvent::Status(_)) => {}
                Ok(BackendEvent::TakenOver(_)) => return Err(ConnectError::TakenOver),
                Ok(BackendEvent::Gap(_)) => return Err(too_early()),
                Err(error) => return Err(ConnectError::Lost(not_understood(&error))),
            },
            NextPart::Part(StreamPart::Output(..)) => return Err(too_early()),
            NextPart::Dry => words.fill().await.map_err(ConnectError::Lost)?,
            NextPart::Lost(message) => return Err(ConnectError::Lost(message)),
        }
    }
}

impl StreamStart {
    /// It runs, and nothing more is known.
    pub(super) fn running() -> Self {
        StreamStart {
            status: Status::Running,
            position: None,
            terms: StreamInfo::default(),
            alive: Heartbeat::default(),
        }
    }
}

pub(super) fn not_understood(error: &serde_json::Error) -> String {
    format!("the backend said something that is not understood: {error}")
}

fn too_early() -> ConnectError {
    ConnectError::Lost("the backend sent output before it said that anything started".to_owned())
}
