//! Follows a log that grows: each line is printed as soon as it is known to be selected.

use std::collections::VecDeque;

use super::{
    LineCounts, LogsOptions,
    filter::{FilterResult, LineFields, LineFilter, json_of, time_of},
    format::{self, LineFormatter},
};

/// The number of lines that are kept because they may belong to the selected session: the backend logs a process
/// before the gateway logs its session. 20 MB at most.
const LOOK_BACK: usize = 50_000;

/// Reads a log line by line.
pub(super) struct LogTail<'a> {
    filter: LineFilter<'a>,
    /// Lines of executions whose session is not known yet, with the execution.
    waiting: VecDeque<(String, String)>,
    formatter: LineFormatter,
    counts: LineCounts,
}

impl<'a> LogTail<'a> {
    pub(super) fn new(options: &'a LogsOptions) -> Self {
        let (filter, formatter) = (LineFilter::new(options), LineFormatter::default());
        LogTail { filter, waiting: VecDeque::new(), formatter, counts: LineCounts::default() }
    }

    /// Takes a line, and returns the lines to print now.
    pub(super) fn take(&mut self, line: &str) -> Vec<String> {
        if line.trim().is_empty() {
            return Vec::new();
        }
        self.counts.lines += 1;
        let Some((json, fields)) = json_of(line) else {
            // Without a selection, lines that are not JSON are printed too: a panic, a wrong setting.
            if self.filter.selects_all() {
                return vec![format::plain(line)];
            }
            self.counts.foreign += 1;
            return Vec::new();
        };
        let mut selected = match self.filter.learn(&fields) {
            Some(execution) => self.release(&execution),
            None => Vec::new(),
        };
        match self.filter.apply(&fields) {
            FilterResult::Selected => selected.push(fields),
            FilterResult::Rejected => {}
            FilterResult::IfOfSession(execution) => self.wait(execution, json.to_owned()),
        }
        selected.sort_by_key(time_of);
        selected.into_iter().map(|fields| self.formatter.format(fields)).collect()
    }

    fn wait(&mut self, execution: String, json: String) {
        if self.waiting.len() == LOOK_BACK {
            self.waiting.pop_front();
            self.counts.dropped += 1;
        }
        self.waiting.push_back((execution, json));
    }

    fn release(&mut self, wanted: &str) -> Vec<LineFields> {
        let all = std::mem::take(&mut self.waiting);
        let (of_session, others) = all.into_iter().partition(|(execution, _)| execution == wanted);
        self.waiting = others;
        VecDeque::into_iter(of_session).filter_map(|(_, json)| serde_json::from_str(&json).ok()).collect()
    }

    pub(super) fn counts(&self) -> LineCounts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_lines_are_counted() {
        let options = LogsOptions { session: Some("a".into()), ..LogsOptions::default() };
        let mut tail = LogTail::new(&options);
        for n in 0..LOOK_BACK + 3 {
            let line =
                format!(r#"{{"time":"2026-01-02T03:04:05.000Z","event":"process.started","execution_id":"{n}"}}"#);
            assert!(tail.take(&line).is_empty());
        }
        assert_eq!(tail.counts(), LineCounts { lines: LOOK_BACK + 3, foreign: 0, dropped: 3 });
    }
}
