//! Decides the outcome of an execution, COMPLETED among them: `ending`, from how the command exited, why the service
//! ended it, and what an agent reported (for Claude `verdict` in `actors/src/agent/claude/result.rs`). For the legacy
//! image the gateway decides (`actors/src/execution/legacy/step.rs`).

use std::time::Duration;

use cc_executor_actors::{
    agent::AgentProgress,
    outcome::{CancelReport, Evidence, Outcome, Reason, Status},
    signal,
    stream::{PerStream, Stream},
};

use sha2::{Digest, Sha256};

use super::{
    clocks::JobLimits,
    life::{EndCause, EndReason},
};
use crate::backend::shim::protocol::{LeaderExit, OomKills, StartError, TreeGone};

impl EndCause {
    fn verdict(self, limits: JobLimits) -> (Status, Reason, Option<String>) {
        let seconds = |limit: Option<Duration>| limit.unwrap_or_default().as_secs_f64();
        match self {
            EndCause::Asked(reason) => (Status::Cancelled, reason.into(), None),
            EndCause::Timeout => {
                let message =
                    format!("the command ran longer than its time-out of {} s (timeoutMs)", seconds(limits.timeout));
                (Status::Failed, Reason::Timeout, Some(message))
            }
            EndCause::Stalled => {
                let message = format!("the command wrote nothing for {} s (stallTimeoutMs)", seconds(limits.stall));
                (Status::Failed, Reason::Stalled, Some(message))
            }
            EndCause::Disconnected => (Status::Cancelled, Reason::Disconnected, None),
            EndCause::Done => (Status::Completed, Reason::Exit, None),
        }
    }
}

/// The outcome. The cause decides before the exit code: a command that exits with 0 after TERM was canceled. COMPLETED
/// needs the exit code 0 without a cause, or an agent that was ended because it was done ([`EndCause::Done`]). In both
/// cases the agent's own result counts, too.
pub(super) fn ending(
    why: Option<EndReason>,
    exit: Option<LeaderExit>,
    gone: TreeGone,
    agent: Option<&dyn AgentProgress>,
    limits: JobLimits,
) -> Outcome {
    let cause = match why {
        Some(EndReason::Wanted { cause, .. }) => Some(cause),
        Some(EndReason::LeftBehind | EndReason::GuardLost) | None => None,
    };
    // A command that was killed because nothing guarded it has not ended by itself.
    let exit = exit.filter(|_| why != Some(EndReason::GuardLost));
    let (status, reason, message) = match (cause, exit) {
        (Some(cause), _) => cause.verdict(limits),
        (None, Some(LeaderExit::Code(0))) => (Status::Completed, Reason::Exit, None),
        (None, Some(LeaderExit::Code(_))) => (Status::Failed, Reason::Exit, out_of_memory(gone.oom_kills)),
        (None, Some(LeaderExit::Signal(number))) => ended_by_signal(number, gone.oom_kills),
        (None, None) => (Status::Failed, Reason::BackendLost, Some(lost(gone).to_owned())),
    };
    let mut ending = Outcome::without_process(status, reason, message);
    if let Some(agent) = agent.filter(|_| exit.is_some() || cause.is_some()) {
        let exited_with_0 = exit == Some(LeaderExit::Code(0)) || cause == Some(EndCause::Done);
        let verdict = agent.verdict(exited_with_0);
        // An agent that was killed because memory ran out has reported nothing, and this cause says more.
        let is_its_own = matches!(cause, None | Some(EndCause::Done)) && ending.reason != Reason::Oom;
        if let Some((status, reason, message)) = verdict.filter(|_| is_its_own) {
            ending.status = status;
            ending.reason = reason;
            let known = [Some(message).filter(|message| !message.is_empty()), ending.message.take()];
            let known: Vec<_> = known.into_iter().flatten().collect();
            ending.message = (!known.is_empty()).then(|| known.join("; "));
        }
        ending.result = agent.result().cloned().map(Box::new);
    }
    match exit.filter(|_| cause != Some(EndCause::Done)) {
        Some(LeaderExit::Code(code)) => ending.exit_code = Some(code),
        Some(LeaderExit::Signal(number)) => ending.signal = Some(signal::name(number)),
        None => {}
    }
    ending.usage = gone.usage;
    let was_ended = cause.is_some() || exit.is_none();
    if !was_ended {
        ending.leftovers = gone.killed;
    }
    // Also if only leftovers were ended, because processes that may still run must be reported.
    if was_ended || !gone.evidence.is_proof() {
        ending.cancel = Some(report(why, gone));
    }
    ending
}

/// The ending of a command that a signal ended which the service did not send. It is `oom` only if the kernel is known
/// to have killed a process of this execution.
fn ended_by_signal(number: i32, kills: OomKills) -> (Status, Reason, Option<String>) {
    let is_kill = number == rustix::process::Signal::KILL.as_raw();
    let (reason, message) = match kills {
        OomKills::Own(_) if is_kill => (Reason::Oom, out_of_memory(kills)),
        OomKills::Shared if is_kill => (Reason::Signal, Some(PERHAPS_MEMORY.to_owned())),
        OomKills::Own(_) | OomKills::Shared | OomKills::NotCounted => (Reason::Signal, out_of_memory(kills)),
    };
    (Status::Failed, reason, message)
}

/// The message for a command that the kernel may have killed.
const PERHAPS_MEMORY: &str = "memory may have run out: while the command ran, the kernel killed a process for that reason in the cgroup that it shares with the service";

/// The message about processes of an execution that the kernel killed.
fn out_of_memory(kills: OomKills) -> Option<String> {
    let OomKills::Own(n) = kills else { return None };
    let processes = if n == 1 { "a process".to_owned() } else { format!("{n} processes") };
    Some(format!("memory ran out: the kernel killed {processes} of the command"))
}

fn lost(gone: TreeGone) -> &'static str {
    if gone.evidence.is_proof() {
        "the process that guards this execution was killed: its command was ended with everything that it started"
    } else {
        "the process that guards this execution was killed: its command may still run"
    }
}

/// The report of the end of the processes.
pub(super) fn report(why: Option<EndReason>, gone: TreeGone) -> CancelReport {
    let TreeGone { evidence, survivors, killed, .. } = gone;
    let (grace_ms, escalated) = match why {
        Some(EndReason::Wanted { grace_ms, .. }) => (grace_ms, killed > 0 || evidence != Evidence::Echild),
        Some(EndReason::LeftBehind | EndReason::GuardLost) | None => (0, true),
    };
    // A command that never started was not killed.
    let escalated = escalated && evidence != Evidence::NeverStarted;
    CancelReport { verified: evidence.is_proof(), survivors, grace_ms, escalated, evidence }
}

/// The command could not be started.
pub(super) fn not_started(StartError { exit_code, message }: StartError) -> Outcome {
    Outcome { exit_code: Some(exit_code), ..never_ran(Status::Failed, Reason::NotStarted, message) }
}

/// The command never ran, and wrote nothing.
pub(super) fn never_ran(status: Status, reason: Reason, message: impl Into<String>) -> Outcome {
    let mut ending = Outcome::without_process(status, reason, message.into());
    OutputDigests::default().into_ending(&mut ending);
    ending
}

/// Counts and digests of both streams, over everything that was read.
#[derive(Default)]
pub(super) struct OutputDigests(PerStream<StreamDigest>);

impl OutputDigests {
    pub(super) fn add(&mut self, stream: Stream, bytes: &[u8]) {
        self.0.get_mut(stream).add(bytes);
    }

    /// The counts and digests so far.
    pub(super) fn so_far(&self) -> (PerStream<u64>, PerStream<String>) {
        let PerStream { stdout, stderr } = &self.0;
        let bytes = PerStream { stdout: stdout.bytes, stderr: stderr.bytes };
        (bytes, PerStream { stdout: stdout.clone().hex(), stderr: stderr.clone().hex() })
    }

    pub(super) fn into_ending(self, ending: &mut Outcome) {
        let PerStream { stdout, stderr } = self.0;
        ending.bytes = PerStream { stdout: Some(stdout.bytes), stderr: Some(stderr.bytes) };
        ending.sha256 = PerStream { stdout: Some(stdout.hex()), stderr: Some(stderr.hex()) };
    }
}

/// The digest and count of one stream.
#[derive(Clone, Default)]
struct StreamDigest {
    bytes: u64,
    sha256: Sha256,
}

impl StreamDigest {
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
    use std::time::Instant;

    use cc_executor_actors::{
        agent::{Agent, claude::Claude},
        outcome::CancelReason,
    };

    use super::*;

    const LIMITS: JobLimits = JobLimits {
        timeout: Some(Duration::from_secs(600)),
        stall: Some(Duration::from_millis(500)),
        heartbeat: Duration::from_secs(15),
    };

    #[test]
    fn a_time_out_is_reported_with_its_length() {
        for (cause, message) in [
            (EndCause::Timeout, "the command ran longer than its time-out of 600 s (timeoutMs)"),
            (EndCause::Stalled, "the command wrote nothing for 0.5 s (stallTimeoutMs)"),
        ] {
            let why = Some(EndReason::Wanted { cause, grace_ms: 0 });
            let ending = ending(why, None, TreeGone::proven(Evidence::Echild), None, LIMITS);
            assert_eq!(ending.message.as_deref(), Some(message));
        }
    }

    #[test]
    fn who_ended_it_decides_and_only_exit_0_is_completed() {
        let gone = TreeGone::proven(Evidence::Echild);
        let wanted = |cause| Some(EndReason::Wanted { cause, grace_ms: 5_000 });
        let canceled = wanted(EndCause::Asked(CancelReason::Canceled));
        let table = [
            (Some(LeaderExit::Code(0)), None, Status::Completed, Reason::Exit, Some(0), None),
            (Some(LeaderExit::Code(0)), Some(EndReason::LeftBehind), Status::Completed, Reason::Exit, Some(0), None),
            (Some(LeaderExit::Code(3)), None, Status::Failed, Reason::Exit, Some(3), None),
            (Some(LeaderExit::Signal(9)), None, Status::Failed, Reason::Signal, None, Some("SIGKILL")),
            (Some(LeaderExit::Code(0)), canceled, Status::Cancelled, Reason::Canceled, Some(0), None),
            (Some(LeaderExit::Code(0)), wanted(EndCause::Timeout), Status::Failed, Reason::Timeout, Some(0), None),
            (Some(LeaderExit::Code(0)), wanted(EndCause::Stalled), Status::Failed, Reason::Stalled, Some(0), None),
            (
                Some(LeaderExit::Signal(15)),
                wanted(EndCause::Disconnected),
                Status::Cancelled,
                Reason::Disconnected,
                None,
                Some("SIGTERM"),
            ),
            (None, Some(EndReason::GuardLost), Status::Failed, Reason::BackendLost, None, None),
            (Some(LeaderExit::Signal(9)), Some(EndReason::GuardLost), Status::Failed, Reason::BackendLost, None, None),
            (None, canceled, Status::Cancelled, Reason::Canceled, None, None),
        ];
        for (exit, why, status, reason, code, signal) in table {
            let ending = ending(why, exit, gone, None, LIMITS);
            assert_eq!((ending.status, ending.reason, ending.exit_code), (status, reason, code), "{exit:?} {why:?}");
            assert_eq!(ending.signal.as_deref(), signal);
            let was_ended = !matches!(why, None | Some(EndReason::LeftBehind));
            assert_eq!(ending.cancel.is_some(), was_ended, "whenever the service ended it");
        }
    }

    #[test]
    fn only_a_kill_that_its_own_cgroup_counted_is_oom() {
        let (own, shared, none) = (OomKills::Own(1), OomKills::Shared, OomKills::NotCounted);
        let canceled = EndReason::Wanted { cause: EndCause::Asked(CancelReason::Canceled), grace_ms: 0 };
        let (kill, term) = (LeaderExit::Signal(9), LeaderExit::Signal(15));
        let counted = Some("memory ran out: the kernel killed a process of the command");
        for (exit, why, kills, reason, message) in [
            (kill, None, own, Reason::Oom, counted),
            (kill, Some(EndReason::LeftBehind), own, Reason::Oom, counted),
            (kill, None, shared, Reason::Signal, Some(PERHAPS_MEMORY)),
            (kill, None, none, Reason::Signal, None),
            (term, None, own, Reason::Signal, counted),
            (term, None, shared, Reason::Signal, None),
            (LeaderExit::Code(137), None, own, Reason::Exit, counted),
            (LeaderExit::Code(137), None, shared, Reason::Exit, None),
            (LeaderExit::Code(0), None, own, Reason::Exit, None),
            (kill, Some(canceled), own, Reason::Canceled, None),
        ] {
            let gone = TreeGone { oom_kills: kills, ..TreeGone::proven(Evidence::Echild) };
            let ending = ending(why, Some(exit), gone, None, LIMITS);
            assert_eq!((ending.reason, ending.message.as_deref()), (reason, message), "{exit:?} {why:?} {kills:?}");
            if reason == Reason::Oom {
                assert_eq!((ending.status, ending.exit_code), (Status::Failed, None));
                assert_eq!(ending.signal.as_deref(), Some("SIGKILL"));
            }
        }
        let agent = Claude.progress(Duration::ZERO, Instant::now());
        for (kills, reason) in [(own, Reason::Oom), (shared, Reason::ClaudeError), (none, Reason::ClaudeError)] {
            let gone = TreeGone { oom_kills: kills, ..TreeGone::proven(Evidence::Echild) };
            let ending = ending(None, Some(kill), gone, Some(&*agent), LIMITS);
            assert_eq!(ending.reason, reason);
            assert_eq!(ending.message.unwrap().contains("memory"), kills != none);
        }
        let message = out_of_memory(OomKills::Own(2)).unwrap();
        assert_eq!(message, "memory ran out: the kernel killed 2 processes of the command");
    }

    #[test]
    fn a_signal_has_the_name_that_the_system_gives_it() {
        assert_eq!(signal::name(rustix::process::Signal::KILL.as_raw()), "SIGKILL");
        assert_eq!(signal::name(rustix::process::Signal::SYS.as_raw()), "SIGSYS");
    }

    #[test]
    fn a_claim_carries_its_evidence() {
        let why = Some(EndReason::Wanted { cause: EndCause::Timeout, grace_ms: 7 });
        let table = [
            (TreeGone::proven(Evidence::Echild), true, Some(0), false),
            (TreeGone { killed: 2, ..TreeGone::proven(Evidence::Echild) }, true, Some(0), true),
            (TreeGone::proven(Evidence::Swept), true, Some(0), true),
            (TreeGone::proven(Evidence::NeverStarted), true, Some(0), false),
            (TreeGone::UNKNOWN, false, None, true),
            (TreeGone { survivors: Some(3), ..TreeGone::UNKNOWN }, false, Some(3), true),
        ];
        for (gone, verified, survivors, escalated) in table {
            let evidence = gone.evidence;
            let expected = CancelReport { verified, survivors, grace_ms: 7, escalated, evidence };
            assert_eq!(report(why, gone), expected);
        }
        let left = ending(Some(EndReason::LeftBehind), Some(LeaderExit::Code(0)), TreeGone::UNKNOWN, None, LIMITS);
        assert_eq!(left.cancel.map(|report| report.verified), Some(false), "processes that may still run are reported");
    }
}
