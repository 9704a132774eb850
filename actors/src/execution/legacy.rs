//! What a gateway does itself where the backend is the legacy image: clocks, and a pause that can
//! only hold back the delivery.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    backend_api::Heartbeat,
    clock::{Stopwatch, millis},
};

/// The clocks of one execution, and whether its output is delivered.
pub(super) struct LegacyClocks {
    total: Cell<Stopwatch>,
    started_at: Instant,
    output_at: Cell<Instant>,
    heard_at: Cell<Instant>,
    timeout: Option<Duration>,
    paused: watch::Sender<bool>,
}

impl LegacyClocks {
    /// It has just started.
    pub(super) fn started(now: Instant, timeout_ms: Option<u64>) -> Self {
        LegacyClocks {
            total: Cell::new(Stopwatch::started(now)),
            started_at: now,
            output_at: Cell::new(now),
            heard_at: Cell::new(now),
            timeout: timeout_ms.map(Duration::from_millis),
            paused: watch::Sender::new(false),
        }
    }

    /// Stops or resumes the delivery, and the clock of the total time-out with it. False if it was so
    /// already.
    pub(super) fn pause(&self, paused: bool, now: Instant) -> bool {
        let mut total = self.total.get();
        total.run(!paused, now);
        self.total.set(total);
        self.paused.send_replace(paused) != paused
    }

    /// Waits until output may be delivered.
    pub(super) async fn is_open(&self) {
        // The sender is here: it cannot be gone.
        let _ = self.paused.subscribe().wait_for(|paused| !paused).await;
    }

    /// Waits until it must not.
    pub(super) async fn is_paused(&self) {
        let _ = self.paused.subscribe().wait_for(|paused| *paused).await;
    }

    /// Something was written.
    pub(super) fn output(&self, now: Instant) {
        self.output_at.set(now);
        self.heard_at.set(now);
    }

    /// The backend answered.
    pub(super) fn record_life(&self, now: Instant) {
        self.heard_at.set(now);
    }

    /// How long nothing has been heard of the backend.
    pub(super) fn unheard(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard_at.get())
    }

    /// How long until the total time-out; `None` without one, or while it stands still.
    pub(super) fn time_left(&self, now: Instant) -> Option<Duration> {
        let due_at = self.total.get().due_at(self.timeout?)?;
        Some(due_at.saturating_duration_since(now))
    }

    /// The clocks, as our own backend would tell them.
    pub(super) fn alive(&self, now: Instant) -> Heartbeat {
        let ran = self.total.get().elapsed(now);
        Heartbeat {
            elapsed_ms: millis(now.saturating_duration_since(self.started_at)),
            since_output_ms: millis(now.saturating_duration_since(self.output_at.get())),
            deadline_ms: self.timeout.map(|timeout| millis(timeout.saturating_sub(ran))),
            ..Heartbeat::default()
        }
    }
}
