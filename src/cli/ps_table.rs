//! The table of `ps`: a line for each execution, with its command cut to the width of the terminal. Pure.

use cc_executor_actors::{
    backend_api::Snapshot,
    outcome::{Outcome, Reason, Status},
};

use super::duration::in_words;
use crate::console::visible;

/// The columns. The last one takes the rest of the line.
const HEAD: [&str; COLUMNS] =
    ["ID", "NAME", "STATE", "EXECUTOR", "STARTED", "ELAPSED", "OUTPUT", "EXIT", "BYTES", "COMMAND"];
const COLUMNS: usize = 10;

/// The columns that end at the same place: numbers and times.
const RIGHT_ALIGNED: [usize; 4] = [4, 5, 6, 8];

/// The columns that a terminal shows only if they say something.
const NAME: usize = 1;
const EXECUTOR: usize = 3;
const OUTPUT: usize = 6;
const EXIT: usize = 7;

/// The cell of a column that says nothing about an execution.
const NOTHING: &str = "-";

/// The space between two columns.
const GAP: &str = "  ";

/// How many characters of an id are shown: enough to be unique among the executions of a client.
const SHOWN_ID: usize = 8;

/// How much of a command is shown on a terminal that has no room for it.
const LEAST_COMMAND: usize = 10;

/// The executor of most commands.
const USUAL_EXECUTOR: &str = "shell";

/// The state of a command that waits for somebody to read its output. It is a word of the display: its status is
/// RUNNING.
const WAITING: &str = "WAITING";

/// A table that is printed in parts.
#[derive(Debug)]
pub(super) struct PsTable {
    /// The longest line; `None` if nothing is cut.
    width: Option<usize>,
    /// The widths of the columns so far, but for the last.
    columns: [usize; COLUMNS - 1],
    /// The columns that are left out, as decided with the first part.
    omitted: Option<Vec<usize>>,
}

impl PsTable {
    /// A table with lines of at most this many columns, which leaves out columns that say nothing. Without a width it has
    /// all columns, so that a script finds each in its place.
    pub(super) fn new(width: Option<usize>) -> PsTable {
        PsTable { width, columns: std::array::from_fn(|at| HEAD[at].len()), omitted: None }
    }

    /// The next lines, after the head if they are the first.
    pub(super) fn text_of(&mut self, executions: &[Snapshot], with_head: bool) -> String {
        let rows: Vec<_> = executions.iter().map(cells_of).collect();
        let says_nothing = |at: usize| {
            let usual = if at == EXECUTOR { USUAL_EXECUTOR } else { NOTHING };
            rows.iter().all(|row| row[at] == usual)
        };
        if self.omitted.is_none() {
            let candidates = if self.width.is_some() { [NAME, EXECUTOR, OUTPUT, EXIT].as_slice() } else { &[] };
            self.omitted = Some(candidates.iter().copied().filter(|at| says_nothing(*at)).collect());
        }
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
        let is_shown = |at: &usize| !self.omitted.iter().flatten().any(|omitted| omitted == at);
        for at in (0..COLUMNS - 1).filter(is_shown) {
            let (cell, width) = (&row[at], self.columns[at]);
            line += &match at {
                at if RIGHT_ALIGNED.contains(&at) => format!("{cell:>width$}{GAP}"),
                _ => format!("{cell:width$}{GAP}"),
            };
        }
        let room = self.width.map_or(usize::MAX, |width| width.saturating_sub(line.len()).max(LEAST_COMMAND));
        line + &cut(&row[COLUMNS - 1], room) + "\n"
    }
}

/// The state of an execution for people: its status, or WAITING.
pub(super) fn state_of(execution: &Snapshot) -> &'static str {
    match execution.status {
        Status::Running if execution.held_back => WAITING,
        status => status.as_str(),
    }
}

/// The states that [`state_of`] returns.
pub(super) fn states() -> impl Iterator<Item = &'static str> {
    Status::ALL.into_iter().map(Status::as_str).chain([WAITING])
}

/// The cells of an execution. What comes from a client or the service's configuration is made visible.
fn cells_of(execution: &Snapshot) -> [String; COLUMNS] {
    let nothing = || NOTHING.to_owned();
    let state = match execution.position {
        Some(position) => format!("{} {position}", state_of(execution)),
        None => state_of(execution).to_owned(),
    };
    let has_run = execution.alive.elapsed_ms > 0 || execution.status == Status::Running;
    let ending = execution.ending.as_ref();
    let is_alive = has_run && ending.is_none();
    let command = execution.command.as_deref().unwrap_or_default();
    [
        execution.execution_id.to_string().chars().take(SHOWN_ID).collect(),
        execution.name.as_ref().map_or_else(nothing, ToString::to_string),
        state,
        visible(&execution.executor).into_owned(),
        execution.age_ms.map_or_else(nothing, |ms| format!("{} ago", in_words(ms))),
        if has_run { in_words(execution.alive.elapsed_ms) } else { nothing() },
        if is_alive { format!("{} ago", in_words(execution.alive.since_output_ms)) } else { nothing() },
        visible(&ending.map_or_else(nothing, reason_of)).into_owned(),
        size_of(execution.offsets.stdout.saturating_add(execution.offsets.stderr)),
        visible(command).into_owned(),
    ]
}

/// Why an execution ended: its exit code, its signal, or the name of the reason.
fn reason_of(ending: &Outcome) -> String {
    match (ending.reason, ending.exit_code, &ending.signal) {
        (Reason::Exit, Some(code), _) => code.to_string(),
        (Reason::Signal, _, Some(signal)) => signal.clone(),
        (reason, ..) => reason.as_str().to_owned(),
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
            name: None,
            executor: "shell".to_owned(),
            status,
            held_back: false,
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
        ended.alive.elapsed_ms = 5_000;
        let claude = Snapshot {
            executor: "claude".to_owned(),
            age_ms: None,
            name: Some("fixer".parse().unwrap()),
            held_back: true,
            ..snapshot(Status::Running, "fix it")
        };
        let queued = Snapshot { position: Some(2), ..snapshot(Status::Queued, "x") };
        let rows = [ended, claude, queued];
        let whole = PsTable::new(None).text_of(&rows, true);
        assert_eq!(
            whole.lines().collect::<Vec<_>>(),
            [
                "ID        NAME   STATE     EXECUTOR   STARTED  ELAPSED  OUTPUT  EXIT  BYTES  COMMAND",
                "66666666  -      FAILED    shell     1m1s ago       5s       -  3        42  printf '\\u001b[2J'; sleep 1000; echo this is long",
                "66666666  fixer  WAITING   claude           -       0s  0s ago  -        42  fix it",
                "66666666  -      QUEUED 2  shell     1m1s ago        -       -  -        42  x",
            ]
        );
        let first = |width: usize, rows: &[Snapshot]| {
            PsTable::new(Some(width)).text_of(rows, false).lines().next().unwrap().to_owned()
        };
        let cut = first(100, &rows);
        assert_eq!((cut.chars().count(), cut.ends_with('…')), (100, true), "{cut}");
        assert!(first(20, &rows).ends_with("42  printf '\\…"));
        let plain = PsTable::new(Some(80)).text_of(&rows[2..], true);
        assert_eq!(plain.lines().next(), Some("ID        STATE      STARTED  ELAPSED  BYTES  COMMAND"), "{plain}");
        let mut table = PsTable::new(Some(80));
        let parts = [table.text_of(&rows[..1], true), table.text_of(&rows[1..2], false)].concat();
        assert!(!parts.contains("fixer"), "a later part has the columns of the first: {parts}");
    }

    #[test]
    fn sizes_are_short() {
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
