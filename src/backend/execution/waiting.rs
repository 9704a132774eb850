//! An execution that waits for its turn.

use std::time::Instant;

use cc_executor_actors::{
    backend::api::{Alive, Word},
    terminate::{CancelReport, Ending, Reason, Status},
};
use log::info;

use super::{Ask, Body, Stand, at, last, refuse};
use crate::backend::{
    spool::Moved,
    table::{Seat, Turn},
};

/// Waits until the execution may run. The error is how it ended before that.
pub(super) async fn wait_for_turn(body: &mut Body, seat: &mut Seat) -> Result<(), Ending> {
    let mut heartbeat_at = Instant::now() + body.terms.heartbeat;
    let mut said = None;
    loop {
        let position = match seat.turn() {
            Turn::Now => return Ok(()),
            Turn::Position(position) => position,
        };
        let stand = Stand { is_told: true, status: Status::Queued, position: Some(position), alive: Alive::default() };
        if said != Some(position) {
            if said.is_none() {
                info!(event = "execution.queued", execution_id:% = body.terms.id, position = position; "execution queued");
            }
            said = Some(position);
            body.spool.say(stand.first_word(&body.terms));
        }
        body.spool.deliver();
        let detached_until = body.detached_until();
        tokio::select! {
            biased;
            () = seat.turn_changed() => {}
            ask = body.asks.recv() => match ask.and_then(|ask| body.common(ask, || stand, None)) {
                Some(Ask::Cancel { reason, .. }) => return Err(canceled(reason.into(), seat)),
                Some(ask) => refuse(ask, "it still waits in the queue: only CANCEL reaches it"),
                None => {}
            },
            () = at(Some(heartbeat_at)) => {
                heartbeat_at = Instant::now() + body.terms.heartbeat;
                body.look_after_consumer();
                body.spool.mention(Word::Alive(stand.alive));
            }
            moved = body.spool.moved(body.terms.consumer_stall, body.asked_at) => {
                if moved != Moved::Room && body.left(moved) {
                    return Err(canceled(Reason::Disconnected, seat));
                }
            }
            () = at(detached_until) => return Err(canceled(Reason::Disconnected, seat)),
        }
    }
}

/// It never ran: there is nothing that could be left of it.
fn canceled(reason: Reason, seat: &Seat) -> Ending {
    let report = CancelReport::never_ran(0);
    seat.gone(report);
    let mut ending = last::never_ran(Status::Cancelled, reason, "it was ended before its turn came");
    ending.cancel = Some(report);
    ending
}
