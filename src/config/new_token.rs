//! A new token for a tokens file.

use std::io;

use cc_executor_actors::client::ClientName;

use crate::server::{secret::Secret, tokens::table};

/// A new token, which is not stored anywhere.
pub struct NewToken {
    /// The token, for the client.
    pub token: Secret,
    /// The line for the service's tokens file.
    pub line: String,
}

impl NewToken {
    /// Makes a token of 256 random bits for a client.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn random(client: &ClientName) -> io::Result<NewToken> {
        let token = Secret::random()?;
        let line = table::line(client, &token.fingerprint());
        Ok(NewToken { token, line })
    }
}
