//! Authorizes requests, with the same rules for every route of both roles.
//!
//! The service runs commands for every client that reaches it, and any web page can open a WebSocket to localhost or
//! post a form there. So the `Host`, `Origin`, `Content-Type` and token of every request are checked before a handler
//! runs. `Forwarded` headers are ignored, because a client can set them.

use std::net::IpAddr;

use actix_web::{
    Error, HttpMessage,
    body::{EitherBody, MessageBody},
    dev::{Extensions, ServiceRequest, ServiceResponse},
    http::{
        Method, StatusCode, Uri,
        header::{self, HeaderMap, HeaderName},
    },
    middleware::Next,
    rt::net::TcpStream,
    web,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use cc_executor_actors::{backend_api::CLIENT_HEADER, client::ClientName};

use super::{
    authentication::{Authentication, Principal, Unauthenticated},
    caller::Caller,
    peer_user::{self, PeerUser},
    peers::WorkBody,
    request_log::log_refused,
    tokens::TokenLease,
    turned_away::{begin_work, no_place, refusal},
};

/// The prefix of the subprotocol that carries a browser's token.
pub const BEARER_PROTOCOL: &str = "bearer.";

/// The rules of one role.
#[derive(Clone, Debug)]
pub struct Access {
    /// How callers are known.
    pub authentication: Authentication,
    /// Host names of this service besides the loopback names.
    pub allowed_hosts: Vec<String>,
    /// Origins of web pages that may call it besides its own.
    pub allowed_origins: Vec<String>,
    /// The port it listens on.
    pub port: u16,
    /// Whether callers with the token are gateways or operators: a gateway names its client in a header.
    pub serves_gateways: bool,
}

/// An admitted request.
#[derive(Debug)]
pub struct Admitted {
    caller: Caller,
    lease: Option<TokenLease>,
}

/// Why a request is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rejection {
    status: StatusCode,
    message: String,
    /// Whether the request has a wrong token, which counts against its peer.
    is_guess: bool,
}

impl Access {
    /// Checks a request over a connection of this user. `None` is a caller that is not known, on a route that is open to
    /// everyone.
    ///
    /// # Errors
    ///
    /// The request is rejected, with a status and a message.
    pub fn authorize(
        &self,
        method: &Method,
        target: &Uri,
        headers: &HeaderMap,
        uid: Result<u32, &str>,
    ) -> Result<Option<Admitted>, Rejection> {
        let path = target.path();
        let offered = offered_tokens(headers)?;
        if !self.authentication.demands_token() {
            self.check_host(target, headers)?;
        }
        self.check_origin(headers)?;
        let is_open = matches!(path, "/health" | "/healthz" | "/ready" | "/docs");
        let principal = match self.authentication.authenticate(&offered, uid) {
            Ok(principal) => Some(principal),
            // A wrong token is refused everywhere, because an open route that says more to a right one would answer
            // guesses.
            Err(Unauthenticated::NoToken | Unauthenticated::LocalUser(_)) if is_open => None,
            Err(refusal) => return Err(refusal.into()),
        };
        if method == Method::POST && !path.ends_with("/stdin") {
            check_content_type(headers)?;
        }
        principal.map(|principal| self.admit(principal, headers)).transpose()
    }

    fn admit(&self, principal: Principal, headers: &HeaderMap) -> Result<Admitted, Rejection> {
        let client = |name| Admitted { caller: Caller::Client(name), lease: None };
        match principal {
            Principal::SingleToken if self.serves_gateways => {
                gateway_or_operator(headers).map(|caller| Admitted { caller, lease: None })
            }
            Principal::SingleToken => Ok(client(ClientName::of_single_token())),
            Principal::NamedToken(name, lease) => Ok(Admitted { lease: Some(lease), ..client(name) }),
            Principal::LocalUser(name) => Ok(client(name)),
            Principal::Anyone => Ok(client(ClientName::anonymous())),
        }
    }

    /// Keeps what this role needs to know of a new connection's peer in the connection's data.
    pub fn keep_peer(&self, stream: &TcpStream, data: &mut Extensions) {
        if matches!(self.authentication, Authentication::LocalUsers(_)) {
            peer_user::keep(stream, data);
        }
    }

    /// Without a token only loopback names are accepted, because a page whose name was made to resolve to this machine
    /// (DNS rebinding) still sends its own name. A host in the request's target replaces that of the header (RFC 9112
    /// section 3.2.2).
    fn check_host(&self, target: &Uri, headers: &HeaderMap) -> Result<(), Rejection> {
        let host = match target.authority() {
            Some(authority) => authority.as_str(),
            None => single(headers, &header::HOST)?.ok_or_else(|| forbidden("the request has no Host header"))?,
        };
        match split_port(host) {
            Some((name, _)) if self.is_own(name) => Ok(()),
            _ => Err(forbidden(format!(
                "host name {host:?} is not allowed without a token: use localhost, set a token, or add the name to --allowed-hosts of this service"
            ))),
        }
    }

    fn check_origin(&self, headers: &HeaderMap) -> Result<(), Rejection> {
        let Some(origin) = single(headers, &header::ORIGIN)? else { return Ok(()) };
        if self.allowed_origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin)) || self.is_own_origin(origin)
        {
            return Ok(());
        }
        Err(forbidden(format!(
            "pages of the origin {origin:?} may not call this service: add the origin with --allowed-origins"
        )))
    }

    fn is_own_origin(&self, origin: &str) -> bool {
        let (authority, default_port) = match origin.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (rest, 80),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (rest, 443),
            _ => return false,
        };
        matches!(split_port(authority), Some((name, port)) if self.is_own(name) && port.unwrap_or(default_port) == self.port)
    }

    fn is_own(&self, name: &str) -> bool {
        is_loopback(name) || self.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
    }
}

/// Who calls a backend with its token: a gateway, which names its client in a header, or an operator.
fn gateway_or_operator(headers: &HeaderMap) -> Result<Caller, Rejection> {
    match single(headers, &HeaderName::from_static(CLIENT_HEADER))? {
        None => Ok(Caller::Operator),
        Some(name) => match name.parse() {
            Ok(name) => Ok(Caller::Client(name)),
            Err(error) => Err(reject(StatusCode::BAD_REQUEST, format!("{CLIENT_HEADER}: {error}"))),
        },
    }
}

impl From<Unauthenticated> for Rejection {
    fn from(refusal: Unauthenticated) -> Self {
        match refusal {
            Unauthenticated::NoToken => {
                reject(StatusCode::UNAUTHORIZED, "a token is required: send the header `Authorization: Bearer TOKEN`")
            }
            Unauthenticated::WrongToken => {
                let message = "the token is wrong: send the token of this service";
                Rejection { is_guess: true, ..reject(StatusCode::UNAUTHORIZED, message) }
            }
            Unauthenticated::LocalUser(message) => forbidden(message),
        }
    }
}

/// Whether a host name can only mean this machine.
fn is_loopback(name: &str) -> bool {
    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Splits `name:port` or `[address]:port`. `None` if the port is not a number or the name has other characters than
/// host names have.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let name_end = match authority.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (name, rest) = authority.split_at(name_end);
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    if name.is_empty() || !name.chars().all(legal) {
        return None;
    }
    match rest.strip_prefix(':') {
        None => rest.is_empty().then_some((name, None)),
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => port.parse().ok().map(|port| (name, Some(port))),
        Some(_) => None,
    }
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Rejection> {
    let mut values = headers.get_all(name);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(bad_request(format!("the request has more than one {name} header")));
    }
    value.to_str().map(Some).map_err(|_| forbidden(format!("the {name} header is not text")))
}

/// The token in the `Authorization` header, and the one among the offered subprotocols, because a browser cannot set
/// the header for a WebSocket. More are refused, so that a request is one guess.
fn offered_tokens(headers: &HeaderMap) -> Result<Vec<Vec<u8>>, Rejection> {
    if headers.get_all(header::AUTHORIZATION).count() > 1 {
        return Err(bad_request("the request has more than one Authorization header"));
    }
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii().to_vec())
    });
    let protocols: Vec<_> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|offer| {
            URL_SAFE_NO_PAD.decode(offer.trim().strip_prefix(BEARER_PROTOCOL)?.trim_end_matches('=')).ok()
        })
        .collect();
    if protocols.len() > 1 {
        return Err(bad_request("the request offers more than one token among its subprotocols"));
    }
    Ok(bearer.into_iter().chain(protocols).collect())
}

/// Only JSON is accepted, because a web page can post a form or plain text without a preflight request, which is
/// refused.
fn check_content_type(headers: &HeaderMap) -> Result<(), Rejection> {
    let media =
        single(headers, &header::CONTENT_TYPE)?.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if media.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(reject(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        format!("a POST must have the content type application/json, not {media:?}"),
    ))
}

fn bad_request(message: impl Into<String>) -> Rejection {
    reject(StatusCode::BAD_REQUEST, message)
}

fn forbidden(message: impl Into<String>) -> Rejection {
    reject(StatusCode::FORBIDDEN, message)
}

fn reject(status: StatusCode, message: impl Into<String>) -> Rejection {
    Rejection { status, message: message.into(), is_guess: false }
}

/// The middleware that applies the rules before any handler runs.
pub async fn guard<B: MessageBody>(
    access: web::Data<Access>,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<WorkBody<B>>>, Error> {
    let uid = request.conn_data::<PeerUser>().map_or(Err("it was not looked up"), PeerUser::uid);
    match access.authorize(request.method(), request.uri(), request.headers(), uid) {
        Ok(admitted) => {
            let work = match begin_work(&request, admitted.is_some()) {
                Ok(work) => work,
                Err(reason) => {
                    let response = no_place(&request, reason);
                    return Ok(request.into_response(response).map_into_right_body());
                }
            };
            if let Some(Admitted { caller, lease }) = admitted {
                let mut extensions = request.extensions_mut();
                extensions.insert(caller);
                if let Some(lease) = lease {
                    extensions.insert(lease);
                }
            }
            next.call(request).await.map(|response| WorkBody::wrap(response, work).map_into_left_body())
        }
        Err(Rejection { status, message, is_guess }) => {
            log_refused(&request, status, &message);
            let response = refusal(&request, status, message, is_guess).await;
            Ok(request.into_response(response).map_into_right_body())
        }
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;
    use crate::server::{local_users::LocalUsers, secret::Fingerprint, tokens::Tokens};

    fn access(token: Option<&str>) -> Access {
        Access {
            authentication: match token {
                Some(token) => Authentication::Tokens(Tokens::single(Fingerprint::of(token.as_bytes()))),
                None => Authentication::LocalUsers(LocalUsers::new(1000, [])),
            },
            allowed_hosts: vec!["executor.internal".to_owned()],
            allowed_origins: vec!["https://app.example".to_owned()],
            port: 8003,
            serves_gateways: false,
        }
    }

    fn status_of(access: &Access, method: Method, path: &str, headers: &[(&str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let target = path.parse().unwrap();
        access.authorize(&method, &target, &map, Ok(1000)).map_or_else(|rejection| rejection.status.as_u16(), |_| 200)
    }

    #[test]
    fn without_a_token_only_own_names_are_answered_to() {
        let access = access(None);
        for (host, status) in [
            ("localhost:8003", 200),
            ("LOCALHOST", 200),
            ("127.0.0.1:8003", 200),
            ("127.9.9.9", 200),
            ("[::1]:8003", 200),
            ("[::ffff:127.0.0.1]:8003", 200),
            ("executor.internal:1", 200),
            ("localhost.evil.example", 403),
            ("127.0.0.1.evil.example:8003", 403),
            ("evil.example", 403),
            ("localhost@evil.example", 403),
            ("localhost:8003.evil.example", 403),
            ("localhost:", 403),
            ("localhost.", 403),
            ("[::1]x", 403),
            ("0.0.0.0:8003", 403),
            ("10.0.0.1", 403),
            ("[::ffff:10.0.0.1]", 403),
            ("2130706433", 403),
            ("", 403),
        ] {
            assert_eq!(status_of(&access, Method::GET, "/ws/mcp", &[("host", host)]), status, "{host}");
        }
        assert_eq!(status_of(&access, Method::GET, "/ws/mcp", &[]), 403);
        assert_eq!(status_of(&access, Method::GET, "/health", &[("host", "localhost"), ("host", "evil.example")]), 400);
    }

    #[test]
    fn the_host_of_the_target_replaces_that_of_the_header() {
        let access = access(None);
        for (target, host, status) in [
            ("http://localhost:8003/health", "evil.example", 200),
            ("http://evil.example/health", "localhost", 403),
            ("http://localhost@evil.example/health", "localhost", 403),
            ("http://evil.example@localhost/health", "localhost", 403),
            ("https://executor.internal/health", "localhost", 200),
            ("ws://127.0.0.1:8003/ws/mcp", "localhost", 200),
            ("evil.example:80", "localhost", 403),
            ("localhost:80", "evil.example", 200),
            ("*", "localhost", 200),
            ("*", "evil.example", 403),
        ] {
            assert_eq!(status_of(&access, Method::GET, target, &[("host", host)]), status, "{target} {host}");
        }
    }

    #[test]
    fn a_request_carries_one_token() {
        let offer = |token: &str| format!("bearer.{}", URL_SAFE_NO_PAD.encode(token));
        let both = format!("{}, {}", offer("wrong"), offer("right"));
        for token in [None, Some("right")] {
            let access = access(token);
            for headers in [
                [("authorization", "Bearer right"), ("authorization", "Bearer right")],
                [("authorization", "Bearer right"), ("authorization", "Basic x")],
                [("sec-websocket-protocol", &both), ("host", "localhost")],
            ] {
                assert_eq!(status_of(&access, Method::GET, "/health", &headers), 400, "{headers:?}");
            }
        }
    }

    #[test]
    fn an_origin_must_be_ours_with_or_without_a_token() {
        for (origin, status) in [
            ("http://localhost:8003", 200),
            ("http://127.0.0.1:8003", 200),
            ("http://[::1]:8003", 200),
            ("https://app.example", 200),
            ("http://localhost:8004", 403),
            ("http://localhost", 403),
            ("http://localhost:8003.evil.example", 403),
            ("http://localhost.evil.example:8003", 403),
            ("https://app.example.evil.example", 403),
            ("null", 403),
            ("file://", 403),
            ("chrome-extension://localhost:8003", 403),
            ("http://user@localhost:8003", 403),
        ] {
            let headers = [("host", "localhost:8003"), ("origin", origin), ("authorization", "Bearer right")];
            assert_eq!(status_of(&access(None), Method::GET, "/ws/mcp", &headers), status, "{origin}");
            assert_eq!(status_of(&access(Some("right")), Method::GET, "/ws/mcp", &headers), status, "{origin}");
        }
    }

    #[test]
    fn with_a_token_it_is_demanded_everywhere_but_for_the_probes_which_refuse_a_wrong_one() {
        let access = access(Some("right"));
        let protocol = |token: &str| format!("cc-executor.v1, bearer.{}", URL_SAFE_NO_PAD.encode(token));
        for (headers, status, of_probe) in [
            (vec![("authorization", "Bearer right".to_owned())], 200, 200),
            (vec![("authorization", "bearer right".to_owned())], 200, 200),
            (vec![("sec-websocket-protocol", protocol("right"))], 200, 200),
            (vec![("authorization", "Bearer wrong".to_owned())], 401, 401),
            (vec![("authorization", "Bearer right2".to_owned())], 401, 401),
            (vec![("authorization", "Bearer ".to_owned())], 401, 401),
            (vec![("authorization", "Basic right".to_owned())], 401, 200),
            (vec![("sec-websocket-protocol", protocol("wrong"))], 401, 401),
            (vec![("sec-websocket-protocol", "bearer.right".to_owned())], 401, 200),
            (vec![], 401, 200),
        ] {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            assert_eq!(status_of(&access, Method::GET, "/ws/mcp", &headers), status, "{headers:?}");
            assert_eq!(status_of(&access, Method::GET, "/health", &headers), of_probe, "{headers:?}");
        }
    }

    #[test]
    fn a_wrong_token_is_told_from_a_missing_one() {
        let message_for = |headers: &[(&str, &str)]| {
            let headers: HeaderMap = headers
                .iter()
                .map(|(name, value)| (HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap()))
                .collect();
            let target = Uri::from_static("/ws/mcp");
            access(Some("right")).authorize(&Method::GET, &target, &headers, Ok(1000)).unwrap_err().message
        };
        assert!(message_for(&[]).starts_with("a token is required: "));
        assert!(message_for(&[("authorization", "Bearer wrong")]).starts_with("the token is wrong: "));
    }

    #[test]
    fn a_form_posted_by_a_web_page_is_refused() {
        let access = access(None);
        for (media, status) in [
            ("application/json", 200),
            ("application/json; charset=utf-8", 200),
            ("application/x-www-form-urlencoded", 415),
            ("multipart/form-data", 415),
            ("text/plain", 415),
            ("text/plain; application/json", 415),
        ] {
            let headers = [("host", "localhost"), ("content-type", media)];
            assert_eq!(status_of(&access, Method::POST, "/execute/stream", &headers), status, "{media}");
        }
        assert_eq!(status_of(&access, Method::POST, "/execute/stream", &[("host", "localhost")]), 415);
    }
}
