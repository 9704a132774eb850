//! What `run` and `attach` ask of the loop.

use cc_executor_actors::{
    id::{ExecutionId, InstanceId},
    protocol::execute::{DetachOptions, ExecuteParams, ExecutionSpec, Overflow},
};

use crate::cli::{color::ErrorStyle, service::ServiceAccess};

/// The options of `run` and `attach` that the loop needs.
pub(in crate::cli) struct LoopOptions {
    /// The service.
    pub(in crate::cli) service: ServiceAccess,
    /// Whether the service's messages are printed instead of the output.
    pub(in crate::cli) json: bool,
    /// Whether progress and summaries are left out.
    pub(in crate::cli) quiet: bool,
    /// Whether the usage is printed at the end.
    pub(in crate::cli) stats: bool,
    /// Whether the elapsed time is shown while there is no output.
    pub(in crate::cli) shows_elapsed: bool,
    /// How messages on standard error look.
    pub(in crate::cli) style: ErrorStyle,
    /// The command to run; `None` for `attach`.
    pub(in crate::cli) run: Option<RunRequest>,
}

/// A command to run.
pub(in crate::cli) struct RunRequest {
    /// The parameters of `execute` that are the same on every connection. A repeated request must not differ in them.
    pub(in crate::cli) params: ExecuteParams,
    /// What happens to unreceived output beyond its quota, if the execution may outlive the connection.
    pub(in crate::cli) overflow: Overflow,
    /// Whether standard input is forwarded.
    pub(in crate::cli) interactive: bool,
    /// Whether the command runs on a terminal.
    pub(in crate::cli) tty: bool,
}

impl RunRequest {
    /// The parameters of `execute` on this connection. `instance` names the only backend that may start the command.
    pub(in crate::cli) fn sent(
        &self,
        id: Option<ExecutionId>,
        detach_ms: Option<u64>,
        instance: Option<InstanceId>,
    ) -> ExecuteParams {
        let detach = detach_ms.map(|detach_ms| DetachOptions { detach_ms, overflow: self.overflow });
        let run = ExecutionSpec { execution_id: id, detach, ..self.params.run.clone() };
        ExecuteParams { run, instance, ..self.params.clone() }
    }
}
