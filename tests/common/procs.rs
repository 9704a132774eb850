//! Processes as /proc shows them. A test marks its own by a unique argument.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::wait_until;

/// A number of seconds to sleep that no other test uses: an argument that marks a test's processes.
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

/// Waits until exactly `n` processes have the mark, and returns them.
pub fn wait_for(mark: &str, n: usize, within: Duration) -> Vec<u32> {
    let mut found = Vec::new();
    wait_until(&format!("{n} processes with {mark}"), within, || {
        found = with_argument(mark);
        found.len() == n
    });
    found
}

/// Every descendant of a process, zombies excepted. Descendants whose parent has exited are not found.
pub fn descendants(root: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let all: Vec<(u32, u32)> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| {
            let (state, parent) = state_and_parent(pid)?;
            (state != 'Z').then_some((pid, parent))
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

/// The state of a process, such as T for stopped, and its parent.
fn state_and_parent(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// The state of a process, `None` if there is none.
pub fn state(pid: u32) -> Option<char> {
    Some(state_and_parent(pid)?.0)
}

/// The parent of a process.
pub fn parent(pid: u32) -> Option<u32> {
    Some(state_and_parent(pid)?.1)
}

/// The name of a process, at most 15 bytes of it.
pub fn name(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned())
}

/// The number of bytes that a process has written so far, to any descriptor; 0 if there is none.
pub fn bytes_written(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok()).unwrap_or(0)
}
