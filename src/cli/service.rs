//! The service that a client command talks to: which one it is, with which token, and how it is reached.
//!
//! [`ServiceFlags`] are the flags of every command. `source` decides which of flags, variables and profiles counts,
//! [`ServiceAccess`] is the result, and `refusal` has the errors of a service that cannot be used.

mod refusal;
mod source;

use std::rc::Rc;

use awc::{
    ClientRequest, Connector,
    error::{SendRequestError, WsClientError},
    http::{StatusCode, header},
    ws::WebsocketsRequest,
};
use cc_executor_actors::dial::{DialConfig, Dialer, wire_url};
use clap::Args;
use tokio::time::Duration;

use self::{
    refusal::{ServiceName, TokenOrigin},
    source::{ServiceChoice, UrlSource, choose},
};
use super::{
    ClientError, exit,
    profiles::{ProfileStore, StoredProfile},
};
use crate::{
    config::{
        self, Secret,
        value::{Checker, Given, MaybeGiven, given},
        variables,
    },
    outgoing::{self, proxy::ProxyVariables, url::ServiceUrl},
};

/// How long each step of a connection may take: TCP, a proxy's answer, the TLS handshake. Less than the time for the
/// whole request, so that the error names the step.
const STEP_PATIENCE: Duration = Duration::from_secs(8);

/// The service to talk to.
#[derive(Args, Clone, Debug)]
pub struct ServiceFlags {
    /// Service to connect to: wss://HOST/PATH, https://HOST, ws://HOST:PORT or HOST:PORT (without any profile ws://127.0.0.1:8003)
    #[arg(long, env = "CC_EXECUTOR_URL", value_name = "URL", value_parser = given(service_url()))]
    url: Option<MaybeGiven<ServiceUrl>>,

    /// Profile of `cc-executor login` whose service and token are used
    #[arg(long, env = "CC_EXECUTOR_PROFILE", value_name = "NAME", value_parser = given(profile_name()))]
    profile: Option<MaybeGiven<String>>,

    /// File of CA certificates in PEM form, trusted besides the system's
    #[arg(long, env = "CC_EXECUTOR_CA_FILE", value_name = "PATH", value_parser = given(path()))]
    ca_file: Option<MaybeGiven<String>>,
}

/// The parser of the URL of a service.
pub(super) fn service_url() -> Checker<ServiceUrl> {
    Checker::new(ServiceUrl::parse, UrlSource::default_url)
}

/// The parser of the name of a profile.
pub(super) fn profile_name() -> Checker<String> {
    Checker::new(super::profiles::read_name, String::new)
}

/// The parser of a path.
pub(super) fn path() -> Checker<String> {
    let read = |text: &str| if text.is_empty() { Err("must name a file".to_owned()) } else { Ok(text.to_owned()) };
    Checker::new(read, String::new)
}

impl ServiceFlags {
    /// The service that the flags, the variables and the profiles name.
    ///
    /// # Errors
    /// They contradict each other, or a profile, a token or a file of certificates cannot be used.
    pub(super) fn access(&self) -> Result<ServiceAccess, ClientError> {
        self.access_with(|token| token)
    }

    /// The same, where a token that cannot be read counts as none.
    pub(super) fn access_with_any_token(&self) -> Result<ServiceAccess, ClientError> {
        self.access_with(|token| Ok(token.unwrap_or_default()))
    }

    fn access_with(
        &self,
        accepted: impl FnOnce(Result<Option<Secret>, ClientError>) -> Result<Option<Secret>, ClientError>,
    ) -> Result<ServiceAccess, ClientError> {
        let (url, profile) = (flat(&self.url), flat(&self.profile));
        let usage = |text: String| ClientError::new(exit::USAGE, text);
        let (url, source, profile) = match choose(url, profile).map_err(usage)? {
            ServiceChoice::Url(url, source) => (url, source, None),
            ServiceChoice::Profile(name) => {
                let profile = ProfileStore::of_user()?.read()?.profile(&name)?;
                (profile.url.clone(), UrlSource::Profile(name), Some(profile))
            }
            ServiceChoice::DefaultProfile => match ProfileStore::default_profile()? {
                Some((name, profile)) => (profile.url.clone(), UrlSource::Profile(name), Some(profile)),
                None => (UrlSource::default_url(), UrlSource::Default, None),
            },
        };
        let of_profile = profile.as_ref().and_then(|profile| profile.ca_file.clone());
        let ca_file = match flat(&self.ca_file) {
            Some(file) if file.is_flag => Some(file.value.clone()),
            file => of_profile.or_else(|| file.map(|file| file.value.clone())),
        };
        let (token, origin) = match (profile, &source) {
            (Some(StoredProfile { token, .. }), UrlSource::Profile(name)) => {
                let ignored = config::token_variable(&variables::read());
                let origin = TokenOrigin::Profile { name: name.clone(), has_token: token.is_some(), ignored };
                (token, origin)
            }
            _ => (accepted(environment_token())?, TokenOrigin::Environment(config::token_variable(&variables::read()))),
        };
        ServiceAccess::new(url, source, token, origin, ca_file.as_deref())
    }
}

fn flat<T>(given: &Option<MaybeGiven<T>>) -> Option<&Given<T>> {
    given.as_ref()?.as_ref()
}

/// The token in the environment, or in the file that it names.
fn environment_token() -> Result<Option<Secret>, ClientError> {
    config::client_token(&variables::read()).map_err(|problems| ClientError::new(exit::USAGE, problems.to_string()))
}

/// A service, the token for it, and how it is reached. Cheap to clone. The token is sent to this service only: no
/// redirect is followed.
#[derive(Clone, Debug)]
pub(super) struct ServiceAccess(Rc<AccessParts>);

#[derive(Debug)]
struct AccessParts {
    url: ServiceUrl,
    session_url: String,
    token: Option<Secret>,
    name: ServiceName,
    dial: DialConfig,
}

impl ServiceAccess {
    fn new(
        url: ServiceUrl,
        source: UrlSource,
        token: Option<Secret>,
        origin: TokenOrigin,
        ca_file: Option<&str>,
    ) -> Result<Self, ClientError> {
        let dial = outgoing::plan(&url, ca_file, &ProxyVariables::of_process())
            .map_err(|error| ClientError::new(exit::USAGE, error.to_string()))?;
        let (session_url, name) = (url.session(), ServiceName { url: url.clone(), source, token: origin });
        Ok(ServiceAccess(Rc::new(AccessParts { url, session_url, token, name, dial })))
    }

    /// A service to which somebody logs in.
    ///
    /// # Errors
    /// The file of certificates, or a variable of proxies, cannot be used.
    pub(super) fn for_login(
        url: ServiceUrl,
        token: Option<Secret>,
        ca_file: Option<&str>,
    ) -> Result<Self, ClientError> {
        let origin = TokenOrigin::Typed(token.is_some());
        ServiceAccess::new(url, UrlSource::Flag, token, origin, ca_file)
    }

    /// The URL of sessions.
    pub(super) fn url(&self) -> &str {
        &self.0.session_url
    }

    /// The same with the source of the URL, for errors.
    pub(super) fn named_url(&self) -> String {
        self.0.name.shown(self.url())
    }

    /// The URL of an HTTP route, such as `/executions`.
    pub(super) fn http(&self, path: &str) -> String {
        self.0.url.http(path)
    }

    /// The URL whose status says whether the service is ready.
    pub(super) fn health_url(&self) -> String {
        self.0.url.health()
    }

    /// The token to send, if there is one.
    pub(super) fn token(&self) -> Option<&str> {
        self.0.token.as_ref().map(Secret::reveal)
    }

    /// A client that reaches the service and follows no redirect. A request with its whole response takes at most
    /// `patience`; without it the caller bounds it.
    pub(super) fn client(&self, patience: Option<Duration>) -> awc::Client {
        let dialer = Dialer::new(self.0.dial.clone(), STEP_PATIENCE);
        let connector = Connector::new().timeout(dialer.longest()).connector(dialer);
        let builder = awc::Client::builder().connector(connector).disable_redirects();
        match patience {
            Some(patience) => builder.timeout(patience).finish(),
            None => builder.disable_timeout().finish(),
        }
    }

    /// A GET of a URL of the service, without the token.
    pub(super) fn get(&self, client: &awc::Client, url: &str) -> ClientRequest {
        client.get(wire_url(url)).insert_header((header::HOST, self.0.url.authority()))
    }

    /// A request for a session, with the token.
    pub(super) fn session_request(&self, client: &awc::Client) -> WebsocketsRequest {
        let request = client.ws(wire_url(self.url())).set_header(header::HOST, self.0.url.authority());
        match self.token() {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// The error for an unexpected status of this URL of the service. The body has the reason if a cc-executor service
    /// has answered.
    pub(super) fn refused(&self, url: &str, status: StatusCode, body: &[u8]) -> ClientError {
        self.0.name.refused(url, status, body)
    }

    /// The error for a request that got no response.
    pub(super) fn unreachable(&self, url: &str, error: &SendRequestError) -> ClientError {
        self.0.name.unreachable(url, error)
    }

    /// The error for a session that was not opened, except [`WsClientError::InvalidResponseStatus`].
    pub(super) fn no_session(&self, error: &WsClientError) -> ClientError {
        self.0.name.no_session(error)
    }
}
