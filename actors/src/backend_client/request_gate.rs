//! Bounds the short requests that one worker thread has under way at the backend, and serves clients in turn.
//!
//! Streams of executions are not bounded here: each session has one.

use std::{
    cell::RefCell,
    collections::VecDeque,
    rc::{Rc, Weak},
};

use tokio::sync::oneshot;

use crate::client::ClientName;

/// How many requests of one worker thread are under way at the most.
const MAX_REQUESTS: usize = 64;

/// The gate of one worker thread.
#[derive(Clone)]
pub(super) struct RequestGate(Rc<RefCell<GateState>>);

/// The place of one request. Dropping it makes room for the next.
pub(super) struct RequestPlace(Weak<RefCell<GateState>>);

struct GateState {
    n_free: usize,
    /// Cancellations. A free place goes to a cancellation first, but after each cancellation to another request that
    /// waits, so that neither kind starves.
    urgent: Turns,
    others: Turns,
    /// Whether the last place went to a cancellation.
    was_urgent: bool,
}

/// The waiting requests of each client; `None` is the gateway itself. The clients take turns.
#[derive(Default)]
struct Turns(VecDeque<(Option<ClientName>, VecDeque<WaitingRequest>)>);

type WaitingRequest = oneshot::Sender<RequestPlace>;

impl RequestGate {
    pub(super) fn new() -> Self {
        RequestGate::of(MAX_REQUESTS)
    }

    fn of(n_free: usize) -> Self {
        let state = GateState { n_free, urgent: Turns::default(), others: Turns::default(), was_urgent: false };
        RequestGate(Rc::new(RefCell::new(state)))
    }

    /// Waits for a place.
    pub(super) async fn enter(&self, client: Option<&ClientName>, is_urgent: bool) -> RequestPlace {
        let entered = {
            let mut state = self.0.borrow_mut();
            if state.n_free > 0 {
                state.n_free -= 1;
                return RequestPlace(Rc::downgrade(&self.0));
            }
            let (sender, receiver) = oneshot::channel();
            let turns = if is_urgent { &mut state.urgent } else { &mut state.others };
            turns.push(client, sender);
            receiver
        };
        // The gate lives as long as this future, which borrows it, so the sender is never dropped unused.
        entered.await.unwrap_or_else(|_| RequestPlace(Weak::new()))
    }
}

impl GateState {
    fn pop(&mut self) -> Option<WaitingRequest> {
        let urgent = |state: &mut Self| Some((state.urgent.pop()?, true));
        let other = |state: &mut Self| Some((state.others.pop()?, false));
        let (next, is_urgent) = match self.was_urgent {
            true => other(self).or_else(|| urgent(self))?,
            false => urgent(self).or_else(|| other(self))?,
        };
        self.was_urgent = is_urgent;
        Some(next)
    }
}

impl Turns {
    fn push(&mut self, client: Option<&ClientName>, request: WaitingRequest) {
        match self.0.iter_mut().find(|(name, _)| name.as_ref() == client) {
            Some((_, queue)) => queue.push_back(request),
            None => self.0.push_back((client.cloned(), VecDeque::from([request]))),
        }
    }

    fn pop(&mut self) -> Option<WaitingRequest> {
        let (client, mut queue) = self.0.pop_front()?;
        let request = queue.pop_front();
        if !queue.is_empty() {
            self.0.push_back((client, queue));
        }
        request
    }
}

impl Drop for RequestPlace {
    fn drop(&mut self) {
        let Some(state) = self.0.upgrade() else { return };
        loop {
            let next = state.borrow_mut().pop();
            let Some(next) = next else {
                state.borrow_mut().n_free += 1;
                return;
            };
            // A request that was given up meanwhile does not take the place.
            if !next.is_closed() {
                // If it is given up just now, the drop of its place comes here again.
                let _ = next.send(RequestPlace(self.0.clone()));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures_util::FutureExt;

    use super::*;

    type Entering<'a> = Pin<Box<dyn Future<Output = RequestPlace> + 'a>>;

    fn enter(gate: &RequestGate, client: u32, is_urgent: bool) -> Entering<'_> {
        let client = ClientName::of_user(client);
        let mut entering: Entering<'_> = Box::pin(async move { gate.enter(Some(&client), is_urgent).await });
        assert!((&mut entering).now_or_never().is_none(), "there is no place");
        entering
    }

    /// The order in which these requests enter a gate with one place.
    fn order(requests: &[(u32, bool)]) -> Vec<usize> {
        let gate = RequestGate::of(1);
        let mut place = gate.enter(None, false).now_or_never();
        let mut waiting: Vec<_> =
            requests.iter().map(|(client, is_urgent)| Some(enter(&gate, *client, *is_urgent))).collect();
        let mut order = Vec::new();
        while let Some(last) = place.take() {
            drop(last);
            for (n, request) in waiting.iter_mut().enumerate() {
                if let Some(entered) = request.as_mut().and_then(|entering| entering.now_or_never()) {
                    (place, *request) = (Some(entered), None);
                    order.push(n);
                    break;
                }
            }
        }
        assert!(gate.enter(None, false).now_or_never().is_some(), "all places are free again");
        order
    }

    #[test]
    fn cancellations_go_first_and_clients_take_turns() {
        let requests = [(1, false), (1, false), (1, false), (2, false), (1, true)];
        assert_eq!(order(&requests), [4, 0, 3, 1, 2]);
    }

    #[test]
    fn cancellations_of_one_client_hold_up_neither_cancellations_nor_requests_of_another() {
        let requests = [(1, true), (1, true), (1, true), (2, true), (2, false), (1, false), (2, false)];
        assert_eq!(order(&requests), [0, 4, 3, 5, 1, 6, 2]);
    }

    #[test]
    fn a_request_that_was_given_up_takes_no_place() {
        let gate = RequestGate::of(1);
        let first = gate.enter(None, false).now_or_never().expect("a place");
        drop(enter(&gate, 1, false));
        let mut second = enter(&gate, 2, false);
        drop(first);
        assert!((&mut second).now_or_never().is_some());
    }
}
