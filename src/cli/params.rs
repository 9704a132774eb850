//! The parameters of `execute`, from the options of `run`.

use cc_executor_actors::{
    agent::claude::EXECUTOR,
    clock::millis,
    id::{ExecutionId, InstanceId},
    protocol::execute::{DetachOptions, ExecuteParams, ExecutionSpec, Overflow},
};

use super::{DisconnectAction, RunOptions, terminal::size};

/// The parameters of `execute`. `instance` names the only backend that may start the command, if the request was sent
/// before. `longest_detach_ms` is the service's limit of `detachMs`.
pub(super) fn execute_params(
    options: &RunOptions,
    id: Option<ExecutionId>,
    longest_detach_ms: Option<u64>,
    instance: Option<InstanceId>,
) -> ExecuteParams {
    let detach_ms = match options.leave {
        DisconnectAction::Ends => None,
        DisconnectAction::Returns(patience) => Some(millis(patience)),
        DisconnectAction::GoesOn => longest_detach_ms,
    };
    let term = std::env::var("TERM").ok().filter(|_| options.tty);
    let run = ExecutionSpec {
        executor: options.executor.clone(),
        execution_id: id,
        cwd: options.cwd.clone(),
        env: term.map(|term| ("TERM".to_owned(), term)).into_iter().collect(),
        stdin: options.interactive && !options.tty,
        pty: options.tty.then(size),
        timeout_ms: options.timeout_ms,
        stall_timeout_ms: options.stall_timeout_ms,
        heartbeat_ms: options.heartbeat_ms,
        detach: detach_ms.map(|detach_ms| DetachOptions { detach_ms, overflow: Overflow::Wait }),
        claude: options.claude.clone(),
        ..ExecutionSpec::of(&options.command)
    };
    // Without --executor the service may run Claude.
    let may_be_claude = options.executor.as_deref().is_none_or(|name| name == EXECUTOR);
    ExecuteParams { events: may_be_claude, instance, ..run.into() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn execute_names_only_what_was_asked_for() {
        let options = RunOptions {
            url: "ws://h/ws/mcp".to_owned(),
            executor: Some("shell".to_owned()),
            timeout_ms: None,
            stall_timeout_ms: None,
            heartbeat_ms: None,
            cwd: None,
            claude: None,
            json: false,
            interactive: false,
            tty: false,
            leave: DisconnectAction::Ends,
            command: "true".to_owned(),
        };
        let params = |options: &RunOptions, id, instance| {
            serde_json::to_value(execute_params(options, id, Some(7), instance)).unwrap()
        };
        assert_eq!(params(&options, None, None), json!({ "command": "true", "executor": "shell" }));
        let (id, instance) = (ExecutionId::random(), InstanceId::random());
        let options = RunOptions {
            executor: None,
            leave: DisconnectAction::GoesOn,
            interactive: true,
            timeout_ms: Some(5),
            ..options
        };
        assert_eq!(
            params(&options, Some(id), Some(instance)),
            json!({
                "command": "true", "events": true, "executionId": id, "timeoutMs": 5, "stdin": true,
                "onDisconnect": "detach", "detachMs": 7, "instance": instance,
            })
        );
    }
}
