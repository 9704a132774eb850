//! The table of `ps`: a line for each execution, with its command cut to the width of the terminal. Pure.

use cc_executor_actors::{
    backend_api::Snapshot,
    outcome::{Outcome, Reason},
};

use crate::console::visible;

/// The names of the columns. The last one takes the rest of the line.
const HEAD: [&str; COLUMNS] = ["ID", "STATUS", "REASON", "AGE", "BYTES", "COMMAND"];
const COLUMNS: usize = 6;

/// The columns that end at the same place: numbers.
const AGE: usize = 3;
const BYTES: usize = 4;

/// The space between two columns.
const GAP: &str = "  ";

/// How much of a command is shown on a terminal that has no room for it.
const LEAST_COMMAND: usize = 10;

/// The executor whose name is not shown, because most commands are for it.
const USUAL_EXECUTOR: &str = "shell";

/// A table that is printed in parts.
#[derive(Debug)]
pub(super) struct PsTable {
    /// The longest line; `None` if nothing is cut.
    width: Option<usize>,
    /// The widths of the columns so far, but for the last.
    columns: [usize; COLUMNS - 1],
}

impl PsTable {
    /// A table with lines of at most this many columns.
    pub(super) fn new(width: Option<usize>) -> PsTable {
        PsTable { width, columns: std::array::from_fn(|at| HEAD[at].len()) }
    }

    /// The next lines, after the head if they are the first.
    pub(super) fn text_of(&mut self, executions: &[Snapshot], with_head: bool) -> String {
        let rows: Vec<_> = executions.iter().map(cells_of).collect();
        for row in &rows {
            for (width, cell) in self.columns.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let head = with_head.then(|| HEAD.map(str::to_owned));
        head.iter().chain(&rows).map(|row| self.line(row)).collect()
    }

    fn line(&self, row: &[String; COLUMNS]) -> String {
        let mut line = String::new();
        for (at, (cell, width)) in row.iter().zip(self.columns).enumerate() {
            line += &match at {
                AGE | BYTES => format!("{cell:>width$}{GAP}"),
                _ => format!("{cell:width$}{GAP}"),
            };
        }
        let room = self.width.map_or(usize::MAX, |width| width.saturating_sub(line.len()).max(LEAST_COMMAND));
        line + &cut(&row[COLUMNS - 1], room) + "\n"
    }
}

/// The cells of an execution. What comes from a client or the service's configuration is made visible.
fn cells_of(execution: &Snapshot) -> [String; COLUMNS] {
    let status = match execution.position {
        Some(position) => format!("{} {position}", execution.status.as_str()),
        None => execution.status.as_str().to_owned(),
    };
    let executor = Some(&execution.executor).filter(|name| *name != USUAL_EXECUTOR);
    let executor = executor.map(|name| format!("{name}: ")).unwrap_or_default();
    [
        execution.execution_id.to_string(),
        status,
        visible(&execution.ending.as_ref().map_or_else(|| "-".to_owned(), reason_of)).into_owned(),
        execution.age_ms.map_or_else(|| "-".to_owned(), in_words),
        size_of(execution.offsets.stdout.saturating_add(execution.offsets.stderr)),
        visible(&format!("{executor}{}", execution.command.as_deref().unwrap_or_default())).into_owned(),
    ]
}

/// Why an execution ended: its exit code, its signal, or the name of the reason.
fn reason_of(ending: &Outcome) -> String {
    match (ending.reason, ending.exit_code, &ending.signal) {
        (Reason::Exit, Some(code), _) => format!("exit {code}"),
        (Reason::Signal, _, Some(signal)) => signal.clone(),
        (reason, ..) => reason.as_str().to_owned(),
    }
}

/// An age in its largest unit.
fn in_words(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A number of bytes, rounded down from five digits on.
fn size_of(bytes: u64) -> String {
    let (mut size, mut units) = (bytes as f64, ["K", "M", "G", "T", "P", "E"].into_iter());
    let mut unit = "";
    while size >= 1_024.0 && bytes >= 100_000 {
        let Some(next) = units.next() else { break };
        (size, unit) = (size / 1_024.0, next);
    }
    if unit.is_empty() { bytes.to_string() } else { format!("{:.1}{unit}", (size * 10.0).floor() / 10.0) }
}

/// The beginning of a text that fits into this many columns, with a mark where it was cut.
fn cut(text: &str, room: usize) -> String {
    // A character beyond the alphabets of the beginning of Unicode may take two columns, never more.
    let width = |c: char| if c < '\u{1100}' { 1 } else { 2 };
    if text.chars().map(width).sum::<usize>() <= room {
        return text.to_owned();
    }
    let mut used = 1;
    let kept = text.chars().take_while(|c| {
        used += width(*c);
        used <= room
    });
    kept.collect::<String>() + "…"
}

#[cfg(test)]
mod tests {
    use cc_executor_actors::{backend_api::Heartbeat, id::ExecutionId, outcome::Status, stream::PerStream};

    use super::*;

    fn snapshot(status: Status, command: &str) -> Snapshot {
        Snapshot {
            execution_id: "66666666-6666-4666-8666-666666666666".parse::<ExecutionId>().unwrap(),
            executor: "shell".to_owned(),
            status,
            position: None,
            scope: None,
            attached: false,
            observers: 0,
            hold: None,
            instance: None,
            alive: Heartbeat::default(),
            offsets: PerStream { stdout: 40, stderr: 2 },
            storage: None,
            command: Some(command.to_owned()),
            age_ms: Some(61_000),
            ending: None,
        }
    }

    #[test]
    fn a_line_fits_the_terminal_and_holds_no_control_character() {
        let mut ended = snapshot(Status::Failed, "printf '\u{1b}[2J'; sleep 1000; echo this is long");
        ended.ending =
            Some(Outcome { exit_code: Some(3), ..Outcome::without_process(Status::Failed, Reason::Exit, None) });
        let claude = Snapshot { executor: "claude".to_owned(), age_ms: None, ..snapshot(Status::Running, "fix it") };
        let rows = [ended, claude];
        let whole = PsTable::new(None).text_of(&rows, true);
        assert_eq!(
            whole.lines().collect::<Vec<_>>(),
            [
                "ID                                    STATUS   REASON  AGE  BYTES  COMMAND",
                "66666666-6666-4666-8666-666666666666  FAILED   exit 3   1m     42  printf '\\u001b[2J'; sleep 1000; echo this is long",
                "66666666-6666-4666-8666-666666666666  RUNNING  -         -     42  claude: fix it",
            ]
        );
        let cut = PsTable::new(Some(80)).text_of(&rows, false);
        assert_eq!(cut.lines().next().unwrap().chars().count(), 80);
        assert!(cut.lines().next().unwrap().ends_with("42  printf '\\u00…"), "{cut}");
        let narrow = PsTable::new(Some(20)).text_of(&rows, false);
        assert!(narrow.lines().next().unwrap().ends_with("42  printf '\\…"), "{narrow}");
    }

    #[test]
    fn ages_and_sizes_are_short() {
        let ages = [0, 59_999, 60_000, 3_599_999, 3_600_000, 172_799_999, 172_800_000].map(in_words);
        assert_eq!(ages, ["0s", "59s", "1m", "59m", "1h", "47h", "2d"]);
        let sizes = [0, 99_999, 100_000, 1_048_575, 1_048_576, 50 << 30, u64::MAX].map(size_of);
        assert_eq!(sizes, ["0", "99999", "97.6K", "1023.9K", "1.0M", "50.0G", "16.0E"]);
    }

    #[test]
    fn wide_characters_are_cut_so_that_they_fit() {
        for (text, room, shown) in [
            ("abc", 3, "abc"),
            ("abcd", 3, "ab…"),
            ("日本語", 6, "日本語"),
            ("日本語", 5, "日本…"),
            ("日本語", 4, "日…"),
        ] {
            assert_eq!(cut(text, room), shown, "{text} {room}");
        }
    }
}
