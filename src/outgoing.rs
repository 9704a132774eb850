//! How clients and gateways reach a service: its URL, the proxy on the way, and the CAs that are trusted.
//!
//! `url` is pure, and so are the rules in `proxy`. [`plan`] reads what a connection needs from the environment and the
//! files of certificates; `cc_executor_actors::dial` makes the connections.

pub mod proxy;
mod roots;
pub mod url;

use cc_executor_actors::dial::DialConfig;

pub use self::roots::CaFileError;
use self::{proxy::ProxyVariables, url::ServiceUrl};

/// Why no connection can be attempted.
#[derive(Debug, thiserror::Error)]
pub enum OutgoingError {
    /// A proxy variable is wrong.
    #[error(transparent)]
    Proxy(#[from] proxy::ProxyVariableError),
    /// The certificates of CAs cannot be used.
    #[error(transparent)]
    CaFile(#[from] CaFileError),
}

/// What connections to this URL need: TLS with the system's CAs and that of `ca_file`, and a proxy. Certificates are
/// read for TLS URLs only.
///
/// # Errors
/// A variable or a file cannot be used.
pub fn plan(url: &ServiceUrl, ca_file: Option<&str>, proxies: &ProxyVariables) -> Result<DialConfig, OutgoingError> {
    let proxy = proxies.proxy_for(url)?;
    let tls = if url.is_tls() { Some(roots::client_config(ca_file)?) } else { None };
    Ok(DialConfig { tls, proxy })
}
