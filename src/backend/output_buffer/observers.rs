//! The observers of an execution: consumers without a hold, for which nothing waits.
//!
//! An observer that reads nothing is removed, even if its gateway polls: a gateway whose client reads again attaches
//! again, so the removal costs it at most a gap.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cc_executor_actors::{backend_api::BackendEvent, stream::Stream};
use futures_util::future::select_all;

use super::{
    consumer::{Consumer, DismissReason},
    error::ConsumerError,
    kept::KeptOutput,
};
use crate::backend::holds::Claim;

/// The observers of one execution.
#[derive(Debug, Default)]
pub(super) struct Observers(Vec<Consumer>);

impl Observers {
    /// Adds an observer. It replaces the one of the same request, which is the same observer over another connection.
    ///
    /// # Errors
    ///
    /// There are `limit` observers. Nothing has changed then.
    pub(super) fn add(&mut self, observer: Consumer, limit: usize) -> Result<(), ConsumerError> {
        self.0.retain(|other| !other.is_gone());
        let is_same =
            |other: &Consumer| matches!(other.claim, Claim::Request(Some(_))) && other.claim == observer.claim;
        match self.0.iter().position(is_same) {
            Some(at) => self.0.swap_remove(at).dismiss(DismissReason::Replaced),
            None if self.0.len() >= limit => {
                return Err(ConsumerError::TooManyObservers { limit, used: self.0.len() });
            }
            None => {}
        }
        self.0.push(observer);
        Ok(())
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Hands output from this offset on to those that have received everything before it.
    pub(super) fn push(&mut self, stream: Stream, offset: u64, bytes: &Bytes) {
        for observer in self.0.iter_mut().filter(|observer| observer.can_take(stream, offset)) {
            observer.take(stream, bytes.clone());
        }
    }

    /// See [`Consumer::queue_event`].
    pub(super) fn queue_event(&mut self, event: &BackendEvent) {
        for observer in &mut self.0 {
            observer.queue_event(event.clone());
        }
    }

    /// See [`Consumer::send_event_if_room`].
    pub(super) fn send_event_if_room(&self, event: &BackendEvent) {
        for observer in &self.0 {
            observer.send_event_if_room(event.clone());
        }
    }

    /// Hands over events and output to each that has room.
    pub(super) fn deliver(&mut self, kept: &KeptOutput, now: Instant) {
        for observer in &mut self.0 {
            observer.deliver(kept, now);
        }
    }

    /// Takes out those that have received everything.
    pub(super) fn take_served(&mut self, kept: &KeptOutput, now: Instant) -> impl Iterator<Item = Consumer> {
        self.0.extract_if(.., move |observer| observer.deliver(kept, now))
    }

    /// Waits until one makes room, is gone, or has read nothing for `patience`. There must be one.
    pub(super) async fn change(&self, patience: Duration) {
        let moved = select_all(self.0.iter().map(|observer| Box::pin(observer.room_or_end())));
        let vanish_at = self.0.iter().filter_map(|observer| observer.vanishes_at(patience, true)).min();
        let vanished = async {
            match vanish_at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = moved => {}
            () = vanished => {}
        }
    }

    /// Removes those that are gone or have vanished.
    pub(super) fn remove_lost(&mut self, patience: Duration, now: Instant) {
        let is_lost = |observer: &mut Consumer| {
            observer.is_gone() || observer.vanishes_at(patience, true).is_some_and(|at| at <= now)
        };
        for observer in self.0.extract_if(.., is_lost) {
            observer.dismiss(DismissReason::Vanished);
        }
    }
}
