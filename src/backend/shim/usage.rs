//! What the processes of an execution used.

use cc_executor_actors::outcome::Usage;
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeVal,
};

/// What all processes used that this process has reaped, and those that they have reaped (getrusage(2)). `None` if the
/// kernel does not say.
pub(super) fn of_reaped(peak_tree_bytes: Option<u64>) -> Option<Usage> {
    let used = getrusage(UsageWho::RUSAGE_CHILDREN).ok()?;
    Some(Usage {
        cpu_user_ms: millis(used.user_time()),
        cpu_system_ms: millis(used.system_time()),
        // In KiB on Linux.
        max_process_rss_bytes: used.max_rss().unsigned_abs() * 1024,
        peak_tree_bytes,
    })
}

fn millis(time: TimeVal) -> u64 {
    time.tv_sec().unsigned_abs() * 1_000 + time.tv_usec().unsigned_abs() / 1_000
}
