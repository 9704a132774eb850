//! From the request to the backend's first word.

use std::time::Duration;

use futures_util::StreamExt;

use crate::{
    backend::{
        Backend, BackendError, Body, BodyEnd, Opened,
        api::Word,
        multiplex::{Decoder, Part},
    },
    id::ExecutionId,
    protocol::method::Run,
    terminate::{Ending, Reason},
};

/// How long the backend may take to say its first word.
const FIRST_WORD_PATIENCE: Duration = Duration::from_secs(10);

/// The stream of an execution that runs.
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

/// Asks for an execution and waits for the backend's first word.
pub(super) async fn open(backend: Backend, id: ExecutionId, run: Run) -> Result<Stream, Refusal> {
    let opened = async {
        match backend.execute(id, &run).await.map_err(Refusal::Backend)? {
            Opened::Plain(body, end) => Ok(Stream::Plain(body, end)),
            Opened::Multiplexed(body) => first_word(Words::new(body)).await,
        }
    };
    match tokio::time::timeout(FIRST_WORD_PATIENCE, opened).await {
        Ok(opened) => opened,
        Err(_) => Err(Refusal::Silent(format!(
            "the backend accepted the connection and said nothing for {} s",
            FIRST_WORD_PATIENCE.as_secs()
        ))),
    }
}

async fn first_word(mut words: Words) -> Result<Stream, Refusal> {
    loop {
        match words.ready() {
            Next::Part(Part::Word(word)) => match serde_json::from_slice(&word) {
                Ok(Word::Started(_)) => return Ok(Stream::Ours(words)),
                Ok(Word::Exit(ending)) => return Err(Refusal::Ended(ending)),
                Ok(Word::Alive(_) | Word::Status(_)) => {}
                Err(error) => return Err(lost(format!("the backend said something that is not understood: {error}"))),
            },
            Next::Part(Part::Output(..)) => {
                return Err(lost("the backend sent output before it said that anything started".to_owned()));
            }
            Next::Dry => words.fill().await.map_err(lost)?,
            Next::Lost(message) => return Err(lost(message)),
        }
    }
}

fn lost(message: String) -> Refusal {
    Refusal::Ended(Ending::failed(Reason::BackendLost, message))
}
