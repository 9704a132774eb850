//! The table of settings: flags, environment and help are made of it.

use crate::backend::executor::OWN_PREFIX;

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name in the environment; the flag is made of it.
    pub name: &'static str,
    /// What stands for its value in the help; `None` for a flag without value.
    pub value: Option<&'static str>,
    /// What it does.
    pub help: &'static str,
    /// Whether only `serve` has it.
    pub gateway_only: bool,
}

impl Setting {
    /// The flag's name: `CC_EXECUTOR_MAX_SESSIONS` is `max-sessions`, `CLAUDE_API_URL` is `claude-api-url`.
    pub fn flag(&self) -> String {
        self.name.strip_prefix(OWN_PREFIX).unwrap_or(self.name).to_lowercase().replace('_', "-")
    }
}

const fn setting(name: &'static str, value: &'static str, help: &'static str) -> Setting {
    Setting { name, value: Some(value), help, gateway_only: false }
}

const fn of_gateway(name: &'static str, value: &'static str, help: &'static str) -> Setting {
    Setting { name, value: Some(value), help, gateway_only: true }
}

/// All settings that have a flag.
pub const SETTINGS: &[Setting] = &[
    setting(
        "CC_EXECUTOR_BIND",
        "ADDRESS",
        "address and port to listen on (serve: 127.0.0.1:8003, backend: 127.0.0.1:8000)",
    ),
    of_gateway("CLAUDE_API_URL", "URL", "the execution backend; without it one is started inside this process"),
    setting("CC_EXECUTOR_DEFAULT_EXECUTOR", "NAME", "what runs a command that names no executor (shell)"),
    setting("CC_EXECUTOR_EXECUTORS", "JSON", "more executors, such as {\"node\":[\"node\",\"-e\",\"{command}\"]}"),
    setting(
        "CC_EXECUTOR_PASS_ENV",
        "NAMES",
        "variables that commands inherit besides PATH, HOME, LANG and the like, with commas",
    ),
    setting("CC_EXECUTOR_CLAUDE_MODELS", "NAMES", "models that clients may name, the first is the default (any)"),
    setting(
        "CC_EXECUTOR_CLAUDE_PERMISSION_MODES",
        "NAMES",
        "permission modes that clients may name, the first is the default (any)",
    ),
    setting("CC_EXECUTOR_CLAUDE_TOOLS", "NAMES", "tools that clients may allow Claude, with commas (any)"),
    setting("CC_EXECUTOR_CLAUDE_MAX_TURNS", "N", "how often Claude's model may answer in one execution (0: any)"),
    setting(
        "CC_EXECUTOR_CLAUDE_DIRECTORIES",
        "PATHS",
        "directories in which Claude may work, the first is the default (any)",
    ),
    setting(
        "CC_EXECUTOR_CONTAINMENT",
        "NAME",
        "what holds a command's processes together: auto (a cgroup where one can be made), none, cgroup, pid-namespace (auto)",
    ),
    setting(
        "CC_EXECUTOR_CLAUDE_EXIT_MS",
        "MS",
        "how long Claude may take to exit after its last event, with no task of its own left (45000)",
    ),
    setting("CC_EXECUTOR_MAX_EXECUTIONS", "N", "executions that run at a time (64)"),
    setting("CC_EXECUTOR_MAX_QUEUED", "N", "executions that may wait for a place (256)"),
    setting("CC_EXECUTOR_MAX_TIMEOUT_MS", "MS", "the longest total or stall time-out a client may ask for (86400000)"),
    setting("CC_EXECUTOR_MAX_DETACH_MS", "MS", "the longest time without a client that one may ask for (3600000)"),
    setting("CC_EXECUTOR_RING_BYTES", "BYTES", "how much of each output stream is kept for whoever attaches (4194304)"),
    setting("CC_EXECUTOR_RETENTION_MS", "MS", "how long output and ending of an ended execution are kept (600000)"),
    setting("CC_EXECUTOR_MAX_KEPT_BYTES", "BYTES", "how much output of ended executions is kept in all (268435456)"),
    setting(
        "CC_EXECUTOR_MAX_ENDED",
        "N",
        "executions whose ids and endings are known, then new ones are refused (1000000)",
    ),
    setting("CC_EXECUTOR_CONSUMER_STALL_MS", "MS", "how long a gateway may take nothing and ask nothing (90000)"),
    setting("CC_EXECUTOR_DRAIN_MS", "MS", "how long a shutdown may take (8000)"),
    setting("CC_EXECUTOR_MAX_MESSAGE_BYTES", "BYTES", "the longest message from a client (1048576)"),
    of_gateway("CC_EXECUTOR_MAX_SESSIONS", "N", "sessions at a time (1024)"),
    of_gateway("CC_EXECUTOR_MAX_SESSIONS_PER_ADDRESS", "N", "sessions of one client address at a time (512)"),
    of_gateway(
        "CC_EXECUTOR_CLIENT_STALL_MS",
        "MS",
        "how long a client may give no sign of life, or read nothing (60000)",
    ),
    of_gateway("CC_EXECUTOR_MAX_UNSENT_RESPONSES", "N", "responses that a client may leave unread (64)"),
    setting(
        "CC_EXECUTOR_ALLOWED_HOSTS",
        "NAMES",
        "names by which the service may be addressed without a token, with commas",
    ),
    setting("CC_EXECUTOR_ALLOWED_ORIGINS", "ORIGINS", "origins of web pages that may speak to it, with commas"),
    Setting {
        name: "CC_EXECUTOR_INSECURE_NO_AUTH",
        value: None,
        help: "listen beyond loopback without a token: whoever reaches the port can run commands",
        gateway_only: false,
    },
];
