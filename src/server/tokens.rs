//! The tokens of a role, and which client each of them names.
//!
//! [`TokenTable`] is the content of a tokens file, [`Tokens`] what a role demands: a single token, a tokens file, or
//! both. [`mod@file`] reads the file again when it changes.

pub mod file;
pub mod table;

use std::sync::Arc;

use cc_executor_actors::client::ClientName;
use tokio::sync::watch;

use self::{file::TokensFile, table::TokenTable};
use super::secret::Fingerprint;

/// The tokens that a role demands.
#[derive(Clone, Debug)]
pub struct Tokens {
    single: Option<Fingerprint>,
    file: Option<Arc<TokensFile>>,
}

/// Whose token a request carries.
#[derive(Clone, Debug)]
pub enum TokenOwner {
    /// It is the single token.
    Single,
    /// It is the token of this client in the tokens file.
    Client(ClientName, TokenLease),
}

impl Tokens {
    /// A single token.
    pub fn single(token: Fingerprint) -> Self {
        Tokens { single: Some(token), file: None }
    }

    /// A single token, a tokens file, or both. `None` without any.
    pub fn new(single: Option<Fingerprint>, file: Option<Arc<TokensFile>>) -> Option<Self> {
        (single.is_some() || file.is_some()).then_some(Tokens { single, file })
    }

    /// The owner of one of the offered tokens.
    pub fn owner(&self, offered: &[Vec<u8>]) -> Option<TokenOwner> {
        offered.iter().find_map(|offered| {
            let offered = Fingerprint::of(offered);
            if self.single == Some(offered) {
                return Some(TokenOwner::Single);
            }
            let table = self.file.as_ref()?.subscribe();
            let client = table.borrow().client(&offered).cloned()?;
            Some(TokenOwner::Client(client.clone(), TokenLease { table, client, token: offered }))
        })
    }

    /// The tokens file.
    pub fn file(&self) -> Option<&Arc<TokensFile>> {
        self.file.as_ref()
    }
}

/// The right of a connection to stay open: its token is still in the tokens file.
#[derive(Clone, Debug)]
pub struct TokenLease {
    table: watch::Receiver<TokenTable>,
    client: ClientName,
    token: Fingerprint,
}

impl TokenLease {
    /// Completes when the token is not that of its client any more.
    pub async fn ended(self) {
        let TokenLease { mut table, client, token } = self;
        if table.wait_for(|table| table.client(&token) != Some(&client)).await.is_err() {
            // The file is not watched any more, because the service is stopping.
            std::future::pending::<()>().await;
        }
    }
}
