//! The clocks of an execution on the legacy image, kept here because that image keeps none, and its pause, which holds
//! back only the delivery of output.

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
pub(in crate::execution) struct LegacyClocks {
    total: Cell<Stopwatch>,
    started_at: Instant,
    last_output_at: Cell<Instant>,
    /// When the backend last answered, or sent output.
    pub(super) last_sign_at: Cell<Instant>,
    timeout: Option<Duration>,
    paused: watch::Sender<bool>,
}

impl LegacyClocks {
    /// The execution has just started.
    pub(in crate::execution) fn started(now: Instant, timeout: Option<Duration>) -> Self {
        LegacyClocks {
            total: Cell::new(Stopwatch::started(now)),
            started_at: now,
            last_output_at: Cell::new(now),
            last_sign_at: Cell::new(now),
            timeout,
            paused: watch::Sender::new(false),
        }
    }

    /// Stops or resumes the delivery, and with it the clock of the total time-out. Returns false if nothing changed.
    pub(in crate::execution) fn pause(&self, paused: bool, now: Instant) -> bool {
        let mut total = self.total.get();
        total.run(!paused, now);
        self.total.set(total);
        self.paused.send_replace(paused) != paused
    }

    /// Waits until the delivery is paused, or not.
    pub(super) async fn wait_until(&self, paused: bool) {
        // The error cannot occur, because the sender is in this struct.
        let _ = self.paused.subscribe().wait_for(|now| *now == paused).await;
    }

    /// Waits until the total time-out has passed.
    pub(super) async fn timed_out(&self) {
        let mut paused = self.paused.subscribe();
        loop {
            tokio::select! {
                () = at(self.timeout.and_then(|timeout| self.total.get().due_at(timeout))) => return,
                _ = paused.changed() => {}
            }
        }
    }

    /// Output arrived, which is also a sign of life.
    pub(super) fn record_output(&self, now: Instant) {
        self.last_output_at.set(now);
        self.last_sign_at.set(now);
    }

    /// The clocks in the form of a native backend's heartbeat.
    pub(in crate::execution) fn heartbeat(&self, now: Instant) -> Heartbeat {
        let ran = self.total.get().elapsed(now);
        Heartbeat {
            elapsed_ms: millis(now.saturating_duration_since(self.started_at)),
            since_output_ms: millis(now.saturating_duration_since(self.last_output_at.get())),
            deadline_ms: self.timeout.map(|timeout| millis(timeout.saturating_sub(ran))),
            ..Heartbeat::default()
        }
    }
}

/// Waits until this time, or for ever without one.
pub(super) async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
