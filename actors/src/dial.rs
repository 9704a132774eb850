//! Opens the connections of HTTP and WebSocket clients: TCP, the CONNECT of a proxy, TLS, each with errors of its own.
//!
//! awc's own TLS would lie above the stream in which the backend's client looks for the end of a body, and awc knows no
//! proxies. So awc gets a plain URL ([`wire_url`]), and TLS is done here. Start with [`Dialer`].

mod connect;
mod error;
mod stream;

use std::{fmt, future::Future, io, pin::Pin, sync::Arc, task::Poll, time::Duration};

use actix_service::Service;
use actix_tls::connect::{ConnectError, ConnectInfo, Connection};
use awc::http::Uri;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

pub use self::{
    error::{DialError, ProxyError, TlsFailure, dial_error},
    stream::DialedStream,
};

/// What connections to a service need besides its address. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct DialConfig {
    /// TLS, with the CAs that are trusted; `None` for a plain connection.
    pub tls: Option<Arc<ClientConfig>>,
    /// The HTTP proxy through which the service is reached.
    pub proxy: Option<ProxyServer>,
}

/// An HTTP proxy that makes tunnels.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyServer {
    host: String,
    port: u16,
    authorization: Option<String>,
    named_by: String,
}

impl ProxyServer {
    /// The proxy at this host, which gets this `Proxy-Authorization`. `named_by` is the setting that names it.
    pub fn new(host: String, port: u16, authorization: Option<String>, named_by: &str) -> Self {
        ProxyServer { host, port, authorization, named_by: named_by.to_owned() }
    }

    /// Its host and port, as in a URL.
    pub fn authority(&self) -> String {
        authority(&self.host, self.port)
    }

    /// The value of `Proxy-Authorization`, which is secret.
    pub fn authorization(&self) -> Option<&str> {
        self.authorization.as_deref()
    }

    /// The setting that names it.
    pub fn named_by(&self) -> &str {
        &self.named_by
    }
}

/// Without its credentials.
impl fmt::Debug for ProxyServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.authority())
    }
}

/// The URL that awc gets in place of `https://…` or `wss://…`: a plain one, with the port of TLS.
pub fn wire_url(url: &str) -> String {
    for (tls, plain) in [("https://", "http://"), ("wss://", "ws://")] {
        if let Some(rest) = url.strip_prefix(tls) {
            let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
            let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && !port.contains(']'));
            let port = if has_port { "" } else { ":443" };
            return format!("{plain}{authority}{port}{path}");
        }
    }
    url.to_owned()
}

/// A connector for awc.
#[derive(Clone, Debug)]
pub struct Dialer {
    config: DialConfig,
    patience: Duration,
}

impl Dialer {
    /// A connector that gives each of its steps this long: TCP, the answer of a proxy, the TLS handshake.
    pub fn new(config: DialConfig, patience: Duration) -> Self {
        Dialer { config, patience }
    }

    /// The most time that a connection takes.
    pub fn longest(&self) -> Duration {
        3 * self.patience + Duration::from_secs(1)
    }

    async fn dial(&self, host: &str, port: u16) -> Result<DialedStream, DialError> {
        let tcp = match &self.config.proxy {
            None => connect::tcp(host, port, self.patience).await?,
            Some(proxy) => {
                let opened = connect::tcp(&proxy.host, proxy.port, self.patience).await;
                let failed = |why| DialError::Proxy { proxy: proxy.authority(), named_by: proxy.named_by.clone(), why };
                let mut tcp = opened.map_err(|error| failed(ProxyError::Unreachable(Box::new(error))))?;
                let service = authority(host, port);
                let tunnel = connect::tunnel(&mut tcp, &service, proxy.authorization());
                match timeout(self.patience, tunnel).await {
                    Ok(done) => done.map_err(failed)?,
                    Err(_) => return Err(failed(ProxyError::Silent(self.patience.as_secs()))),
                }
                tcp
            }
        };
        match &self.config.tls {
            None => Ok(DialedStream::plain(tcp)),
            Some(tls) => self.handshake(tcp, tls, host, port).await,
        }
    }

    async fn handshake(
        &self,
        tcp: TcpStream,
        tls: &Arc<ClientConfig>,
        host: &str,
        port: u16,
    ) -> Result<DialedStream, DialError> {
        let failed = |why| DialError::Tls { host: host.to_owned(), port, why };
        let name = ServerName::try_from(host.to_owned()).map_err(|_| failed(TlsFailure::InvalidName))?;
        match timeout(self.patience, TlsConnector::from(Arc::clone(tls)).connect(name, tcp)).await {
            Ok(Ok(stream)) => Ok(DialedStream::tls(stream)),
            Ok(Err(error)) => Err(failed(TlsFailure::of(error))),
            Err(_) => Err(failed(TlsFailure::Silent(self.patience.as_secs()))),
        }
    }
}

impl Service<ConnectInfo<Uri>> for Dialer {
    type Response = Connection<Uri, DialedStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>>>>;

    fn poll_ready(&self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&self, info: ConnectInfo<Uri>) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move {
            let (uri, port) = (info.request().clone(), info.port());
            let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
            let dialed = dialer.dial(&host, port).await;
            dialed.map(|stream| Connection::new(uri, stream)).map_err(|error| ConnectError::Io(io::Error::from(error)))
        })
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn awc_gets_plain_urls_with_the_port_of_tls() {
        for (url, wire) in [
            ("https://h", "http://h:443"),
            ("https://h/ready", "http://h:443/ready"),
            ("https://h:8443/a", "http://h:8443/a"),
            ("wss://[::1]/ws", "ws://[::1]:443/ws"),
            ("wss://[::1]:7/ws", "ws://[::1]:7/ws"),
            ("http://h/a", "http://h/a"),
            ("ws://h:1/a", "ws://h:1/a"),
        ] {
            assert_eq!(wire_url(url), wire);
        }
    }
}
