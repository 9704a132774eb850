//! The signals of Linux (signal(7)): their names and numbers, and those that a client may send.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

/// The standard signals. The number of a signal is its position, counted from 1.
const NAMES: [&str; 31] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

/// The name of a signal, or `SIG` and its number for a real-time one.
pub fn name(number: i32) -> String {
    let known = usize::try_from(number - 1).ok().and_then(|at| NAMES.get(at));
    known.map_or_else(|| format!("SIG{number}"), |name| (*name).to_owned())
}

/// The number of the signal with this name.
pub fn number(name: &str) -> Option<i32> {
    match NAMES.iter().position(|known| *known == name) {
        Some(at) => i32::try_from(at + 1).ok(),
        None => name.strip_prefix("SIG")?.parse().ok(),
    }
}

/// A signal that a client may send.
#[derive(Clone, Copy, PartialEq, Eq, Debug, JsonSchema, Serialize)]
#[schemars(extend("enum" = Signal::SENDABLE))]
pub struct Signal(&'static str);

impl Signal {
    /// The names of the signals that a client may send. STOP, TSTP and CONT are missing, because they would stop or
    /// continue an execution without a change of its status; PAUSE and RESUME change it.
    pub const SENDABLE: [&'static str; 13] = [
        "SIGHUP", "SIGINT", "SIGQUIT", "SIGABRT", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM",
        "SIGWINCH", "SIGURG", "SIGIO",
    ];

    /// The signal with this name, if a client may send it.
    pub fn named(name: &str) -> Option<Self> {
        Self::SENDABLE.into_iter().find(|known| *known == name).map(Signal)
    }

    /// The name, such as `SIGINT`.
    pub fn name(self) -> &'static str {
        self.0
    }

    /// The number on Linux.
    pub fn number(self) -> i32 {
        number(self.0).unwrap_or(0)
    }
}

// Not derived, because derived code would borrow the name from the input.
impl<'de> Deserialize<'de> for Signal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Signal::named(&name).ok_or_else(|| de::Error::custom(format_args!("signal {name:?} cannot be sent")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree_with_each_other() {
        for at in 1..=64 {
            assert_eq!(number(&name(at)), Some(at));
        }
        assert_eq!((name(9).as_str(), name(31).as_str(), name(34).as_str()), ("SIGKILL", "SIGSYS", "SIG34"));
        assert_eq!(number("KILL"), None);
    }

    #[test]
    fn every_signal_that_a_client_may_send_has_a_number() {
        let numbers = Signal::SENDABLE.map(|name| Signal::named(name).map_or(0, Signal::number));
        assert_eq!(numbers, [1, 2, 3, 6, 9, 10, 12, 13, 14, 15, 28, 23, 29]);
        assert_eq!(Signal::named("SIGSTOP"), None);
    }
}
