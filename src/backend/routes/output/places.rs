//! How many responses read output as a file at a time: each holds a connection, a file and up to 256 KiB. Clients share
//! the places.

use std::sync::{Arc, Mutex, MutexGuard};

use cc_executor_actors::{
    client::ClientName,
    rpc::{ErrorObject, code},
    share::{ShareScope, Shares},
};

/// How many there may be.
pub(super) const MAX_READING: u64 = 256;

/// When to ask again, in milliseconds. A response may end at any moment.
const RETRY_MS: u64 = 1_000;

/// The places of one backend.
#[derive(Debug)]
pub struct ReadingPlaces(Mutex<Shares>);

/// The place of one response. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct ReadingPlace {
    places: Arc<ReadingPlaces>,
    client: ClientName,
}

impl Default for ReadingPlaces {
    fn default() -> Self {
        ReadingPlaces(Mutex::new(Shares::new(MAX_READING)))
    }
}

impl ReadingPlaces {
    /// Takes a place for a client.
    ///
    /// # Errors
    ///
    /// The client's share, or the limit of all, is used up.
    pub(super) fn take(self: Arc<Self>, client: ClientName) -> Result<ReadingPlace, ErrorObject> {
        let mut shares = self.lock();
        let exceeded = shares.admits(&client, 1, false).err();
        if let Some(exceeded) = exceeded {
            let of_client = if exceeded.scope == ShareScope::Client { " of this client" } else { "" };
            let message = format!(
                "{} responses{of_client} are reading output, and at most {} may: try again when one has ended",
                exceeded.used, exceeded.limit
            );
            return Err(ErrorObject::new(code::FULL, message).over(exceeded, Some(RETRY_MS)));
        }
        shares.add(&client, 1);
        drop(shares);
        Ok(ReadingPlace { places: self, client })
    }

    /// A poisoned lock still guards valid state, because no critical section panics half-way.
    fn lock(&self) -> MutexGuard<'_, Shares> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for ReadingPlace {
    fn drop(&mut self) {
        self.places.lock().remove(&self.client, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_reads_everything_at_once_leaves_places_for_others() {
        let places = Arc::<ReadingPlaces>::default();
        let [a, b] = [1, 2].map(ClientName::of_user);
        let mut held: Vec<_> = (0..MAX_READING).map(|_| Arc::clone(&places).take(a.clone()).unwrap()).collect();
        let refused = Arc::clone(&places).take(a.clone()).unwrap_err();
        assert_eq!((refused.code, &refused.data.unwrap()["scope"]), (code::FULL, &"client".into()));
        let of_other = Arc::clone(&places).take(b).unwrap();
        drop(of_other);
        held.pop();
        assert!(places.take(a).is_ok());
    }
}
