//! Whether a session reads its client. While the gate is shut, messages stay in the client's socket, so that a client
//! cannot queue work or responses without a bound: TCP holds it back.

use std::{cell::Cell, pin::Pin, rc::Rc};

use futures_util::{Stream, StreamExt, stream};
use tokio::sync::Notify;

use super::phase::Incoming;

/// The gate of one session.
#[derive(Debug, Default)]
pub(super) struct ReadGate {
    is_shut: Cell<bool>,
    opened: Notify,
}

impl ReadGate {
    /// Opens or shuts the gate.
    pub(super) fn set_shut(&self, is_shut: bool) {
        if self.is_shut.replace(is_shut) && !is_shut {
            self.opened.notify_one();
        }
    }

    /// Whether the client is not read.
    pub(super) fn is_shut(&self) -> bool {
        self.is_shut.get()
    }

    async fn pass(&self) {
        while self.is_shut.get() {
            self.opened.notified().await;
        }
    }

    /// The client's messages, of which the next is only read while the gate is open.
    pub(super) fn guard(
        self: Rc<Self>,
        incoming: impl Stream<Item = Incoming> + 'static,
    ) -> impl Stream<Item = Incoming> {
        let incoming: Pin<Box<dyn Stream<Item = Incoming>>> = Box::pin(incoming);
        stream::unfold((self, incoming), |(gate, mut incoming)| async {
            gate.pass().await;
            let next = incoming.next().await?;
            Some((next, (gate, incoming)))
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn nothing_is_read_while_the_gate_is_shut() {
        let gate = Rc::new(ReadGate::default());
        let mut guarded = Box::pin(Rc::clone(&gate).guard(stream::iter([Incoming::Close, Incoming::Gone])));
        gate.set_shut(true);
        assert_eq!(guarded.next().now_or_never(), None);
        gate.set_shut(false);
        assert_eq!(guarded.next().now_or_never(), Some(Some(Incoming::Close)));
        gate.set_shut(true);
        gate.set_shut(false);
        assert_eq!(guarded.next().now_or_never(), Some(Some(Incoming::Gone)));
    }
}
