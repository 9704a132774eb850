//! Processes as /proc shows them. A test marks its own by an argument that nobody else has.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::wait_until;

/// A number of seconds to sleep that no other process has: the mark of one test's processes.
pub fn mark() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{}{:05}", 100_000 + std::process::id() % 900_000, n)
}

/// Processes, zombies excepted, one of whose arguments is exactly this.
pub fn with_argument(mark: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
            line.split(|byte| *byte == 0).any(|argument| argument == mark.as_bytes())
        })
        .collect()
}

/// Waits until so many processes bear the mark, and gives them.
pub fn wait_for(mark: &str, n: usize, within: Duration) -> Vec<u32> {
    let mut found = Vec::new();
    wait_until(&format!("{n} processes with {mark}"), within, || {
        found = with_argument(mark);
        found.len() == n
    });
    found
}

/// Every process that descends from this one, as far as its ancestors are there, zombies excepted.
pub fn below(root: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let all: Vec<(u32, u32)> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
            let state = fields.next()?;
            let parent = fields.next()?.parse().ok()?;
            (state != "Z").then_some((pid, parent))
        })
        .collect();
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(all.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.split_off(1)
}
