//! The settings of both roles, as clap declares them: flags, environment variables, defaults, ranges and help.
//!
//! Values are only declared here; `validate` validates them. A test compares the README's table with this definition.

use std::{collections::BTreeMap, net::SocketAddr};

use cc_executor_actors::{
    agent::claude::progress::EXIT_PATIENCE,
    clock::millis,
    protocol::{Limits, MAX_MESSAGE_TO_CLIENT},
};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, parser::ValueSource};

use super::users::{AllowedUsers, allowed_users};
use super::value::{
    BackendUrl, CommaSeparated, RangeExt, address, backend_url, comma_separated, executors, name, one_of, setting,
    switch, variable,
};
use crate::backend::{shim::containment::Containment, storage::location::StateLocation};

/// The longest time that can be set, in milliseconds: 35 years.
const MAX_MS: u64 = 1 << 40;

/// The highest limit of executions that a backend remembers. An ended one takes about 300 bytes besides its output.
const MAX_ENDED: u64 = 1_000_000;

/// Settings of the role `serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Address and port to listen on
    #[arg(long, env = "CC_EXECUTOR_BIND", value_name = "ADDRESS", default_value = "127.0.0.1:8003")]
    #[arg(value_parser = address(), help_heading = "Listening")]
    pub(super) bind: SocketAddr,

    #[command(flatten)]
    pub(super) access: AccessArgs,

    /// URL of a remote backend; without it, a backend runs inside this process
    #[arg(long, env = "CC_EXECUTOR_BACKEND_URL", value_name = "URL", value_parser = backend_url())]
    #[arg(help_heading = "Executions")]
    pub(super) backend_url: Option<BackendUrl>,

    /// Earlier name of --backend-url
    #[arg(long, env = "CLAUDE_API_URL", value_name = "URL", value_parser = backend_url())]
    #[arg(help_heading = "Executions")]
    pub(super) claude_api_url: Option<BackendUrl>,

    /// File of CA certificates in PEM form, trusted besides the system's for an https:// backend
    #[arg(long, env = "CC_EXECUTOR_CA_FILE", value_name = "PATH", help_heading = "Executions")]
    #[arg(value_parser = setting(|text| Ok(text.to_owned())))]
    pub(super) ca_file: Option<String>,

    #[command(flatten)]
    pub(super) backend: BackendOnlyArgs,

    #[command(flatten)]
    pub(super) shared: SharedArgs,

    #[command(flatten)]
    pub(super) sessions: SessionArgs,
}

/// Settings of the role `backend`.
#[derive(Args, Clone, Debug)]
pub struct BackendArgs {
    /// Address and port to listen on
    #[arg(long, env = "CC_EXECUTOR_BIND", value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
    #[arg(value_parser = address(), help_heading = "Listening")]
    pub(super) bind: SocketAddr,

    #[command(flatten)]
    pub(super) access: AccessArgs,

    #[command(flatten)]
    pub(super) backend: BackendOnlyArgs,

    #[command(flatten)]
    pub(super) shared: SharedArgs,
}

/// Who may call the service.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Listening")]
pub(super) struct AccessArgs {
    /// Names, separated by commas, that the Host header may have besides loopback names (checked only if no token is set)
    #[arg(long, env = "CC_EXECUTOR_ALLOWED_HOSTS", value_name = "NAMES", value_parser = setting(comma_separated))]
    pub(super) allowed_hosts: Option<CommaSeparated>,

    /// Origins of web pages, separated by commas, that may call the service besides its own
    #[arg(long, env = "CC_EXECUTOR_ALLOWED_ORIGINS", value_name = "ORIGINS", value_parser = setting(comma_separated))]
    pub(super) allowed_origins: Option<CommaSeparated>,

    /// File with a line for each client: its name and the SHA-256 of its token
    #[arg(long, env = "CC_EXECUTOR_TOKENS_FILE", value_name = "PATH")]
    #[arg(value_parser = setting(|text| Ok(text.to_owned())))]
    pub(super) tokens_file: Option<String>,

    /// Users, separated by commas, that may call the service on loopback without a token besides its own user and root; or all
    #[arg(long, env = "CC_EXECUTOR_ALLOW_LOCAL_USERS", value_name = "NAMES", value_parser = setting(allowed_users))]
    pub(super) allow_local_users: Option<AllowedUsers>,

    /// Allow an address beyond loopback without a token: anyone who reaches it can run commands
    #[arg(long, env = "CC_EXECUTOR_INSECURE_NO_AUTH", action = ArgAction::SetTrue, value_parser = setting(switch))]
    pub(super) insecure_no_auth: bool,

    /// Allow a token of less than 32 characters, which can be guessed
    #[arg(long, env = "CC_EXECUTOR_INSECURE_SHORT_TOKEN", action = ArgAction::SetTrue, value_parser = setting(switch))]
    pub(super) insecure_short_token: bool,
}

/// Limits of sessions, which only a gateway has.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sessions")]
pub(super) struct SessionArgs {
    /// Maximum number of sessions, which clients share
    #[arg(long, env = "CC_EXECUTOR_MAX_SESSIONS", value_name = "N", default_value = "1024", range = 1..=1_000_000)]
    pub(super) max_sessions: u64,

    /// Maximum number of sessions from one address, which all clients behind one proxy have
    #[arg(long, env = "CC_EXECUTOR_MAX_SESSIONS_PER_ADDRESS", value_name = "N", default_value = "1000000")]
    #[arg(range = 1..=1_000_000)]
    pub(super) max_sessions_per_address: u64,

    /// Close a session whose client does not read or does not answer pings for MS milliseconds
    #[arg(long, env = "CC_EXECUTOR_CLIENT_STALL_MS", value_name = "MS", range = 100..=MAX_MS)]
    #[arg(default_value = Limits::default().client_stall_ms.to_string())]
    pub(super) client_stall_ms: u64,

    /// Stop reading a client that leaves more than N messages unread, and close its session after 2 s without progress
    #[arg(long, env = "CC_EXECUTOR_MAX_UNSENT_RESPONSES", value_name = "N", range = 1..=65_536)]
    #[arg(default_value = Limits::default().unsent_responses.to_string())]
    pub(super) max_unsent_responses: u64,

    /// Maximum memory for the unread responses of all sessions, in bytes
    #[arg(long, env = "CC_EXECUTOR_MAX_UNREAD_BYTES", value_name = "BYTES", default_value = "67108864")]
    #[arg(range = 1 << 20..=1 << 40)]
    pub(super) max_unread_bytes: u64,

    /// Maximum memory for long messages that arrive, in all sessions, in bytes; other messages wait
    #[arg(long, env = "CC_EXECUTOR_MAX_INCOMING_BYTES", value_name = "BYTES", default_value = "67108864")]
    #[arg(range = 1 << 22..=1 << 40)]
    pub(super) max_incoming_bytes: u64,

    /// Maximum number of requests to the backend that a session has under way; further messages wait
    #[arg(long, env = "CC_EXECUTOR_MAX_REQUESTS_IN_FLIGHT", value_name = "N", default_value = "16", range = 1..=1_024)]
    pub(super) max_requests_in_flight: u64,
}

/// Settings of both roles.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub(super) struct SharedArgs {
    /// Longest total or stall time-out that a client may request, in milliseconds
    #[arg(long, env = "CC_EXECUTOR_MAX_TIMEOUT_MS", value_name = "MS", range = 1..=MAX_MS)]
    #[arg(default_value = Limits::default().timeout_ms.to_string())]
    pub(super) max_timeout_ms: u64,

    /// Longest time that a command may run without a client, in milliseconds
    #[arg(long, env = "CC_EXECUTOR_MAX_DETACH_MS", value_name = "MS", range = 1..=MAX_MS)]
    #[arg(default_value = Limits::default().detach_ms.to_string())]
    pub(super) max_detach_ms: u64,

    /// Longest message from a client, in bytes
    #[arg(long, env = "CC_EXECUTOR_MAX_MESSAGE_BYTES", value_name = "BYTES", default_value = "1048576")]
    #[arg(range = 1_024..=16 * MAX_MESSAGE_TO_CLIENT as u64)]
    pub(super) max_message_bytes: u64,

    /// Kill Claude if it has no open task and does not exit within MS milliseconds after its last event
    #[arg(long, env = "CC_EXECUTOR_CLAUDE_EXIT_MS", value_name = "MS", range = 100..=1 << 32)]
    #[arg(default_value = millis(EXIT_PATIENCE).to_string(), help_heading = "Claude")]
    pub(super) claude_exit_ms: u64,

    /// Maximum number of known executions, running or ended, which clients share; more are refused
    // Here and not in BackendOnlyArgs, because beside a remote backend it is ignored and not refused.
    #[arg(long, env = "CC_EXECUTOR_MAX_ENDED", value_name = "N", range = 1..=MAX_ENDED)]
    #[arg(default_value = MAX_ENDED.to_string(), help_heading = "Retained output")]
    pub(super) max_ended: u64,

    /// Close a connection whose request takes more than MS milliseconds to arrive, or that sends none
    #[arg(long, env = "CC_EXECUTOR_REQUEST_TIMEOUT_MS", value_name = "MS", default_value = "10000")]
    #[arg(range = 100..=1 << 32, help_heading = "Listening")]
    pub(super) request_timeout_ms: u64,

    /// Maximum number of connections on which no request was authorized; at most a quarter from one address
    #[arg(long, env = "CC_EXECUTOR_MAX_UNAUTHORIZED", value_name = "N", default_value = "512")]
    #[arg(range = 4..=1_000_000, help_heading = "Listening")]
    pub(super) max_unauthorized: u64,

    /// Longest duration of a shutdown, in milliseconds
    #[arg(long, env = "CC_EXECUTOR_DRAIN_MS", value_name = "MS", default_value = "8000", range = 100..=1 << 32)]
    pub(super) drain_ms: u64,
}

/// Settings that a gateway with a remote backend refuses.
#[derive(Args, Clone, Debug)]
pub(super) struct BackendOnlyArgs {
    #[command(flatten)]
    pub(super) executions: ExecutionArgs,

    #[command(flatten)]
    pub(super) claude: ClaudeArgs,

    #[command(flatten)]
    pub(super) output: OutputArgs,

    /// Maximum memory for request bodies that have not arrived as a whole, in bytes
    #[arg(long, env = "CC_EXECUTOR_MAX_BODY_BYTES", value_name = "BYTES", default_value = "67108864")]
    #[arg(range = 1 << 20..=1 << 40, help_heading = "Limits")]
    pub(super) max_body_bytes: u64,
}

/// How commands run.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Executions")]
pub(super) struct ExecutionArgs {
    /// Executor of commands for which the client names none
    #[arg(long, env = "CC_EXECUTOR_DEFAULT_EXECUTOR", value_name = "NAME", default_value = "shell")]
    #[arg(value_parser = setting(|text| Ok(text.to_owned())))]
    pub(super) default_executor: String,

    /// More executors as a JSON object, such as {"node":["node","-e","{command}"]}
    #[arg(long, env = "CC_EXECUTOR_EXECUTORS", value_name = "JSON", value_parser = setting(executors))]
    pub(super) executors: Option<BTreeMap<String, Vec<String>>>,

    /// Executors, separated by commas, that clients cannot use, such as exec,python
    #[arg(long, env = "CC_EXECUTOR_DISABLE_EXECUTORS", value_name = "NAMES", value_parser = setting(comma_separated))]
    pub(super) disable_executors: Option<CommaSeparated>,

    /// Variables, separated by commas, that commands inherit besides PATH, HOME and the like
    #[arg(long, env = "CC_EXECUTOR_PASS_ENV", value_name = "NAMES", value_parser = setting(comma_separated))]
    pub(super) pass_env: Option<CommaSeparated>,

    /// How the processes of a command are contained; auto is cgroup if one can be made, else none
    #[arg(long, env = "CC_EXECUTOR_CONTAINMENT", value_name = "NAME", default_value = "auto")]
    #[arg(value_parser = one_of(&Containment::NAMES, Containment::named))]
    pub(super) containment: Containment,

    /// Maximum number of executions that run at the same time, which clients share
    #[arg(long, env = "CC_EXECUTOR_MAX_EXECUTIONS", value_name = "N", default_value = "64", range = 1..=100_000)]
    pub(super) max_executions: u64,

    /// Maximum number of executions in the queue, which clients share
    #[arg(long, env = "CC_EXECUTOR_MAX_QUEUED", value_name = "N", default_value = "256", range = 0..=100_000)]
    pub(super) max_queued: u64,

    /// Maximum number of observers of an execution
    #[arg(long, env = "CC_EXECUTOR_MAX_OBSERVERS", value_name = "N", default_value = "50", range = 0..=10_000)]
    pub(super) max_observers: u64,
}

/// The limits of what clients may request of Claude.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Claude")]
pub(super) struct ClaudeArgs {
    /// Models, separated by commas, that clients may name; the first is the default (unset: any)
    #[arg(long, env = "CC_EXECUTOR_CLAUDE_MODELS", value_name = "NAMES", value_parser = setting(comma_separated))]
    pub(super) claude_models: Option<CommaSeparated>,

    /// Permission modes, separated by commas, that clients may name; the first is the default (unset: any)
    #[arg(long, env = "CC_EXECUTOR_CLAUDE_PERMISSION_MODES", value_name = "NAMES")]
    #[arg(value_parser = setting(comma_separated))]
    pub(super) claude_permission_modes: Option<CommaSeparated>,

    /// Tools, separated by commas, that clients may allow (unset: any)
    #[arg(long, env = "CC_EXECUTOR_CLAUDE_TOOLS", value_name = "NAMES", value_parser = setting(comma_separated))]
    pub(super) claude_tools: Option<CommaSeparated>,

    /// Maximum number of answers of the model in one execution; 0 is no limit
    #[arg(long, env = "CC_EXECUTOR_CLAUDE_MAX_TURNS", value_name = "N", default_value = "0", range = 0..=1_000_000)]
    pub(super) claude_max_turns: u64,

    /// Directories, separated by commas, in which Claude may work; the first is the default (unset: any)
    #[arg(long, env = "CC_EXECUTOR_CLAUDE_DIRECTORIES", value_name = "PATHS", value_parser = setting(comma_separated))]
    pub(super) claude_directories: Option<CommaSeparated>,
}

/// The output that a backend retains.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Retained output")]
pub(super) struct OutputArgs {
    /// Size of the buffer that keeps each output stream for clients that attach, in bytes
    #[arg(long, env = "CC_EXECUTOR_RING_BYTES", value_name = "BYTES", default_value = "4194304")]
    #[arg(range = 64 << 10..=1 << 30)]
    pub(super) ring_bytes: u64,

    /// Keep the status and the output of an ended execution for MS milliseconds; by default 600000, and 86400000 on disk
    #[arg(long, env = "CC_EXECUTOR_RETENTION_MS", value_name = "MS", value_parser = setting(milliseconds))]
    pub(super) retention_ms: Option<Milliseconds>,

    /// Directory for the output of executions that may detach; none keeps it in memory
    // The default depends on the port and on the environment.
    #[arg(long, env = "CC_EXECUTOR_STATE_DIR", value_name = "PATH")]
    #[arg(value_parser = setting(|text| Ok(StateLocation::named(text))))]
    pub(super) state_dir: Option<StateLocation>,

    /// Maximum disk space for the output of one execution, in bytes; then it waits or drops output, as overflow says
    #[arg(long, env = "CC_EXECUTOR_MAX_OUTPUT_BYTES", value_name = "BYTES", default_value = "1073741824")]
    #[arg(range = 1 << 20..=1 << 50)]
    pub(super) max_output_bytes: u64,

    /// Maximum disk space for output, which clients share, in bytes
    #[arg(long, env = "CC_EXECUTOR_MAX_STATE_BYTES", value_name = "BYTES", default_value = "10737418240")]
    #[arg(range = 1 << 20..=1 << 50)]
    pub(super) max_state_bytes: u64,

    /// Maximum memory for the output of ended executions, which clients share, in bytes
    #[arg(long, env = "CC_EXECUTOR_MAX_KEPT_BYTES", value_name = "BYTES", default_value = "268435456")]
    #[arg(range = 0..=1 << 40)]
    pub(super) max_kept_bytes: u64,

    /// Disconnect a gateway that for MS milliseconds neither reads an execution's output nor requests its state
    #[arg(long, env = "CC_EXECUTOR_CONSUMER_STALL_MS", value_name = "MS", default_value = "90000")]
    #[arg(range = 100..=MAX_MS)]
    pub(super) consumer_stall_ms: u64,
}

/// A time in milliseconds. `None` is an empty text, which counts as not given.
type Milliseconds = Option<u64>;

fn milliseconds(text: &str) -> Result<Milliseconds, String> {
    match text.parse() {
        Ok(ms) if ms <= MAX_MS => Ok(Some(ms)),
        _ if text.is_empty() => Ok(None),
        _ => Err(format!("must be a whole number from 0 to {MAX_MS}, not {text:?}")),
    }
}

/// The names of those settings in [`BackendOnlyArgs`] that are given by a flag or a variable.
pub(super) fn given(matches: &ArgMatches) -> Vec<String> {
    let definition = BackendOnlyArgs::augment_args(Command::new("backend"));
    definition.get_arguments().filter_map(|arg| given_name(arg, matches)).collect()
}

/// The name of a setting: the flag or the variable that gives it.
pub(super) fn name_of(id: &str, matches: &ArgMatches) -> String {
    // `serve` has the settings of both roles.
    let definition = ServeArgs::augment_args(Command::new("serve"));
    let arg = definition.get_arguments().find(|arg| arg.get_id() == id).expect("there is such a setting");
    given_name(arg, matches).unwrap_or_else(|| name(arg, ValueSource::DefaultValue))
}

/// The flag or the variable that gives a setting; `None` if its value is the default.
fn given_name(arg: &Arg, matches: &ArgMatches) -> Option<String> {
    match matches.value_source(arg.get_id().as_str())? {
        ValueSource::DefaultValue => None,
        ValueSource::CommandLine if !is_empty(matches, arg) => Some(name(arg, ValueSource::CommandLine)),
        _ => variable(arg).map(|_| name(arg, ValueSource::EnvVariable)),
    }
}

fn is_empty(matches: &ArgMatches, arg: &Arg) -> bool {
    matches.get_raw(arg.get_id().as_str()).is_some_and(|mut values| values.all(|value| value.is_empty()))
}
