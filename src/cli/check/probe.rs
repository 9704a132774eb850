//! What a check works with: the service's address, how long it may be silent, and where to show what is done.

use std::{cell::Cell, time::Duration};

use indicatif::ProgressBar;
use serde_json::Value;
use tokio::time::Instant;

use super::failure::{CheckFailure, wrong};
use crate::cli::{connection::Connection, http_url};

/// Of one check.
pub(super) struct Probe {
    url: String,
    quiet: Duration,
    progress: ProgressBar,
    moved_at: Cell<Instant>,
}

impl Probe {
    pub(super) fn new(url: &str, quiet: Duration, progress: ProgressBar) -> Self {
        Probe { url: url.to_owned(), quiet, progress, moved_at: Cell::new(Instant::now()) }
    }

    /// Shows what is being done.
    pub(super) fn doing(&self, what: impl Into<String>) {
        self.progress.set_message(what.into());
    }

    /// How long it may take until the next message. Pings are none, heartbeats are.
    pub(super) fn quiet(&self) -> Duration {
        self.quiet
    }

    /// An execution of some session has got on.
    pub(super) fn got_on(&self, now: Instant) {
        self.moved_at.set(now);
    }

    /// For how long none has.
    pub(super) fn stuck_for(&self) -> Duration {
        self.moved_at.get().elapsed()
    }

    /// A connection of which nothing has been read.
    pub(super) async fn connect(&self) -> Result<Connection, CheckFailure> {
        Connection::open(&self.url).await.map_err(|error| wrong(error.message))
    }

    /// How many sessions the service has, if it tells that.
    pub(super) async fn n_sessions(&self) -> Option<u64> {
        let url = http_url(&self.url, "/health");
        let client = awc::Client::builder().timeout(self.quiet).finish();
        let body = client.get(url).send().await.ok()?.body().limit(64 << 10).await.ok()?;
        serde_json::from_slice::<Value>(&body).ok()?["sessions"].as_u64()
    }
}
