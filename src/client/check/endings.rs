//! How things end: canceled, abandoned, or refused to begin with.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::session::{Probe, Problem, Session, Story, ensure, shown, wrong};

/// How often an execution that is being ended is looked at.
const CADENCE: Duration = Duration::from_millis(20);

/// Ends a command that obeys, and one that does not.
pub(super) async fn cancel(probe: &Probe) -> Result<String, Problem> {
    const POLITE: &str = "echo ready; (sleep 1000 & sleep 1000); sleep 1000";
    const STUBBORN: &str = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let mut session = probe.open().await?;
    let mut longest = Duration::ZERO;
    for (name, command, grace_ms, escalated) in
        [("a command that obeys", POLITE, 5_000, false), ("a command that ignores TERM", STUBBORN, 300, true)]
    {
        probe.doing(name);
        let mut story = session.execute(json!({ "command": command })).await?;
        session.follow(&mut story, |story| !story.streams.stdout.bytes.is_empty()).await?;
        let since = Instant::now();
        let answer = session.ask("control", json!({ "type": "CANCEL", "graceMs": grace_ms })).await?;
        ensure!(answer["executionId"] == story.id.as_str(), "{name}: CANCEL is answered with {}", shown(&answer));
        finish_canceled(&mut session, &mut story, escalated)
            .await
            .map_err(|problem| Problem { what: format!("{name}: {}", problem.what), ..problem })?;
        longest = longest.max(since.elapsed());
    }
    probe.doing("the session goes on");
    let story = session.run(json!({ "command": "echo the session goes on" })).await?;
    story.exited_with(0)?;
    session.close().await;
    Ok(format!("every process proven gone, {:.2} s at the longest", longest.as_secs_f64()))
}

async fn finish_canceled(session: &mut Session<'_>, story: &mut Story, escalated: bool) -> Result<(), Problem> {
    session.finish(story).await?;
    story.ended_as("CANCELLED", "canceled")?;
    let cancel = &story.end["cancel"];
    ensure!(cancel["verified"] == true, "its processes are not proven gone: {}", shown(&story.end));
    ensure!(cancel["escalated"] == escalated, "escalated should be {escalated}: {}", shown(cancel));
    story.is_whole()
}

/// Clients that leave while output flows: what they ran is ended, and nobody else notices.
pub(super) async fn races(probe: &Probe) -> Result<String, Problem> {
    const ROUNDS: usize = 24;
    let mut watcher = probe.open().await?;
    for round in 0..ROUNDS {
        probe.doing(format!("round {round} of {ROUNDS}"));
        let mut session = probe.open().await?;
        let mut story = session.execute(json!({ "command": "yes 'output without end'" })).await?;
        // The more rounds, the later it leaves.
        let so_far = round * 20_000;
        session.follow(&mut story, |story| story.streams.stdout.bytes.len() >= so_far).await?;
        if round % 2 == 0 {
            session.close().await
        } else {
            drop(session)
        }
        let end = ended(probe, &mut watcher, &story.id).await?;
        ensure!(
            end["status"] == "CANCELLED" && end["reason"] == "disconnected" && end["cancel"]["verified"] == true,
            "left after {so_far} bytes, it ended as {}",
            shown(&end)
        );
    }
    watcher.close().await;
    Ok(format!("{ROUNDS} clients that left in the middle"))
}

/// How an execution of somebody else ended.
async fn ended(probe: &Probe, watcher: &mut Session<'_>, id: &str) -> Result<Value, Problem> {
    let since = Instant::now();
    loop {
        let status = watcher.ask("status", json!({ "executionId": id })).await?;
        if status.get("reason").is_some() {
            return Ok(status);
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

/// What must be refused, with the code that says so.
fn refused() -> Vec<(&'static str, Value, i64)> {
    vec![
        ("execute", json!({}), -32602),
        ("execute", json!({ "command": "" }), -32602),
        ("execute", json!({ "command": 7 }), -32602),
        ("execute", json!({ "command": "true", "unknown": 1 }), -32602),
        ("execute", json!({ "command": "true", "heartbeatMs": 1 }), -32602),
        ("execute", json!({ "command": "true", "executor": "no such executor" }), -32002),
        ("no such method", json!({}), -32601),
        ("status", json!({ "executionId": "00000000-0000-4000-8000-000000000000" }), -32006),
    ]
}

/// What a client may not do is refused, and what takes too long is ended as a failure.
pub(super) async fn limits(probe: &Probe) -> Result<String, Problem> {
    let mut session = probe.open().await?;
    let mut n_refused = 0;
    for (method, params, code) in refused() {
        probe.doing(format!("{method} {params}"));
        match session.call(method, params.clone()).await? {
            Err(error) if error["code"] == code => n_refused += 1,
            Err(error) => return Err(session.problem(format!("{method} {params} is {}, not {code}", shown(&error)))),
            Ok(result) => return Err(session.problem(format!("{method} {params} is accepted: {}", shown(&result)))),
        }
    }
    probe.doing("a message that is no JSON");
    session.send("this is no JSON".to_owned()).await?;
    let answer = session.recv().await?;
    ensure!(answer["error"]["code"] == -32700, "a message that is no JSON is answered with {}", shown(&answer));
    probe.doing("two executions in one session");
    let mut story = session.execute(json!({ "command": "sleep 0.3" })).await?;
    match session.call("execute", json!({ "command": "true" })).await? {
        Err(error) if error["code"] == -32005 => n_refused += 1,
        other => return Err(session.problem(format!("a second execution in one session: {other:?}"))),
    }
    session.finish(&mut story).await?;
    story.exited_with(0)?;
    for (limit, reason) in [("timeoutMs", "timeout"), ("stallTimeoutMs", "stalled")] {
        probe.doing(limit);
        let story = session.run(json!({ "command": "sleep 1000", limit: 300 })).await?;
        story.ended_as("FAILED", reason)?;
        ensure!(
            story.errors.iter().any(|error| error["code"] == -32012),
            "{limit}: no error -32012 came before the end"
        );
    }
    probe.doing("a message that is too long");
    let max = session.hello["limits"]["messageBytes"].as_u64();
    let max = max.ok_or_else(|| wrong(format!("connected has no limits.messageBytes: {}", shown(&session.hello))))?;
    session.close().await;
    let mut session = probe.open().await?;
    let long = usize::try_from(max).unwrap_or(usize::MAX).saturating_add(1);
    // The service may close before all of it is sent.
    let _ = session.send("x".repeat(long)).await;
    let code = session.close_code().await?;
    ensure!(code == 1009, "a message of {long} bytes is closed with {code}, not 1009");
    Ok(format!("{} wrong calls refused, two time-outs told as failures", n_refused + 2))
}
