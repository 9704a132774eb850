//! Flags that several client commands share.

use clap::Args;

use crate::config::value::checked;

/// The default of `--url`.
pub(super) const DEFAULT_URL: &str = "ws://127.0.0.1:8003/ws/mcp";

/// The path of sessions at every service.
pub(super) const SESSION_PATH: &str = "/ws/mcp";

/// The time for which `--reconnect` without a value tries to connect again, in seconds.
pub(super) const DEFAULT_RECONNECT: &str = "30";

/// The service to talk to.
#[derive(Args, Clone, Debug)]
pub struct ServiceFlags {
    /// Service to connect to
    #[arg(long, env = "CC_EXECUTOR_URL", value_name = "URL", default_value = DEFAULT_URL)]
    #[arg(value_parser = checked(session_url))]
    pub(super) url: String,
}

/// Reads the URL of a service. Without a path it is completed with that of sessions.
fn session_url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("ws://").or_else(|| text.strip_prefix("http://"));
    match rest.map(|rest| rest.split_once('/').unwrap_or((rest, ""))) {
        Some((authority, path)) if !authority.is_empty() && !authority.contains('@') => {
            let path = if path.is_empty() { SESSION_PATH.to_owned() } else { format!("/{path}") };
            Ok(format!("ws://{authority}{path}"))
        }
        _ => {
            Err(format!("must be ws://HOST[:PORT] without TLS and user name, not {text:?}; put a TLS tunnel in front"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_may_be_named_by_its_host_alone() {
        for (given, url) in [
            ("ws://h:1/ws/mcp", "ws://h:1/ws/mcp"),
            ("ws://h:1", "ws://h:1/ws/mcp"),
            ("http://h:1/", "ws://h:1/ws/mcp"),
            ("ws://h/prefix/ws", "ws://h/prefix/ws"),
        ] {
            assert_eq!(session_url(given).unwrap(), url);
        }
        for wrong in ["wss://h", "h:1", "ws://", "ws://secret@h", ""] {
            assert!(session_url(wrong).is_err(), "{wrong}");
        }
    }
}
