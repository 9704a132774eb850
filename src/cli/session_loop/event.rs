//! What happens to a client, and how a message of the service is read as such an event. No I/O and no clock.

use std::borrow::Cow;

use cc_executor_actors::{id::ExecutionId, outcome::Outcome, rpc::ErrorObject, stream::PerStream};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    cli::{
        ClientError,
        connection::{ReceivedMessage, garbled},
        exit_code::EndRequest,
    },
    console::{OutputReader, WriteFailed},
};

/// The ids of the client's calls.
pub(super) mod call {
    /// `execute` or `attach`.
    pub(in crate::cli::session_loop) const BEGIN: u64 = 1;
    pub(in crate::cli::session_loop) const CANCEL: u64 = 2;
    pub(in crate::cli::session_loop) const RESIZE: u64 = 3;
    /// The calls of `input` count up from here.
    pub(in crate::cli::session_loop) const INPUT: u64 = 10;
}

/// What happens to a client, besides output.
#[derive(Debug)]
pub(super) enum LoopEvent {
    /// A connection was opened.
    Opened,
    /// It could not be opened.
    OpenFailed(ClientError),
    /// The connection broke.
    Broken(ClientError),
    /// The answer to `execute` or `attach` did not come in time.
    AnswerOverdue,
    /// A signal: the user wants it ended.
    EndRequested(EndRequest),
    /// Our standard output or standard error could not be written.
    OutputLost(OutputLoss),
    /// The service has greeted the connection.
    Connected { instance: Option<String>, longest_detach_ms: Option<u64> },
    /// The service has the execution.
    Accepted(AcceptedResult),
    /// The service refuses `execute` or `attach`.
    Refused(ErrorObject),
    /// The service has answered a piece of standard input.
    InputAnswered(Result<(), ErrorObject>),
    /// The execution's id was to be printed.
    IdPrinted(Result<(), OutputLoss>),
    /// A status that is not final.
    StatusUpdated { activity: Option<String> },
    /// The final status.
    Ended(Box<Outcome>),
    /// The rest of the output was to be written; it is what the command wrote, besides what was lost.
    OutputFinished { outcome: Box<Outcome>, written: Result<(), OutputLoss>, lost: PerStream<u64> },
    /// Another client has taken the execution over.
    Detached,
    /// An `error` of the service.
    ServiceError(ErrorObject),
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
    /// What became of a write.
    pub(super) fn check(written: Result<OutputReader, WriteFailed>) -> Result<(), OutputLoss> {
        match written {
            Ok(OutputReader::Present) => Ok(()),
            Ok(OutputReader::Gone) => Err(OutputLoss::ReaderGone),
            Err(error) => Err(OutputLoss::WriteFailed(error.to_string())),
        }
    }
}

/// The result of `execute` or `attach`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AcceptedResult {
    pub(super) execution_id: ExecutionId,
    pub(super) status: String,
    /// Whether its standard output is made of Claude's events.
    #[serde(default)]
    pub(super) claude: bool,
    /// The executor of another agent, of whose events it is made.
    #[serde(default)]
    pub(super) agent: Option<String>,
    /// The backend that has it, a UUID made at its start.
    #[serde(default)]
    pub(super) instance: Option<String>,
}

#[derive(Deserialize)]
struct ConnectedParams {
    limits: DetachLimit,
    #[serde(default)]
    instance: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DetachLimit {
    #[serde(default)]
    detach_ms: Option<u64>,
}

#[derive(Deserialize)]
struct StatusSummary<'a> {
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(default)]
    activity: Option<String>,
}

impl LoopEvent {
    /// Reads a message as an event. Returns `None` for a message that needs no action. `connected` is read only
    /// if it is awaited.
    pub(super) fn of_message(
        message: ReceivedMessage<'_>,
        awaits_connected: bool,
    ) -> Result<Option<LoopEvent>, ClientError> {
        Ok(match (message.method.as_deref(), message.params) {
            (Some("statusUpdate"), Some(params)) => Some(status_event(params)?),
            (Some("detached"), _) => Some(LoopEvent::Detached),
            (Some("connected"), Some(params)) if awaits_connected => {
                let ConnectedParams { limits, instance } = read(params)?;
                Some(LoopEvent::Connected { instance, longest_detach_ms: limits.detach_ms })
            }
            (Some("error"), Some(params)) => Some(LoopEvent::ServiceError(read(params)?)),
            (None, _) => response_event(message)?,
            _ => None,
        })
    }
}

fn status_event(params: &RawValue) -> Result<LoopEvent, ClientError> {
    let StatusSummary { status, activity } = read(params)?;
    match status.as_ref() {
        "COMPLETED" | "CANCELLED" | "FAILED" => Ok(LoopEvent::Ended(read(params)?)),
        _ => Ok(LoopEvent::StatusUpdated { activity }),
    }
}

/// The answers to CANCEL and `resize` change nothing: if they came too late, the end is on its way.
fn response_event(message: ReceivedMessage<'_>) -> Result<Option<LoopEvent>, ClientError> {
    Ok(match (message.id, message.error, message.result) {
        (Some(call::BEGIN), Some(error), _) => Some(LoopEvent::Refused(error)),
        (Some(call::BEGIN), None, Some(result)) => Some(LoopEvent::Accepted(read(result)?)),
        (Some(id), error, _) if id >= call::INPUT => Some(LoopEvent::InputAnswered(error.map_or(Ok(()), Err))),
        _ => None,
    })
}

/// Reads parameters or a result.
pub(super) fn read<'a, T: Deserialize<'a>>(json: &'a RawValue) -> Result<T, ClientError> {
    serde_json::from_str(json.get()).map_err(|error| garbled(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_is_its_event() {
        let event = |text: &str| {
            let message = serde_json::from_str(text).unwrap();
            LoopEvent::of_message(message, true)
                .map(|event| format!("{event:?}"))
                .unwrap_or_else(|error| error.to_string())
        };
        let error = r#"{"code":-32001,"message":"no"}"#;
        for (text, expected) in [
            (r#"{"method":"detached"}"#, "Some(Detached)"),
            (
                r#"{"method":"statusUpdate","params":{"status":"RUNNING","activity":"a"}}"#,
                "Some(StatusUpdated { activity: Some(\"a\") })",
            ),
            (
                r#"{"method":"connected","params":{"limits":{"detachMs":7},"instance":"i"}}"#,
                "Some(Connected { instance: Some(\"i\"), longest_detach_ms: Some(7) })",
            ),
            (r#"{"id":1,"result":null}"#, "None"),
            (r#"{"id":2,"result":{}}"#, "None"),
            (r#"{"id":10,"result":{}}"#, "Some(InputAnswered(Ok(())))"),
            (r#"{"method":"later"}"#, "None"),
        ] {
            assert_eq!(event(text), expected, "{text}");
        }
        assert!(event(&format!(r#"{{"id":1,"error":{error}}}"#)).starts_with("Some(Refused("));
        assert!(event(&format!(r#"{{"id":11,"error":{error}}}"#)).starts_with("Some(InputAnswered(Err("));
        assert!(event(&format!(r#"{{"method":"error","params":{error}}}"#)).starts_with("Some(ServiceError("));
        assert!(event(r#"{"method":"connected","params":{}}"#).contains("not understood"));
        let message = serde_json::from_str(r#"{"method":"connected","params":{}}"#).unwrap();
        assert!(LoopEvent::of_message(message, false).unwrap().is_none(), "it is not read where it is not awaited");
    }
}
