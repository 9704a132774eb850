//! Memory for long messages that have begun to arrive, in all sessions of a gateway.
//!
//! A session reserves the whole length of a long message before it reads it, so sessions never wait for each other with
//! half a message in memory. While a session waits, its socket is not read. Short messages need no reservation.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cc_executor_actors::{client::ClientName, share::Shares};
use tokio::sync::oneshot;

/// The longest message that needs no reservation, in bytes.
pub const FREE_BYTES: usize = 64 * 1024;

/// The memory of all sessions. Cheap to clone; shared by the worker threads.
#[derive(Clone)]
pub struct MessageBudget(Arc<Mutex<BudgetState>>);

struct BudgetState {
    shares: Shares,
    /// Whether memory was reserved or given back since the last [`MessageBudget::take_used`].
    was_used: bool,
    waiting: VecDeque<WaitingReservation>,
}

struct WaitingReservation {
    client: ClientName,
    bytes: u64,
    granted: oneshot::Sender<Reservation>,
}

/// Memory for one message. Dropping it gives the memory to those that wait.
pub struct Reservation {
    budget: MessageBudget,
    client: ClientName,
    bytes: u64,
}

impl MessageBudget {
    /// A budget of this many bytes.
    pub fn new(bytes: u64) -> Self {
        let state = BudgetState { shares: Shares::new(bytes), was_used: false, waiting: VecDeque::new() };
        MessageBudget(Arc::new(Mutex::new(state)))
    }

    /// Reserves memory if there is some now, and else returns the reservation to wait for. Dropping that gives it up.
    pub fn reserve(&self, client: &ClientName, bytes: usize) -> Result<Reservation, oneshot::Receiver<Reservation>> {
        let (bytes, mut state) = (bytes as u64, self.lock());
        if !state.waiting.iter().any(|waiting| waiting.client == *client) && state.admits(client, bytes) {
            state.add(client, bytes);
            return Ok(Reservation { budget: self.clone(), client: client.clone(), bytes });
        }
        let (granted, reservation) = oneshot::channel();
        state.waiting.push_back(WaitingReservation { client: client.clone(), bytes, granted });
        Err(reservation)
    }

    /// Whether memory was reserved or given back since the last call.
    pub fn take_used(&self) -> bool {
        std::mem::take(&mut self.lock().was_used)
    }

    /// What is reserved, in bytes.
    pub fn reserved(&self) -> u64 {
        self.lock().shares.total()
    }

    fn grant_waiting(&self) {
        let mut granted = Vec::new();
        let mut state = self.lock();
        let mut held_back: Vec<ClientName> = Vec::new();
        for _ in 0..state.waiting.len() {
            let Some(waiting) = state.waiting.pop_front() else { break };
            if waiting.granted.is_closed() {
                continue;
            }
            // In the order of each client, and past a client that has used up its share.
            if !held_back.contains(&waiting.client) && state.admits(&waiting.client, waiting.bytes) {
                state.add(&waiting.client, waiting.bytes);
                granted.push(waiting);
            } else {
                held_back.push(waiting.client.clone());
                state.waiting.push_back(waiting);
            }
        }
        drop(state);
        for WaitingReservation { client, bytes, granted } in granted {
            // If the session has just ended, the drop of the reservation grants it to another one.
            let _ = granted.send(Reservation { budget: self.clone(), client, bytes });
        }
    }

    // A poisoned lock still guards valid counts.
    fn lock(&self) -> MutexGuard<'_, BudgetState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BudgetState {
    fn add(&mut self, client: &ClientName, bytes: u64) {
        self.was_used = true;
        self.shares.add(client, bytes);
    }

    fn admits(&self, client: &ClientName, bytes: u64) -> bool {
        let others_wait = self.waiting.iter().any(|waiting| waiting.client != *client);
        self.shares.admits(client, bytes, others_wait).is_ok()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.budget.lock();
        state.shares.remove(&self.client, self.bytes);
        state.was_used = true;
        drop(state);
        self.budget.grant_waiting();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: u32) -> ClientName {
        ClientName::of_user(n)
    }

    #[test]
    fn waiting_messages_get_memory_in_order_when_it_is_given_back() {
        let budget = MessageBudget::new(100);
        let first = budget.reserve(&client(1), 60).ok().unwrap();
        let mut second = budget.reserve(&client(1), 60).err().unwrap();
        let mut third = budget.reserve(&client(1), 10).err().unwrap();
        assert!(second.try_recv().is_err() && third.try_recv().is_err(), "the order of a client is kept");
        drop(first);
        let (second, third) = (second.try_recv().unwrap(), third.try_recv().unwrap());
        assert_eq!(budget.reserved(), 70);
        drop((second, third));
        assert_eq!(budget.reserved(), 0);
    }

    #[test]
    fn a_client_that_has_used_everything_does_not_hold_up_another_one() {
        let budget = MessageBudget::new(100);
        let all: Vec<_> = (0..10).map(|_| budget.reserve(&client(1), 10).ok().unwrap()).collect();
        let mut more = budget.reserve(&client(1), 10).err().unwrap();
        assert!(budget.reserve(&client(2), 25).is_ok());
        drop(all);
        assert!(more.try_recv().is_ok());
    }

    #[test]
    fn a_reservation_that_nobody_waits_for_any_more_is_given_to_the_next() {
        let budget = MessageBudget::new(10);
        let first = budget.reserve(&client(1), 10).ok().unwrap();
        drop(budget.reserve(&client(1), 10).err().unwrap());
        let mut next = budget.reserve(&client(1), 10).err().unwrap();
        drop(first);
        assert!(next.try_recv().is_ok());
        assert_eq!(budget.reserved(), 0, "try_recv returned it and the test dropped it");
    }
}
