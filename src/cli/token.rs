//! `token new`: makes a token for a client of a service. The token is printed once and stored nowhere.

use cc_executor_actors::client::{ClientName, is_token_name};
use clap::{Args, Subcommand};

use super::{ClientError, exit, print_line};
use crate::{
    config::{NewToken, value::Checker},
    console::{self, OutputReader},
};

/// What to do with tokens.
#[derive(Args, Clone, Debug)]
pub struct TokenOptions {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum TokenCommand {
    /// Print a new token, and on standard error its line for --tokens-file
    New {
        /// Client that gets the token
        #[arg(value_name = "NAME", value_parser = client_name())]
        name: ClientName,
    },
}

/// The parser of the name of a client with a token.
fn client_name() -> Checker<ClientName> {
    let read = |text: &str| match text.parse() {
        Ok(name) if is_token_name(text) && name != ClientName::anonymous() => Ok(name),
        Ok(_) => Err(format!("must not be {text:?}, which callers without a token have")),
        Err(error) => Err(format!("is not valid: {error}")),
    };
    Checker::new(read, ClientName::of_single_token)
}

/// Prints a new token. Its line is only printed if somebody reads the token.
pub(super) fn token(options: TokenOptions) -> Result<u8, ClientError> {
    let TokenCommand::New { name } = options.command;
    let new = NewToken::random(&name)
        .map_err(|error| ClientError::new(exit::SOFTWARE, format!("cannot make a token: {error}")))?;
    match print_line(new.token.reveal())? {
        OutputReader::Present => console::report_line(&new.line),
        OutputReader::Gone => return Err(ClientError::new(exit::IOERR, "nothing reads the token; make another")),
    }
    Ok(0)
}
