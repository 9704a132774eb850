//! The end of a service: what runs may finish for three quarters of the time, then it is canceled, and
//! what was said last is delivered.

use std::{sync::Arc, time::Duration};

use actix::Addr;
use actix_web::web;
use cc_executor_actors::{
    clock::millis,
    supervisor::{Drain, Supervisor},
};
use log::error;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{backend::registry::Registry, server::connection::Unflushed};

/// The longest grace of a command that still runs when its time is over.
const MAX_GRACE: Duration = Duration::from_secs(1);

/// What part of the whole that grace is at the most: the rest of the last quarter is for ending what did
/// not obey, and for clients that are slow to close.
const GRACE_PART: u32 = 16;

/// What is to be drained. A service with an embedded backend has both.
#[derive(Clone, Default)]
pub struct Draining {
    /// The sessions, and their connections.
    pub gateway: Option<(Addr<Supervisor>, Unflushed)>,
    /// The executions of this process.
    pub registry: Option<web::Data<Registry>>,
}

/// When what happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Plan {
    /// How long what runs may go on.
    finish: Duration,
    /// Between TERM and KILL for what then still runs.
    grace: Duration,
}

impl Plan {
    fn of(whole: Duration) -> Self {
        Plan { finish: whole * 3 / 4, grace: MAX_GRACE.min(whole / GRACE_PART) }
    }
}

impl Draining {
    /// Ends everything in order, within this time.
    pub async fn run(self, whole: Duration) {
        let plan = Plan::of(whole);
        let grace_ms = millis(plan.grace);
        let begun_at = Instant::now();
        if let Some(registry) = &self.registry {
            registry.drain();
        }
        let this = Arc::new(self);
        let hurrying = {
            let this = Arc::clone(&this);
            async move {
                sleep_until(begun_at + plan.finish).await;
                if let Some((supervisor, _)) = &this.gateway {
                    supervisor.do_send(Drain::Hurry { grace_ms });
                }
                if let Some(registry) = &this.registry {
                    registry.cancel_all(grace_ms);
                }
            }
        };
        let ended = async {
            if let Some((supervisor, unflushed)) = &this.gateway {
                let executions_live_on = this.registry.is_none();
                // A supervisor that is gone has no sessions either.
                let _ = supervisor.send(Drain::Begin { executions_live_on, grace_ms }).await;
                unflushed.none().await;
            }
            if let Some(registry) = &this.registry {
                registry.idle().await;
            }
        };
        let hurrying = actix_web::rt::spawn(hurrying);
        if timeout_at(begun_at + whole, ended).await.is_err() {
            error!(event = "drain.incomplete"; "not everything had ended after {} ms", millis(whole));
        }
        hurrying.abort();
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
