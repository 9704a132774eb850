//! Makes the kernel end the command, and not the service, when memory runs out.

use std::fs;

/// The value of `oom_score_adj` for commands, in thousandths of all memory (proc(5)).
const RAISED: i32 = 500;

const PATH: &str = "/proc/self/oom_score_adj";

/// Raises the score of this process; an exec keeps it and children inherit it. If that is not allowed, the command
/// keeps the default score.
pub(super) fn raise() {
    let own = fs::read_to_string(PATH).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if own.is_some_and(|own| own < RAISED) {
        let _ = fs::write(PATH, RAISED.to_string());
    }
}
