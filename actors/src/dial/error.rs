//! Why a connection was not made, or cannot be used: one error for each cause that needs another remedy.

use std::{error::Error, io, net::SocketAddr};

use awc::error::{ConnectError, SendRequestError};
use rustls::{CertificateError, InvalidMessage};

/// How many names of a certificate are shown.
const MAX_NAMES: usize = 4;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address.
    #[error("the host name {host:?} cannot be resolved: {cause}; check its spelling")]
    UnknownHost {
        /// The name.
        host: String,
        /// The resolver's error.
        cause: String,
    },
    /// Nothing took the connection in time.
    #[error("{host} took no connection at port {port} within {seconds} s; check the address, and firewalls in between")]
    Timeout {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// The wait.
        seconds: u64,
    },
    /// The system refused the connection.
    #[error("{address}: {cause}")]
    Tcp {
        /// The last address that was tried.
        address: SocketAddr,
        /// Its error.
        cause: io::Error,
    },
    /// The proxy made no tunnel.
    #[error("the proxy {proxy} ({named_by}) {why}")]
    Proxy {
        /// Its host and port.
        proxy: String,
        /// The setting that names it.
        named_by: String,
        /// Why.
        why: ProxyError,
    },
    /// There is no TLS with the service.
    #[error("TLS: {}", why.sentence(host, *port))]
    Tls {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// Why.
        why: TlsFailure,
    },
    /// A plain request met a port of TLS.
    #[error("the port speaks TLS; use wss:// or https://")]
    PortSpeaksTls,
}

/// Why a proxy made no tunnel: the rest of a sentence that begins with the proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// There is no connection to it.
    #[error("cannot be reached: {0}; correct the variable, or name the service in NO_PROXY")]
    Unreachable(Box<DialError>),
    /// It demands credentials, and none were sent.
    #[error(
        "demands a user name and a password (407), and none were sent; write them into the variable as http://USER:PASSWORD@HOST:PORT"
    )]
    NoCredentials,
    /// It refuses the credentials.
    #[error("refuses the user name and password in the variable (407); correct them")]
    WrongCredentials,
    /// It does not make this tunnel.
    #[error(
        "refuses a tunnel to {to}: it answers {status} {reason}; have it allow CONNECT to that host and port, or name the service in NO_PROXY"
    )]
    Refused {
        /// The host and port of the service.
        to: String,
        /// The status.
        status: u16,
        /// The reason beside it.
        reason: String,
    },
    /// It did not answer in time.
    #[error("did not answer within {0} s; try again, or name the service in NO_PROXY")]
    Silent(u64),
    /// It closed the connection without an answer.
    #[error("closed the connection without an answer; check that the variable names an HTTP proxy")]
    Closed,
    /// The connection broke.
    #[error("broke the connection: {0}; try again")]
    Broken(io::Error),
    /// It answered with something else than HTTP.
    #[error("does not answer as an HTTP proxy; check the variable")]
    NotHttp,
    /// The head of its answer has no end.
    #[error(
        "sent more than {0} bytes before the end of its answer's head; check that the variable names an HTTP proxy"
    )]
    TooLong(usize),
}

/// Why there is no TLS with a service.
#[derive(Debug)]
pub enum TlsFailure {
    /// The certificate is signed by nobody that is trusted.
    UnknownCa,
    /// The certificate is not valid any more.
    Expired,
    /// The certificate is not valid yet.
    NotYetValid,
    /// The certificate is for other names.
    OtherName(Vec<String>),
    /// The certificate is refused for another reason.
    Certificate(String),
    /// The answer is not TLS.
    PortIsPlain,
    /// The service closed the connection.
    Closed,
    /// The service did not answer.
    Silent(u64),
    /// The host cannot be in a certificate.
    InvalidName,
    /// Another error.
    Other(String),
}

impl TlsFailure {
    /// Reads the error of a handshake.
    pub fn of(error: io::Error) -> Self {
        let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => TlsFailure::Closed,
                _ => TlsFailure::Other(error.to_string()),
            };
        };
        match tls {
            rustls::Error::InvalidCertificate(certificate) => Self::of_certificate(certificate),
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => TlsFailure::PortIsPlain,
            other => TlsFailure::Other(other.to_string()),
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::UnknownIssuer => TlsFailure::UnknownCa,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsFailure::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => TlsFailure::NotYetValid,
            CertificateError::NotValidForName => TlsFailure::OtherName(Vec::new()),
            CertificateError::NotValidForNameContext { presented, .. } => {
                // Written by the peer.
                let shown = |name: &String| name.chars().filter(char::is_ascii_graphic).take(64).collect();
                TlsFailure::OtherName(presented.iter().take(MAX_NAMES).map(shown).collect())
            }
            other => TlsFailure::Certificate(other.to_string()),
        }
    }

    fn sentence(&self, host: &str, port: u16) -> String {
        match self {
            TlsFailure::UnknownCa => format!(
                "the certificate of {host} is signed by no CA that is trusted here; if it is the right one, name the file of its CA with --ca-file"
            ),
            TlsFailure::Expired => {
                format!("the certificate of {host} has expired; have it renewed, and check this machine's clock")
            }
            TlsFailure::NotYetValid => {
                format!("the certificate of {host} is not valid yet; check this machine's clock")
            }
            TlsFailure::OtherName(names) if names.is_empty() => {
                format!("the certificate is not for {host}; use the host name that is in it")
            }
            TlsFailure::OtherName(names) => format!(
                "the certificate is not for {host}, but for {}; use the host name that is in it",
                names.join(", ")
            ),
            TlsFailure::Certificate(error) => format!("the certificate of {host} cannot be accepted: {error}"),
            TlsFailure::PortIsPlain => {
                format!("{host} does not speak TLS at port {port}; use ws:// or http://, or the port that speaks TLS")
            }
            TlsFailure::Closed => format!(
                "{host} closed the connection in the handshake; check that port {port} speaks TLS, else use ws:// or http://"
            ),
            TlsFailure::Silent(seconds) => format!(
                "{host} did not answer the handshake within {seconds} s; check that port {port} speaks TLS, else use ws:// or http://"
            ),
            TlsFailure::InvalidName => format!("{host:?} is not a host name that a certificate can have"),
            TlsFailure::Other(error) => format!("the handshake with {host} failed: {error}"),
        }
    }
}

/// With the kind of its cause, by which it is decided whether a request may be repeated.
impl From<DialError> for io::Error {
    fn from(error: DialError) -> Self {
        let kind = match &error {
            DialError::Tcp { cause, .. } => cause.kind(),
            DialError::Timeout { .. } => io::ErrorKind::TimedOut,
            DialError::PortSpeaksTls => io::ErrorKind::InvalidData,
            DialError::UnknownHost { .. } | DialError::Proxy { .. } | DialError::Tls { .. } => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// The error of this module that is inside an error of awc.
pub fn dial_error(error: &SendRequestError) -> Option<&DialError> {
    let io = match error {
        SendRequestError::Connect(ConnectError::Io(error)) | SendRequestError::Send(error) => error,
        SendRequestError::Response(error) => error.source()?.downcast_ref()?,
        _ => return None,
    };
    io.get_ref()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_of_tls_has_a_sentence_with_its_remedy() {
        let of = |error: rustls::Error| {
            let why = TlsFailure::of(io::Error::new(io::ErrorKind::InvalidData, error));
            DialError::Tls { host: "h".to_owned(), port: 7, why }.to_string()
        };
        let certificate = |error| of(rustls::Error::InvalidCertificate(error));
        for (text, start, remedy) in [
            (certificate(CertificateError::UnknownIssuer), "TLS: the certificate of h is signed by no CA", "--ca-file"),
            (certificate(CertificateError::Expired), "TLS: the certificate of h has expired", "renewed"),
            (certificate(CertificateError::NotValidYet), "TLS: the certificate of h is not valid yet", "clock"),
            (certificate(CertificateError::NotValidForName), "TLS: the certificate is not for h", "host name"),
            (certificate(CertificateError::BadEncoding), "TLS: the certificate of h cannot be accepted", ""),
            (of(InvalidMessage::InvalidContentType.into()), "TLS: h does not speak TLS at port 7", "ws://"),
            (of(rustls::Error::DecryptError), "TLS: the handshake with h failed: ", ""),
        ] {
            assert!(text.starts_with(start) && text.contains(remedy), "{text}");
        }
    }
}
