//! The context of a check: the service's address, the time of the last progress, and the progress display.

use std::{cell::Cell, time::Duration};

use indicatif::ProgressBar;
use serde_json::Value;
use tokio::time::Instant;

use super::failure::{CheckFailure, wrong};
use crate::cli::{
    connection::Connection,
    http::{HttpClient, within},
    service::ServiceAccess,
};

/// The longest time until the next message. The checks request heartbeats every 5 s; pings do not count as messages.
pub(super) const QUIET: Duration = Duration::from_secs(12);

/// The longest response to `/health` that is read, in bytes.
const MAX_HEALTH: usize = 64 << 10;

/// The context of one check.
pub(super) struct Probe {
    service: ServiceAccess,
    progress: ProgressBar,
    moved_at: Cell<Instant>,
}

impl Probe {
    pub(super) fn new(service: &ServiceAccess, progress: ProgressBar) -> Self {
        Probe { service: service.clone(), progress, moved_at: Cell::new(Instant::now()) }
    }

    /// Shows the current step.
    pub(super) fn show_step(&self, step: impl Into<String>) {
        self.progress.set_message(step.into());
    }

    /// Notes that an execution of some session has made progress.
    pub(super) fn record_progress(&self, now: Instant) {
        self.moved_at.set(now);
    }

    /// The time since the last progress of any session.
    pub(super) fn stuck_for(&self) -> Duration {
        self.moved_at.get().elapsed()
    }

    /// Opens a connection and reads nothing from it.
    pub(super) async fn connect(&self) -> Result<Connection, CheckFailure> {
        Connection::open(&self.service).await.map_err(|error| wrong(error.message))
    }

    /// The number of sessions that the service reports, if it reports one.
    pub(super) async fn n_sessions(&self) -> Option<u64> {
        let (url, client) = (self.service.http("/health"), HttpClient::new(&self.service));
        let body = async {
            let mut response = client.get(&url).send().await.map_err(|error| client.unreachable(&url, &error))?;
            response.body().limit(MAX_HEALTH).await.map_err(|error| client.broke_off(&url, &error))
        };
        let body = within(&url, body).await.ok()?;
        serde_json::from_slice::<Value>(&body).ok()?["sessions"].as_u64()
    }
}
