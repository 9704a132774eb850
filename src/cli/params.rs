//! The parameters of the two calls that begin a session's execution: `execute` and `attach`.

use cc_executor_actors::{
    agent::claude::EXECUTOR, clock::millis, id::ExecutionId, protocol::control::TerminalSize, stream::PerStream,
};
use serde_json::{Value, json};

use super::{DisconnectAction, RunOptions, terminal::size};

/// The parameters of `execute`. `instance` names the only backend that may start the command, where it was requested
/// before.
pub(super) fn execute_params(
    options: &RunOptions,
    id: Option<ExecutionId>,
    longest_detach_ms: Option<u64>,
    instance: Option<&str>,
) -> Value {
    let mut params = json!({ "command": options.command });
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            params[name] = value;
        }
    };
    set("executor", options.executor.as_ref().map(|executor| json!(executor)));
    // What the service runs by default may be Claude, too.
    let may_be_claude = options.executor.as_deref().is_none_or(|name| name == EXECUTOR);
    set("events", may_be_claude.then_some(json!(true)));
    set("claude", options.claude.clone());
    set("executionId", id.map(|id| json!(id)));
    set("timeoutMs", options.timeout_ms.map(|ms| json!(ms)));
    set("stallTimeoutMs", options.stall_timeout_ms.map(|ms| json!(ms)));
    set("heartbeatMs", options.heartbeat_ms.map(|ms| json!(ms)));
    set("cwd", options.cwd.as_ref().map(|cwd| json!(cwd)));
    set("stdin", (options.interactive && !options.tty).then_some(json!(true)));
    if options.tty {
        let TerminalSize { rows, cols } = size();
        set("pty", Some(json!({ "rows": rows, "cols": cols })));
        set("env", std::env::var("TERM").ok().map(|term| json!({ "TERM": term })));
    }
    let detach_ms = match options.leave {
        DisconnectAction::Ends => None,
        DisconnectAction::Returns(patience) => Some(Some(millis(patience))),
        DisconnectAction::GoesOn => Some(longest_detach_ms),
    };
    if let Some(detach_ms) = detach_ms {
        set("onDisconnect", Some(json!("detach")));
        set("detachMs", detach_ms.map(|ms| json!(ms)));
    }
    set("instance", instance.map(|instance| json!(instance)));
    params
}

/// The parameters of `attach`: the output goes on at these offsets.
pub(super) fn attach_params(id: ExecutionId, offsets: &PerStream<u64>) -> Value {
    let PerStream { stdout, stderr } = offsets;
    json!({ "executionId": id, "offsets": { "stdout": stdout, "stderr": stderr }, "events": true })
}

#[cfg(test)]
mod tests {
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
        assert_eq!(execute_params(&options, None, Some(7), None), json!({ "command": "true", "executor": "shell" }));
        let id = ExecutionId::random();
        let options = RunOptions {
            executor: None,
            leave: DisconnectAction::GoesOn,
            interactive: true,
            timeout_ms: Some(5),
            ..options
        };
        assert_eq!(
            execute_params(&options, Some(id), Some(7), Some("one")),
            json!({
                "command": "true", "events": true, "executionId": id, "timeoutMs": 5, "stdin": true,
                "onDisconnect": "detach", "detachMs": 7, "instance": "one",
            })
        );
    }
}
