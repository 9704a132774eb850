//! How a role knows who calls it: by a token, by the local user, or not at all. It decides on plain values; `auth` takes
//! them from requests.

use cc_executor_actors::client::ClientName;

use super::{
    local_users::LocalUsers,
    tokens::{TokenLease, TokenOwner, Tokens},
};

/// How a role knows its callers.
#[derive(Clone, Debug)]
pub enum Authentication {
    /// By the token that each request carries.
    Tokens(Tokens),
    /// By the user of the connection. Only on loopback, and without a token.
    LocalUsers(LocalUsers),
    /// Not at all: all callers are one client.
    Nothing,
}

/// An authenticated caller.
#[derive(Clone, Debug)]
pub enum Principal {
    /// Who has the single token: a client, or gateways and operators of a backend.
    SingleToken,
    /// The client with a token of the tokens file.
    NamedToken(ClientName, TokenLease),
    /// A local user.
    LocalUser(ClientName),
    /// Anyone, where callers are not known.
    Anyone,
}

/// Why a caller is not known, or may not call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unauthenticated {
    /// The request has no token.
    NoToken,
    /// The request has a wrong token.
    WrongToken,
    /// The local user may not call. The text says what to do.
    LocalUser(String),
}

impl Authentication {
    /// Whether a token is demanded.
    pub fn demands_token(&self) -> bool {
        matches!(self, Authentication::Tokens(_))
    }

    /// The caller that offers these tokens over a connection of this user.
    ///
    /// # Errors
    /// The caller is not known, or may not call.
    pub fn authenticate(&self, offered: &[Vec<u8>], uid: Result<u32, &str>) -> Result<Principal, Unauthenticated> {
        match self {
            Authentication::Tokens(tokens) => match tokens.owner(offered) {
                Some(TokenOwner::Single) => Ok(Principal::SingleToken),
                Some(TokenOwner::Client(name, lease)) => Ok(Principal::NamedToken(name, lease)),
                None if offered.is_empty() => Err(Unauthenticated::NoToken),
                None => Err(Unauthenticated::WrongToken),
            },
            Authentication::LocalUsers(users) => {
                users.client(uid).map(Principal::LocalUser).map_err(Unauthenticated::LocalUser)
            }
            Authentication::Nothing => Ok(Principal::Anyone),
        }
    }
}
