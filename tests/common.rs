//! What the tests share: the service as a process, a client of its own, and a backend that follows a script.

pub mod client;
pub mod hostile;
pub mod http_proxy;
pub mod messages_api;
pub mod procs;
pub mod proxy;
pub mod service;
pub mod sources;
pub mod stub;
pub mod tampering_proxy;

use std::{
    fs::OpenOptions,
    io::Write,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

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

/// How often something is repeated, or how much is moved: a little in `make test`, and a lot in `make stress`, which
/// runs the modules that call this.
pub fn scale(small: usize, large: usize) -> usize {
    if std::env::var_os("STRESS").is_some() { large } else { small }
}

/// Waits until something is so, and fails saying what was waited for.
pub fn wait_until(what: &str, within: Duration, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < within, "waited {within:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How `unshare` makes a network namespace here: without privileges a user namespace may do.
pub fn namespace() -> Result<&'static str, &'static str> {
    let option = if rustix::process::geteuid().is_root() { "-n" } else { "-rn" };
    let able = Command::new("unshare").args([option, "ip", "link"]).output();
    if able.is_ok_and(|output| output.status.success()) {
        Ok(option)
    } else {
        Err("no network namespaces (unshare -n, ip)")
    }
}

/// Says that something cannot be tried here, past the capturing of the tests' output, and again at the end
/// of `make test`. Where `CI` is set nothing may be left out.
pub fn left_out(what: &str, missing: &str) {
    assert!(std::env::var_os("CI").is_none(), "{what} cannot be tried: {missing}");
    let line = format!("LEFT OUT: {what}: {missing}\n");
    let note = Path::new(env!("CARGO_TARGET_TMPDIR")).join("left-out");
    let mut note = OpenOptions::new().create(true).append(true).open(note).expect("cargo made the directory");
    note.write_all(line.as_bytes()).expect("a line fits");
    let _ = std::io::stderr().write_all(line.as_bytes());
}
