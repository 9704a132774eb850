//! Checks that processes are gone, with a command that reads `/proc`, because the service's own report is under test.

use cc_executor_actors::protocol::execute::ExecutionSpec;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{
    failure::{CheckFailure, ensure},
    probe::QUIET,
    session::{CADENCE, CheckSession},
};

/// A unique argument of `sleep` that identifies processes: 1000 seconds and a fraction. A process id would not do,
/// because the system reuses it.
pub(super) struct ProcessMark {
    text: String,
}

/// The command that searches `/proc`. It has the mark in two halves, so that it does not find itself by the whole mark,
/// and prints `self` for the first half, which shows that it can read `/proc`. It uses only bash builtins, because
/// another process would change the list.
// It ends with `true` because a process may be gone when its file is opened.
const SCAN: &str = r#"half=HALF; mark=$half'REST'; for f in /proc/[0-9]*/cmdline; do
while IFS= read -r -d '' a; do case $a in *"$mark"*) echo "${f//[!0-9]/}";; "half=$half"*) echo self;; esac; done 2>/dev/null <$f
done; true"#;

impl ProcessMark {
    pub(super) fn new() -> Self {
        let digits = format!("{:039}", Uuid::new_v4().as_u128());
        ProcessMark { text: format!("1000.{}", &digits[digits.len() - 16..]) }
    }

    /// The command with each `MARK` replaced by the mark.
    pub(super) fn mark(&self, command: &str) -> String {
        command.replace("MARK", &self.text)
    }

    /// The ids of the processes with the mark in their arguments.
    async fn found(&self, session: &mut CheckSession<'_>) -> Result<Vec<String>, CheckFailure> {
        let (half, rest) = self.text.split_at(self.text.len() / 2);
        let command = SCAN.replace("HALF", half).replace("REST", rest);
        let transcript = session.run(ExecutionSpec::of(command)).await?;
        transcript.exited_with(0)?;
        let mut found: Vec<_> = transcript.streams.stdout.text().lines().map(str::to_owned).collect();
        let n_all = found.len();
        found.retain(|line| line != "self");
        ensure!(found.len() < n_all, "a command does not find itself in /proc, so it may not find other processes");
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Checks that no process has the mark now.
    pub(super) async fn is_gone(&self, session: &mut CheckSession<'_>) -> Result<(), CheckFailure> {
        let found = self.found(session).await?;
        ensure!(found.is_empty(), "{} processes are left: {}", found.len(), found.join(" "));
        Ok(())
    }

    /// Waits until no process has the mark.
    pub(super) async fn wait_until_gone(&self, session: &mut CheckSession<'_>) -> Result<(), CheckFailure> {
        let since = Instant::now();
        loop {
            let found = self.found(session).await?;
            if found.is_empty() {
                return Ok(());
            }
            let seconds = QUIET.as_secs();
            ensure!(
                since.elapsed() < QUIET,
                "{} processes are left after {seconds} s: {}",
                found.len(),
                found.join(" ")
            );
            sleep(CADENCE).await;
        }
    }
}
