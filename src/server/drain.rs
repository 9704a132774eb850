//! The orderly end of a service after SIGTERM or SIGINT. No role accepts new work. Queued executions are canceled and idle
//! sessions closed at once. Running executions may finish for three quarters of the time, then they are canceled, and
//! their last output is delivered. Executions that may detach stay at a backend that is another process, running or
//! queued; their sessions are closed at once. A second signal ends everything at once.
//!
//! Start with [`drain`], which `stop` in `src/roles.rs` calls: the gateway is drained before its own backend. The
//! gateway (`Drainable` in `src/gateway.rs`) tells each session, and `on_drain` in `actors/src/session/phase/open.rs`
//! decides. The backend (`Drainable` in `src/backend.rs`) refuses and cancels in `drain` and `cancel_all` of
//! `src/backend/registry.rs`.

use std::time::Duration;

use cc_executor_actors::clock::millis;
use futures_util::future::LocalBoxFuture;
use log::error;
use tokio::time::{Instant, sleep_until};

/// The longest grace of an execution that is canceled because the time is over.
const MAX_GRACE: Duration = Duration::from_secs(1);

/// The longest grace as a part of the whole time. The rest of the last quarter is for killing processes that
/// did not end, and for clients that are slow to close.
const GRACE_PART: u32 = 16;

/// A role of this process that can be drained.
pub trait Drainable {
    /// Refuses new work from now on, and returns a future that waits until all work has ended by itself and has been
    /// delivered. `grace_ms` is the time between TERM and KILL of executions that are canceled meanwhile.
    fn drained(&self, grace_ms: u64) -> LocalBoxFuture<'_, ()>;

    /// What the stop of this role cuts short, such as `executions killed: 2`.
    fn unfinished(&self) -> LocalBoxFuture<'_, String>;

    /// Cancels all executions that still run, with this time between TERM and KILL.
    fn cancel_rest(&self, grace_ms: u64);
}

/// The times of a drain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Plan {
    /// How long running executions may continue.
    finish: Duration,
    /// The time between TERM and KILL for executions that then still run.
    grace: Duration,
}

impl Plan {
    fn of(whole: Duration) -> Self {
        Plan { finish: whole * 3 / 4, grace: MAX_GRACE.min(whole / GRACE_PART) }
    }
}

/// Drains these roles within this time. They are awaited in order: list a gateway before its backend.
pub async fn drain(roles: Vec<Box<dyn Drainable>>, whole: Duration) {
    let plan = Plan::of(whole);
    let grace_ms = millis(plan.grace);
    let begun_at = Instant::now();
    // All roles refuse new work before the first one is awaited.
    let draining: Vec<_> = roles.iter().map(|role| role.drained(grace_ms)).collect();
    let ended = async {
        for drained in draining {
            drained.await;
        }
    };
    let overdue = async {
        sleep_until(begun_at + plan.finish).await;
        roles.iter().for_each(|role| role.cancel_rest(grace_ms));
        sleep_until(begun_at + whole).await;
    };
    tokio::select! {
        () = ended => {}
        () = overdue => {
            let mut rest = Vec::new();
            for role in &roles {
                rest.push(role.unfinished().await);
            }
            error!(event = "drain.incomplete"; "not all had ended after {} ms: {}; raise --drain-ms to give them more time",
                millis(whole), rest.join(", "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_quarters_are_for_what_runs_and_the_grace_fits_into_the_rest() {
        let plan = Plan::of(Duration::from_secs(8));
        assert_eq!(plan, Plan { finish: Duration::from_secs(6), grace: Duration::from_millis(500) });
        for ms in [100, 1_000, 30_000] {
            let whole = Duration::from_millis(ms);
            let plan = Plan::of(whole);
            assert!(plan.finish + plan.grace < whole && plan.grace <= MAX_GRACE);
        }
    }
}
