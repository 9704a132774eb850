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
    /// Cancellations go first.
    urgent: VecDeque<oneshot::Sender<RequestPlace>>,
    /// The waiting requests of each client; `None` is the gateway itself. The clients take turns.
    waiting: VecDeque<(Option<ClientName>, VecDeque<oneshot::Sender<RequestPlace>>)>,
}

impl RequestGate {
    pub(super) fn new() -> Self {
        RequestGate::of(MAX_REQUESTS)
    }

    fn of(n_free: usize) -> Self {
        RequestGate(Rc::new(RefCell::new(GateState { n_free, urgent: VecDeque::new(), waiting: VecDeque::new() })))
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
            state.push(client, is_urgent, sender);
            receiver
        };
        // The gate lives as long as this future, which borrows it, so the sender is never dropped unused.
        entered.await.unwrap_or_else(|_| RequestPlace(Weak::new()))
    }
}

impl GateState {
    fn push(&mut self, client: Option<&ClientName>, is_urgent: bool, sender: oneshot::Sender<RequestPlace>) {
        if is_urgent {
            return self.urgent.push_back(sender);
        }
        match self.waiting.iter_mut().find(|(name, _)| name.as_ref() == client) {
            Some((_, queue)) => queue.push_back(sender),
            None => self.waiting.push_back((client.cloned(), VecDeque::from([sender]))),
        }
    }

    fn pop(&mut self) -> Option<oneshot::Sender<RequestPlace>> {
        if let Some(sender) = self.urgent.pop_front() {
            return Some(sender);
        }
        let (client, mut queue) = self.waiting.pop_front()?;
        let sender = queue.pop_front();
        if !queue.is_empty() {
            self.waiting.push_back((client, queue));
        }
        sender
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

    #[test]
    fn cancellations_go_first_and_clients_take_turns() {
        let gate = RequestGate::of(1);
        let first = gate.enter(None, false).now_or_never().expect("a place");
        let mut waiting = [
            enter(&gate, 1, false),
            enter(&gate, 1, false),
            enter(&gate, 1, false),
            enter(&gate, 2, false),
            enter(&gate, 1, true),
        ];
        let mut order = Vec::new();
        let mut place = Some(first);
        while let Some(last) = place.take() {
            drop(last);
            for (n, entering) in waiting.iter_mut().enumerate().filter(|(n, _)| !order.contains(n)).collect::<Vec<_>>()
            {
                if let Some(entered) = entering.now_or_never() {
                    place = Some(entered);
                    order.push(n);
                    break;
                }
            }
        }
        assert_eq!(order, [4, 0, 3, 1, 2]);
        assert!(gate.enter(None, false).now_or_never().is_some(), "all places are free again");
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
