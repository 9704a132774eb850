//! Tells waiting executions their positions in the queue.
//!
//! Not after every change, because a flood of changes would then cost a message to each waiting execution for each of
//! them: the longer the queue, the longer the time between two rounds.

use std::{sync::Weak, time::Duration};

use cc_executor_actors::id::ExecutionId;

use super::state::{QueueTurn, RegistryShared};

/// How many executions are told their positions under one lock, so that an execute never waits long for it.
const TOLD_AT_A_TIME: usize = 256;

/// The time from one round to the next: this, and as much again for each [`TOLD_AT_A_TIME`] waiting executions. So at
/// most about 5 000 messages are sent in a second.
const ROUND_PERIOD: Duration = Duration::from_millis(50);

/// Tells positions for as long as the registry exists.
pub(super) async fn tell_in_time(registry: Weak<RegistryShared>) {
    let Some(mut changed) = registry.upgrade().map(|shared| shared.queue_changed.subscribe()) else { return };
    // An error means that the registry is gone.
    while changed.changed().await.is_ok() {
        let Some(ids) = registry.upgrade().map(|shared| waiting(&shared)) else { return };
        for some in ids.chunks(TOLD_AT_A_TIME) {
            let Some(shared) = registry.upgrade() else { return };
            tell(&shared, some);
            drop(shared);
            tokio::task::yield_now().await;
        }
        let n_locks = u32::try_from(ids.len() / TOLD_AT_A_TIME).unwrap_or(u32::MAX);
        tokio::time::sleep(ROUND_PERIOD.saturating_mul(n_locks.saturating_add(1))).await;
    }
}

fn waiting(shared: &RegistryShared) -> Vec<ExecutionId> {
    shared.lock().places.queue().ids().collect()
}

fn tell(shared: &RegistryShared, ids: &[ExecutionId]) {
    let mut state = shared.lock();
    let now_ms = shared.now_ms();
    for id in ids {
        // Absent if it has left the queue meanwhile.
        if let Some(position) = state.places.queue().position(*id)
            && let Some(live) = state.live(*id, now_ms)
        {
            let turn = QueueTurn::Position(position);
            live.turn.send_if_modified(|current| std::mem::replace(current, turn) != turn);
        }
    }
}
