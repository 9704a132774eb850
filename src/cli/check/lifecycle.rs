//! Checks endings: canceled, abandoned and refused executions.

use std::time::Duration;

use cc_executor_actors::{
    id::ExecutionId,
    outcome::{Outcome, Reason, Status},
    protocol::{
        DEFAULT_GRACE_MS,
        control::{ControlParams, ControlRequest},
        execute::ExecutionSpec,
        status::{StatusParams, StatusResult},
    },
    rpc::code,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    failure::{CheckFailure, ensure, shown, wrong},
    probe::{Probe, QUIET},
    process_scan::ProcessMark,
    session::{CADENCE, CheckSession},
    transcript::Transcript,
};

/// Cancels a command that obeys TERM and one that ignores it; each has a process that left its group.
pub(super) async fn cancel(probe: &Probe) -> Result<String, CheckFailure> {
    const POLITE: &str = "setsid sleep MARK & (sleep MARK & sleep MARK) & echo ready; wait";
    const STUBBORN: &str = "trap '' TERM; setsid sleep MARK & echo ready; while :; do sleep 0.05; done";
    probe
        .within(async |session| {
            let mut longest = Duration::ZERO;
            for (name, command, grace_ms, escalated) in [
                ("a command that obeys TERM", POLITE, 5_000, false),
                ("a command that ignores TERM", STUBBORN, 300, true),
            ] {
                probe.show_step(name);
                let took =
                    cancel_one(session, command, grace_ms, escalated).await.map_err(|problem| problem.of(name))?;
                longest = longest.max(took);
            }
            Ok(format!("no process left after {:.2} s at the longest", longest.as_secs_f64()))
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
    let mut transcript = session.execute(ExecutionSpec::of(mark.mark(command))).await?;
    session.follow(&mut transcript, |transcript| !transcript.streams.stdout.bytes.is_empty()).await?;
    let since = Instant::now();
    let answer = session.ask(&cancellation(grace_ms)).await?;
    ensure!(answer.execution_id == transcript.id, "CANCEL is answered with {}", shown(&answer));
    session.finish(&mut transcript).await?;
    let took = since.elapsed();
    transcript.ended_as(Status::Cancelled, Reason::Canceled)?;
    let cancel = transcript.end()?.cancel.ok_or_else(|| wrong("the final status has no `cancel`"))?;
    ensure!(cancel.verified, "the service cannot prove that its processes are gone: {}", shown(&cancel));
    ensure!(cancel.escalated == escalated, "`escalated` should be {escalated}: {}", shown(&cancel));
    transcript.is_whole()?;
    mark.is_gone(session).await?;
    Ok(took)
}

/// Closes sessions while output flows. Their commands must be ended, and other sessions not disturbed.
pub(super) async fn races(probe: &Probe) -> Result<String, CheckFailure> {
    const ROUNDS: usize = 24;
    let mark = ProcessMark::new();
    let command = mark.mark("setsid sleep MARK & yes 'output without end'");
    probe
        .within(async |watcher| {
            for round in 0..ROUNDS {
                probe.show_step(format!("round {round} of {ROUNDS}"));
                let mut session = probe.open().await?;
                let mut transcript = session.execute(ExecutionSpec::of(&command)).await?;
                // Each round disconnects a little later than the one before.
                let so_far = round * 20_000;
                session.follow(&mut transcript, |transcript| transcript.streams.stdout.bytes.len() >= so_far).await?;
                if round % 2 == 0 {
                    session.close().await?;
                } else {
                    drop(session);
                }
                let Some(end) = ended(watcher, transcript.id).await? else { continue };
                ensure!(
                    (end.status, end.reason) == (Status::Cancelled, Reason::Disconnected)
                        && end.cancel.is_some_and(|cancel| cancel.verified),
                    "after a disconnect at {so_far} bytes it ended as {}",
                    shown(&end)
                );
            }
            probe.show_step("searches for processes");
            mark.is_gone(watcher).await?;
            Ok(format!("{ROUNDS} disconnects, no process left"))
        })
        .await
}

/// The outcome of another session's execution. `None` if the service retains no outcomes.
async fn ended(watcher: &mut CheckSession<'_>, id: ExecutionId) -> Result<Option<Outcome>, CheckFailure> {
    let since = Instant::now();
    loop {
        let status = match watcher.call(&StatusParams { execution_id: Some(id) }).await? {
            Ok(StatusResult::Ended(end)) => return Ok(Some(end.ending)),
            Ok(status) => status,
            Err(error) if error.code == code::UNKNOWN_EXECUTION => return Ok(None),
            Err(error) => return Err(wrong(format!("`status` is refused: {}", shown(&error)))),
        };
        ensure!(
            since.elapsed() < QUIET,
            "hung: {id} still runs {} s after its client disconnected: {}",
            QUIET.as_secs(),
            shown(&status)
        );
        sleep(CADENCE).await;
    }
}

/// The cancellation of the session's own execution.
fn cancellation(grace_ms: u64) -> ControlParams {
    ControlParams { execution_id: None, request: ControlRequest::cancel(grace_ms) }
}

/// Calls that must be refused, with the expected error code. They are raw JSON, because no type of a call permits them.
fn invalid_calls() -> Vec<(&'static str, Value, i64)> {
    vec![
        ("execute", json!({}), code::PARAMS),
        ("execute", json!({ "command": "" }), code::PARAMS),
        ("execute", json!({ "command": 7 }), code::PARAMS),
        ("execute", json!({ "command": "true", "unknown": 1 }), code::PARAMS),
        ("execute", json!({ "command": "true", "heartbeatMs": 1 }), code::PARAMS),
        ("execute", json!({ "command": "true", "executor": "no such executor" }), code::NOT_ALLOWED),
        ("no such method", json!({}), code::METHOD),
        ("status", json!({ "executionId": "00000000-0000-4000-8000-000000000000" }), code::UNKNOWN_EXECUTION),
    ]
}

/// Sends calls and a message that must be refused, and two commands that must be ended by their time-outs.
pub(super) async fn limits(probe: &Probe) -> Result<String, CheckFailure> {
    let (n_refused, long) = probe
        .within(async |session| {
            let n_refused = check_refusals(probe, session).await?;
            two_at_once(probe, session).await?;
            let sleep = ExecutionSpec::of("sleep 1000");
            for (limit, reason, run) in [
                ("timeoutMs", Reason::Timeout, ExecutionSpec { timeout_ms: Some(300), ..sleep.clone() }),
                ("stallTimeoutMs", Reason::Stalled, ExecutionSpec { stall_timeout_ms: Some(300), ..sleep }),
            ] {
                probe.show_step(limit);
                let transcript = session.run(run).await?;
                timed_out(&transcript, reason).map_err(|problem| problem.of(limit))?;
            }
            Ok((n_refused, session.connected.limits.message_bytes.saturating_add(1)))
        })
        .await?;
    probe.show_step("a message that is too long");
    let mut session = probe.open().await?;
    // The send may fail, because the service may close the session before it has read the whole message.
    let _ = session.send("x".repeat(long)).await;
    let code = session.close_code().await?;
    if code != 1009 {
        return Err(
            session.problem(format!("after a message of {long} bytes the session was closed with {code}, not 1009"))
        );
    }
    // Besides the table's calls: the message that is not JSON, the second execution and the long message.
    Ok(format!("{} invalid calls refused, two time-outs reported as failures", n_refused + 3))
}

async fn check_refusals(probe: &Probe, session: &mut CheckSession<'_>) -> Result<usize, CheckFailure> {
    let calls = invalid_calls();
    for (method, params, code) in &calls {
        probe.show_step(format!("{method} {params}"));
        match session.call_raw(method, params).await? {
            Err(error) => {
                ensure!(error.code == *code, "`{method} {params}` is refused with {}, not {code}", shown(&error))
            }
            Ok(result) => return Err(wrong(format!("`{method} {params}` is accepted: {}", shown(&result)))),
        }
    }
    probe.show_step("a message that is not JSON");
    let error = session.unreadable("this is not JSON".to_owned()).await?;
    ensure!(error.code == code::PARSE, "a message that is not JSON is refused with {}", shown(&error));
    Ok(calls.len())
}

async fn two_at_once(probe: &Probe, session: &mut CheckSession<'_>) -> Result<(), CheckFailure> {
    probe.show_step("two executions in one session");
    let mut transcript = session.execute(ExecutionSpec::of("sleep 1000")).await?;
    let second = session.execute_params(ExecutionSpec::of("true"));
    match session.call(&second).await? {
        Err(error) => {
            ensure!(
                error.code == code::ALREADY_RUNNING,
                "a second execution in one session is refused with {}",
                shown(&error)
            )
        }
        Ok(result) => return Err(wrong(format!("a second execution in one session is accepted: {}", shown(&result)))),
    }
    session.ask(&cancellation(DEFAULT_GRACE_MS)).await?;
    session.finish(&mut transcript).await?;
    transcript.ended_as(Status::Cancelled, Reason::Canceled)
}

fn timed_out(transcript: &Transcript, reason: Reason) -> Result<(), CheckFailure> {
    transcript.ended_as(Status::Failed, reason)?;
    ensure!(
        transcript.errors.iter().any(|error| error.code == code::LIMIT),
        "no error {} came before the end",
        code::LIMIT
    );
    Ok(())
}
