//! Many sessions: at once, and in quick succession.

use futures_util::future::try_join_all;
use serde_json::json;

use super::session::{Probe, Problem, Story, ensure};

const AT_ONCE: usize = 50;
const IN_SUCCESSION: usize = 60;

/// Many sessions that are all open before the first of them runs anything.
pub(super) async fn concurrent(probe: &Probe) -> Result<String, Problem> {
    let mut sessions = Vec::new();
    for n in 0..AT_ONCE {
        probe.doing(format!("session {n} of {AT_ONCE}"));
        sessions.push(probe.open().await?);
    }
    let mut ids: Vec<_> = probe.sessions();
    ids.sort_unstable();
    ids.dedup();
    ensure!(ids.len() == AT_ONCE, "{AT_ONCE} sessions have {} ids between them", ids.len());
    probe.doing("all of them run a command");
    let stories = sessions.iter_mut().enumerate().map(|(n, session)| {
        let command = format!("for i in 1 2 3; do echo \"session {n} says $i\"; sleep 0.1; done");
        async move { session.run(json!({ "command": command })).await }
    });
    let stories: Vec<Story> = try_join_all(stories).await?;
    for (n, story) in stories.iter().enumerate() {
        story.exited_with(0)?;
        let (said, expected) = (story.streams.stdout.text(), (1..=3).map(|i| format!("session {n} says {i}\n")));
        ensure!(said == expected.collect::<String>(), "session {n} got {said:?}");
    }
    for session in sessions {
        session.close().await;
    }
    Ok(format!("{AT_ONCE} sessions at once"))
}

/// Clients that come and go: at once, properly, or in the moment in which they have asked for something.
pub(super) async fn reconnect(probe: &Probe) -> Result<String, Problem> {
    for n in 0..IN_SUCCESSION {
        probe.doing(format!("connection {n} of {IN_SUCCESSION}"));
        match n % 3 {
            0 => drop(probe.connect().await?),
            1 => probe.open().await?.close().await,
            _ => {
                let mut session = probe.open().await?;
                session.request("execute", json!({ "command": "echo nobody hears this" })).await?;
            }
        }
    }
    probe.doing("one that stays");
    let story = probe.run(json!({ "command": "echo still here" })).await?;
    story.exited_with(0)?;
    ensure!(story.streams.stdout.text() == "still here\n", "the output is {:?}", story.streams.stdout.text());
    Ok(format!("{IN_SUCCESSION} connections"))
}
