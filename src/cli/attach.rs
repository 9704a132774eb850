//! `cc-executor attach`: follows an execution that a service has already.

use std::process::ExitCode;

use super::{
    AttachOptions, report_outcome,
    session_loop::{LoopOptions, LoopPurpose, SessionLoop},
    silence::HeartbeatEstimate,
};

/// Follows an execution that is there already. The exit code is the command's own.
pub async fn attach(options: AttachOptions) -> ExitCode {
    let AttachOptions { url, id, json, reconnect } = options;
    let loop_options = LoopOptions { url, json, shows_elapsed: !json, run: None };
    // Another client has asked for the execution, and for its heartbeat.
    let heartbeat = HeartbeatEstimate::observed();
    report_outcome(SessionLoop::new(loop_options, LoopPurpose::Attach { id, reconnect }, heartbeat).run().await)
}
