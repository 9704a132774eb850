//! What is shown of an execution that prints nothing: its state, the time, and how long there was no output. No I/O and no
//! clock.

use std::time::Duration;

use serde::Deserialize;

use crate::console::is_obeyed;

/// Silence that is shorter is not mentioned.
const SILENCE: Duration = Duration::from_secs(2);

/// The longest activity that is shown, in characters.
const MAX_ACTIVITY: usize = 60;

/// A status that is not final. Only the fields that a client uses are read, because a newer service may have other
/// statuses, and they must not end a client.
#[derive(Clone, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Progress {
    pub(super) status: String,
    pub(super) position: Option<u64>,
    pub(super) elapsed_ms: Option<u64>,
    pub(super) since_output_ms: Option<u64>,
    pub(super) stopped: bool,
    pub(super) activity: Option<String>,
}

impl Progress {
    /// The line for an execution that was in this status `since` ago. `waited` is the time since the request.
    pub(super) fn line(&self, since: Duration, silent: Duration, waited: Duration) -> String {
        let (state, elapsed) = match (self.status.as_str(), self.position) {
            ("QUEUED", Some(0)) => ("starting".to_owned(), waited),
            ("QUEUED", Some(position)) => (format!("queued, position {position}"), waited),
            ("QUEUED", None) => ("queued".to_owned(), waited),
            // Before the first status.
            ("", _) => ("waiting".to_owned(), waited),
            ("RUNNING", _) if self.stopped => ("stopped".to_owned(), self.elapsed(since)),
            (status, _) => (status.to_ascii_lowercase(), self.elapsed(since)),
        };
        let mut line = format!("{state}, {}", shown_duration(elapsed));
        let has_begun = !matches!(self.status.as_str(), "QUEUED" | "");
        let silent = silent.min(elapsed);
        if has_begun && silent >= SILENCE {
            line += &format!(", no output for {}", shown_duration(silent));
        }
        if let Some(activity) = &self.activity {
            line += &format!(", {}", activity.chars().take(MAX_ACTIVITY).collect::<String>());
        }
        line.chars().filter(|c| !is_obeyed(*c) && *c != '\n').collect()
    }

    fn elapsed(&self, since: Duration) -> Duration {
        Duration::from_millis(self.elapsed_ms.unwrap_or(0)) + since
    }
}

/// A time in whole seconds, such as `42 s`, `5m03s` or `1h05m`.
fn shown_duration(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..100 => format!("{seconds} s"),
        seconds @ 100..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        seconds => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_line_says_state_time_and_silence() {
        let progress = |status: &str, position, elapsed_ms| Progress {
            status: status.to_owned(),
            position,
            elapsed_ms: Some(elapsed_ms),
            ..Progress::default()
        };
        for (progress, line) in [
            (progress("QUEUED", Some(3), 0), "queued, position 3, 9 s"),
            (progress("QUEUED", Some(0), 0), "starting, 9 s"),
            (progress("RUNNING", None, 70_000), "running, 72 s, no output for 5 s"),
            (progress("PAUSED", None, 600_000), "paused, 10m02s, no output for 5 s"),
            (progress("CANCELLING", None, 7_200_000), "cancelling, 2h00m, no output for 5 s"),
            (progress("", None, 0), "waiting, 9 s"),
            (
                Progress { activity: Some("tool:\u{1b} Bash\n".to_owned()), ..progress("RUNNING", None, 1_000) },
                "running, 3 s, no output for 3 s, tool: Bash",
            ),
            (Progress { stopped: true, ..progress("RUNNING", None, 1_000) }, "stopped, 3 s, no output for 3 s"),
            (progress("\u{1b}[2J\nLATER", None, 0), "[2jlater, 2 s, no output for 2 s"),
        ] {
            assert_eq!(progress.line(secs(2), secs(5), secs(9)), line);
        }
        assert_eq!(progress("RUNNING", None, 1_000).line(secs(2), secs(1), secs(9)), "running, 3 s");
    }

    #[test]
    fn unknown_fields_and_missing_ones_are_no_error() {
        let progress: Progress = serde_json::from_str(r#"{"status":"LATER","later":[1]}"#).unwrap();
        assert_eq!(progress, Progress { status: "LATER".to_owned(), ..Progress::default() });
    }
}
