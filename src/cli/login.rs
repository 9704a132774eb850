//! `login`: stores a service and its token as a profile, after the service has accepted the token.

use std::{
    io::{Read, stdin},
    path::{Path, absolute},
};

use awc::http::StatusCode;
use cc_executor_actors::{protocol::notification::Connected, rpc::ReceivedMessage};
use clap::Args;
use tokio::time::timeout;

use super::{
    ClientError, PATIENCE,
    connection::{Connection, ConnectionEvent, not_understood, read},
    exit,
    http::{HttpClient, within},
    print_line,
    profiles::{ProfileStore, StoredProfile, is_token},
    service::{ServiceAccess, path, profile_name, service_url},
    token_prompt::{ask, not_a_token},
};
use crate::{
    config::{self, Secret},
    outgoing::url::ServiceUrl,
};

/// The name of a profile that is given none.
const DEFAULT_NAME: &str = "default";

/// The longest token that is read from standard input, in bytes.
const MAX_INPUT: u64 = 64 << 10;

/// The exit codes in the help text.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
   0  the profile is stored
  64  wrong use: flags, the token file, the file of profiles
  69  the service cannot be reached, or is not a cc-executor service
  70  invalid message of the service
  75  service full or shutting down
  77  the token was refused
 130  interrupted";

/// Options of `login`.
#[derive(Args, Clone, Debug)]
pub struct LoginOptions {
    /// Name of the profile
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAME, value_parser = profile_name())]
    name: String,

    /// File with the token, or - for standard input, instead of a question on the terminal
    #[arg(long, value_name = "PATH", value_parser = path())]
    token_file: Option<String>,

    /// File of CA certificates in PEM form, trusted besides the system's; stored with the profile
    #[arg(long, env = "CC_EXECUTOR_CA_FILE", value_name = "PATH")]
    ca_file: Option<String>,

    /// Service, such as https://HOST/PATH or HOST:PORT
    #[arg(value_name = "URL", value_parser = service_url())]
    url: ServiceUrl,
}

/// Stores a profile, if the service accepts its token.
pub(super) async fn login(options: LoginOptions) -> Result<u8, ClientError> {
    let LoginOptions { name, token_file, ca_file, url } = options;
    let ca_file = ca_file.filter(|path| !path.is_empty()).map(absolute_path).transpose()?;
    let access = |token| ServiceAccess::for_login(url.clone(), token, ca_file.as_deref());
    let token = match token_file {
        Some(path) => Some(token_of(&path)?),
        // Asked for only where it is needed, and after the service is known to be there.
        None if needs_token(&access(None)?).await? => {
            let typed = ask(&url.session()).await?;
            if !is_token(&typed) {
                return Err(not_a_token());
            }
            Some(Secret::new(typed))
        }
        None => None,
    };
    let connected = open_session(&access(token.clone())?).await?;
    let is_default = ProfileStore::of_user()?.update(|profiles| {
        profiles.by_name.insert(name.clone(), StoredProfile { url: url.clone(), token: token.clone(), ca_file });
        Ok(*profiles.default.get_or_insert_with(|| name.clone()) == name)
    })?;
    let with = if token.is_some() { "with its token" } else { "which needs no token" };
    let use_it = if is_default { "it is the default".to_owned() } else { format!("use it with --profile {name}") };
    let server = format!("{} {}", connected.server.name, connected.server.version);
    // It is stored whether or not the line is read.
    let _ = print_line(&format!("stored profile {name}: {url} ({server}), {with}; {use_it}"))?;
    Ok(0)
}

fn absolute_path(path: String) -> Result<String, ClientError> {
    let found = absolute(&path).ok().and_then(|path| path.into_os_string().into_string().ok());
    found.ok_or_else(|| ClientError::new(exit::USAGE, format!("the path of --ca-file {path:?} cannot be stored")))
}

/// The token in a file, or on standard input.
fn token_of(path: &str) -> Result<Secret, ClientError> {
    let unusable =
        |error: &dyn std::fmt::Display| ClientError::new(exit::USAGE, format!("--token-file {path:?} {error}"));
    let text = if path == "-" {
        let mut text = String::new();
        let read = stdin().lock().take(MAX_INPUT).read_to_string(&mut text);
        read.map_err(|error| {
            ClientError::new(exit::USAGE, format!("cannot read the token from standard input: {error}"))
        })?;
        text
    } else {
        config::read_token_file(Path::new(path)).map_err(|error| unusable(&error))?
    };
    let token = text.trim_end_matches(['\r', '\n']);
    if is_token(token) { Ok(Secret::new(token.to_owned())) } else { Err(not_a_token()) }
}

/// Whether a service refuses a request without a token.
async fn needs_token(service: &ServiceAccess) -> Result<bool, ClientError> {
    let (client, url) = (HttpClient::new(service), service.http("/executions"));
    let status = async {
        let response = client.get_without_token(&url).send().await;
        response.map(|response| response.status()).map_err(|error| client.unreachable(&url, &error))
    };
    Ok(within(&url, status).await? == StatusCode::UNAUTHORIZED)
}

/// Opens a session and closes it again. Returns what the service says of itself.
async fn open_session(service: &ServiceAccess) -> Result<Connected, ClientError> {
    let mut connection = Connection::open(service).await?;
    let greeting = async {
        loop {
            match connection.next().await {
                ConnectionEvent::Message(text) => {
                    let message: ReceivedMessage<'_> =
                        serde_json::from_slice(&text).map_err(|error| not_understood(&error))?;
                    let params = message.params.filter(|_| message.method.as_deref() == Some("connected"));
                    let not_connected = || {
                        let message =
                            format!("{} does not begin a session as a cc-executor service does", service.url());
                        ClientError::new(exit::UNAVAILABLE, message)
                    };
                    return read(params.ok_or_else(not_connected)?);
                }
                ConnectionEvent::Nothing => {}
                ConnectionEvent::Broken(error) => return Err(error),
            }
        }
    };
    let connected = timeout(PATIENCE, greeting).await.unwrap_or_else(|_| {
        let message = format!("{} says nothing within {} s", service.url(), PATIENCE.as_secs());
        Err(ClientError::new(exit::UNAVAILABLE, message))
    });
    connection.close().await;
    connected
}
