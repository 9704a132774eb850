//! From the request to the backend's first word, and back to a stream that broke off.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::{Instant, sleep, timeout_at};

use super::messages::{Purpose, Standing};
use crate::{
    backend::{
        Backend, BackendError, Body, BodyEnd, Holder, Opened,
        api::{Alive, Terms, Word},
        multiplex::{Decoder, Part},
    },
    claude,
    id::ExecutionId,
    protocol::PerStream,
    terminate::{Ending, Status},
};

/// How long a stream that broke off is looked for. Below the second within which a lost backend is told.
const AGAIN_PATIENCE: Duration = Duration::from_millis(900);

/// How often, while the backend does not answer.
const AGAIN_CADENCE: Duration = Duration::from_millis(50);

/// The stream of an execution that the backend has.
pub(super) enum Stream {
    /// From our own backend.
    Ours(Words),
    /// From the original's image.
    Plain(Body, BodyEnd),
}

/// Why there is no stream.
pub(super) enum Refusal {
    /// The backend's answer was not an execution.
    Backend(BackendError),
    /// The backend did not say anything in time.
    Silent(String),
    /// The stream ended before its first word, or began with something else.
    Lost(String),
    /// Somebody else came for it in the same moment.
    TakenOver,
    /// The first word was the last.
    Ended(Ending),
}

/// A multiplexed stream, part by part.
pub(super) struct Words {
    body: Body,
    decoder: Decoder,
}

/// What comes next in a multiplexed stream.
#[derive(Debug)]
pub(super) enum Next {
    /// Output or a word.
    Part(Part),
    /// Nothing is there without waiting.
    Dry,
    /// The stream ended or is broken, with what a person should know.
    Lost(String),
}

impl Words {
    fn new(body: Body) -> Self {
        Words { body, decoder: Decoder::default() }
    }

    /// The next part that is already here, without waiting.
    pub(super) fn ready(&mut self) -> Next {
        match self.decoder.next_part() {
            Ok(Some(part)) => Next::Part(part),
            Ok(None) => Next::Dry,
            Err(error) => Next::Lost(format!("the backend's stream is garbled: {error}")),
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
    backend: &Backend,
    id: ExecutionId,
    purpose: &Purpose,
    holder: &Holder,
) -> Result<(Stream, Standing), Refusal> {
    match purpose {
        Purpose::Run(execute) => match backend.execute(id, execute, holder).await.map_err(Refusal::Backend)? {
            Opened::Plain(body, end) => {
                let claude = execute.run.executor.as_deref() == Some(claude::EXECUTOR);
                let standing = Standing::running();
                let terms = Terms { claude, ..standing.terms };
                Ok((Stream::Plain(body, end), Standing { terms, ..standing }))
            }
            Opened::Multiplexed(body) => first_word(Words::new(body), holder).await,
        },
        Purpose::Follow(attach) => {
            let body = backend.attach(id, attach.offsets, holder).await.map_err(Refusal::Backend)?;
            first_word(Words::new(body), holder).await
        }
    }
}

/// Whether another consumer has an execution whose stream broke off. A backend that does not say so in time
/// is as good as lost.
pub(super) async fn is_anothers(backend: &Backend, id: ExecutionId, holder: &Holder) -> bool {
    let Some(own) = holder.hold() else { return false };
    let asked = tokio::time::timeout(AGAIN_PATIENCE, backend.snapshot(id)).await;
    matches!(asked, Ok(Ok(snapshot)) if snapshot.hold.is_some_and(|hold| hold != own))
}

/// Looks for an execution whose stream broke off. Only a backend that does not answer is asked again;
/// the error says why there is none.
pub(super) async fn again(
    backend: &Backend,
    id: ExecutionId,
    offsets: PerStream<u64>,
    holder: &Holder,
) -> Result<(Words, Standing), Refusal> {
    let until = Instant::now() + AGAIN_PATIENCE;
    loop {
        let attached = async {
            let body = backend.attach_again(id, offsets, holder).await.map_err(Refusal::Backend)?;
            first_word(Words::new(body), holder).await
        };
        match timeout_at(until, attached).await {
            Ok(Ok((Stream::Ours(words), standing))) => return Ok((words, standing)),
            Ok(Ok((Stream::Plain(..), _))) => return Err(Refusal::Lost("another kind of backend answers".to_owned())),
            Ok(Err(Refusal::Backend(BackendError::Unreachable(_)) | Refusal::Lost(_)))
                if Instant::now() + AGAIN_CADENCE < until =>
            {
                sleep(AGAIN_CADENCE).await;
            }
            Ok(Err(refusal)) => return Err(refusal),
            Err(_) => return Err(Refusal::Silent("the backend does not answer".to_owned())),
        }
    }
}

async fn first_word(mut words: Words, holder: &Holder) -> Result<(Stream, Standing), Refusal> {
    loop {
        match words.ready() {
            Next::Part(Part::Word(word)) => match serde_json::from_slice(&word) {
                Ok(Word::Started(started)) => {
                    holder.holds(started.terms.hold);
                    let standing =
                        Standing { status: started.status, position: None, terms: started.terms, alive: started.alive };
                    return Ok((Stream::Ours(words), standing));
                }
                Ok(Word::Queued(queued)) => {
                    holder.holds(queued.terms.hold);
                    let position = Some(queued.position);
                    let standing =
                        Standing { status: Status::Queued, position, terms: queued.terms, alive: Alive::default() };
                    return Ok((Stream::Ours(words), standing));
                }
                Ok(Word::Exit(ending)) => return Err(Refusal::Ended(ending)),
                Ok(Word::Alive(_) | Word::Status(_)) => {}
                Ok(Word::TakenOver(_)) => return Err(Refusal::TakenOver),
                Ok(Word::Gap(_)) => return Err(too_early()),
                Err(error) => return Err(Refusal::Lost(not_understood(&error))),
            },
            Next::Part(Part::Output(..)) => return Err(too_early()),
            Next::Dry => words.fill().await.map_err(Refusal::Lost)?,
            Next::Lost(message) => return Err(Refusal::Lost(message)),
        }
    }
}

impl Standing {
    /// It runs, and nothing more is known.
    pub(super) fn running() -> Self {
        Standing { status: Status::Running, position: None, terms: Terms::default(), alive: Alive::default() }
    }
}

pub(super) fn not_understood(error: &serde_json::Error) -> String {
    format!("the backend said something that is not understood: {error}")
}

fn too_early() -> Refusal {
    Refusal::Lost("the backend sent output before it said that anything started".to_owned())
}
