//! The exit code of `run` and `attach`, from the outcome of the execution.

use cc_executor_actors::{
    outcome::{Outcome, Reason, Status},
    signal,
};

use super::exit;

/// Why this client wants the command to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EndRequest {
    /// No end was requested.
    NotMade,
    /// Ctrl-C.
    Interrupted,
    /// SIGTERM.
    Terminated,
    /// The reader of standard output is gone.
    PipeClosed,
    /// The output cannot be written.
    WriteFailed,
    /// A second signal: exit with this code, and do not wait for the end.
    GivenUp(u8),
}

impl EndRequest {
    pub(super) const INTERRUPTED: u8 = exit::SIGNALED + 2;
    pub(super) const TERMINATED: u8 = exit::SIGNALED + 15;
    const PIPE_CLOSED: u8 = exit::SIGNALED + 13;

    /// Records a request. Returns true for the first one.
    pub(super) fn record(&mut self, wanted: EndRequest) -> bool {
        if *self == EndRequest::NotMade {
            *self = wanted;
            return true;
        }
        *self = EndRequest::GivenUp(wanted.code().unwrap_or(Self::INTERRUPTED));
        false
    }

    /// The exit code if the command was canceled for this reason.
    pub(super) fn code(self) -> Option<u8> {
        match self {
            EndRequest::NotMade => None,
            EndRequest::Interrupted => Some(Self::INTERRUPTED),
            EndRequest::Terminated => Some(Self::TERMINATED),
            EndRequest::PipeClosed => Some(Self::PIPE_CLOSED),
            EndRequest::WriteFailed => Some(exit::IOERR),
            EndRequest::GivenUp(code) => Some(code),
        }
    }

    /// The exit code that replaces the one of the outcome. Lost output is a failure whatever the outcome is. A signal
    /// counts only if it ended the command, which may have ended before the cancellation reached it.
    pub(super) fn code_after(self, reason: Reason) -> Option<u8> {
        match self {
            EndRequest::PipeClosed | EndRequest::WriteFailed => self.code(),
            _ => self.code().filter(|_| reason == Reason::Canceled),
        }
    }
}

/// The exit code for an outcome.
pub(super) fn exit_code_of(ending: &Outcome) -> u8 {
    match ending.reason {
        Reason::Exit | Reason::Unknown if ending.status == Status::Completed => 0,
        // A failure never exits with 0, even if the command did. Claude may exit with 0 after an error.
        Reason::Exit | Reason::NotStarted | Reason::ClaudeError | Reason::Unknown => {
            ending.exit_code.and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(1)
        }
        Reason::Signal | Reason::Oom => {
            let number = ending.signal.as_deref().and_then(signal::number).and_then(|number| u8::try_from(number).ok());
            exit::SIGNALED.saturating_add(number.unwrap_or(0))
        }
        Reason::Timeout | Reason::Stalled => exit::TIMEOUT,
        Reason::Canceled => EndRequest::TERMINATED,
        Reason::Drained | Reason::Disconnected => exit::TEMPFAIL,
        Reason::BackendUnreachable | Reason::BackendRejected | Reason::BackendLost => exit::UNAVAILABLE,
    }
}

/// The report about an execution that another client, the service or the kernel ended. All other failures are reported
/// by an `error` of the service before the end.
pub(super) fn ended_by(ending: &Outcome) -> Option<String> {
    let message = ending.message.as_deref();
    match ending.reason {
        Reason::Canceled => Some("the execution was canceled".to_owned()),
        Reason::Drained => {
            let detail = message.map(|message| format!(": {message}")).unwrap_or_default();
            Some(format!("the service is shutting down and ended the execution{detail}; run it again later"))
        }
        Reason::Disconnected => Some(format!("ended by the service: {}", message.unwrap_or("its client went away"))),
        Reason::Exit | Reason::Signal | Reason::Oom => message.map(str::to_owned),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_code() {
        let ending = |status, reason, exit_code, signal: Option<&str>| Outcome {
            exit_code,
            signal: signal.map(str::to_owned),
            ..Outcome::without_process(status, reason, None)
        };
        for (status, reason, exit_code, signal, code) in [
            (Status::Completed, Reason::Exit, Some(0), None, 0),
            (Status::Completed, Reason::Exit, None, None, 0),
            (Status::Failed, Reason::Exit, Some(3), None, 3),
            (Status::Failed, Reason::Exit, Some(255), None, 255),
            (Status::Failed, Reason::Signal, None, Some("SIGKILL"), 137),
            (Status::Failed, Reason::Signal, None, Some("SIG34"), 162),
            (Status::Failed, Reason::Oom, None, Some("SIGKILL"), 137),
            (Status::Failed, Reason::ClaudeError, Some(0), None, 1),
            (Status::Failed, Reason::ClaudeError, Some(7), None, 7),
            (Status::Failed, Reason::NotStarted, Some(127), None, 127),
            (Status::Failed, Reason::NotStarted, Some(126), None, 126),
            (Status::Failed, Reason::Timeout, None, Some("SIGTERM"), 124),
            (Status::Failed, Reason::Stalled, None, Some("SIGKILL"), 124),
            (Status::Cancelled, Reason::Canceled, Some(0), None, 143),
            (Status::Cancelled, Reason::Drained, None, None, 75),
            (Status::Cancelled, Reason::Disconnected, None, Some("SIGTERM"), 75),
            (Status::Failed, Reason::BackendLost, None, None, 69),
            (Status::Completed, Reason::Unknown, Some(0), None, 0),
            (Status::Failed, Reason::Unknown, Some(5), None, 5),
            (Status::Failed, Reason::Unknown, Some(0), None, 1),
        ] {
            assert_eq!(exit_code_of(&ending(status, reason, exit_code, signal)), code, "{reason:?} {exit_code:?}");
        }
    }

    #[test]
    fn the_report_names_who_ended_the_execution() {
        let report = |reason, message| {
            ended_by(&Outcome::without_process(Status::Cancelled, reason, message)).unwrap_or_default()
        };
        for (reason, message, text) in [
            (Reason::Canceled, None, "the execution was canceled"),
            (Reason::Drained, None, "the service is shutting down and ended the execution; run it again later"),
            (
                Reason::Drained,
                Some("it never ran".to_owned()),
                "the service is shutting down and ended the execution: it never ran; run it again later",
            ),
            (Reason::Disconnected, None, "ended by the service: its client went away"),
            (Reason::Exit, None, ""),
            (Reason::Oom, Some("memory ran out".to_owned()), "memory ran out"),
            (Reason::Signal, Some("memory may have run out".to_owned()), "memory may have run out"),
            (Reason::Signal, None, ""),
        ] {
            assert_eq!(report(reason, message), text);
        }
    }

    #[test]
    fn lost_output_decides_the_exit_code_whatever_the_outcome() {
        for (wanted, reason, code) in [
            (EndRequest::NotMade, Reason::Exit, None),
            (EndRequest::Interrupted, Reason::Exit, None),
            (EndRequest::Interrupted, Reason::Canceled, Some(130)),
            (EndRequest::PipeClosed, Reason::Exit, Some(141)),
            (EndRequest::PipeClosed, Reason::Canceled, Some(141)),
            (EndRequest::WriteFailed, Reason::Exit, Some(74)),
        ] {
            assert_eq!(wanted.code_after(reason), code, "{wanted:?} {reason:?}");
        }
    }

    #[test]
    fn a_second_request_does_not_wait() {
        let mut wanted = EndRequest::NotMade;
        assert!(wanted.record(EndRequest::Interrupted));
        assert_eq!((wanted, wanted.code()), (EndRequest::Interrupted, Some(130)));
        assert!(!wanted.record(EndRequest::Interrupted));
        assert_eq!((wanted, wanted.code()), (EndRequest::GivenUp(130), Some(130)));
    }
}
