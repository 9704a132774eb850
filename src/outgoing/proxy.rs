//! Which proxy a connection goes through, by the variables that curl obeys.
//!
//! `HTTPS_PROXY` is for TLS URLs, `http_proxy` for plain ones, `ALL_PROXY` for both; `NO_PROXY` has the exceptions, and
//! loopback is always one. Each name is also obeyed in small letters, which come first. `HTTP_PROXY` in capitals is not,
//! because a web server gives it to CGI programs with text of a client.

use std::{env, net::IpAddr};

use base64::{Engine, prelude::BASE64_STANDARD};
use cc_executor_actors::dial::ProxyServer;
use percent_encoding::percent_decode_str;

use super::url::ServiceUrl;

/// The port of a proxy whose URL has none, as in curl.
const DEFAULT_PORT: u16 = 1080;

/// The variables of proxies, each with its name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProxyVariables {
    https: Option<ProxyVariable>,
    http: Option<ProxyVariable>,
    no_proxy: String,
}

/// A variable that is set.
#[derive(Clone, PartialEq, Eq)]
struct ProxyVariable {
    name: String,
    value: String,
}

/// Its value may have a password.
impl std::fmt::Debug for ProxyVariable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// A proxy variable that cannot be used. Its value is not shown, because it may have a password.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProxyVariableError {
    /// It is not the URL of a proxy.
    #[error("{0} must be http://[USER:PASSWORD@]HOST[:PORT]; correct it, or name this service in NO_PROXY")]
    Malformed(String),
    /// It is the URL of a proxy of another kind.
    #[error(
        "{name} names a proxy of the kind {scheme}://, which is not supported; set it to an http:// proxy, or name this service in NO_PROXY"
    )]
    Scheme {
        /// The variable.
        name: String,
        /// The scheme.
        scheme: String,
    },
}

impl ProxyVariables {
    /// Reads the variables of this process.
    pub fn of_process() -> Self {
        Self::read(|name| env::var(name).ok())
    }

    /// The variables for a gateway, which uses a proxy for TLS URLs only: container engines put `http_proxy` into
    /// containers whose backend is beside them.
    pub fn of_gateway() -> Self {
        ProxyVariables { http: None, ..Self::of_process() }
    }

    fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&str]| {
            names.iter().find_map(|name| {
                let value = variable(name).filter(|value| !value.is_empty())?;
                Some(ProxyVariable { name: (*name).to_owned(), value })
            })
        };
        ProxyVariables {
            https: first(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
            http: first(&["http_proxy", "all_proxy", "ALL_PROXY"]),
            no_proxy: first(&["no_proxy", "NO_PROXY"]).map(|variable| variable.value).unwrap_or_default(),
        }
    }

    /// The proxy for connections to this URL.
    ///
    /// # Errors
    /// The variable that counts cannot be used.
    pub fn proxy_for(&self, url: &ServiceUrl) -> Result<Option<ProxyServer>, ProxyVariableError> {
        let variable = if url.is_tls() { &self.https } else { &self.http };
        match variable {
            Some(variable) if !url.is_loopback() && !is_excepted(&self.no_proxy, url.host(), url.port()) => {
                variable.proxy().map(Some)
            }
            _ => Ok(None),
        }
    }
}

impl ProxyVariable {
    fn proxy(&self) -> Result<ProxyServer, ProxyVariableError> {
        let malformed = || ProxyVariableError::Malformed(self.name.clone());
        let rest = match self.value.split_once("://") {
            Some(("http", rest)) => rest,
            Some((scheme, _)) => {
                let scheme = scheme.chars().filter(char::is_ascii_alphanumeric).take(10).collect();
                return Err(ProxyVariableError::Scheme { name: self.name.clone(), scheme });
            }
            None => self.value.as_str(),
        };
        let (user, authority) = rest.rsplit_once('@').map_or((None, rest), |(user, rest)| (Some(user), rest));
        let authority = authority.trim_end_matches('/');
        // The rules of hosts and ports are those of services.
        let url = ServiceUrl::parse(&format!("http://{authority}")).map_err(|_| malformed())?;
        if authority.contains('/') {
            return Err(malformed());
        }
        let port = if authority.ends_with(&format!(":{}", url.port())) { url.port() } else { DEFAULT_PORT };
        let credentials = user.map(|user| {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            let decoded = |text| percent_decode_str(text).collect::<Vec<u8>>();
            BASE64_STANDARD.encode([decoded(name), b":".to_vec(), decoded(password)].concat())
        });
        Ok(ProxyServer::new(
            url.host().to_owned(),
            port,
            credentials.map(|encoded| format!("Basic {encoded}")),
            &self.name,
        ))
    }
}

/// Whether a list of exceptions has this host: `*`, a domain with its subdomains, an address, or a network such as
/// `10.0.0.0/8`, each with or without a port.
fn is_excepted(list: &str, host: &str, port: u16) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let address: Option<IpAddr> = host.parse().ok();
    let matches = |entry: &str| {
        if entry == "*" {
            return true;
        }
        if let (Some(address), Some((network, bits))) = (address, entry.split_once('/')) {
            return network.parse().is_ok_and(|network| is_in_network(address, network, bits));
        }
        let entry = match entry.rsplit_once(':') {
            // An IPv6 address has colons, too.
            Some((name, of)) if !name.contains(':') || name.ends_with(']') => match of.parse::<u16>() {
                Ok(of) if of == port => name,
                _ => return false,
            },
            _ => entry,
        };
        let entry = entry.trim_matches(['[', ']', '.']).to_ascii_lowercase();
        match address {
            Some(address) => entry.parse() == Ok(address),
            None => {
                !entry.is_empty()
                    && host.strip_suffix(entry.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
        }
    };
    list.split([',', ' ']).filter(|entry| !entry.is_empty()).any(matches)
}

fn is_in_network(address: IpAddr, network: IpAddr, bits: &str) -> bool {
    let Ok(bits) = bits.parse::<u32>() else { return false };
    let (address, network, length) = match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            (u128::from(u32::from(address)), u128::from(u32::from(network)), 32)
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => (u128::from(address), u128::from(network), 128),
        _ => return false,
    };
    bits <= length && (bits == 0 || (address ^ network) >> (length - bits) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> ServiceUrl {
        ServiceUrl::parse(text).unwrap()
    }

    fn variables(pairs: &[(&str, &str)]) -> ProxyVariables {
        ProxyVariables::read(|name| pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1.to_owned()))
    }

    #[test]
    fn the_scheme_chooses_the_variable() {
        let all = [("HTTPS_PROXY", "http://s"), ("HTTP_PROXY", "http://capital"), ("http_proxy", "http://p:1")];
        for (pairs, service, proxy) in [
            (&all[..], "wss://h", Some("s:1080")),
            (&all, "ws://h", Some("p:1")),
            (&all[..2], "ws://h", None),
            (&[("https_proxy", "small:1"), ("HTTPS_PROXY", "large:1")], "wss://h", Some("small:1")),
            (&[("https_proxy", ""), ("HTTPS_PROXY", "large:1")], "wss://h", Some("large:1")),
            (&[("ALL_PROXY", "http://all:3128/")], "wss://h", Some("all:3128")),
            (&[("all_proxy", "http://[::1]:80")], "ws://h", Some("[::1]:80")),
            (&[("ALL_PROXY", "http://all:1")], "ws://localhost:8003", None),
            (&[("ALL_PROXY", "http://all:1")], "ws://[::1]:8003", None),
            (&[("ALL_PROXY", "http://all:1")], "ws://127.3.3.3", None),
            (&[("ALL_PROXY", "http://all:1"), ("NO_PROXY", "h")], "wss://h", None),
            (&[("ALL_PROXY", "http://all:1"), ("no_proxy", "x"), ("NO_PROXY", "h")], "wss://h", Some("all:1")),
        ] {
            let found = variables(pairs).proxy_for(&url(service)).unwrap().map(|proxy| proxy.authority());
            assert_eq!(found.as_deref(), proxy, "{service} with {pairs:?}");
        }
    }

    #[test]
    fn credentials_are_decoded_and_never_shown() {
        for (value, encoded) in [
            ("http://user7:p%40ss%3aword@h:1", Some("user7:p@ss:word")),
            ("http://user7@h:1", Some("user7:")),
            ("user7:a@b@h:1", Some("user7:a@b")),
            ("http://h:1", None),
        ] {
            let proxy = variables(&[("ALL_PROXY", value)]).proxy_for(&url("wss://x")).unwrap().unwrap();
            let expected = encoded.map(|text| format!("Basic {}", BASE64_STANDARD.encode(text)));
            assert_eq!((proxy.authority().as_str(), proxy.authorization()), ("h:1", expected.as_deref()));
            let shown = format!("{proxy:?} {:?}", variables(&[("ALL_PROXY", value)]));
            assert!(!shown.contains("user7") && !shown.contains("Basic"), "{shown}");
        }
    }

    #[test]
    fn a_wrong_variable_is_named_without_its_value() {
        for (value, part) in [
            ("socks5h://u:hush@h:1", "of the kind socks5h://"),
            ("https://u:hush@h:1", "of the kind https://"),
            ("http://u:hush@", "must be http://"),
            ("http://u:hush@h:0", "must be http://"),
            ("http://u:hush@h/path", "must be http://"),
            ("u:hush@a b", "must be http://"),
        ] {
            let error = variables(&[("https_proxy", value)]).proxy_for(&url("wss://x")).unwrap_err().to_string();
            assert!(error.starts_with("https_proxy ") && error.contains(part) && !error.contains("hush"), "{error}");
            assert_eq!(variables(&[("https_proxy", value)]).proxy_for(&url("wss://localhost")), Ok(None));
        }
    }

    #[test]
    fn exceptions_are_domains_addresses_and_networks() {
        for (list, host, excepted) in [
            ("*", "h", true),
            ("h", "h", true),
            ("H", "h", true),
            ("example.com", "a.example.com", true),
            (".example.com", "example.com", true),
            ("example.com", "notexample.com", false),
            ("a, example.com", "example.com.", true),
            ("a example.com", "example.com", true),
            ("h:7", "h", true),
            ("h:8", "h", false),
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.0/8", "10.200.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/33", "10.0.0.0", false),
            ("0.0.0.0/0", "11.0.0.1", true),
            ("0.0.0.1", "10.0.0.1", false),
            ("2001:db8::/32", "2001:db8::7", true),
            ("2001:db8::7", "2001:db8:0::7", true),
            ("[2001:db8::7]:7", "2001:db8::7", true),
            ("10.0.0.0/8", "h", false),
            (",,", "h", false),
            ("", "h", false),
        ] {
            assert_eq!(is_excepted(list, host, 7), excepted, "{list:?} {host}");
        }
    }
}
