//! The actions of the loop after an event.

use std::time::Duration;

use cc_executor_actors::{
    id::{ExecutionId, InstanceId},
    outcome::Outcome,
    stream::PerStream,
};

use crate::cli::{progress::Progress, reconnect::ConnectAttempt};

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
    /// Request the status of an execution. `LoopEvent::Inspected` is the answer.
    Inspect(ExecutionId),
    /// Give the execution's terminal a size that is not that of the user's. `LoopEvent::OtherSizeSet` is the answer.
    SetOtherSize(ExecutionId),
    /// Give the execution's terminal the size of the user's, when the command has seen the other one.
    SendSize,
    /// The output begins at these offsets.
    BeginAt(PerStream<u64>),
    /// Send KEEP, as this call.
    Keep { id: ExecutionId, detach_ms: Option<u64>, call: u64 },
    /// Restore the user's terminal, and discard further output.
    LeaveTerminal,
    /// Show this beside the output, less prominently.
    Note(String),
    /// Input continues on another connection.
    ResumeInput,
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
    /// Show the progress of the command.
    ShowProgress(Progress),
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
