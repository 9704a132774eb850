//! The events of a client, and how a message of the service is read as one of them. No I/O and no clock.

use cc_executor_actors::{
    id::InstanceId,
    outcome::Outcome,
    protocol::{Limits, execute::HoldResult},
    rpc::{ErrorObject, ReceivedMessage},
    stream::PerStream,
};
use serde::{Deserialize, de::IgnoredAny};

use crate::{
    cli::{ClientError, connection::read, exit_code::EndRequest, progress::Progress, status::ReceivedStatus},
    console::{OutputReader, WriteFailed},
};

/// The ids of the client's calls.
pub(super) mod call {
    pub(in crate::cli::session_loop) const EXECUTE: u64 = 1;
    pub(in crate::cli::session_loop) const CANCEL: u64 = 2;
    pub(in crate::cli::session_loop) const RESIZE: u64 = 3;
    pub(in crate::cli::session_loop) const ATTACH: u64 = 4;
    pub(in crate::cli::session_loop) const STATUS: u64 = 5;
    pub(in crate::cli::session_loop) const OTHER_SIZE: u64 = 6;
    /// KEEP for a client that leaves.
    pub(in crate::cli::session_loop) const KEEP: u64 = 7;
    /// KEEP for a client that is suspended. Nothing depends on its answer.
    pub(in crate::cli::session_loop) const KEEP_QUIETLY: u64 = 8;
    /// The first call of `input`; each further one has the next number.
    pub(in crate::cli::session_loop) const INPUT: u64 = 10;
}

/// An event of a client, apart from the command's output.
#[derive(Debug)]
pub(super) enum LoopEvent {
    /// A connection was opened.
    Opened,
    /// No connection could be opened.
    OpenFailed(ClientError),
    /// The connection broke.
    Broken(ClientError),
    /// The response to `execute` or `attach` did not come in time.
    AnswerOverdue,
    /// A signal: the user wants to end the command.
    EndRequested(EndRequest),
    /// Standard output or standard error could not be written.
    OutputLost(OutputLoss),
    /// `connected` was received.
    Connected { instance: Option<InstanceId>, longest_detach_ms: u64 },
    /// The response to `execute` or `attach`. Its status is text, because a newer service may have other statuses.
    Accepted(HoldResult<String>),
    /// The service refuses `execute` or `attach`.
    Refused(ErrorObject),
    /// The response to `input`.
    InputAnswered(Result<(), ErrorObject>),
    /// The result of printing the execution's id.
    IdPrinted(Result<(), OutputLoss>),
    /// A status that is not final.
    StatusUpdated(Progress),
    /// The final status.
    Ended(Box<Outcome>),
    /// The result of writing the rest of the output, which is complete except for the bytes that were lost.
    OutputFinished { outcome: Box<Outcome>, written: Result<(), OutputLoss>, lost: PerStream<u64> },
    /// Another client has taken the execution over.
    Detached,
    /// The notification `error`.
    ServiceError(ErrorObject),
    /// The status of the execution that `attach -it` names.
    Inspected(Result<InspectedExecution, ErrorObject>),
    /// The answer to the other size.
    OtherSizeSet(Result<(), ErrorObject>),
    /// The user typed the detach keys.
    DetachRequested,
    /// The answer to KEEP for a client that leaves.
    Kept(Result<(), ErrorObject>),
    /// The user typed the escape that drops the connection.
    DropRequested,
    /// The client is about to be suspended.
    Suspending,
    /// The client continues after it was stopped.
    Resumed,
}

/// The fields of the response to `status` that `attach -it` uses.
#[derive(Debug, Deserialize)]
pub(super) struct InspectedExecution {
    /// Only the final status has one.
    #[serde(default)]
    reason: Option<IgnoredAny>,
    /// The bytes that it has written.
    #[serde(default)]
    pub(super) offsets: PerStream<u64>,
}

impl InspectedExecution {
    pub(super) fn has_ended(&self) -> bool {
        self.reason.is_some()
    }
}

/// Why output was not written.
#[derive(Debug)]
pub(super) enum OutputLoss {
    /// The pipe is closed, which is no error.
    ReaderGone,
    /// The write failed.
    WriteFailed(String),
}

impl OutputLoss {
    /// The result of a write.
    pub(super) fn check(written: Result<OutputReader, WriteFailed>) -> Result<(), OutputLoss> {
        match written {
            Ok(OutputReader::Present) => Ok(()),
            Ok(OutputReader::Gone) => Err(OutputLoss::ReaderGone),
            Err(error) => Err(OutputLoss::WriteFailed(error.to_string())),
        }
    }
}

impl LoopEvent {
    /// Reads a message as an event. Returns `None` for a message that needs no action. `connected` is read only
    /// if it is awaited.
    pub(super) fn of_message(
        message: ReceivedMessage<'_>,
        awaits_connected: bool,
    ) -> Result<Option<LoopEvent>, ClientError> {
        Ok(match (message.method.as_deref(), message.params) {
            (Some("statusUpdate"), Some(params)) => Some(ReceivedStatus::read(params)?.into()),
            (Some("detached"), _) => Some(LoopEvent::Detached),
            (Some("connected"), Some(params)) if awaits_connected => {
                let ServiceFacts { instance, limits } = read(params)?;
                Some(LoopEvent::Connected { instance, longest_detach_ms: limits.detach_ms })
            }
            (Some("error"), Some(params)) => Some(LoopEvent::ServiceError(read(params)?)),
            (None, _) => response_event(message)?,
            _ => None,
        })
    }
}

/// The fields of `connected` that a client uses.
#[derive(Deserialize)]
struct ServiceFacts {
    #[serde(default)]
    instance: Option<InstanceId>,
    limits: Limits,
}

impl From<ReceivedStatus> for LoopEvent {
    fn from(status: ReceivedStatus) -> Self {
        match status {
            ReceivedStatus::Progress(progress) => LoopEvent::StatusUpdated(progress),
            ReceivedStatus::Ended(outcome) => LoopEvent::Ended(outcome),
        }
    }
}

/// The responses to CANCEL and `resize` need no action: an error there means that the execution is ending.
fn response_event(message: ReceivedMessage<'_>) -> Result<Option<LoopEvent>, ClientError> {
    Ok(match (message.id, message.error, message.result) {
        (Some(call::EXECUTE | call::ATTACH), Some(error), _) => Some(LoopEvent::Refused(error)),
        (Some(call::EXECUTE | call::ATTACH), None, Some(result)) => Some(LoopEvent::Accepted(read(result)?)),
        (Some(call::STATUS), Some(error), _) => Some(LoopEvent::Inspected(Err(error))),
        (Some(call::STATUS), None, Some(result)) => Some(LoopEvent::Inspected(Ok(read(result)?))),
        (Some(call::OTHER_SIZE), error, _) => Some(LoopEvent::OtherSizeSet(error.map_or(Ok(()), Err))),
        (Some(call::KEEP), error, _) => Some(LoopEvent::Kept(error.map_or(Ok(()), Err))),
        (Some(id), error, _) if id >= call::INPUT => Some(LoopEvent::InputAnswered(error.map_or(Ok(()), Err))),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use cc_executor_actors::{
        id::{ExecutionId, SessionId},
        protocol::Limits,
    };
    use serde_json::json;

    use super::*;

    #[test]
    fn each_message_is_its_event() {
        let event = |text: &str| {
            let message = serde_json::from_str(text).unwrap();
            LoopEvent::of_message(message, true).map(|event| format!("{event:?}")).unwrap_or_else(|error| error.message)
        };
        let (id, instance) = (ExecutionId::random(), InstanceId::random());
        let update = json!({ "method": "statusUpdate", "params": {
            "executionId": id, "status": "RUNNING", "elapsedMs": 1, "sinceOutputMs": 1, "backend": "alive",
            "offsets": { "stdout": 0, "stderr": 0 }, "activity": "a", "unknown": "of a newer service",
        } });
        let connected = json!({ "method": "connected", "params": {
            "sessionId": SessionId::random(), "protocol": 1, "server": { "name": "cc-executor", "version": "1" },
            "executors": null, "instance": instance, "limits": Limits { detach_ms: 7, ..Limits::default() },
            "capabilities": [],
        } });
        let expected = format!("Some(Connected {{ instance: Some({instance:?}), longest_detach_ms: 7 }})");
        let progress = |status: &str, ms| {
            let (status, activity) = (status.to_owned(), Some("a".to_owned()));
            let progress = Progress { status, elapsed_ms: ms, since_output_ms: ms, activity, ..Progress::default() };
            format!("{:?}", Some(LoopEvent::StatusUpdated(progress)))
        };
        let (running, later) = (progress("RUNNING", Some(1)), progress("LATER", None));
        let error = r#"{"code":-32001,"message":"no"}"#;
        for (text, expected) in [
            (r#"{"method":"detached"}"#, "Some(Detached)"),
            (&update.to_string(), &running),
            (
                r#"{"id":5,"error":{"code":1,"message":"no"}}"#,
                "Some(Inspected(Err(ErrorObject { code: 1, message: \"no\", data: None })))",
            ),
            (
                r#"{"id":5,"result":{"status":"RUNNING","offsets":{"stdout":7,"stderr":0}}}"#,
                "Some(Inspected(Ok(InspectedExecution { reason: None, offsets: PerStream { stdout: 7, stderr: 0 } })))",
            ),
            (r#"{"id":6,"result":{}}"#, "Some(OtherSizeSet(Ok(())))"),
            (r#"{"id":7,"result":{}}"#, "Some(Kept(Ok(())))"),
            (r#"{"id":8,"result":{}}"#, "None"),
            (&connected.to_string(), &expected),
            (r#"{"id":1,"result":null}"#, "None"),
            (r#"{"id":2,"result":{}}"#, "None"),
            (r#"{"id":10,"result":{}}"#, "Some(InputAnswered(Ok(())))"),
            (r#"{"method":"later"}"#, "None"),
            (r#"{"method":"statusUpdate","params":{"status":"LATER","backend":"later","activity":"a"}}"#, &later),
            (
                r#"{"method":"connected","params":{"limits":{"detachMs":7}}}"#,
                "Some(Connected { instance: None, longest_detach_ms: 7 })",
            ),
        ] {
            assert_eq!(event(text), expected, "{text}");
        }
        for (call, status) in [(1, "started"), (4, "RUNNING"), (4, "LATER")] {
            let accepted = json!({ "id": call, "result": { "executionId": id, "status": status } });
            assert!(event(&accepted.to_string()).starts_with("Some(Accepted("), "{call} {status}");
        }
        assert!(event(&format!(r#"{{"id":1,"error":{error}}}"#)).starts_with("Some(Refused("));
        assert!(event(&format!(r#"{{"id":11,"error":{error}}}"#)).starts_with("Some(InputAnswered(Err("));
        assert!(event(&format!(r#"{{"method":"error","params":{error}}}"#)).starts_with("Some(ServiceError("));
        assert!(event(r#"{"method":"connected","params":{}}"#).contains("not valid"));
        let message = serde_json::from_str(r#"{"method":"connected","params":{}}"#).unwrap();
        assert!(LoopEvent::of_message(message, false).unwrap().is_none(), "it is not read where it is not awaited");
    }
}
