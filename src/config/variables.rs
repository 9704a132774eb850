//! Environment variables that have no flag: secrets, and the settings of the log.
//!
//! They are arguments of a clap command of their own, which is parsed without any words. So they cannot be given as
//! flags, which every user of the machine can read.

use std::ffi::OsString;

use clap::{Args, Command};

use super::value::one_of;
use crate::logging::{DEFAULT_FILTER, Format};

/// The secret that a client sends, and that each role demands.
pub const TOKEN: &str = "CC_EXECUTOR_TOKEN";

/// The secret that a gateway sends to its backend.
pub const BACKEND_TOKEN: &str = "CC_EXECUTOR_BACKEND_TOKEN";

/// Variables of the client's commands.
#[derive(Args, Clone)]
pub struct ClientVariables {
    /// Token that clients must send to the service
    #[arg(long, env = "CC_EXECUTOR_TOKEN", hide_env_values = true)]
    pub token: Option<OsString>,

    /// File that contains this token
    #[arg(long, env = "CC_EXECUTOR_TOKEN_FILE")]
    pub token_file: Option<OsString>,
}

/// Variables of the roles.
#[derive(Args, Clone)]
pub struct RoleVariables {
    #[command(flatten)]
    pub(super) client: ClientVariables,

    /// SHA-256 of this token, instead of the token
    #[arg(long, env = "CC_EXECUTOR_TOKEN_SHA256")]
    pub token_sha256: Option<OsString>,

    /// Token that gateways must send to a backend
    #[arg(long, env = "CC_EXECUTOR_BACKEND_TOKEN", hide_env_values = true)]
    pub backend_token: Option<OsString>,

    /// File that contains this token
    #[arg(long, env = "CC_EXECUTOR_BACKEND_TOKEN_FILE")]
    pub backend_token_file: Option<OsString>,

    /// SHA-256 of this token, for `backend` only
    #[arg(long, env = "CC_EXECUTOR_BACKEND_TOKEN_SHA256")]
    pub backend_token_sha256: Option<OsString>,

    /// Form of log lines: text (default) or json
    #[arg(long, env = "LOG_FORMAT", default_value = "text", value_parser = one_of(&Format::NAMES, Format::named))]
    pub log_format: Format,

    /// Filter of log lines, in env_logger's syntax
    // env_logger reads it. It is declared here for the help text and the README.
    #[arg(long, env = "RUST_LOG", default_value = DEFAULT_FILTER)]
    pub rust_log: OsString,
}

/// Reads variables from the environment of this process.
pub fn read<V: Args>() -> V {
    parse(definition::<V>(), Vec::new())
}

/// The definition of variables, for help texts.
pub fn definition<V: Args>() -> Command {
    V::augment_args(Command::new("environment").no_binary_name(true))
}

/// Parses variables. Tests give them as flags.
pub fn parse<V: Args>(definition: Command, words: Vec<OsString>) -> V {
    let variables = definition.try_get_matches_from(words).and_then(|matches| V::from_arg_matches(&matches));
    variables.expect("no argument is required, and every value is accepted")
}

/// A definition that reads no environment, so that tests do not depend on it.
#[cfg(test)]
pub fn without_environment(definition: Command) -> Command {
    definition.mut_args(|arg| arg.env(None::<&str>))
}
