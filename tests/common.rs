//! What the tests share: the service as a process, a client of its own, and a backend that follows a script.

pub mod client;
pub mod procs;
pub mod proxy;
pub mod service;
pub mod stub;

use std::time::{Duration, Instant};

/// The bound of every wait for something that should come at once. Generous: machines are shared.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until something is so, and fails saying what was waited for.
pub fn wait_until(what: &str, within: Duration, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < within, "waited {within:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
