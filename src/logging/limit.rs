//! Which lines a stranger can cause without a limit, and a limit of their rate. What is left out is counted.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use cc_executor_actors::peer::PeerBlock;
use log::Level;

use super::line::LogLine;

/// The number of lines of one subject that are written in any [`PERIOD`].
const LINES: usize = 10;

/// See [`LINES`].
const PERIOD: Duration = Duration::from_secs(1);

/// The number of subjects that are told apart. More share one limit for each event.
const MAX_SUBJECTS: usize = 128;

/// The events whose rate is limited, with the fields that name who causes them: the first that a line has counts. No client
/// can evade the limit with invented values: the service makes `session_id`, and `execution_id` names a running execution.
const LIMITED: &[(&str, &[&str])] = &[
    ("request.refused", &["peer"]),
    ("session.refused", &["peer"]),
    ("execution.refused", &["session_id"]),
    ("cancel.requested", &["session_id"]),
    ("steer.requested", &["session_id"]),
    ("signal.sent", &["execution_id"]),
    ("process.steered", &["execution_id"]),
];

/// The targets of this project's own lines begin with this.
const OWN_TARGETS: &str = "cc_executor";

/// What is limited: an event, or another crate's target, and who causes it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct LogSubject {
    pub(super) of: String,
    /// `None` for everybody who is not told apart.
    pub(super) by: Option<String>,
}

impl LogSubject {
    /// The subject of a line, or `None` if its rate is not limited. Warnings of other crates are limited, because a
    /// peer's malformed request causes them; below that level the operator has asked for them.
    pub(super) fn of(line: &LogLine<'_>) -> Option<LogSubject> {
        if !line.target.starts_with(OWN_TARGETS) {
            let is_limited = line.level <= Level::Warn;
            return is_limited.then(|| LogSubject { of: line.target.to_owned(), by: None });
        }
        let event = line.text("event")?;
        let (_, names) = LIMITED.iter().find(|(name, _)| *name == event)?;
        let by = names.iter().find_map(|name| line.text(name)).map(address_or_id);
        Some(LogSubject { of: event.to_owned(), by })
    }
}

/// The address or network that a peer shares with others, without its port. Another text is returned as it is.
fn address_or_id(text: &str) -> String {
    let address = text.parse::<SocketAddr>().map(|peer| peer.ip()).or_else(|_| text.parse::<IpAddr>());
    address.map_or_else(|_| text.to_owned(), |address| PeerBlock::from(Some(address)).to_string())
}

/// The decision about a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RateDecision {
    /// Write it, with the number of lines of its subject that were left out before it.
    Write { omitted: u64 },
    /// Leave it out. It is counted.
    Omit,
}

/// The rates of all subjects.
#[derive(Default)]
pub(super) struct LineLimiter {
    rates: HashMap<LogSubject, LineRate>,
}

/// The lines of a subject.
#[derive(Default)]
struct LineRate {
    /// The times of the newest lines that were written, at most [`LINES`].
    written: VecDeque<Duration>,
    omitted: u64,
}

impl LineRate {
    /// Whether no line was written in the last period, so that the next one is written in any case.
    fn is_quiet(&self, now: Duration) -> bool {
        self.written.back().is_none_or(|newest| *newest + PERIOD <= now)
    }
}

impl LineLimiter {
    /// Decides about a line. Times are those of one clock.
    pub(super) fn decide(&mut self, subject: LogSubject, now: Duration) -> RateDecision {
        let subject = self.told_apart(subject, now);
        let rate = self.rates.entry(subject).or_default();
        while rate.written.front().is_some_and(|oldest| *oldest + PERIOD <= now) {
            rate.written.pop_front();
        }
        if rate.written.len() >= LINES {
            rate.omitted += 1;
            return RateDecision::Omit;
        }
        rate.written.push_back(now);
        RateDecision::Write { omitted: std::mem::take(&mut rate.omitted) }
    }

    /// The subject itself, if it has a place in the table or can get one; else the subject of all others.
    fn told_apart(&mut self, subject: LogSubject, now: Duration) -> LogSubject {
        if self.rates.contains_key(&subject) || subject.by.is_none() {
            return subject;
        }
        if self.rates.len() >= MAX_SUBJECTS {
            self.rates.retain(|_, rate| rate.omitted > 0 || !rate.is_quiet(now));
        }
        if self.rates.len() < MAX_SUBJECTS { subject } else { LogSubject { by: None, ..subject } }
    }

    /// Whether there is a count that no line has named yet.
    pub(super) fn has_omitted(&self) -> bool {
        self.rates.values().any(|rate| rate.omitted > 0)
    }

    /// Takes the counts of subjects that have become quiet, so that no line of their own will name them soon; or all.
    pub(super) fn take_omitted(&mut self, quiet_at: Option<Duration>) -> Vec<(LogSubject, u64)> {
        let mut taken = Vec::new();
        for (subject, rate) in &mut self.rates {
            if rate.omitted > 0 && quiet_at.is_none_or(|now| rate.is_quiet(now)) {
                taken.push((subject.clone(), std::mem::take(&mut rate.omitted)));
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn refused_by(by: &str) -> LogSubject {
        LogSubject { of: "request.refused".to_owned(), by: Some(by.to_owned()) }
    }

    /// How many of `n` lines at this time are written.
    fn n_written(limiter: &mut LineLimiter, by: &str, at: Duration, n: usize) -> usize {
        (0..n).filter(|_| limiter.decide(refused_by(by), at) != RateDecision::Omit).count()
    }

    #[test]
    fn ten_lines_are_written_in_any_second() {
        let mut limiter = LineLimiter::default();
        for (at, n, written) in [
            (0, 4, 4),
            (900, 20, 6),
            (999, 5, 0),
            // The four of the first moment are a second old.
            (1000, 20, 4),
            (1899, 20, 0),
            (1900, 20, 6),
            (10_000, 20, 10),
        ] {
            assert_eq!(n_written(&mut limiter, "1.2.3.4", ms(at), n), written, "at {at} ms");
        }
    }

    #[test]
    fn the_next_line_names_how_many_were_left_out_before_it() {
        let mut limiter = LineLimiter::default();
        assert_eq!(n_written(&mut limiter, "1.2.3.4", ms(0), 13), 10);
        assert_eq!(limiter.decide(refused_by("5.6.7.8"), ms(1)), RateDecision::Write { omitted: 0 }, "another peer");
        assert!(limiter.has_omitted());
        assert_eq!(limiter.decide(refused_by("1.2.3.4"), ms(1000)), RateDecision::Write { omitted: 3 });
        assert_eq!(limiter.decide(refused_by("1.2.3.4"), ms(1000)), RateDecision::Write { omitted: 0 });
        assert!(!limiter.has_omitted());
    }

    #[test]
    fn the_count_of_a_quiet_subject_is_taken_once() {
        let mut limiter = LineLimiter::default();
        n_written(&mut limiter, "1.2.3.4", ms(0), 12);
        n_written(&mut limiter, "5.6.7.8", ms(500), 13);
        assert_eq!(limiter.take_omitted(Some(ms(999))), []);
        assert_eq!(limiter.take_omitted(Some(ms(1000))), [(refused_by("1.2.3.4"), 2)]);
        assert_eq!(limiter.take_omitted(None), [(refused_by("5.6.7.8"), 3)]);
        assert!(limiter.take_omitted(None).is_empty() && !limiter.has_omitted());
    }

    #[test]
    fn many_peers_share_a_bounded_table_and_nothing_is_uncounted() {
        let mut limiter = LineLimiter::default();
        let mut written = 0;
        for n in 0..5000_u64 {
            written += n_written(&mut limiter, &format!("peer {n}"), ms(n / 100), 3) as u64;
            assert!(limiter.rates.len() <= MAX_SUBJECTS + 1);
        }
        // The others share the limit of one.
        assert_eq!(written, 3 * MAX_SUBJECTS as u64 + LINES as u64);
        let omitted: u64 = limiter.take_omitted(None).iter().map(|(_, omitted)| omitted).sum();
        assert_eq!(written + omitted, 3 * 5000);
        // Places are given away when their subjects have become quiet.
        assert_eq!(n_written(&mut limiter, "another", ms(5000), 20), 10);
        assert_eq!(n_written(&mut limiter, "one more", ms(5000), 20), 10);
    }

    #[test]
    fn subjects_are_addresses_networks_and_ids() {
        for (target, level, event, fields, expected) in [
            ("cc_executor::a", Level::Warn, "request.refused", vec![("peer", "1.2.3.4:99")], Some(Some("1.2.3.4"))),
            ("cc_executor::a", Level::Warn, "request.refused", vec![("peer", "[::1]:99")], Some(Some("::1"))),
            (
                "cc_executor::a",
                Level::Warn,
                "request.refused",
                vec![("peer", "[2001:db8:1:2:3:4:5:6]:9")],
                Some(Some("2001:db8:1:2::/64")),
            ),
            (
                "cc_executor::a",
                Level::Warn,
                "request.refused",
                vec![("peer", "[::ffff:1.2.3.4]:9")],
                Some(Some("1.2.3.4")),
            ),
            ("cc_executor::a", Level::Warn, "request.refused", vec![], Some(None)),
            ("cc_executor_actors::a", Level::Info, "session.refused", vec![("peer", "1.2.3.4")], Some(Some("1.2.3.4"))),
            (
                "cc_executor_actors::a",
                Level::Info,
                "cancel.requested",
                vec![("execution_id", "e"), ("session_id", "s")],
                Some(Some("s")),
            ),
            ("cc_executor_actors::a", Level::Info, "cancel.requested", vec![("execution_id", "e")], Some(None)),
            ("cc_executor_actors::a", Level::Info, "session.opened", vec![("session_id", "s")], None),
            ("actix_http::h1", Level::Error, "", vec![], Some(None)),
            ("actix_http::h1", Level::Debug, "", vec![], None),
        ] {
            let fields: Map<String, Value> = [("event", event)]
                .into_iter()
                .chain(fields)
                .map(|(name, text)| (name.to_owned(), text.into()))
                .collect();
            let line = LogLine { level, target, fields, message: "".into() };
            let by = LogSubject::of(&line).map(|subject| subject.by);
            assert_eq!(by, expected.map(|by| by.map(str::to_owned)), "{target} {event}");
        }
    }
}
