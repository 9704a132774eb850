//! A stream as it was received: counted, digested, and compared with what was sent.

use std::{borrow::Cow, fmt};

use base64::{Engine, engine::general_purpose::STANDARD};
use cc_executor_actors::{protocol::notification::OutputNotice, stream::Stream};
use sha2::{Digest, Sha256};

/// So much of a stream has come.
#[derive(Default)]
pub(super) struct StreamChecksum {
    /// How far the stream has come.
    pub(super) end: u64,
    /// How much of that was lost on the way, as the service said.
    pub(super) lost: u64,
    sha256: Sha256,
}

/// What was received is not what was sent.
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
        _ => Err(ChecksumError("an output message without content".to_owned())),
    }
}

impl StreamChecksum {
    /// Takes the next bytes.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.end += bytes.len() as u64;
        self.sha256.update(bytes);
    }

    /// Compares with what the service counted and digested where it ran. There is no digest of a part.
    pub(super) fn check(&self, stream: Stream, bytes: Option<u64>, sha256: Option<&str>) -> Result<(), ChecksumError> {
        let name = stream.as_str();
        if let Some(bytes) = bytes.filter(|bytes| *bytes != self.end) {
            return Err(ChecksumError(format!("{} bytes of {name} arrived, the command wrote {bytes}", self.end)));
        }
        if self.lost > 0 {
            return Ok(());
        }
        let received = format!("{:x}", self.sha256.clone().finalize());
        match sha256.filter(|sha256| *sha256 != received) {
            Some(sha256) => {
                Err(ChecksumError(format!("the SHA-256 of {name} is {received}, the command's was {sha256}")))
            }
            None => Ok(()),
        }
    }
}
