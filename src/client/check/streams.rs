//! Streams: long, slow, silent, and broken off in the middle.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::session::{Probe, Problem, Story, ensure, wrong};

/// Checks that this is what `seq 1 N` writes.
fn counts_to(story: &Story, n: u64) -> Result<(), Problem> {
    let mut lines = story.streams.stdout.bytes.split(|byte| *byte == b'\n');
    for expected in 1..=n {
        let line = lines.next().unwrap_or_default();
        ensure!(
            line == expected.to_string().as_bytes(),
            "line {expected} is {:?}",
            String::from_utf8_lossy(&line[..line.len().min(100)])
        );
    }
    let rest: Vec<_> = lines.collect();
    ensure!(rest == [b""], "something comes after line {n}");
    Ok(())
}

/// A client that reads nothing for a while, and slowly then, loses nothing.
pub(super) async fn slow_client(probe: &Probe) -> Result<String, Problem> {
    const LINES: u64 = 3_000_000;
    const NOTHING: Duration = Duration::from_secs(2);
    const PAUSE: Duration = Duration::from_millis(200);
    let mut session = probe.open().await?;
    let mut story = session.execute(json!({ "command": format!("seq 1 {LINES}") })).await?;
    probe.doing("reads nothing");
    sleep(NOTHING).await;
    probe.doing("reads slowly");
    for pause in 1..=8 {
        let so_far = pause * 1_000_000;
        session.follow(&mut story, |story| story.streams.stdout.bytes.len() > so_far).await?;
        sleep(PAUSE).await;
    }
    session.finish(&mut story).await?;
    story.exited_with(0)?;
    counts_to(&story, LINES)?;
    session.close().await;
    Ok(format!("{} bytes, each counted", story.streams.stdout.bytes.len()))
}

/// Much output at full speed.
pub(super) async fn large_output(probe: &Probe) -> Result<String, Problem> {
    const LINES: u64 = 6_000_000;
    let story = probe.run(json!({ "command": format!("seq 1 {LINES}") })).await?;
    story.exited_with(0)?;
    counts_to(&story, LINES)?;
    Ok(format!("{} bytes, digest as where it ran", story.streams.stdout.bytes.len()))
}

/// A command that says nothing for longer than two heartbeats is told to live.
pub(super) async fn heartbeat(probe: &Probe) -> Result<String, Problem> {
    const CADENCE: Duration = Duration::from_millis(1_000);
    const SILENCE: &str = "sleep 3.6; echo awake";
    let mut session = probe.open().await?;
    let story = session.run(json!({ "command": SILENCE, "heartbeatMs": CADENCE.as_millis() as u64 })).await?;
    story.exited_with(0)?;
    let beats: Vec<_> = story.updates.iter().filter(|(_, update)| update["status"] == "RUNNING").collect();
    ensure!(
        beats.len() >= 4,
        "in 3.6 s with a heartbeat a second RUNNING was told {} times, not 4 times or more",
        beats.len()
    );
    for pair in beats.windows(2) {
        let [(before_at, before), (at, beat)] = pair else { continue };
        let gap = at.duration_since(*before_at);
        ensure!(gap < 2 * CADENCE, "two heartbeats are {:.1} s apart", gap.as_secs_f64());
        let elapsed = |update: &serde_json::Value| {
            update["elapsedMs"].as_u64().ok_or_else(|| wrong("a heartbeat does not say elapsedMs"))
        };
        ensure!(elapsed(beat)? > elapsed(before)?, "elapsedMs does not move on");
        ensure!(beat["backend"] == "alive", "the backend is said to be {}", beat["backend"]);
    }
    session.close().await;
    Ok(format!("{} signs of life in 3.6 s of silence", beats.len()))
}

/// An execution goes on without its client, and whoever comes back gets the rest: each byte once.
pub(super) async fn detach(probe: &Probe) -> Result<String, Problem> {
    const LINES: u64 = 100_000;
    const ROUNDS: usize = 3;
    let command = format!("seq 1 {}; sleep 0.5; seq {} {LINES}", LINES / 2, LINES / 2 + 1);
    let mut session = probe.open().await?;
    let params = json!({ "command": command, "onDisconnect": "detach", "detachMs": 60_000 });
    let mut story = session.execute(params).await?;
    let id = story.id.clone();
    for round in 1..=ROUNDS {
        probe.doing(format!("breaks its connection, {round} of {ROUNDS}"));
        let so_far = round * 80_000;
        session.follow(&mut story, |story| story.streams.stdout.bytes.len() > so_far).await?;
        drop(session);
        session = probe.open().await?;
        session.ask("attach", json!({ "executionId": id, "offsets": story.offsets() })).await?;
    }
    session.finish(&mut story).await?;
    story.exited_with(0)?;
    counts_to(&story, LINES)?;
    probe.doing("comes once more, after the end");
    let mut again = Story::of(&id);
    session.ask("attach", json!({ "executionId": id })).await?;
    session.finish(&mut again).await?;
    again.exited_with(0)?;
    counts_to(&again, LINES)?;
    session.close().await;
    Ok(format!("{ROUNDS} broken connections, {} bytes, each once", story.streams.stdout.bytes.len()))
}
