//! Checks streams: long, slow, silent and interrupted ones.

use std::time::Duration;

use cc_executor_actors::{
    outcome::{Reason, Status},
    protocol::{
        Framing,
        attach::AttachParams,
        execute::{DetachOptions, ExecutionSpec, Overflow},
        notification::BackendHealth,
    },
    rpc::code,
    stream::{PerStream, Stream},
};
use tokio::time::{Instant, sleep};

use super::{
    failure::{CheckFailure, ensure, shown, wrong},
    probe::Probe,
    session::CheckSession,
    transcript::Transcript,
};

/// Checks that this is what `seq 1 N` writes.
fn counts_to(transcript: &Transcript, n: u64) -> Result<(), CheckFailure> {
    let mut lines = transcript.streams.stdout.bytes.split(|byte| *byte == b'\n');
    for expected in 1..=n {
        let line = lines.next().unwrap_or_default();
        ensure!(
            line == expected.to_string().as_bytes(),
            "line {expected} is {:?}",
            String::from_utf8_lossy(&line[..line.len().min(100)])
        );
    }
    let rest: Vec<_> = lines.collect();
    ensure!(rest == [b""], "there is output after line {n}");
    Ok(())
}

/// A client that reads nothing for a while, and then slowly, must lose no output.
pub(super) async fn slow_client(probe: &Probe) -> Result<String, CheckFailure> {
    const LINES: u64 = 3_000_000;
    const NOTHING: Duration = Duration::from_secs(2);
    const PAUSE: Duration = Duration::from_millis(200);
    probe
        .within(async |session| {
            let mut transcript = session.execute(ExecutionSpec::of(format!("seq 1 {LINES}"))).await?;
            probe.show_step("reads nothing");
            sleep(NOTHING).await;
            probe.show_step("reads slowly");
            for pause in 1..=8 {
                let so_far = pause * 1_000_000;
                session.follow(&mut transcript, |transcript| transcript.streams.stdout.bytes.len() > so_far).await?;
                sleep(PAUSE).await;
            }
            session.finish(&mut transcript).await?;
            transcript.exited_with(0)?;
            counts_to(&transcript, LINES)?;
            Ok(format!("{} bytes, complete", transcript.streams.stdout.bytes.len()))
        })
        .await
}

/// Reads much output at full speed.
pub(super) async fn large_output(probe: &Probe) -> Result<String, CheckFailure> {
    const LINES: u64 = 6_000_000;
    probe
        .within(async |session| {
            let transcript = session.run(ExecutionSpec::of(format!("seq 1 {LINES}"))).await?;
            transcript.exited_with(0)?;
            counts_to(&transcript, LINES)?;
            Ok(format!("{} bytes, with the digest of the backend", transcript.streams.stdout.bytes.len()))
        })
        .await
}

/// Runs a command that is silent for longer than three heartbeats. The heartbeats must come, and `backend` must not be
/// `silent`, which it is after three missed heartbeats of the backend.
pub(super) async fn heartbeat(probe: &Probe) -> Result<String, CheckFailure> {
    const SILENCE: &str = "sleep 5.5; echo awake";
    probe
        .within(async |session| {
            let transcript =
                session.run(ExecutionSpec { heartbeat_ms: Some(1_000), ..ExecutionSpec::of(SILENCE) }).await?;
            transcript.exited_with(0)?;
            let n_beats = count_heartbeats(&transcript)?;
            Ok(format!("{n_beats} heartbeats in 5.5 s without output"))
        })
        .await
}

/// The bounds leave room for a loaded machine.
fn count_heartbeats(transcript: &Transcript) -> Result<usize, CheckFailure> {
    const LONGEST_GAP: Duration = Duration::from_secs(3);
    let beats: Vec<_> = transcript.updates.iter().filter(|(_, update)| update.status == Status::Running).collect();
    ensure!(beats.len() >= 4, "only {} heartbeats came in 5.5 s at one a second", beats.len());
    for pair in beats.windows(2) {
        let [(before_at, before), (at, beat)] = pair else { continue };
        let gap = at.duration_since(*before_at);
        ensure!(gap < LONGEST_GAP, "two heartbeats are {:.1} s apart", gap.as_secs_f64());
        ensure!(beat.elapsed_ms > before.elapsed_ms, "`elapsedMs` does not increase");
        ensure!(beat.backend == BackendHealth::Alive, "the backend is reported as silent");
    }
    Ok(beats.len())
}

/// Breaks the connection of an execution that may detach. After `attach` each byte must have come exactly once.
pub(super) async fn detach(probe: &Probe) -> Result<String, CheckFailure> {
    const LINES: u64 = 100_000;
    const ROUNDS: usize = 3;
    const DETACH_MS: u64 = 60_000;
    let command = format!("seq 1 {}; sleep 0.5; seq {} {LINES}", LINES / 2, LINES / 2 + 1);
    let mut session = probe.open().await?;
    let detach_ms = DETACH_MS.min(session.connected.limits.detach_ms);
    let detach = Some(DetachOptions { detach_ms, overflow: Overflow::Wait });
    let mut transcript = session.execute(ExecutionSpec { detach, ..ExecutionSpec::of(command) }).await?;
    for round in 1..=ROUNDS {
        probe.show_step(format!("breaks the connection, {round} of {ROUNDS}"));
        let so_far = round * 80_000;
        session.follow(&mut transcript, |transcript| transcript.streams.stdout.bytes.len() > so_far).await?;
        drop(session);
        session = probe.open().await?;
        session.ask(&attach(&transcript, transcript.offsets())).await?;
    }
    session.finish(&mut transcript).await?;
    let whole = transcript.exited_with(0).and_then(|()| counts_to(&transcript, LINES));
    session.located(whole)?;
    probe.show_step("attaches after the end");
    let late = attach_after_end(&mut session, &transcript).await;
    let late = session.located(late)?;
    session.close().await?;
    Ok(format!("{ROUNDS} broken connections, {} bytes, each once{late}", transcript.streams.stdout.bytes.len()))
}

fn attach(transcript: &Transcript, offsets: PerStream<u64>) -> AttachParams {
    AttachParams { execution_id: transcript.id, offsets, framing: Framing::default(), events: false, observe: false }
}

/// Attaches after the end. Output that is not retained any more must be reported as a gap.
async fn attach_after_end(
    session: &mut CheckSession<'_>,
    transcript: &Transcript,
) -> Result<&'static str, CheckFailure> {
    match session.call(&attach(transcript, PerStream::default())).await? {
        Ok(_) => {}
        Err(error) if error.code == code::UNKNOWN_EXECUTION => return Ok("; no output is retained after the end"),
        Err(error) => return Err(wrong(format!("`attach` after the end is refused: {}", shown(&error)))),
    }
    let mut again = Transcript::of(transcript.id, Instant::now());
    session.finish(&mut again).await?;
    again.ended_as(Status::Completed, Reason::Exit)?;
    again.adds_up()?;
    ensure!(
        again.streams.stdout.is_of(&transcript.streams.stdout.bytes),
        "the retained output differs from the received output"
    );
    Ok(if again.n_lost(Stream::Stdout) == 0 { "" } else { "; a part of the output is retained after the end" })
}
