//! The output of `cc-executor run --executor claude` for people.

use serde_json::json;

use super::script::{RESULT, TOOL_RESULT, TOOL_USE, cat_sample, print_lines, service, text_event};
use crate::common::service::{BINARY, run_to_exit};

#[test]
fn run_prints_text_to_stdout_and_tools_and_summary_to_stderr() {
    let service = service();
    let command = format!(
        "{} echo to stderr >&2; {}",
        print_lines(&[r#"{"type":"system"}"#, &text_event("Look:"), TOOL_USE, TOOL_RESULT]),
        print_lines(&[&text_event("Two files."), RESULT])
    );
    let output = |arguments: &[&str]| run_to_exit(service.run_command(&["--executor", "claude"]).args(arguments));
    let (stdout, stderr, code) = output(&["--reconnect", "--", &command]);
    assert_eq!((stdout.as_str(), code), ("Look:\na\nb\nTwo files.\n", 0));
    let mut lines: Vec<_> = stderr.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["2 turns, 0.0 s, $0.5000, session s-1", "Bash ls", "to stderr"]);
    let (_, stderr, code) = output(&["--", &format!("{}; exit 1", cat_sample("auth401"))]);
    assert!(stderr.contains("not signed in"), "{stderr}");
    assert_eq!(code, 1);
    let (stdout, _, code) = output(&["--json", "--", &command]);
    assert_eq!(code, 0);
    assert!(stdout.lines().any(|line| line.contains(r#""method":"event""#)), "{stdout}");
}

#[test]
fn run_shows_each_tool_as_one_dim_line_on_a_terminal() {
    let service = service();
    let prompt = format!(
        "{} {}",
        print_lines(&[&text_event("Look:"), TOOL_USE, TOOL_RESULT]),
        print_lines(&[&text_event("Two files."), RESULT])
    );
    let run = "exec \"$RUN\" run --url \"$URL\" --executor claude -- \"$PROMPT\"";
    let recording = service.connect().run(json!({
        "command": run, "pty": { "rows": 24, "cols": 200 },
        "env": { "RUN": BINARY, "URL": service.url(), "PROMPT": prompt },
    }));
    assert_eq!(recording.end["exit_code"], 0, "{}", recording.end);
    let shown = recording.text();
    for line in ["Look:\r\n", "\x1b[2mBash ls\x1b[0m\r\n", "a\r\nb\r\n", "Two files.\r\n"] {
        assert_eq!(shown.matches(line).count(), 1, "{line:?}: {shown:?}");
    }
    assert!(shown.ends_with("\x1b[2m2 turns, 0.0 s, $0.5000, session s-1\x1b[0m\r\n"), "{shown:?}");
}
