//! Forgets executions whose retention is over, and gives their memory back to the system.

use std::{sync::Weak, time::Duration};

use super::state::{FORGOTTEN_AT_A_TIME, RegistryShared};
use crate::syscall::trim_heaps;

/// The interval in which executions whose retention is over are forgotten.
const FORGET_CADENCE: Duration = Duration::from_secs(1);

/// Forgets executions for as long as the registry exists.
pub(super) async fn forget_in_time(this: Weak<RegistryShared>) {
    let (mut trimmed_at, mut seen_at) = (None, None);
    loop {
        tokio::time::sleep(FORGET_CADENCE).await;
        while let Some(shared) = this.upgrade()
            && shared.forget(&mut shared.lock(), shared.now_ms()) == FORGOTTEN_AT_A_TIME
        {
            drop(shared);
            tokio::task::yield_now().await;
        }
        let Some(idle_at) = this.upgrade().map(|shared| shared.lock().idle_at()) else { return };
        // Only if nothing has changed since the last look, because a backend with short executions needs the memory
        // again.
        if idle_at.is_some() && idle_at == seen_at && idle_at != trimmed_at {
            // Not on this thread, because it takes milliseconds to walk large heaps. It does not panic.
            let _ = tokio::task::spawn_blocking(trim_heaps).await;
            trimmed_at = idle_at;
        }
        seen_at = idle_at;
    }
}
