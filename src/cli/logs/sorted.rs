//! Reads a whole log and prints it in the order of its times.

use std::io::{self, BufRead};

use jiff::Timestamp;

use super::{
    LineCounts, LogsOptions,
    filter::{FilterResult, LineFilter, json_of, time_of},
    format::LineFormatter,
    open,
};

/// The selected lines of a file.
pub(crate) struct SortedLines {
    /// In order.
    lines: Vec<String>,
    counts: LineCounts,
}

struct KeptLine {
    at: Option<Timestamp>,
    /// `Some` if the line is selected only if this execution turns out to belong to the session; `None` if it is
    /// selected.
    if_of_session: Option<String>,
    json: String,
}

impl SortedLines {
    /// Reads the file of these options.
    pub(crate) fn read(options: &LogsOptions) -> io::Result<SortedLines> {
        SortedLines::of(options, open(&options.file)?)
    }

    /// Only lines that are selected, or may be, stay in memory.
    pub(super) fn of(options: &LogsOptions, input: impl BufRead) -> io::Result<SortedLines> {
        let mut filter = LineFilter::new(options);
        let mut counts = LineCounts::default();
        let mut kept: Vec<KeptLine> = Vec::new();
        let mut at = None;
        for line in input.split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            if line.trim().is_empty() {
                continue;
            }
            counts.lines += 1;
            let Some((json, fields)) = json_of(&line) else {
                counts.foreign += 1;
                continue;
            };
            filter.learn(&fields);
            let if_of_session = match filter.apply(&fields) {
                FilterResult::Selected => None,
                FilterResult::Rejected => continue,
                FilterResult::IfOfSession(execution) => Some(execution),
            };
            // A line without a time keeps its place after the line before it.
            at = time_of(&fields).or(at);
            kept.push(KeptLine { at, if_of_session, json: json.to_owned() });
        }
        kept.retain(|line| line.if_of_session.as_ref().is_none_or(|execution| filter.is_of_session(execution)));
        kept.sort_by_key(|line| line.at);
        Ok(SortedLines { lines: kept.into_iter().map(|line| line.json).collect(), counts })
    }

    pub(crate) fn counts(&self) -> LineCounts {
        self.counts
    }

    /// The timeline.
    pub(crate) fn lines(self) -> impl Iterator<Item = String> {
        let mut formatter = LineFormatter::default();
        self.lines.into_iter().filter_map(move |json| Some(formatter.format(serde_json::from_str(&json).ok()?)))
    }
}
