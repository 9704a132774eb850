//! An execution that has ended: its output and its ending are there for whoever comes back.

use std::time::Instant;

use cc_executor_actors::{
    backend::api::{Alive, Word},
    terminate::Ending,
};
use log::debug;

use super::{Ask, Body, Stand, at, refuse};
use crate::backend::{
    spool::{Dismissal, Moved},
    table::Kept,
};

/// Delivers the rest and the last word, to whoever follows it now and to whoever comes until the
/// retention is over. That begins anew when a consumer leaves: one whose connection breaks again and
/// again while it fetches a long rest has always as long to come back.
pub(super) async fn keep(mut body: Body, ending: Ending, mut kept: Kept) {
    let mut until = Instant::now() + body.terms.retention;
    let stand = Stand {
        status: ending.status,
        position: None,
        alive: Alive { elapsed_ms: ending.elapsed_ms.unwrap_or(0), ..Alive::default() },
    };
    let mut followed = true;
    loop {
        body.spool.deliver_last(|| Word::Exit(ending.clone()));
        kept.owe(body.spool.owes());
        if !body.spool.is_attached() && std::mem::take(&mut followed) {
            until = Instant::now() + body.terms.retention;
        }
        tokio::select! {
            biased;
            ask = body.asks.recv() => match ask {
                // Nobody can ask any more: the table has forgotten it.
                None => break,
                Some(ask) => {
                    followed |= matches!(ask, Ask::Attach(..));
                    match body.common(ask, || stand.clone(), Some(&ending)) {
                        Some(Ask::Shed) => body.spool.clear(),
                        Some(ask) => refuse(ask, "it has ended"),
                        None => {}
                    }
                }
            },
            moved = body.spool.moved(body.terms.consumer_stall, body.asked_at) => {
                if moved != Moved::Room {
                    body.spool.dismiss(Dismissal::Vanished);
                }
            }
            () = at((!body.spool.is_attached()).then_some(until)) => break,
        }
    }
    debug!(event = "execution.forgotten", execution_id:% = body.terms.id; "execution forgotten");
    drop(kept);
}
