//! Ended executions of a session whose last output is not acknowledged yet.

use std::collections::VecDeque;

use super::Effect;
use crate::{
    id::ExecutionId,
    session::liveness::{MAX_UNANSWERED, SentOffsets},
    stream::PerStream,
};

/// Ended executions that could detach, in the order of their ends. The oldest is forgotten when there are too many.
#[derive(Debug, Default)]
pub(super) struct UnacknowledgedEnds(VecDeque<UnacknowledgedEnd>);

#[derive(Clone, Copy, Debug)]
struct UnacknowledgedEnd {
    /// The execution, and the ends of its streams.
    sent: SentOffsets,
    /// The number of the session's hold.
    hold: Option<u64>,
    /// Whether its client acknowledges with `ack`.
    by_client: bool,
}

impl UnacknowledgedEnds {
    /// An execution has ended. It replaces an earlier end of the same execution, which the session attached to again.
    pub(super) fn push(&mut self, sent: SentOffsets, hold: Option<u64>, by_client: bool) {
        self.0.retain(|end| end.sent.0 != sent.0);
        if self.0.len() == MAX_UNANSWERED {
            self.0.pop_front();
        }
        self.0.push_back(UnacknowledgedEnd { sent, hold, by_client });
    }

    /// A pong shows that a client has received this much of an execution. If that execution has ended, the client has
    /// also received everything of those that ended before it, because pongs come in order. Returns the acknowledgements.
    pub(super) fn on_pong(&mut self, sent: SentOffsets) -> Vec<Effect> {
        let is_it = |end: &UnacknowledgedEnd| end.sent.0 == sent.0 && !end.by_client;
        let Some(at) = self.0.iter().position(is_it) else { return Vec::new() };
        let later = self.0.split_off(at + 1);
        let mut effects = Vec::new();
        self.0.retain(|end| {
            if end.by_client {
                return true;
            }
            // The ping may have been sent before the last output.
            let received = if end.sent.0 == sent.0 { sent } else { end.sent };
            effects.push(Effect::AcknowledgeEnded(received.0, received.1, end.hold));
            received != end.sent
        });
        self.0.extend(later);
        effects
    }

    /// The client acknowledges an execution itself. Returns the acknowledgement, or `None` if the execution has not ended
    /// here.
    ///
    /// # Errors
    ///
    /// The offsets are beyond the ends of the streams, which are returned.
    pub(super) fn on_ack(
        &mut self,
        id: ExecutionId,
        offsets: PerStream<u64>,
    ) -> Result<Option<Effect>, PerStream<u64>> {
        let Some(at) = self.0.iter().position(|end| end.sent.0 == id) else { return Ok(None) };
        let end = &mut self.0[at];
        let sent = end.sent.1;
        if offsets.stdout > sent.stdout || offsets.stderr > sent.stderr {
            return Err(sent);
        }
        end.by_client = true;
        let effect = Effect::AcknowledgeEnded(id, offsets, end.hold);
        if offsets == sent {
            self.0.remove(at);
        }
        Ok(Some(effect))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(stdout: u64) -> PerStream<u64> {
        PerStream { stdout, stderr: 0 }
    }

    #[test]
    fn a_pong_acknowledges_earlier_ends_apart_from_those_that_the_client_acknowledges() {
        let [a, b, c] = [ExecutionId::random(), ExecutionId::random(), ExecutionId::random()];
        let mut ends = UnacknowledgedEnds::default();
        ends.push((a, at(1)), Some(1), false);
        ends.push((b, at(2)), Some(2), true);
        ends.push((c, at(3)), None, false);
        assert_eq!(
            ends.on_pong((c, at(2))),
            [Effect::AcknowledgeEnded(a, at(1), Some(1)), Effect::AcknowledgeEnded(c, at(2), None)]
        );
        assert_eq!(ends.on_pong((b, at(2))), []);
        assert_eq!(ends.on_pong((c, at(3))), [Effect::AcknowledgeEnded(c, at(3), None)]);
        assert_eq!(ends.on_pong((c, at(3))), []);
        assert_eq!(ends.on_ack(b, at(3)), Err(at(2)));
        assert_eq!(ends.on_ack(b, at(1)), Ok(Some(Effect::AcknowledgeEnded(b, at(1), Some(2)))));
        assert_eq!(ends.on_ack(b, at(2)), Ok(Some(Effect::AcknowledgeEnded(b, at(2), Some(2)))));
        assert_eq!(ends.on_ack(b, at(2)), Ok(None));
    }

    #[test]
    fn only_the_last_end_of_an_execution_is_acknowledged() {
        let [a, b] = [ExecutionId::random(), ExecutionId::random()];
        let mut ends = UnacknowledgedEnds::default();
        ends.push((a, at(1)), Some(1), false);
        ends.push((b, at(2)), Some(2), false);
        ends.push((a, at(3)), Some(3), false);
        assert_eq!(ends.on_ack(a, at(2)), Ok(Some(Effect::AcknowledgeEnded(a, at(2), Some(3)))));
        assert_eq!(ends.on_ack(a, at(3)), Ok(Some(Effect::AcknowledgeEnded(a, at(3), Some(3)))));
        assert_eq!(ends.on_pong((b, at(2))), [Effect::AcknowledgeEnded(b, at(2), Some(2))]);
        assert_eq!(ends.0.len(), 0);
    }

    #[test]
    fn the_number_of_ends_is_bounded() {
        let mut ends = UnacknowledgedEnds::default();
        for _ in 0..10_000 {
            ends.push((ExecutionId::random(), at(1)), None, true);
        }
        assert_eq!(ends.0.len(), MAX_UNANSWERED);
    }
}
