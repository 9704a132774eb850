//! The observers of an execution: consumers without a hold, for which nothing waits.
//!
//! An observer that reads nothing is removed, even if its gateway polls: a gateway whose client reads again attaches
//! again, so the removal costs it at most a gap. [`OutputBuffer`] hands them events and output beside the consumer.

use std::time::{Duration, Instant};

use cc_executor_actors::backend_api::BackendEvent;
use futures_util::future::select_all;

use super::{
    OutputBuffer,
    consumer::{Consumer, DismissReason},
    error::ConsumerError,
    ring::Ring,
};
use crate::backend::holds::Claim;

impl OutputBuffer {
    /// Adds an observer that reads from its offsets on, and gets the event `first` before anything else. It replaces
    /// the one of the same request, which is the same observer over another connection.
    ///
    /// # Errors
    ///
    /// The offsets are beyond the end, or there are `limit` observers. Nothing has changed then.
    pub fn observe(
        &mut self,
        mut observer: Consumer,
        first: Option<BackendEvent>,
        limit: usize,
    ) -> Result<(), ConsumerError> {
        self.check_offsets(observer.cursor)?;
        self.observers.retain(|other| !other.is_gone());
        let is_same =
            |other: &Consumer| matches!(other.claim, Claim::Request(Some(_))) && other.claim == observer.claim;
        match self.observers.iter().position(is_same) {
            Some(at) => self.observers.swap_remove(at).dismiss(DismissReason::Replaced),
            None if self.observers.len() >= limit => {
                return Err(ConsumerError::TooManyObservers { limit, used: self.observers.len() });
            }
            None => {}
        }
        if let Some(event) = first {
            observer.queue_event(event);
        }
        self.observers.push(observer);
        Ok(())
    }

    /// How many observers there are.
    pub fn n_observers(&self) -> usize {
        self.observers.len()
    }

    /// Gives up the output of an ended execution, which is evicted or forgotten. An observer that has not received all
    /// of it gets a gap. A consumer keeps it.
    pub fn give_up_output(&mut self) {
        if self.consumer.is_none() {
            self.rings = self.written().map(Ring::without_bytes);
        }
    }

    /// Sends the final event to the observers that have received everything else, and lets go of them.
    pub(super) fn finish_observers(&mut self, event: impl Fn() -> BackendEvent) {
        let now = Instant::now();
        let has_everything =
            |observer: &mut Consumer| observer.deliver(&self.rings, self.policy, &self.acknowledged, now);
        for observer in self.observers.extract_if(.., has_everything) {
            observer.finish(event());
        }
    }

    /// Waits until an observer makes room, is gone, or has read nothing for `patience`.
    pub(super) async fn observer_change(&self, patience: Duration) {
        let moved = select_all(self.observers.iter().map(|observer| Box::pin(observer.room_or_end())));
        let vanish_at =
            self.observers.iter().filter_map(|observer| observer.vanishes_at(patience, self.is_ending)).min();
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

    /// Removes the observers that are gone or have vanished.
    pub(super) fn remove_lost_observers(&mut self, patience: Duration, now: Instant) {
        let is_ending = self.is_ending;
        let is_lost = |observer: &mut Consumer| {
            observer.is_gone() || observer.vanishes_at(patience, is_ending).is_some_and(|at| at <= now)
        };
        for observer in self.observers.extract_if(.., is_lost) {
            observer.dismiss(DismissReason::Vanished);
        }
    }
}
