//! `cc-executor run`: asks a service to run a command, and follows it to its end.

use std::{process::ExitCode, time::Duration};

use cc_executor_actors::id::ExecutionId;

use super::{
    DisconnectAction, RunOptions, report_outcome,
    session_loop::{LoopOptions, LoopPurpose, SessionLoop},
    silence::HeartbeatEstimate,
};

/// Runs a command through a service. The exit code is the command's own.
pub async fn run(options: RunOptions) -> ExitCode {
    // Where the execution may outlive the connection the client must know its id, even if the answer is lost.
    let id = (options.leave != DisconnectAction::Ends).then(ExecutionId::random);
    let heartbeat = HeartbeatEstimate::asked_for(options.heartbeat_ms.map(Duration::from_millis));
    let purpose = LoopPurpose::Run { id, on_disconnect: options.leave };
    let loop_options = LoopOptions {
        url: options.url.clone(),
        json: options.json,
        shows_elapsed: !options.json && !options.tty,
        run: Some(options),
    };
    report_outcome(SessionLoop::new(loop_options, purpose, heartbeat).run().await)
}
