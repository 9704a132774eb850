//! Flags of the commands that ask a service for one thing, and those that several commands share.

use std::time::Duration;

use cc_executor_actors::id::ExecutionId;
use clap::Args;

use crate::{
    cli::{AttachOptions, CancelOptions, DEFAULT_READY_URL, DEFAULT_RECONNECT, DEFAULT_URL, PsOptions, SESSION_PATH},
    config::{
        Problems,
        value::{Checked, checked},
    },
};

/// What `--help` of `healthcheck` says about exit codes.
pub const HEALTHCHECK_EXIT_CODES: &str = "\
Exit codes:
   0  the service is ready
   1  it is not ready, or nothing listens at the URL
  69  it does not answer within 10 seconds";

/// The service to talk to.
#[derive(Args, Clone, Debug)]
pub struct ServiceArgs {
    /// Service to connect to
    #[arg(long, env = "CC_EXECUTOR_URL", value_name = "URL", default_value = DEFAULT_URL)]
    #[arg(value_parser = checked(session_url))]
    url: Checked<String>,
}

impl ServiceArgs {
    /// The session's URL.
    pub fn url(self, problems: &mut Problems) -> String {
        problems.valid(self.url)
    }
}

/// Flags of `attach`.
#[derive(Args, Clone, Debug)]
pub struct AttachArgs {
    #[command(flatten)]
    service: ServiceArgs,

    /// Print the service's messages instead of the output
    #[arg(long)]
    json: bool,

    /// Reconnect and continue when the connection breaks, for up to SECONDS (30 if not given)
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, value_parser = checked(seconds))]
    #[arg(default_missing_value = DEFAULT_RECONNECT)]
    reconnect: Option<Checked<Duration>>,

    /// Execution to follow
    #[arg(value_name = "ID", value_parser = checked(execution_id))]
    id: Checked<ExecutionId>,
}

impl AttachArgs {
    pub fn validate(self) -> Result<AttachOptions, Problems> {
        let mut problems = Problems::default();
        let url = self.service.url(&mut problems);
        let id = problems.valid_or(ExecutionId::random(), self.id);
        let reconnect = self.reconnect.map(|checked| problems.valid(checked));
        problems.finish(AttachOptions { url, id, json: self.json, reconnect })
    }
}

/// Flags of `ps`.
#[derive(Args, Clone, Debug)]
pub struct PsArgs {
    #[command(flatten)]
    service: ServiceArgs,

    /// Print the service's JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl PsArgs {
    pub fn validate(self) -> Result<PsOptions, Problems> {
        let mut problems = Problems::default();
        let url = self.service.url(&mut problems);
        problems.finish(PsOptions { url, json: self.json })
    }
}

/// Flags of `cancel`.
#[derive(Args, Clone, Debug)]
pub struct CancelArgs {
    #[command(flatten)]
    service: ServiceArgs,

    /// Time between TERM and KILL (5 if not given)
    #[arg(long, value_name = "SECONDS", value_parser = checked(seconds))]
    grace: Option<Checked<Duration>>,

    /// Execution to cancel
    #[arg(value_name = "ID", value_parser = checked(execution_id))]
    id: Checked<ExecutionId>,
}

impl CancelArgs {
    pub fn validate(self) -> Result<CancelOptions, Problems> {
        let mut problems = Problems::default();
        let url = self.service.url(&mut problems);
        let id = problems.valid_or(ExecutionId::random(), self.id);
        let grace = self.grace.map(|checked| problems.valid(checked));
        problems.finish(CancelOptions { url, id, grace })
    }
}

/// Flags of `healthcheck`.
#[derive(Args, Clone, Debug)]
pub struct HealthcheckArgs {
    /// URL to get
    #[arg(long, value_name = "URL", default_value = DEFAULT_READY_URL)]
    pub url: String,
}

/// Reads the URL of a service, which may be its host and port alone.
fn session_url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("ws://").or_else(|| text.strip_prefix("http://"));
    match rest.map(|rest| rest.split_once('/').unwrap_or((rest, ""))) {
        Some((authority, path)) if !authority.is_empty() && !authority.contains('@') => {
            let path = if path.is_empty() { SESSION_PATH.to_owned() } else { format!("/{path}") };
            Ok(format!("ws://{authority}{path}"))
        }
        _ => Err(format!("must be like ws://host:8003, not {text:?}")),
    }
}

/// Reads a time in seconds.
pub fn seconds(text: &str) -> Result<Duration, String> {
    match text.trim_end_matches('s').parse::<f64>() {
        Ok(number) if number > 0.0 && number < 1e9 => Ok(Duration::from_secs_f64(number).max(Duration::from_millis(1))),
        _ => Err(format!("must be a number of seconds such as 30 or 0.5, not {text:?}")),
    }
}

fn execution_id(text: &str) -> Result<ExecutionId, String> {
    text.parse().map_err(|_| format!("must be the id of an execution, which is a UUID, not {text:?}"))
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

    #[test]
    fn a_time_is_in_seconds() {
        assert_eq!(seconds("30"), Ok(Duration::from_secs(30)));
        assert_eq!(seconds("0.25s"), Ok(Duration::from_millis(250)));
        for wrong in ["", "0", "-1", "soon", "nan", "inf"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
