//! The URL of a service, in any of the forms that people type. Pure.
//!
//! A service has two URLs: of sessions (`ws://…/ws/mcp`), and of its HTTP routes (`http://…/executions`). Both follow
//! from one text. A path that ends with a route of the service names that route; everything before it is a prefix, under
//! which a reverse proxy serves all routes.

use std::{fmt, net::Ipv4Addr, net::Ipv6Addr};

/// The path of sessions at every service.
const SESSION_PATH: &str = "/ws/mcp";

/// The other name of that path at newer services.
const SESSION_ALIAS: &str = "/ws";

/// The routes of a service that a URL may name and whose answer says whether it is ready.
const HEALTH_PATHS: [&str; 3] = ["/ready", "/health", "/healthz"];

/// The port of a service if the text has neither a scheme nor a port.
const DEFAULT_PORT: u16 = 8003;

/// The forms of a URL, for errors.
const FORMS: &str = "must be a URL such as wss://HOST/PATH, https://HOST, ws://HOST:PORT or HOST:PORT";

/// The URL of a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceUrl {
    tls: bool,
    /// As in a URL: an IPv6 address is in brackets.
    host: String,
    port: Option<u16>,
    /// The path in front of every route, without a slash at its end.
    prefix: String,
    session_path: &'static str,
    health_path: Option<&'static str>,
}

impl ServiceUrl {
    /// Reads a URL. A text without a scheme is a host, or a host and a port.
    ///
    /// # Errors
    /// The rest of a sentence that begins with the name of the setting. It never shows a user name or a password.
    pub fn parse(text: &str) -> Result<ServiceUrl, String> {
        if text.contains('@') {
            return Err(format!(
                "{FORMS}, without a user name; put the token into CC_EXECUTOR_TOKEN, or run `cc-executor login`"
            ));
        }
        let wrong = || format!("{FORMS}, not {text:?}");
        let (tls, rest, default_port) = match text.split_once("://") {
            Some(("ws" | "http", rest)) => (false, rest, None),
            Some(("wss" | "https", rest)) => (true, rest, None),
            Some(_) => return Err(wrong()),
            None => (false, text, Some(DEFAULT_PORT)),
        };
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (host, port) = host_and_port(authority).ok_or_else(wrong)?;
        let path = path.trim_end_matches('/');
        if !path.bytes().all(is_path_byte) {
            return Err(wrong());
        }
        let ending = |end: &'static str| path.strip_suffix(end).map(|prefix| (prefix, end));
        let session = ending(SESSION_PATH).or_else(|| ending(SESSION_ALIAS));
        let health = HEALTH_PATHS.iter().find_map(|end| ending(end));
        let (prefix, session_path, health_path) = match (session, health) {
            (Some((prefix, end)), _) => (prefix, end, None),
            (None, Some((prefix, end))) => (prefix, SESSION_PATH, Some(end)),
            (None, None) => (path, SESSION_PATH, None),
        };
        let prefix = prefix.trim_end_matches('/').to_owned();
        Ok(ServiceUrl { tls, host, port: port.or(default_port), prefix, session_path, health_path })
    }

    /// The URL of sessions.
    pub fn session(&self) -> String {
        let scheme = if self.tls { "wss" } else { "ws" };
        format!("{scheme}://{}{}{}", self.authority(), self.prefix, self.session_path)
    }

    /// The URL of an HTTP route, such as `/executions`. With an empty path that of all routes.
    pub fn http(&self, path: &str) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}{path}", self.authority(), self.prefix)
    }

    /// The URL whose status says whether the service is ready: the one that the text named, else `/ready`.
    pub fn health(&self) -> String {
        self.http(self.health_path.unwrap_or("/ready"))
    }

    /// Whether connections use TLS.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// The host and, unless it is the default one of the scheme, the port: what a `Host` header has.
    pub fn authority(&self) -> String {
        match self.port {
            Some(port) if port != self.default_port() => format!("{}:{port}", self.host),
            _ => self.host.clone(),
        }
    }

    /// The host, without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(self.default_port())
    }

    /// Whether the host is this machine by its name or address.
    pub fn is_loopback(&self) -> bool {
        let host = self.host().trim_end_matches('.').to_ascii_lowercase();
        host == "localhost"
            || host.ends_with(".localhost")
            || host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
            || host.parse::<Ipv6Addr>().is_ok_and(|address| address.to_canonical().is_loopback())
    }

    /// The same URL with or without TLS, to suggest it.
    pub fn with_tls(&self, tls: bool) -> ServiceUrl {
        ServiceUrl { tls, ..self.clone() }
    }

    fn default_port(&self) -> u16 {
        if self.tls { 443 } else { 80 }
    }
}

/// The URL of sessions.
impl fmt::Display for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.session())
    }
}

/// The host as in a URL, and the port.
fn host_and_port(authority: &str) -> Option<(String, Option<u16>)> {
    if authority.parse::<Ipv6Addr>().is_ok() {
        return Some((format!("[{authority}]"), None));
    }
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            address.parse::<Ipv6Addr>().ok()?;
            let port = if port.is_empty() { None } else { Some(port.strip_prefix(':')?) };
            (format!("[{address}]"), port)
        }
        None => {
            let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
            let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
            (!host.is_empty() && host.bytes().all(is_legal)).then(|| (host.to_owned(), port))?
        }
    };
    let port = port.map(|port| port.parse::<u16>().ok().filter(|port| *port > 0).ok_or(())).transpose().ok()?;
    Some((host, port))
}

/// Whether a path may have this byte (RFC 3986 section 3.3).
fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:%".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_gives_the_url_of_sessions_and_of_routes() {
        for (text, session, list) in [
            ("ws://h:1/ws/mcp", "ws://h:1/ws/mcp", "http://h:1/executions"),
            ("ws://h:1", "ws://h:1/ws/mcp", "http://h:1/executions"),
            ("http://h:1/", "ws://h:1/ws/mcp", "http://h:1/executions"),
            ("https://h", "wss://h/ws/mcp", "https://h/executions"),
            ("wss://h:443/", "wss://h/ws/mcp", "https://h/executions"),
            ("ws://h:80", "ws://h/ws/mcp", "http://h/executions"),
            ("https://h:8443/tools/cc", "wss://h:8443/tools/cc/ws/mcp", "https://h:8443/tools/cc/executions"),
            ("https://h/tools/cc/ws/mcp", "wss://h/tools/cc/ws/mcp", "https://h/tools/cc/executions"),
            ("wss://h/tools/cc/ws/", "wss://h/tools/cc/ws", "https://h/tools/cc/executions"),
            ("ws://h/prefix/ws", "ws://h/prefix/ws", "http://h/prefix/executions"),
            ("ws://h/news", "ws://h/news/ws/mcp", "http://h/news/executions"),
            ("http://h:8003/ready", "ws://h:8003/ws/mcp", "http://h:8003/executions"),
            ("localhost:8003", "ws://localhost:8003/ws/mcp", "http://localhost:8003/executions"),
            ("localhost", "ws://localhost:8003/ws/mcp", "http://localhost:8003/executions"),
            ("h/tools", "ws://h:8003/tools/ws/mcp", "http://h:8003/tools/executions"),
            ("ws://[::1]:7", "ws://[::1]:7/ws/mcp", "http://[::1]:7/executions"),
            ("wss://[2001:db8::1]", "wss://[2001:db8::1]/ws/mcp", "https://[2001:db8::1]/executions"),
            ("[::1]", "ws://[::1]:8003/ws/mcp", "http://[::1]:8003/executions"),
            ("::1", "ws://[::1]:8003/ws/mcp", "http://[::1]:8003/executions"),
        ] {
            let url = ServiceUrl::parse(text).unwrap();
            assert_eq!((url.session().as_str(), url.http("/executions").as_str()), (session, list), "{text}");
            assert_eq!(ServiceUrl::parse(&url.session()).unwrap().session(), session, "{text} is read back");
        }
    }

    #[test]
    fn a_text_that_is_no_url_is_refused() {
        for wrong in [
            "",
            "ws://",
            "wss:///x",
            "ftp://h",
            "tcp://h:1",
            "h:",
            "h:0",
            "h:65536",
            "h:http",
            ":8003",
            "a b",
            "ws://h/a b",
            "ws://h/?x=1",
            "ws://h/#x",
            "ws://h?x",
            "ws://[::1",
            "ws://[h]:1",
            "ws://[::1]x",
            "ws://h\r\nX: y",
            "ws://ä",
        ] {
            let problem = ServiceUrl::parse(wrong).unwrap_err();
            assert!(
                problem.starts_with("must be a URL such as ") && problem.ends_with(&format!("{wrong:?}")),
                "{problem}"
            );
        }
        let problem = ServiceUrl::parse("wss://user:secret@h").unwrap_err();
        assert!(problem.contains("without a user name") && !problem.contains("secret"), "{problem}");
    }

    #[test]
    fn a_route_that_is_named_answers_whether_the_service_is_ready() {
        for (text, health) in [
            ("http://127.0.0.1:8000/ready", "http://127.0.0.1:8000/ready"),
            ("http://127.0.0.1:8000/health", "http://127.0.0.1:8000/health"),
            ("https://h/tools/healthz", "https://h/tools/healthz"),
            ("wss://h/tools/ws/mcp", "https://h/tools/ready"),
            ("localhost:8003", "http://localhost:8003/ready"),
        ] {
            assert_eq!(ServiceUrl::parse(text).unwrap().health(), health);
        }
    }

    #[test]
    fn loopback_is_a_name_or_an_address_of_this_machine() {
        for (text, is_loopback) in [
            ("localhost", true),
            ("LOCALHOST.", true),
            ("x.localhost", true),
            ("127.0.0.1", true),
            ("127.9.9.9:1", true),
            ("[::1]", true),
            ("[::ffff:127.0.0.1]", true),
            ("localhost.example", false),
            ("127.0.0.1.example", false),
            ("128.0.0.1", false),
            ("[::2]", false),
        ] {
            assert_eq!(ServiceUrl::parse(text).unwrap().is_loopback(), is_loopback, "{text}");
        }
    }
}
