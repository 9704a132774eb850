//! The actions of the loop after an event.

use std::time::Duration;

use cc_executor_actors::{
    id::{ExecutionId, InstanceId},
    outcome::Outcome,
};

use crate::cli::reconnect::ConnectAttempt;

/// An action of the loop.
#[derive(Debug, PartialEq)]
pub(super) enum LoopAction {
    /// Open a connection. The broken one stays open until then, because its end may end the execution.
    Connect(ConnectAttempt),
    /// Expect a frame on the connection in every period.
    ExpectFramesEvery(Duration),
    /// Send `execute`.
    Execute { id: Option<ExecutionId>, detach_ms: Option<u64>, instance: Option<InstanceId> },
    /// Send `attach`, with the offsets of the output so far.
    Attach { id: ExecutionId, observe: bool },
    /// Send CANCEL.
    Cancel,
    /// Print this message for the user.
    Report(String),
    /// Standard output is text from Claude's events, of which the newest may be repeated on this connection.
    ResumeAgentOutput,
    /// Start to forward standard input, if that was requested.
    StartInput,
    /// Forward the next piece of standard input.
    ContinueInput,
    /// Stop forwarding standard input.
    StopInput,
    /// Show that the command runs, and its activity.
    ShowActivity(Option<String>),
    /// Print the execution's id. `LoopEvent::IdPrinted` is the result.
    PrintId(ExecutionId),
    /// Discard all further output.
    DiscardOutput,
    /// Write the rest of the output and check it. `LoopEvent::OutputFinished` is the result.
    FinishOutput(Box<Outcome>),
    /// Close the session and exit with this code.
    Exit(u8),
    /// Exit with this code at once.
    ExitAtOnce(u8),
}
