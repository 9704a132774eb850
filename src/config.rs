//! Settings of both roles.
//!
//! `settings` and `variables` declare them with clap, `value` parses them, `validate` checks all and reports every
//! problem together. Secrets come from the environment or from a file, never from a flag.

mod access;
mod new_token;
mod settings;
mod unknown;
mod users;
mod validate;
pub mod value;
pub mod variables;

use std::{fmt, net::SocketAddr, time::Duration};

use cc_executor_actors::{dial::DialConfig, protocol::Limits, supervisor::SessionLimits};

pub use self::{
    access::{client_token, read_token_file, token_variable},
    new_token::NewToken,
    settings::{BackendArgs, ServeArgs},
    unknown::unknown_variables,
    validate::{backend, serve},
    variables::TOKEN,
};
pub use crate::server::secret::Secret;
use crate::{backend::BackendConfig, gateway::IntakeLimits, logging::Format, server::auth::Access};

/// The bounds of connections whose requests have not arrived, or are not authorized.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionSettings {
    /// How long a request may take to arrive.
    pub request_timeout: Duration,
    /// The maximum number of connections on which no request was authorized.
    pub max_unauthorized: usize,
}

/// The problems of settings and of a client's flags, one line each.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Problems(pub Vec<String>);

impl Problems {
    /// Adds a problem: the name of a setting, and the rest of the sentence.
    pub fn add(&mut self, name: &str, text: impl fmt::Display) {
        self.0.push(format!("{name} {text}"));
    }

    /// Adds the problems of other settings.
    pub fn extend(&mut self, others: Problems) {
        self.0.extend(others.0);
    }

    /// The result of a validation.
    ///
    /// # Errors
    /// There are problems.
    pub fn finish<T>(self, value: T) -> Result<T, Problems> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.join("\n").fmt(f)
    }
}

/// Settings of the role `serve`.
#[derive(Clone, Debug)]
pub struct GatewaySettings {
    /// The address to listen on.
    pub bind: SocketAddr,
    /// Who may call the service. The port is that of `bind`.
    pub access: Access,
    /// Settings that are allowed and weaken the protection of the service, one line each.
    pub warnings: Vec<String>,
    /// The bounds of connections.
    pub connections: ConnectionSettings,
    /// The maximum number of sessions.
    pub sessions: SessionLimits,
    /// The longest duration of a shutdown.
    pub drain: Duration,
    /// The bounds of what clients may request.
    pub limits: Limits,
    /// The bounds of what all clients together may have the gateway hold.
    pub intake: IntakeLimits,
    /// How long Claude may take to exit after its last event. Only used with the legacy backend.
    pub claude_exit: Duration,
    /// Where commands run.
    pub backend: BackendLocation,
    /// The format of log lines.
    pub log_format: Format,
}

/// Where commands run.
#[derive(Clone, Debug)]
pub enum BackendLocation {
    /// In a backend inside this process.
    Embedded(Box<BackendConfig>),
    /// In another process.
    Remote(RemoteBackend),
}

/// A backend in another process.
#[derive(Clone, Debug)]
pub struct RemoteBackend {
    /// Its URL.
    pub url: String,
    /// The token that the gateway sends it.
    pub token: Option<Secret>,
    /// How it is reached.
    pub dial: DialConfig,
}

/// Settings of the role `backend`.
#[derive(Clone, Debug)]
pub struct BackendSettings {
    /// The address to listen on.
    pub bind: SocketAddr,
    /// Who may call the service. The port is that of `bind`.
    pub access: Access,
    /// Settings that are allowed and weaken the protection of the service, one line each.
    pub warnings: Vec<String>,
    /// The bounds of connections.
    pub connections: ConnectionSettings,
    /// How commands run.
    pub backend: BackendConfig,
    /// The longest duration of a shutdown.
    pub drain: Duration,
    /// The format of log lines.
    pub log_format: Format,
}
