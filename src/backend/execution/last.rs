//! The backend's last word: made from how the command's process ended and from who ended it.

use cc_executor_actors::{
    claude::{self, watch::Watch},
    protocol::{PerStream, Stream},
    terminate::{CancelReason, CancelReport, Ending, Reason, Status},
};

use sha2::{Digest, Sha256};

use crate::backend::{
    keeper::talk::{Gone, LeaderExit},
    signal,
};

/// Why the service ended an execution.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    /// Somebody asked.
    Asked(CancelReason),
    /// The total time-out passed.
    Timeout,
    /// Nothing was written for the stall time-out.
    Stalled,
    /// Its consumer went away.
    Disconnected,
    /// Claude has said how it ended, and did not exit.
    Done,
}

impl Cause {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Cause::Asked(reason) => reason.as_str(),
            Cause::Timeout => "timeout",
            Cause::Stalled => "stalled",
            Cause::Disconnected => "disconnected",
            Cause::Done => "done",
        }
    }

    fn verdict(self) -> (Status, Reason, Option<&'static str>) {
        match self {
            Cause::Asked(reason) => (Status::Cancelled, reason.into(), None),
            Cause::Timeout => (Status::Failed, Reason::Timeout, Some("the total time-out passed")),
            Cause::Stalled => (Status::Failed, Reason::Stalled, Some("nothing was written for the stall time-out")),
            Cause::Disconnected => (Status::Cancelled, Reason::Disconnected, None),
            Cause::Done => (Status::Completed, Reason::Exit, None),
        }
    }
}

/// How it ended. Who ended it decides, not what the process then said: one that exits 0 after TERM was
/// canceled all the same. Where nobody ended Claude, its own words count beside its exit code.
pub(super) fn ending(
    leader: Option<LeaderExit>,
    cause: Option<Cause>,
    grace_ms: u64,
    gone: Option<Gone>,
    claude: Option<&Watch>,
) -> Ending {
    let (status, reason, message) = match (cause, leader) {
        (Some(cause), _) => cause.verdict(),
        (None, Some(LeaderExit::Code(0))) => (Status::Completed, Reason::Exit, None),
        (None, Some(LeaderExit::Code(_))) => (Status::Failed, Reason::Exit, None),
        (None, Some(LeaderExit::Signal(_))) => (Status::Failed, Reason::Signal, None),
        (None, None) => (
            Status::Failed,
            Reason::BackendLost,
            Some(
                "the process that guards this execution was killed: its command was killed too, what that left behind may still run",
            ),
        ),
    };
    let mut ending = Ending::without_process(status, reason, message.map(str::to_owned));
    if let Some(claude) = claude.filter(|_| leader.is_some() || cause.is_some()) {
        let exited_with_0 = leader == Some(LeaderExit::Code(0)) || cause == Some(Cause::Done);
        let verdict = claude::verdict(claude.outcome(), exited_with_0, &claude.last_words());
        if let Some((status, reason, message)) = verdict.filter(|_| matches!(cause, None | Some(Cause::Done))) {
            ending.status = status;
            ending.reason = reason;
            ending.message = (!message.is_empty()).then_some(message);
        }
        ending.result = claude.outcome().cloned().map(Box::new);
    }
    match leader.filter(|_| cause != Some(Cause::Done)) {
        Some(LeaderExit::Code(code)) => ending.exit_code = Some(code),
        Some(LeaderExit::Signal(number)) => ending.signal = Some(signal::name(number)),
        None => {}
    }
    if let Some(gone) = gone.filter(|_| cause.is_some() || leader.is_none()) {
        ending.cancel = Some(report(gone, grace_ms));
    }
    ending
}

/// What is known of the processes.
pub(super) fn report(gone: Gone, grace_ms: u64) -> CancelReport {
    let Gone { verified, survivors, escalated, .. } = gone;
    CancelReport { verified, survivors: Some(survivors), grace_ms, escalated }
}

/// The command could not be started.
pub(super) fn not_started(exit_code: i32, message: String) -> Ending {
    let mut ending = never_ran(Status::Failed, Reason::NotStarted, message);
    ending.exit_code = Some(exit_code);
    ending
}

/// The command never ran, and wrote nothing.
pub(super) fn never_ran(status: Status, reason: Reason, message: impl Into<String>) -> Ending {
    let mut ending = Ending::without_process(status, reason, message.into());
    Counted::default().into_ending(&mut ending);
    ending
}

/// Counts and digests of both streams, over everything that was read.
#[derive(Default)]
pub(super) struct Counted(PerStream<Tally>);

impl Counted {
    pub(super) fn add(&mut self, stream: Stream, bytes: &[u8]) {
        self.0.get_mut(stream).add(bytes);
    }

    pub(super) fn into_ending(self, ending: &mut Ending) {
        let PerStream { stdout, stderr } = self.0;
        ending.bytes = PerStream { stdout: Some(stdout.bytes), stderr: Some(stderr.bytes) };
        ending.sha256 = PerStream { stdout: Some(stdout.hex()), stderr: Some(stderr.hex()) };
    }
}

/// The digest and count of one stream.
#[derive(Default)]
struct Tally {
    bytes: u64,
    sha256: Sha256,
}

impl Tally {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.sha256.update(bytes);
    }

    fn hex(self) -> String {
        format!("{:x}", self.sha256.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_ended_it_decides_and_only_exit_0_is_completed() {
        let gone = Some(Gone { verified: true, survivors: 0, killed: 0, escalated: false });
        let canceled = Some(Cause::Asked(CancelReason::Canceled));
        let table = [
            (Some(LeaderExit::Code(0)), None, gone, Status::Completed, Reason::Exit, Some(0), None),
            (Some(LeaderExit::Code(3)), None, gone, Status::Failed, Reason::Exit, Some(3), None),
            (Some(LeaderExit::Signal(9)), None, gone, Status::Failed, Reason::Signal, None, Some("SIGKILL")),
            (Some(LeaderExit::Code(0)), canceled, gone, Status::Cancelled, Reason::Canceled, Some(0), None),
            (Some(LeaderExit::Code(0)), Some(Cause::Timeout), gone, Status::Failed, Reason::Timeout, Some(0), None),
            (Some(LeaderExit::Code(0)), Some(Cause::Stalled), gone, Status::Failed, Reason::Stalled, Some(0), None),
            (
                Some(LeaderExit::Signal(15)),
                Some(Cause::Disconnected),
                gone,
                Status::Cancelled,
                Reason::Disconnected,
                None,
                Some("SIGTERM"),
            ),
            (None, None, gone, Status::Failed, Reason::BackendLost, None, None),
            (None, canceled, gone, Status::Cancelled, Reason::Canceled, None, None),
        ];
        for (leader, cause, gone, status, reason, code, signal) in table {
            let ending = ending(leader, cause, 5_000, gone, None);
            assert_eq!(
                (ending.status, ending.reason, ending.exit_code),
                (status, reason, code),
                "{leader:?} {cause:?}"
            );
            assert_eq!(ending.signal.as_deref(), signal);
            assert_eq!(ending.cancel.is_some(), cause.is_some() || leader.is_none(), "whenever the service ended it");
        }
    }
}
