//! Checks many sessions at the same time and in quick succession.

use std::collections::BTreeSet;

use cc_executor_actors::protocol::execute::ExecutionSpec;
use futures_util::future::try_join_all;
use tokio::time::{Instant, sleep};

use super::{
    failure::{CheckFailure, ensure},
    probe::Probe,
    process_scan::ProcessMark,
    session::{CADENCE, CheckSession},
};

const AT_ONCE: usize = 50;
const IN_SUCCESSION: usize = 60;

/// Opens many sessions before the first of them runs a command.
pub(super) async fn concurrent(probe: &Probe) -> Result<String, CheckFailure> {
    let mut sessions = Vec::new();
    for n in 0..AT_ONCE {
        probe.doing(format!("session {n} of {AT_ONCE}"));
        sessions.push(probe.open().await?);
    }
    let ids: BTreeSet<_> = sessions.iter().map(CheckSession::id).collect();
    ensure!(ids.len() == AT_ONCE, "{AT_ONCE} sessions have {} ids between them", ids.len());
    probe.doing("all of them run a command");
    let runs = sessions.iter_mut().enumerate().map(async |(n, session)| {
        let done = speak(session, n).await;
        session.located(done)
    });
    try_join_all(runs).await?;
    for session in sessions {
        session.close().await?;
    }
    Ok(format!("{AT_ONCE} sessions at once"))
}

async fn speak(session: &mut CheckSession<'_>, n: usize) -> Result<(), CheckFailure> {
    let command = format!("for i in 1 2 3; do echo \"session {n} says $i\"; sleep 0.1; done");
    let transcript = session.run(ExecutionSpec::of(command)).await?;
    transcript.exited_with(0)?;
    let (said, expected) = (transcript.streams.stdout.text(), (1..=3).map(|i| format!("session {n} says {i}\n")));
    ensure!(said == expected.collect::<String>(), "session {n} got {said:?}");
    Ok(())
}

/// Opens and closes sessions in several ways: at once, with a close frame, directly after a call. No session and no
/// process may be left.
pub(super) async fn reconnect(probe: &Probe) -> Result<String, CheckFailure> {
    let n_before = probe.n_sessions().await;
    let mark = ProcessMark::new();
    let command = mark.on("setsid sleep MARK & sleep MARK");
    for n in 0..IN_SUCCESSION {
        probe.doing(format!("connection {n} of {IN_SUCCESSION}"));
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
        probe.doing("their sessions");
        sessions_go_back_to(probe, n_before).await?;
    }
    probe.doing("one that stays");
    probe
        .within(async |session| {
            let transcript = session.run(ExecutionSpec::of("echo still here")).await?;
            transcript.exited_with(0)?;
            let said = transcript.streams.stdout.text();
            ensure!(said == "still here\n", "the output is {said:?}");
            mark.goes(probe, session).await?;
            Ok(format!("{IN_SUCCESSION} connections, and nothing is left of them"))
        })
        .await
}

/// Other clients may connect meanwhile, so a few more sessions are allowed; a leak would leave a third of them.
async fn sessions_go_back_to(probe: &Probe, n_before: u64) -> Result<(), CheckFailure> {
    let since = Instant::now();
    let too_many = n_before + IN_SUCCESSION as u64 / 3;
    while let Some(n) = probe.n_sessions().await.filter(|n| *n >= too_many) {
        let seconds = probe.quiet().as_secs();
        ensure!(since.elapsed() < probe.quiet(), "there were {n_before} sessions, and {n} are left after {seconds} s");
        sleep(CADENCE).await;
    }
    Ok(())
}
