//! The user's terminal in a terminal session: its mode, and the requests that the user types.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc};

use crate::cli::{
    escape::{DetachKeys, EscapeChar, KeyFilter, KeyRequest, key_help},
    stdin::{KeyRequests, StdinReader},
    terminal::RawMode,
};

/// For how long a client that detaches waits for the command to take what was typed before.
const INPUT_PATIENCE: Duration = Duration::from_secs(1);

/// The keys of a terminal session.
pub(in crate::cli) struct SessionKeys {
    pub(in crate::cli) detach: DetachKeys,
    pub(in crate::cli) escape: EscapeChar,
}

/// The keyboard. Outside of a terminal session nothing comes from it.
pub(super) struct Keyboard {
    keys: Option<SessionKeys>,
    /// Keeps the terminal in raw mode.
    raw: Option<RawMode>,
    sender: mpsc::UnboundedSender<KeyRequest>,
    requests: mpsc::UnboundedReceiver<KeyRequest>,
    dropped: Arc<Notify>,
    /// When a client that detaches waits no longer for its input to arrive.
    detach_by: Option<Instant>,
}

impl Keyboard {
    pub(super) fn new(keys: Option<SessionKeys>) -> Self {
        let (sender, requests) = mpsc::unbounded_channel();
        Keyboard { keys, raw: None, sender, requests, dropped: Arc::default(), detach_by: None }
    }

    /// Whether this is a terminal session.
    pub(super) fn is_session(&self) -> bool {
        self.keys.is_some()
    }

    /// Starts to read. A terminal is in raw mode from now on if `raw` is set, or if this is a terminal session.
    pub(super) fn start(&mut self, raw: bool) -> StdinReader {
        if raw || self.is_session() {
            self.raw = RawMode::enter();
        }
        let keys = self.keys.as_ref().map(|keys| KeyRequests {
            filter: KeyFilter::new(keys.detach.clone(), keys.escape),
            requests: self.sender.clone(),
            dropped: Arc::clone(&self.dropped),
        });
        StdinReader::start(keys)
    }

    /// Whether the terminal is in raw mode.
    pub(super) fn is_raw(&self) -> bool {
        self.raw.is_some()
    }

    /// Restores the terminal. Returns whether it was in raw mode.
    pub(super) fn restore(&mut self) -> bool {
        self.raw.take().is_some()
    }

    /// Sets raw mode again, after a shell had the terminal.
    pub(super) fn renew(&mut self, was_raw: bool) {
        match &self.raw {
            Some(raw) => raw.renew(),
            None if was_raw => self.raw = RawMode::enter(),
            None => {}
        }
    }

    /// Notified when the user drops the connection.
    pub(super) fn dropped(&self) -> Arc<Notify> {
        Arc::clone(&self.dropped)
    }

    /// The next request, other than to drop the connection. The future may be dropped and called again.
    pub(super) async fn next(&mut self) -> KeyRequest {
        match self.requests.recv().await {
            Some(request) => request,
            // Cannot happen, because this has a sender itself.
            None => std::future::pending().await,
        }
    }

    /// The list of keys.
    pub(super) fn help(&self) -> Vec<String> {
        self.keys.as_ref().map(|keys| key_help(&keys.detach, keys.escape)).unwrap_or_default()
    }

    /// Begins to detach, when what was typed before has arrived.
    pub(super) fn begin_detach(&mut self) {
        self.detach_by.get_or_insert(Instant::now() + INPUT_PATIENCE);
    }

    /// When the client detaches even if its input has not arrived.
    pub(super) fn detach_by(&self) -> Option<Instant> {
        self.detach_by
    }

    /// Whether the client detaches now. Returns true once.
    pub(super) fn detaches_now(&mut self, input_has_arrived: bool) -> bool {
        let is_due = self.detach_by.is_some_and(|by| input_has_arrived || Instant::now() >= by);
        if is_due {
            self.detach_by = None;
        }
        is_due
    }
}
