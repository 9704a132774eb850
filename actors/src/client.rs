//! Who calls the service: a client, known by the name of its token or by its user. Sessions and executions belong to
//! it, and limits are shared between clients. Peer addresses identify no client, because many may have one address and
//! one may have many.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// The longest name, in bytes.
const MAX_NAME: usize = 64;

/// The name of a client. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClientName(Arc<str>);

/// A text that cannot name a client.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0:?} cannot name a client: use 1 to {MAX_NAME} ASCII letters, digits, '.', '_' and '-', beginning with a letter or digit"
)]
pub struct InvalidClientName(String);

impl ClientName {
    /// The client of a service with a single token.
    pub fn of_single_token() -> Self {
        ClientName("default".into())
    }

    /// The one client of a service that demands no token beyond loopback.
    pub fn anonymous() -> Self {
        ClientName("anonymous".into())
    }

    /// A local user, without a token. A token cannot have such a name.
    pub fn of_user(uid: u32) -> Self {
        ClientName(format!("uid:{uid}").into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ClientName {
    type Err = InvalidClientName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = match text.strip_prefix("uid:") {
            Some(uid) => uid.parse().ok().map(ClientName::of_user),
            None => is_token_name(text).then(|| ClientName(text.into())),
        };
        name.ok_or_else(|| InvalidClientName(text.chars().take(MAX_NAME).collect()))
    }
}

/// Whether a token may have this name.
pub fn is_token_name(text: &str) -> bool {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    text.len() <= MAX_NAME
        && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && text.bytes().all(is_legal)
}

impl TryFrom<String> for ClientName {
    type Error = InvalidClientName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ClientName> for String {
    fn from(name: ClientName) -> String {
        name.0.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_no_token_can_name_a_user() {
        for name in ["default", "ci-1", "a", "A.b_c-9", "uid:0", "uid:4294967295"] {
            assert_eq!(name.parse::<ClientName>().unwrap().as_str(), name);
        }
        for text in ["", "-a", "a b", "uid:", "uid:x", "uid:4294967296", "ä", "a:b", &"a".repeat(65)] {
            assert!(text.parse::<ClientName>().is_err(), "{text:?}");
        }
        assert!(!is_token_name("uid:0"));
    }
}
