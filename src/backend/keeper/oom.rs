//! Whom the kernel ends when memory runs out: the command that took it, not the service that can tell of it.

use std::{fs, fs::File, os::unix::fs::FileExt};

/// What a command's badness is raised by, in thousandths of all memory (proc(5), `oom_score_adj`).
const RAISED: i32 = 500;

const PATH: &str = "/proc/self/oom_score_adj";

/// The keeper's own score, which what it starts inherits.
pub(super) struct OomScore(Option<(File, i32)>);

impl OomScore {
    /// To be opened before the keeper is non-dumpable: then the file is no more its own. Where there is no
    /// such file a command is what everybody is.
    pub(super) fn open() -> Self {
        let own = fs::read_to_string(PATH).ok().and_then(|text| text.trim().parse().ok());
        let file = File::options().write(true).open(PATH).ok();
        OomScore(file.zip(own).filter(|(_, own)| *own < RAISED))
    }

    /// Does something with the score raised: a child that is started inherits it, without any moment in
    /// which it has not.
    pub(super) fn raised<T>(&self, start: impl FnOnce() -> T) -> T {
        let set = |score: i32| {
            if let Some((file, _)) = &self.0 {
                // Where that is not allowed, a command is what everybody is.
                let _ = file.write_all_at(score.to_string().as_bytes(), 0);
            }
        };
        set(RAISED);
        let started = start();
        if let Some((_, own)) = &self.0 {
            set(*own);
        }
        started
    }
}
