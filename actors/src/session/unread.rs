//! Memory of the responses that clients have not read, in all sessions of a gateway.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    client::ClientName,
    share::{ShareExceeded, Shares},
};

/// What the unread responses of all sessions may take. Cheap to clone; shared by the worker threads.
#[derive(Clone, Debug)]
pub struct UnreadBudget(Arc<Mutex<Shares>>);

/// What the unread responses of one session take. Dropping it gives that back.
pub struct UnreadBytes {
    budget: UnreadBudget,
    client: ClientName,
    counted: u64,
}

impl UnreadBudget {
    /// A budget of this many bytes.
    pub fn new(bytes: u64) -> Self {
        UnreadBudget(Arc::new(Mutex::new(Shares::new(bytes))))
    }

    /// The part of one session of this client.
    pub fn of_session(&self, client: ClientName) -> UnreadBytes {
        UnreadBytes { budget: self.clone(), client, counted: 0 }
    }

    /// What all unread responses take, in bytes.
    pub fn total(&self) -> u64 {
        self.lock().total()
    }

    // A poisoned lock still guards valid counts.
    fn lock(&self) -> MutexGuard<'_, Shares> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnreadBytes {
    /// Counts that the responses of this session take this many bytes now.
    ///
    /// # Errors
    ///
    /// That is more than the client may use. It is counted all the same.
    pub fn set(&mut self, bytes: usize) -> Result<(), ShareExceeded> {
        let bytes = bytes as u64;
        if bytes == self.counted {
            return Ok(());
        }
        let mut shares = self.budget.lock();
        let grown = bytes.saturating_sub(self.counted);
        let admitted = if grown > 0 { shares.admits(&self.client, grown, false) } else { Ok(()) };
        shares.add(&self.client, grown);
        shares.remove(&self.client, self.counted.saturating_sub(bytes));
        self.counted = bytes;
        admitted
    }
}

impl Drop for UnreadBytes {
    fn drop(&mut self) {
        let _ = self.set(0);
    }
}
