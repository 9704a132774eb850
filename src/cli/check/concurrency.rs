//! Checks many sessions at the same time and in quick succession.

use std::collections::BTreeSet;

use cc_executor_actors::protocol::execute::ExecutionSpec;
use futures_util::future::try_join_all;
use tokio::time::{Instant, sleep};

use super::{
    failure::{CheckFailure, ensure},
    probe::{Probe, QUIET},
    process_scan::ProcessMark,
    session::{CADENCE, CheckSession},
};

const AT_ONCE: usize = 50;
const IN_SUCCESSION: usize = 60;

/// Opens many sessions before the first of them runs a command.
pub(super) async fn concurrent(probe: &Probe) -> Result<String, CheckFailure> {
    let mut sessions = Vec::new();
    for n in 0..AT_ONCE {
        probe.show_step(format!("session {n} of {AT_ONCE}"));
        sessions.push(probe.open().await?);
    }
    let ids: BTreeSet<_> = sessions.iter().map(CheckSession::id).collect();
    ensure!(ids.len() == AT_ONCE, "{AT_ONCE} sessions have only {} different ids", ids.len());
    probe.show_step("each runs a command");
    let runs = sessions.iter_mut().enumerate().map(async |(n, session)| {
        let result = run_one(session, n).await;
        session.located(result)
    });
    try_join_all(runs).await?;
    for session in sessions {
        session.close().await?;
    }
    Ok(format!("{AT_ONCE} sessions at once"))
}

async fn run_one(session: &mut CheckSession<'_>, n: usize) -> Result<(), CheckFailure> {
    let command = format!("for i in 1 2 3; do echo \"session {n} says $i\"; sleep 0.1; done");
    let transcript = session.run(ExecutionSpec::of(command)).await?;
    transcript.exited_with(0)?;
    let (output, expected) = (transcript.streams.stdout.text(), (1..=3).map(|i| format!("session {n} says {i}\n")));
    ensure!(output == expected.collect::<String>(), "session {n} got {output:?}");
    Ok(())
}

/// Opens sessions and closes them in several ways: without a close frame, with one, and directly after a call. No
/// session and no process may be left.
pub(super) async fn reconnect(probe: &Probe) -> Result<String, CheckFailure> {
    let n_before = probe.n_sessions().await;
    let mark = ProcessMark::new();
    let command = mark.mark("setsid sleep MARK & sleep MARK");
    for n in 0..IN_SUCCESSION {
        probe.show_step(format!("connection {n} of {IN_SUCCESSION}"));
        match n % 3 {
            0 => drop(probe.connect().await?),
            1 => probe.open().await?.close().await?,
            _ => {
                let mut session = probe.open().await?;
                session.request_execution(ExecutionSpec::of(&command)).await?;
            }
        }
    }
    if let Some(n_before) = n_before {
        probe.show_step("waits for their sessions to end");
        sessions_go_back_to(probe, n_before).await?;
    }
    probe.show_step("one more session");
    probe
        .within(async |session| {
            let transcript = session.run(ExecutionSpec::of("echo still here")).await?;
            transcript.exited_with(0)?;
            let output = transcript.streams.stdout.text();
            ensure!(output == "still here\n", "the output is {output:?}");
            mark.wait_until_gone(session).await?;
            Ok(format!("{IN_SUCCESSION} connections, no session or process left"))
        })
        .await
}

/// Other clients may connect meanwhile, so a few more sessions are allowed; a leak would leave a third of them.
async fn sessions_go_back_to(probe: &Probe, n_before: u64) -> Result<(), CheckFailure> {
    let since = Instant::now();
    let too_many = n_before + IN_SUCCESSION as u64 / 3;
    while let Some(n) = probe.n_sessions().await.filter(|n| *n >= too_many) {
        let seconds = QUIET.as_secs();
        ensure!(since.elapsed() < QUIET, "there were {n_before} sessions, and {n} are left after {seconds} s");
        sleep(CADENCE).await;
    }
    Ok(())
}
