//! The errors of a service that cannot be reached, refuses the client, or is no cc-executor service: each says where the
//! URL and the token come from, and what to do.

use std::error::Error;

use awc::{
    error::{ConnectError, SendRequestError, WsClientError},
    http::StatusCode,
};
use cc_executor_actors::{
    dial::{DialError, dial_error},
    rpc::{ErrorObject, code},
};

use super::source::UrlSource;
use crate::{
    cli::{ClientError, PATIENCE, exit},
    config::TOKEN,
    outgoing::url::ServiceUrl,
};

/// Parts of the pages with which servers (nginx, Go, Apache) answer a plain request at a port of TLS.
const TLS_PORT_PAGES: [&str; 3] =
    ["plain HTTP request was sent to HTTPS port", "HTTP request to an HTTPS server", "plain HTTP to an SSL-enabled"];

/// Where a token comes from, or would come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum TokenOrigin {
    /// This variable of the environment; `None` if no token was sent.
    Environment(Option<String>),
    /// The profile of this name, which may have none, beside this variable of the environment, which is ignored.
    Profile { name: String, has_token: bool, ignored: Option<String> },
    /// `login`, if one was typed.
    Typed(bool),
}

/// A service in errors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ServiceName {
    pub(super) url: ServiceUrl,
    pub(super) source: UrlSource,
    pub(super) token: TokenOrigin,
}

impl ServiceName {
    /// The error for an unexpected HTTP status.
    pub(super) fn refused(&self, url: &str, status: StatusCode, body: &[u8]) -> ClientError {
        let error = serde_json::from_slice::<ErrorObject>(body).ok();
        let url = self.shown(url);
        // From an address that has sent many wrong tokens, one more is answered with 429.
        let is_one_of_many = status == StatusCode::TOO_MANY_REQUESTS
            && error.as_ref().is_some_and(|error| error.code == code::NOT_AUTHORIZED);
        let code = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => exit::NOPERM,
            _ if is_one_of_many => exit::NOPERM,
            // The client, or all clients together, have used up a limit.
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => exit::TEMPFAIL,
            _ => exit::UNAVAILABLE,
        };
        let message = match error {
            Some(_) if status == StatusCode::UNAUTHORIZED || is_one_of_many => self.unauthorized(&url),
            Some(error) => format!("{url} answers {status}: {}", error.message),
            None => self.foreign(&url, status, &String::from_utf8_lossy(body)),
        };
        ClientError::new(code, message)
    }

    /// The error for a missing token, or for a wrong one.
    fn unauthorized(&self, url: &str) -> String {
        let store = format!("cc-executor login {}", self.url);
        match &self.token {
            TokenOrigin::Environment(Some(variable)) => {
                format!("{url} refused the token in {variable}; set it to the token of this service")
            }
            TokenOrigin::Environment(None) => format!(
                "{url} needs a token, and no token was sent; set {TOKEN} or {TOKEN}_FILE, or store one with `{store}`"
            ),
            TokenOrigin::Profile { name, has_token, ignored } => {
                let store = format!("cc-executor login --name {name} {}", self.url);
                let note = ignored
                    .as_ref()
                    .map(|variable| format!("; {variable} goes with --url and CC_EXECUTOR_URL only, and was not sent"));
                let note = note.unwrap_or_default();
                match has_token {
                    true => {
                        format!("{url} refused the token of profile {name}; store the right one with `{store}`{note}")
                    }
                    false => format!(
                        "{url} needs a token, and no token was sent, because profile {name} has none; store one with `{store}`{note}"
                    ),
                }
            }
            TokenOrigin::Typed(true) => format!("{url} refused the token; check that it is the one of this service"),
            TokenOrigin::Typed(false) => format!("{url} needs a token, and no token was sent"),
        }
    }

    /// The error for an answer that is not one of cc-executor.
    fn foreign(&self, url: &str, status: StatusCode, body: &str) -> String {
        if !self.url.is_tls() && TLS_PORT_PAGES.iter().any(|page| body.contains(page)) {
            return format!("{url} speaks TLS at this port; use {}", self.url.with_tls(true));
        }
        match status {
            StatusCode::SERVICE_UNAVAILABLE => {
                format!("{url} is shutting down or not ready; try again in a moment")
            }
            StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => format!(
                "{url} answers {status}: a proxy in front of the service does not reach it; check that the service runs"
            ),
            StatusCode::UNAUTHORIZED => format!(
                "{url} answers {status}, but not as a cc-executor service does: a proxy in front may demand a login of its own; check the URL"
            ),
            _ if status.is_redirection() => format!(
                "{url} answers {status}, a redirect, which is not followed, because the token would go with it; name the URL to which it leads{}",
                if self.url.is_tls() { String::new() } else { format!(", perhaps {}", self.url.with_tls(true)) }
            ),
            _ => format!(
                "{url} is not a cc-executor service: it answers {status}; check the host, the port and the path of the URL"
            ),
        }
    }

    /// The error for a session that was not opened.
    pub(super) fn no_session(&self, error: &WsClientError) -> ClientError {
        match error {
            WsClientError::SendRequest(error) => self.unreachable(&self.url.session(), error),
            error => {
                let url = self.shown(&self.url.session());
                let advice = "check the URL, and that a proxy in front passes WebSockets on (Upgrade and Connection)";
                ClientError::new(
                    exit::UNAVAILABLE,
                    format!("{url} is not a cc-executor service: {}; {advice}", lowercase(&error.to_string())),
                )
            }
        }
    }

    /// The error for a service that cannot be reached.
    pub(super) fn unreachable(&self, url: &str, error: &SendRequestError) -> ClientError {
        let url = self.shown(url);
        let message = match (dial_error(error), error) {
            (Some(DialError::PortSpeaksTls), _) => {
                format!("{url} speaks TLS at this port; use {}", self.url.with_tls(true))
            }
            (Some(DialError::Tcp { address, cause }), _) => {
                format!("cannot reach {url}: {address}: {cause}; {}", self.start_advice())
            }
            // These say what to do.
            (Some(error), _) => format!("cannot reach {url}: {error}"),
            (None, SendRequestError::Timeout | SendRequestError::Connect(ConnectError::Timeout)) => {
                let seconds = PATIENCE.as_secs();
                format!("{url} does not answer within {seconds} s; it may be stopped or overloaded")
            }
            (None, SendRequestError::Response(parse)) if parse.source().is_none() && !is_incomplete(parse) => format!(
                "{url} is not a cc-executor service: its answer is not HTTP ({parse}); check the host and the port of the URL"
            ),
            (None, error) => format!("cannot reach {url}: {error}; {}", self.start_advice()),
        };
        ClientError::new(exit::UNAVAILABLE, message)
    }

    fn start_advice(&self) -> String {
        match &self.source {
            UrlSource::Profile(name) => format!("check that the service runs, and the URL of profile {name}"),
            UrlSource::Variable => "check that the service runs, and CC_EXECUTOR_URL".to_owned(),
            UrlSource::Flag | UrlSource::Default => {
                "start a service with `cc-executor serve`, or name another with --url".to_owned()
            }
        }
    }

    /// A URL of the service with its source.
    pub(super) fn shown(&self, url: &str) -> String {
        format!("{url}{}", self.source)
    }
}

/// Whether the answer ended too early, as it does when the service is stopped.
fn is_incomplete(error: &impl std::fmt::Display) -> bool {
    error.to_string() == "message is incomplete"
}

fn lowercase(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_lowercase().chain(characters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(url: &str, source: UrlSource, token: TokenOrigin) -> ServiceName {
        ServiceName { url: ServiceUrl::parse(url).unwrap(), source, token }
    }

    #[test]
    fn a_refusal_gives_the_reason_of_the_service() {
        let body = |code: i64| format!(r#"{{"code":{code},"message":"because"}}"#);
        let service = service("ws://h", UrlSource::Flag, TokenOrigin::Environment(None));
        for (status, body, code, message) in [
            (
                401,
                body(-32007),
                exit::NOPERM,
                "ws://h/ws/mcp needs a token, and no token was sent; set CC_EXECUTOR_TOKEN or ",
            ),
            (
                401,
                "<html>".to_owned(),
                exit::NOPERM,
                "ws://h/ws/mcp answers 401 Unauthorized, but not as a cc-executor",
            ),
            (403, body(-32007), exit::NOPERM, "ws://h/ws/mcp answers 403 Forbidden: because"),
            (403, String::new(), exit::NOPERM, "ws://h/ws/mcp is not a cc-executor service: it answers 403 Forbidden"),
            (429, body(-32007), exit::NOPERM, "ws://h/ws/mcp needs a token"),
            (429, body(-32009), exit::TEMPFAIL, "ws://h/ws/mcp answers 429 Too Many Requests: because"),
            (502, body(-32010), exit::UNAVAILABLE, "ws://h/ws/mcp answers 502 Bad Gateway: because"),
            (502, "<html>".to_owned(), exit::UNAVAILABLE, "ws://h/ws/mcp answers 502 Bad Gateway: a proxy in front"),
            (503, body(-32012), exit::TEMPFAIL, "ws://h/ws/mcp answers 503 Service Unavailable: because"),
            (503, String::new(), exit::TEMPFAIL, "ws://h/ws/mcp is shutting down or not ready; try again"),
            (301, String::new(), exit::UNAVAILABLE, "ws://h/ws/mcp answers 301 Moved Permanently, a redirect"),
            (
                400,
                TLS_PORT_PAGES[0].to_owned(),
                exit::UNAVAILABLE,
                "ws://h/ws/mcp speaks TLS at this port; use wss://h/",
            ),
            (404, "<html>".to_owned(), exit::UNAVAILABLE, "ws://h/ws/mcp is not a cc-executor service: it answers 404"),
        ] {
            let refused = service.refused("ws://h/ws/mcp", StatusCode::from_u16(status).unwrap(), body.as_bytes());
            assert_eq!(refused.code, code, "{status}");
            assert!(refused.message.starts_with(message), "{}", refused.message);
        }
    }

    #[test]
    fn a_refused_token_is_named_by_its_source() {
        let body = br#"{"code":-32007,"message":"no"}"#;
        let profile = |has_token, ignored: Option<&str>| TokenOrigin::Profile {
            name: "work".to_owned(),
            has_token,
            ignored: ignored.map(str::to_owned),
        };
        let of_variable = TokenOrigin::Environment(Some("CC_EXECUTOR_TOKEN_FILE".to_owned()));
        for (source, token, message) in [
            (
                UrlSource::Flag,
                of_variable.clone(),
                "wss://h/ws/mcp refused the token in CC_EXECUTOR_TOKEN_FILE; set it",
            ),
            (
                UrlSource::Variable,
                of_variable,
                "wss://h/ws/mcp (CC_EXECUTOR_URL) refused the token in CC_EXECUTOR_TOKEN_FILE",
            ),
            (
                UrlSource::Profile("work".to_owned()),
                profile(true, None),
                "wss://h/ws/mcp (profile work) refused the token of profile work; store the right one with `cc-executor login --name work wss://h/ws/mcp`",
            ),
            (
                UrlSource::Profile("work".to_owned()),
                profile(false, None),
                "wss://h/ws/mcp (profile work) needs a token, and no token was sent, because profile work has none; store one with",
            ),
            (UrlSource::Flag, TokenOrigin::Typed(true), "wss://h/ws/mcp refused the token"),
        ] {
            let refused = service("wss://h", source, token).refused("wss://h/ws/mcp", StatusCode::UNAUTHORIZED, body);
            assert!(refused.message.starts_with(message), "{}", refused.message);
        }
        let ignored =
            service("wss://h", UrlSource::Profile("work".to_owned()), profile(true, Some("CC_EXECUTOR_TOKEN")));
        let refused = ignored.refused("wss://h/ws/mcp", StatusCode::UNAUTHORIZED, body).message;
        assert!(
            refused.ends_with("; CC_EXECUTOR_TOKEN goes with --url and CC_EXECUTOR_URL only, and was not sent"),
            "{refused}"
        );
    }
}
