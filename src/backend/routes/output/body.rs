//! The bytes of a part of a stream, from its file and then from its ring, one piece after the other: a response takes the
//! next piece when its client has made room.

use std::{io, ops::Range, sync::Arc};

use actix_web::web;
use bytes::Bytes;
use cc_executor_actors::{
    id::ExecutionId,
    rpc::{ErrorObject, code},
    stream::Stream,
};
use futures_util::stream;
use log::warn;
use tokio::task::spawn_blocking;

use super::places::ReadingPlace;
use crate::{
    backend::{
        job_request::JobRequest,
        registry::Registry,
        routes::control::ask,
        storage::stored_file::{StoredFile, StoredPiece},
    },
    server::caller::Caller,
};

/// The most that is read from a ring at a time, in bytes.
const RING_PIECE: usize = 64 * 1024;

/// Where the bytes of a stream are.
pub(super) struct PartSource {
    pub stream: Stream,
    /// The file, and the offset up to which it has the bytes.
    pub file: Option<(Arc<StoredFile>, u64)>,
    pub id: ExecutionId,
    pub caller: Caller,
    pub registry: web::Data<Registry>,
    /// Freed with the response.
    pub _place: ReadingPlace,
}

/// The error with which a body is cut.
#[derive(Debug, thiserror::Error)]
#[error("bytes from {0} on of the output are gone, or cannot be read")]
pub(super) struct CutPart(u64);

impl PartSource {
    /// Opens the file before the response begins, because a file that cannot be read must not be answered with status 200.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or is shorter than it was.
    pub async fn check(&self, part: &Range<u64>) -> Result<(), ErrorObject> {
        let Some((file, end)) = self.file.as_ref().filter(|(_, end)| part.start < *end) else { return Ok(()) };
        let (file, needed) = (Arc::clone(file), part.end.min(*end));
        match spawn_blocking(move || file.length()).await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(length) if length >= needed => Ok(()),
            Ok(length) => Err(self.unreadable(&format!("its file has only {length} bytes"))),
            Err(error) => Err(self.unreadable(&error.to_string())),
        }
    }

    fn unreadable(&self, why: &str) -> ErrorObject {
        let stream = self.stream.as_str();
        warn!(event = "storage.unreadable", execution_id:% = self.id, stream = stream; "cannot read stored output: {why}");
        ErrorObject::new(code::INTERNAL, format!("the {stream} of execution {} cannot be read: {why}", self.id))
    }

    /// The next bytes of this part, which is not empty.
    async fn read(&self, part: Range<u64>) -> Result<Bytes, CutPart> {
        let Range { start: from, end: to } = part;
        if let Some((file, end)) = self.file.as_ref().filter(|(_, end)| from < *end) {
            let (file, to) = (Arc::clone(file), to.min(*end));
            let read = spawn_blocking(move || file.read(from, to)).await;
            return match read.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Ok(StoredPiece::Bytes(bytes)) => Ok(bytes),
                // A hole would be read as zeros.
                Ok(StoredPiece::GivenUp(_)) => Err(CutPart(from)),
                Err(error) => {
                    self.unreadable(&error.to_string());
                    Err(CutPart(from))
                }
            };
        }
        let most = usize::try_from(to - from).unwrap_or(RING_PIECE).min(RING_PIECE);
        let stream = self.stream;
        let request = |answer| JobRequest::ReadRing { stream, from, most, answer };
        let bytes = ask(&self.registry, &self.caller, self.id, request).await.map_err(|_| CutPart(from))?;
        if bytes.is_empty() { Err(CutPart(from)) } else { Ok(bytes.into()) }
    }
}

/// Reads a part, piece by piece.
pub(super) fn read_part(
    source: PartSource,
    part: Range<u64>,
) -> impl futures_util::Stream<Item = Result<Bytes, CutPart>> {
    stream::try_unfold((source, part), async |(source, part)| {
        if part.is_empty() {
            return Ok(None);
        }
        let bytes = source.read(part.clone()).await?;
        let rest = part.start + bytes.len() as u64..part.end;
        Ok(Some((bytes, (source, rest))))
    })
}
