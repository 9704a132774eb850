//! Suspends the client, as Ctrl-Z does with any other command.

use rustix::process::{Signal, kill_current_process_group};

use crate::syscall::with_default_action;

/// Stops the process group, so that the user's shell takes the terminal. Returns when the shell continues it, or at once
/// where no shell could, because then the kernel ignores the signal (`setpgid(2)`, orphaned process groups).
///
/// The whole group stops, because a shell waits for all processes of a pipeline.
pub(super) fn suspend_group() {
    with_default_action(Signal::TSTP, || {
        // Fails never: this process may signal itself.
        let _ = kill_current_process_group(Signal::TSTP);
    });
}
