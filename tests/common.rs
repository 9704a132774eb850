//! What the tests share: the service as a process, a client of its own, and a backend that follows a script.

pub mod client;
pub mod messages_api;
pub mod procs;
pub mod proxy;
pub mod service;
pub mod stub;

use std::time::{Duration, Instant};

/// The bound of every wait for something that should come at once. Generous: machines are shared.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Numbers below a bound that one would not guess, the same in each run.
pub fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    }
}

/// Waits until something is so, and fails saying what was waited for.
pub fn wait_until(what: &str, within: Duration, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < within, "waited {within:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
