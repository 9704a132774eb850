//! What the loop must do after an event.

use std::time::Duration;

use cc_executor_actors::{
    id::{ExecutionId, InstanceId},
    outcome::Outcome,
};

use crate::cli::reconnect::ConnectAttempt;

/// What the loop must do.
#[derive(Debug, PartialEq)]
pub(super) enum LoopAction {
    /// Open a connection. The one before it stays open until then, because its end may end the execution.
    Connect(ConnectAttempt),
    /// Expect signs of life on the connection at this period.
    ExpectSignsEvery(Duration),
    /// Send `execute`.
    Execute { id: Option<ExecutionId>, longest_detach_ms: Option<u64>, instance: Option<InstanceId> },
    /// Send `attach`, with the offsets of the output so far.
    Attach(ExecutionId),
    /// Send CANCEL.
    Cancel,
    /// Tell the user.
    Report(String),
    /// Standard output is made of Claude's events; its newest text comes again whole.
    ResumeAgentOutput,
    /// Hand our standard input on, if it is the command's.
    StartInput,
    /// Read the next piece of our standard input.
    ContinueInput,
    /// The command takes no more of our standard input.
    StopInput,
    /// The command runs, and this is what it is known to do.
    ShowActivity(Option<String>),
    /// Print the execution's id, and feed back [`LoopEvent::IdPrinted`].
    PrintId(ExecutionId),
    /// Write no more output.
    DiscardOutput,
    /// Write the rest of the output and compare it, then feed back [`LoopEvent::OutputFinished`].
    FinishOutput(Box<Outcome>),
    /// Close the session and exit with this code.
    Exit(u8),
    /// Exit with this code at once.
    ExitAtOnce(u8),
}
