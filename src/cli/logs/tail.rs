//! A log that goes on: each line is told as soon as it is known to be wanted.

use std::collections::VecDeque;

use super::{
    LineCounts, LogsOptions,
    filter::{FilterResult, LineFields, LineFilter, json_of, time_of},
    format::{self, LineFormatter},
};

/// How many lines are remembered that may yet turn out to be of the session asked for: the backend tells
/// of a process before the gateway tells whose it is. 20 MB at most.
const LOOK_BACK: usize = 50_000;

/// Takes a log line by line.
pub(super) struct LogTail<'a> {
    choice: LineFilter<'a>,
    /// Lines of executions of which it is not known whose they are, with the execution.
    waiting: VecDeque<(String, String)>,
    writer: LineFormatter,
    counts: LineCounts,
}

impl<'a> LogTail<'a> {
    pub(super) fn new(options: &'a LogsOptions) -> Self {
        let (choice, writer) = (LineFilter::new(options), LineFormatter::default());
        LogTail { choice, waiting: VecDeque::new(), writer, counts: LineCounts::default() }
    }

    /// Takes a line, and gives what is to be printed now.
    pub(super) fn take(&mut self, line: &str) -> Vec<String> {
        if line.trim().is_empty() {
            return Vec::new();
        }
        self.counts.lines += 1;
        let Some((json, fields)) = json_of(line) else {
            // Where all is wanted, so is what a service said before it could log, or when it panicked.
            if self.choice.is_of_all() {
                return vec![format::plain(line)];
            }
            self.counts.foreign += 1;
            return Vec::new();
        };
        let mut wanted = match self.choice.learn(&fields) {
            Some(execution) => self.no_longer_waiting(&execution),
            None => Vec::new(),
        };
        match self.choice.apply(&fields) {
            FilterResult::Wanted => wanted.push(fields),
            FilterResult::Unwanted => {}
            FilterResult::IfOfSession(execution) => self.wait(execution, json.to_owned()),
        }
        wanted.sort_by_key(time_of);
        wanted.into_iter().map(|fields| self.writer.written(fields)).collect()
    }

    fn wait(&mut self, execution: String, json: String) {
        if self.waiting.len() == LOOK_BACK {
            self.waiting.pop_front();
            self.counts.dropped += 1;
        }
        self.waiting.push_back((execution, json));
    }

    fn no_longer_waiting(&mut self, wanted: &str) -> Vec<LineFields> {
        let all = std::mem::take(&mut self.waiting);
        let (of_it, others) = all.into_iter().partition(|(execution, _)| execution == wanted);
        self.waiting = others;
        VecDeque::into_iter(of_it).filter_map(|(_, json)| serde_json::from_str(&json).ok()).collect()
    }

    pub(super) fn counts(&self) -> LineCounts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_is_counted() {
        let options = LogsOptions { session: Some("a".into()), ..LogsOptions::default() };
        let mut live = LogTail::new(&options);
        for n in 0..LOOK_BACK + 3 {
            let line =
                format!(r#"{{"time":"2026-01-02T03:04:05.000Z","event":"process.started","execution_id":"{n}"}}"#);
            assert!(live.take(&line).is_empty());
        }
        assert_eq!(live.counts(), LineCounts { lines: LOOK_BACK + 3, foreign: 0, dropped: 3 });
    }
}
