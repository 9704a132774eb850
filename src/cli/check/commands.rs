//! Checks that the output of many kinds of commands arrives unchanged.

use cc_executor_actors::{
    outcome::{Reason, Status},
    protocol::execute::ExecutionSpec,
};
use serde_json::{Value, json};

use super::{
    failure::{CheckFailure, ensure, wrong},
    probe::Probe,
    session::CheckSession,
    transcript::Transcript,
};

/// Runs a command whose output shows that it was executed, and not echoed.
pub(super) async fn basic(probe: &Probe) -> Result<String, CheckFailure> {
    const COMMAND: &str = r#"python3 -c "print('RESULT:::' + str(24 * 7))""#;
    probe
        .within(async |session| {
            let transcript = session.run(ExecutionSpec::of(COMMAND)).await?;
            transcript.exited_with(0)?;
            let output = transcript.streams.stdout.text();
            ensure!(output == "RESULT:::168\n", "the output should be RESULT:::168, and is {output:?}");
            let first = transcript.updates.first().map(|(_, update)| update.status);
            let fine = matches!(first, Some(Status::Running | Status::Queued));
            ensure!(fine, "the first status should be RUNNING or QUEUED, and is {:?}", first.map(Status::as_str));
            Ok(output.trim().to_owned())
        })
        .await
}

/// A command, and its expected output and ending.
struct CommandCase {
    name: &'static str,
    command: &'static str,
    verify: fn(&Transcript) -> Result<(), CheckFailure>,
}

fn prints(transcript: &Transcript, expected: &str) -> Result<(), CheckFailure> {
    transcript.exited_with(0)?;
    let output = transcript.streams.stdout.text();
    ensure!(
        output == expected,
        "the output should be {expected:?}, and is {:?}",
        output.chars().take(200).collect::<String>()
    );
    Ok(())
}

const N_LINES: usize = 20_000;
const LONG_LINE: usize = 1_000_000;
const EMOJI: usize = 50_000;

const CASES: &[CommandCase] = &[
    CommandCase {
        name: "arithmetic",
        command: "echo $((1234 * 5678 - 9))",
        verify: |transcript| prints(transcript, "7006643\n"),
    },
    CommandCase {
        name: "string reversal",
        command: r#"python3 -c "print('never odd or even, she said'[::-1])""#,
        verify: |transcript| prints(transcript, "dias ehs ,neve ro ddo reven\n"),
    },
    CommandCase {
        name: "JSON",
        command: r#"python3 -c "import json; print(json.dumps({'quotes': '\"', 'list': [1, 2.5, None], 'tab': '\t'}))""#,
        verify: |transcript| {
            transcript.exited_with(0)?;
            let output: Value = serde_json::from_str(&transcript.streams.stdout.text())
                .map_err(|error| wrong(format!("the JSON arrived broken: {error}")))?;
            let expected = json!({ "quotes": "\"", "list": [1, 2.5, null], "tab": "\t" });
            ensure!(output == expected, "the JSON arrived as {output}");
            Ok(())
        },
    },
    CommandCase {
        name: "many lines",
        command: "seq 1 20000",
        verify: |transcript| prints(transcript, &(1..=N_LINES).map(|n| format!("{n}\n")).collect::<String>()),
    },
    CommandCase {
        name: "a caught exception",
        command: "python3 -c \"\ntry:\n    1 / 0\nexcept ZeroDivisionError as error:\n    print('caught:', error)\"",
        verify: |transcript| prints(transcript, "caught: division by zero\n"),
    },
    CommandCase {
        name: "a failing command",
        command: "echo out; echo err >&2; exit 3",
        verify: |transcript| {
            transcript.exited_with(3)?;
            let both = (transcript.streams.stdout.text(), transcript.streams.stderr.text());
            ensure!(both == ("out\n".to_owned(), "err\n".to_owned()), "the streams should be apart: {both:?}");
            Ok(())
        },
    },
    CommandCase {
        name: "a command ended by a signal",
        command: "kill -9 $$",
        verify: |transcript| {
            transcript.ended_as(Status::Failed, Reason::Signal)?;
            let signal = transcript.end()?.signal.as_deref();
            ensure!(signal == Some("SIGKILL"), "the signal should be SIGKILL, and is {signal:?}");
            transcript.is_whole()
        },
    },
    CommandCase {
        name: "a missing program",
        command: "no-such-program-anywhere 2>/dev/null",
        verify: |transcript| transcript.exited_with(127),
    },
    CommandCase {
        name: "a long line",
        command: "python3 -c \"print('x' * 1000000)\"",
        verify: |transcript| prints(transcript, &format!("{}\n", "x".repeat(LONG_LINE))),
    },
    CommandCase {
        name: "UTF-8",
        command: "python3 -c \"print('\\U0001f980é€' * 50000)\"",
        verify: |transcript| prints(transcript, &format!("{}\n", "\u{1f980}é€".repeat(EMOJI))),
    },
    CommandCase {
        name: "bytes that are not UTF-8",
        command: r"printf '\377\000\376no newline'",
        verify: |transcript| {
            transcript.exited_with(0)?;
            let bytes = &transcript.streams.stdout.bytes;
            ensure!(bytes.as_slice() == b"\xff\0\xfeno newline", "the bytes arrived as {bytes:?}");
            Ok(())
        },
    },
    CommandCase { name: "silence", command: "true", verify: |transcript| prints(transcript, "") },
];

/// Runs commands of many kinds, one after the other in one session.
pub(super) async fn stress(probe: &Probe) -> Result<String, CheckFailure> {
    probe
        .within(async |session| {
            for case in CASES {
                probe.show_step(case.name);
                run_case(session, case).await.map_err(|problem| problem.of(case.name))?;
            }
            Ok(format!("{} kinds of commands", CASES.len()))
        })
        .await
}

async fn run_case(session: &mut CheckSession<'_>, case: &CommandCase) -> Result<(), CheckFailure> {
    let transcript = session.run(ExecutionSpec::of(case.command)).await?;
    (case.verify)(&transcript)
}
