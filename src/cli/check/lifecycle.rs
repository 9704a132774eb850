//! Checks endings: canceled, abandoned and refused executions.

use std::time::Duration;

use cc_executor_actors::outcome::{Reason, Status};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    failure::{CheckFailure, ensure, shown, wrong},
    probe::Probe,
    process_scan::ProcessMark,
    session::{CADENCE, CheckSession},
    transcript::{Transcript, status_of},
};

const UNKNOWN_EXECUTION: i64 = -32006;

/// Cancels a command that obeys TERM and one that ignores it; each has a process that left its group.
pub(super) async fn cancel(probe: &Probe) -> Result<String, CheckFailure> {
    const POLITE: &str = "setsid sleep MARK & (sleep MARK & sleep MARK) & echo ready; wait";
    const STUBBORN: &str = "trap '' TERM; setsid sleep MARK & echo ready; while :; do sleep 0.05; done";
    probe
        .within(async |session| {
            let mut longest = Duration::ZERO;
            for (name, command, grace_ms, escalated) in
                [("a command that obeys", POLITE, 5_000, false), ("a command that ignores TERM", STUBBORN, 300, true)]
            {
                probe.doing(name);
                let took =
                    cancel_one(session, command, grace_ms, escalated).await.map_err(|problem| problem.of(name))?;
                longest = longest.max(took);
            }
            Ok(format!("every process seen gone, {:.2} s at the longest", longest.as_secs_f64()))
        })
        .await
}

async fn cancel_one(
    session: &mut CheckSession<'_>,
    command: &str,
    grace_ms: u64,
    escalated: bool,
) -> Result<Duration, CheckFailure> {
    let mark = ProcessMark::new();
    let mut story = session.execute(json!({ "command": mark.on(command) })).await?;
    session.follow(&mut story, |story| !story.streams.stdout.bytes.is_empty()).await?;
    let since = Instant::now();
    let answer = session.ask("control", json!({ "type": "CANCEL", "graceMs": grace_ms })).await?;
    ensure!(answer["executionId"] == story.id.as_str(), "CANCEL is answered with {}", shown(&answer));
    session.finish(&mut story).await?;
    let took = since.elapsed();
    story.ended_as(Status::Cancelled, Reason::Canceled)?;
    let cancel = &story.end["cancel"];
    ensure!(cancel["verified"] == true, "its processes are not proven gone: {}", shown(&story.end));
    ensure!(cancel["escalated"] == escalated, "escalated should be {escalated}: {}", shown(cancel));
    story.is_whole()?;
    mark.is_gone(session).await?;
    Ok(took)
}

/// Closes sessions while output flows. Their commands must be ended, and other sessions not disturbed.
pub(super) async fn races(probe: &Probe) -> Result<String, CheckFailure> {
    const ROUNDS: usize = 24;
    let mark = ProcessMark::new();
    let command = mark.on("setsid sleep MARK & yes 'output without end'");
    probe
        .within(async |watcher| {
            for round in 0..ROUNDS {
                probe.doing(format!("round {round} of {ROUNDS}"));
                let mut session = probe.open().await?;
                let mut story = session.execute(json!({ "command": command })).await?;
                // Each round leaves a little later than the one before.
                let so_far = round * 20_000;
                session.follow(&mut story, |story| story.streams.stdout.bytes.len() >= so_far).await?;
                if round % 2 == 0 {
                    session.close().await?;
                } else {
                    drop(session);
                }
                let Some(end) = ended(probe, watcher, &story.id).await? else { continue };
                ensure!(
                    status_of(&end) == Some(Status::Cancelled)
                        && end["reason"] == Reason::Disconnected.as_str()
                        && end["cancel"]["verified"] == true,
                    "left after {so_far} bytes, it ended as {}",
                    shown(&end)
                );
            }
            probe.doing("looks for processes");
            mark.is_gone(watcher).await?;
            Ok(format!("{ROUNDS} clients that left in the middle, no process is"))
        })
        .await
}

/// The ending of another session's execution. `None` if the service keeps no endings.
async fn ended(probe: &Probe, watcher: &mut CheckSession<'_>, id: &str) -> Result<Option<Value>, CheckFailure> {
    let since = Instant::now();
    loop {
        let status = match watcher.call("status", json!({ "executionId": id })).await? {
            Ok(status) => status,
            Err(error) if error["code"] == UNKNOWN_EXECUTION => return Ok(None),
            Err(error) => return Err(wrong(format!("status is refused: {}", shown(&error)))),
        };
        if status.get("reason").is_some() {
            return Ok(Some(status));
        }
        ensure!(
            since.elapsed() < probe.quiet(),
            "hung: {id} goes on for {} s after its client left: {}",
            probe.quiet().as_secs(),
            shown(&status)
        );
        sleep(CADENCE).await;
    }
}

/// Calls that must be refused, with the expected error code.
fn refused() -> Vec<(&'static str, Value, i64)> {
    vec![
        ("execute", json!({}), -32602),
        ("execute", json!({ "command": "" }), -32602),
        ("execute", json!({ "command": 7 }), -32602),
        ("execute", json!({ "command": "true", "unknown": 1 }), -32602),
        ("execute", json!({ "command": "true", "heartbeatMs": 1 }), -32602),
        ("execute", json!({ "command": "true", "executor": "no such executor" }), -32002),
        ("no such method", json!({}), -32601),
        ("status", json!({ "executionId": "00000000-0000-4000-8000-000000000000" }), UNKNOWN_EXECUTION),
    ]
}

/// Sends calls that must be refused, and a command that must be ended by its time-out.
pub(super) async fn limits(probe: &Probe) -> Result<String, CheckFailure> {
    let (n_refused, long) = probe
        .within(async |session| {
            let n_refused = refuses(probe, session).await?;
            two_at_once(probe, session).await?;
            for (limit, reason) in [("timeoutMs", Reason::Timeout), ("stallTimeoutMs", Reason::Stalled)] {
                probe.doing(limit);
                let story = session.run(json!({ "command": "sleep 1000", limit: 300 })).await?;
                timed_out(&story, reason).map_err(|problem| problem.of(limit))?;
            }
            let max = session.hello["limits"]["messageBytes"].as_u64();
            let max = max.ok_or_else(|| wrong("connected has no limits.messageBytes"))?;
            Ok((n_refused, usize::try_from(max).unwrap_or(usize::MAX).saturating_add(1)))
        })
        .await?;
    probe.doing("a message that is too long");
    let mut session = probe.open().await?;
    // The send may fail, because the service may close the session before it has read the whole message.
    let _ = session.send("x".repeat(long)).await;
    let code = session.close_code().await?;
    if code != 1009 {
        return Err(session.problem(format!("a message of {long} bytes is closed with {code}, not 1009")));
    }
    // Besides the table's calls: the message that is not JSON, the second execution and the long message.
    Ok(format!("{} wrong calls refused, two time-outs told as failures", n_refused + 3))
}

async fn refuses(probe: &Probe, session: &mut CheckSession<'_>) -> Result<usize, CheckFailure> {
    let calls = refused();
    for (method, params, code) in &calls {
        probe.doing(format!("{method} {params}"));
        match session.call(method, params.clone()).await? {
            Err(error) => ensure!(error["code"] == *code, "{method} {params} is {}, not {code}", shown(&error)),
            Ok(result) => return Err(wrong(format!("{method} {params} is accepted: {}", shown(&result)))),
        }
    }
    probe.doing("a message that is no JSON");
    session.send("this is no JSON".to_owned()).await?;
    let answer = session.recv().await?;
    ensure!(answer["error"]["code"] == -32700, "a message that is no JSON is answered with {}", shown(&answer));
    Ok(calls.len())
}

async fn two_at_once(probe: &Probe, session: &mut CheckSession<'_>) -> Result<(), CheckFailure> {
    probe.doing("two executions in one session");
    let mut story = session.execute(json!({ "command": "sleep 1000" })).await?;
    match session.call("execute", json!({ "command": "true" })).await? {
        Err(error) => ensure!(error["code"] == -32005, "a second execution in one session is {}", shown(&error)),
        Ok(result) => return Err(wrong(format!("a second execution in one session: {}", shown(&result)))),
    }
    session.ask("control", json!({ "type": "CANCEL" })).await?;
    session.finish(&mut story).await?;
    story.ended_as(Status::Cancelled, Reason::Canceled)
}

fn timed_out(story: &Transcript, reason: Reason) -> Result<(), CheckFailure> {
    story.ended_as(Status::Failed, reason)?;
    ensure!(story.errors.iter().any(|error| error["code"] == -32012), "no error -32012 came before the end");
    Ok(())
}
