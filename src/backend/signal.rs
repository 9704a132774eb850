//! Names of signals on Linux (signal(7)).

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

/// The number of a signal with this name.
pub fn number(name: &str) -> Option<i32> {
    match NAMES.iter().position(|known| *known == name) {
        Some(at) => i32::try_from(at + 1).ok(),
        None => name.strip_prefix("SIG")?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree_with_each_other_and_with_the_system() {
        for at in 1..=64 {
            assert_eq!(number(&name(at)), Some(at));
        }
        assert_eq!(name(rustix::process::Signal::KILL.as_raw()), "SIGKILL");
        assert_eq!(name(rustix::process::Signal::SYS.as_raw()), "SIGSYS");
        assert_eq!(name(34), "SIG34");
    }
}
