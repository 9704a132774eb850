//! Which process the kernel ends when memory runs out: the command that took it, not the service that can tell of it.

use std::fs;

/// What a command's badness is raised by, in thousandths of all memory (proc(5), `oom_score_adj`).
const RAISED: i32 = 500;

const PATH: &str = "/proc/self/oom_score_adj";

/// Raises the score of this process, which an exec keeps and children inherit. Where that is not allowed, a
/// command has the score of everybody.
pub(super) fn raise() {
    let own = fs::read_to_string(PATH).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if own.is_some_and(|own| own < RAISED) {
        let _ = fs::write(PATH, RAISED.to_string());
    }
}
