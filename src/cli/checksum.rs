//! Counts and digests a received stream, and compares it with what the command wrote.

use std::{borrow::Cow, fmt};

use base64::{Engine, engine::general_purpose::STANDARD};
use cc_executor_actors::{protocol::notification::OutputNotice, stream::Stream};
use sha2::{Digest, Sha256};

/// The count and the digest of a stream up to now.
#[derive(Default)]
pub(super) struct StreamChecksum {
    /// The offset after the last byte that was received or lost.
    pub(super) end: u64,
    /// The number of bytes that the service reported as lost.
    pub(super) lost: u64,
    /// Whether the beginning was not asked for, so that there is no digest of the whole.
    is_part: bool,
    sha256: Sha256,
}

/// The received output differs from what the service sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ChecksumError(pub(super) String);

impl fmt::Display for ChecksumError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The bytes of an output message: text, or base64.
pub(super) fn decoded<'a>(output: &'a OutputNotice<'_>) -> Result<Cow<'a, [u8]>, ChecksumError> {
    match (output.content.as_deref(), output.content_base64.as_deref()) {
        (Some(text), None) => Ok(text.as_bytes().into()),
        (None, Some(base64)) => {
            let bytes = STANDARD.decode(base64).map_err(|error| ChecksumError(format!("invalid base64: {error}")))?;
            Ok(bytes.into())
        }
        _ => Err(ChecksumError("an output message has no content".to_owned())),
    }
}

impl StreamChecksum {
    /// A stream of which the bytes before this offset were not asked for.
    pub(super) fn beginning_at(offset: u64) -> Self {
        StreamChecksum { end: offset, is_part: offset > 0, ..StreamChecksum::default() }
    }

    /// Takes the next bytes.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.end += bytes.len() as u64;
        self.sha256.update(bytes);
    }

    /// Compares the stream with the count and the digest of the command's backend. The digest covers the whole stream, so
    /// it is not compared after a loss.
    pub(super) fn check(&self, stream: Stream, bytes: Option<u64>, sha256: Option<&str>) -> Result<(), ChecksumError> {
        let name = stream.as_str();
        if let Some(bytes) = bytes.filter(|bytes| *bytes != self.end) {
            return Err(ChecksumError(format!("{} bytes of {name} arrived, but the command wrote {bytes}", self.end)));
        }
        if self.lost > 0 || self.is_part {
            return Ok(());
        }
        let received = format!("{:x}", self.sha256.clone().finalize());
        match sha256.filter(|sha256| *sha256 != received) {
            Some(sha256) => Err(ChecksumError(format!(
                "the SHA-256 of the received {name} is {received}, that of the command's {name} is {sha256}"
            ))),
            None => Ok(()),
        }
    }
}
