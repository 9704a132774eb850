//! Helpers of the tests: the service as a process, a client, proxies that inject faults, and scripted backends.

pub mod backend_caller;
pub mod certificates;
pub mod claude_cli;
pub mod client;
pub mod client_package;
pub mod client_process;
pub mod connect_proxy;
pub mod containment;
pub mod curl;
pub mod frames;
pub mod http;
pub mod http_proxy;
pub mod json_schema;
pub mod link;
pub mod listener;
pub mod memory_cgroup;
pub mod messages_api;
pub mod nginx;
pub mod procs;
pub mod proxy;
pub mod recording;
pub mod service;
pub mod sources;
pub mod stub;
pub mod tampering_proxy;
pub mod temp;
pub mod terminal;
pub mod users;

use std::{
    fs::OpenOptions,
    io::Write,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;
use sha2::{Digest, Sha256};

/// The bound of every wait for something that should come at once. It is generous, because test machines are shared.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The bound of every wait during which a test cannot observe progress. The longest such wait, all checks of `check`, takes less
/// than a minute.
pub const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// A pseudo-random sequence of numbers below a given bound (xorshift), the same in each run.
pub fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    }
}

/// The number of repetitions, or the amount of data: `small` in `make test`, `large` in `make stress`, which runs the
/// modules that call this.
pub fn scale(small: usize, large: usize) -> usize {
    if std::env::var_os("STRESS").is_some() { large } else { small }
}

/// Waits until the condition holds. `what` names it in the failure.
pub fn wait_until(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < within, "waited {within:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a value is at least `least` and has not changed for this period, and returns it.
pub fn wait_until_stable(what: &str, least: u64, period: Duration, mut read: impl FnMut() -> u64) -> u64 {
    let (mut value, mut since) = (read(), Instant::now());
    wait_until(&format!("{what} do not change"), 3 * PATIENCE, || {
        std::thread::sleep(period / 10);
        let now = read();
        if now != value {
            (value, since) = (now, Instant::now());
        }
        value >= least && since.elapsed() >= period
    });
    value
}

/// Whether a terminal or a log reader obeys a character instead of showing it: a control character other than `\n`, a line
/// separator (U+2028, U+2029), or a character that changes the direction of text (Unicode's Bidi_Control). Independent of
/// `console::is_obeyed`, so that an error there is found.
pub fn is_obeyed(c: char) -> bool {
    let changes_direction =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c != '\n' && c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') || changes_direction
}

/// Characters of each kind that must not be printed raw.
pub const HOSTILE: &str =
    "\u{1b}]0;title\u{7}\r\u{9b}2J\u{85}\u{7f}\u{2028}\u{2029}\u{202e}\u{2066}\u{2069}\u{61c}\u{200e}\u{200f}";

/// The SHA-256 in hexadecimal, as endings state it.
pub fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// The first parameters with those of the second object added.
pub fn merged(mut params: Value, more: &Value) -> Value {
    let more = more.as_object().expect("parameters are an object").clone();
    params.as_object_mut().expect("parameters are an object").extend(more);
    params
}

/// The option with which `unshare` makes a network namespace here. Without privileges it needs a user namespace, too.
pub fn network_namespace_option() -> Result<&'static str, &'static str> {
    let option = if rustix::process::geteuid().is_root() { "-n" } else { "-rn" };
    let works = Command::new("unshare").args([option, "ip", "link"]).output();
    if works.is_ok_and(|output| output.status.success()) {
        Ok(option)
    } else {
        Err("no network namespaces (unshare -n, ip)")
    }
}

/// Reports that something cannot be tested here: on standard error, past the test harness that captures the output, and
/// in the file that `make test` prints at its end. Where `CI` is set, this is a failure.
pub fn left_out(what: &str, missing: &str) {
    assert!(std::env::var_os("CI").is_none(), "{what} cannot be tested: {missing}");
    let line = format!("LEFT OUT: {what}: {missing}\n");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("left-out");
    let mut file = OpenOptions::new().create(true).append(true).open(path).expect("cargo made the directory");
    file.write_all(line.as_bytes()).expect("the file is writable");
    let _ = std::io::stderr().write_all(line.as_bytes());
}
