//! `run`: runs a command through a service, and follows it to its end.

mod environment;
mod joined;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use cc_executor_actors::{
    agent::claude::EXECUTOR,
    clock::millis,
    id::ExecutionId,
    name::{ExecutionName, InvalidExecutionName},
    protocol::execute::{ClaudeOptions, ExecuteParams, ExecutionSpec, Overflow, RequestedCommand},
};
use clap::Args;

use self::environment::{GivenVariable, read_variable};
use super::{
    ClientError,
    duration::{duration, read_duration},
    exit,
    flags::{DEFAULT_RECONNECT, ServiceFlags},
    session_loop::{DisconnectAction, LoopOptions, LoopPurpose, RunRequest, SessionLoop},
    silence::HeartbeatEstimate,
    terminal::{is_input, size},
    terminal_flags::TerminalFlags,
};
use crate::config::value::{Checker, checked, one_of, whole_number};

/// The exit codes in the help text.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  the command's own, or 128 + N if signal N ended it; 137 also if the kernel
       killed it because memory ran out
    1  Claude reported a failure and exited with 0
   64  wrong use: flags, parameters, unknown executor
   69  service or backend cannot be reached, does not answer, was restarted, or
       rejects the request; or another client has attached
   70  output incomplete or damaged on the way, or an invalid message of the
       service
   74  output cannot be written
   75  service full or shutting down; execution ended because no client attached
   77  not authorized
  124  total or stall time-out
  126  command cannot be started: working directory, permission
  127  program not found
  130  Ctrl-C
  141  output closed by its reader
  143  SIGTERM, or canceled by another client";

/// Options of `run`.
#[derive(Args, Clone, Debug)]
pub struct RunOptions {
    #[command(flatten)]
    service: ServiceFlags,

    /// Executor that runs the command (the default of the service if not given)
    #[arg(long, value_name = "NAME")]
    executor: Option<String>,

    /// Run the words as they are, without a shell: the program, then its arguments
    #[arg(long, conflicts_with = "executor")]
    exec: bool,

    /// Name that ps shows and that is accepted as ID; unique among your running executions
    #[arg(long, value_name = "NAME", value_parser = execution_name())]
    name: Option<ExecutionName>,

    /// Variable for the command; without =VALUE it is passed on, if it is set
    #[arg(short = 'e', long = "env", value_name = "NAME[=VALUE]", value_parser = checked(read_variable))]
    variables: Vec<GivenVariable>,

    /// Read variables from a file: NAME[=VALUE] lines, and comments that begin with #
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,

    /// Kill the command after DURATION, such as 30, 2.5, 90s, 5m or 1h30m (a number alone is seconds)
    #[arg(long, value_name = "DURATION", value_parser = duration(), allow_negative_numbers = true)]
    timeout: Option<Duration>,

    /// Kill the command after DURATION without output
    #[arg(long, value_name = "DURATION", value_parser = duration(), allow_negative_numbers = true)]
    stall_timeout: Option<Duration>,

    /// Interval of the service's status messages, from 1s to 60s (15s if not given)
    #[arg(long, value_name = "DURATION", value_parser = duration(), allow_negative_numbers = true)]
    heartbeat: Option<Duration>,

    /// Working directory, on the backend's machine
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,

    /// Forward standard input to the command
    #[arg(long, short)]
    interactive: bool,

    /// Run the command on a terminal
    #[arg(long, short)]
    tty: bool,

    /// Reconnect and continue when the connection breaks, for up to DURATION (30s if not given)
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, value_parser = duration())]
    #[arg(default_missing_value = DEFAULT_RECONNECT, conflicts_with = "detach")]
    reconnect: Option<Duration>,

    /// Print the execution's id and exit; the command keeps running without a client for DURATION (as long as the service
    /// allows if not given)
    #[arg(short, long, value_name = "DURATION", num_args = 0..=1, require_equals = true, value_parser = detach_period())]
    #[arg(default_missing_value = LONGEST, conflicts_with_all = ["interactive", "json", "stats"])]
    detach: Option<DetachPeriod>,

    /// When output that nobody has received fills its quota: wait (the command waits) or drop (the oldest bytes are
    /// dropped); with --detach or --reconnect
    #[arg(long, value_name = "ACTION", value_parser = one_of(&["wait", "drop"], read_overflow))]
    overflow: Option<Overflow>,

    /// Print the service's messages instead of the output
    #[arg(long)]
    json: bool,

    /// Print the output and errors only: no progress, hints or summaries
    #[arg(short, long, conflicts_with = "stats")]
    quiet: bool,

    /// Print time, processor time and memory at the end
    #[arg(long)]
    stats: bool,

    #[command(flatten)]
    terminal: TerminalFlags,

    /// Command to run; without --exec several words are joined by a space, as ssh does
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    command: Vec<String>,

    // Last, because clap puts all later flags under its heading.
    #[command(flatten)]
    claude: ClaudeFlags,
}

/// In place of the duration of `--detach` that is not given.
const LONGEST: &str = "longest";

/// For how long a detached command may run without a client; `None` is as long as the service allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct DetachPeriod(Option<Duration>);

fn detach_period() -> Checker<DetachPeriod> {
    let read = |text: &str| match text {
        LONGEST => Ok(DetachPeriod(None)),
        text => read_duration(text).map(|period| DetachPeriod(Some(period))),
    };
    Checker::new(read, || DetachPeriod(None))
}

fn execution_name() -> Checker<ExecutionName> {
    let read = |text: &str| text.parse().map_err(|why: InvalidExecutionName| format!("{why}, not {text:?}"));
    Checker::new(read, || "x".parse().expect("a letter that is no digit is a name"))
}

fn read_overflow(text: &str) -> Option<Overflow> {
    match text {
        "wait" => Some(Overflow::Wait),
        "drop" => Some(Overflow::Drop),
        _ => None,
    }
}

/// Options of the executor `claude`.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Options of --executor claude")]
struct ClaudeFlags {
    /// Model to use
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// Permission mode, such as acceptEdits or bypassPermissions
    #[arg(long, value_name = "MODE")]
    permission_mode: Option<String>,

    /// Tools to use without asking, separated by commas, such as "Bash(git log:*),Read"
    #[arg(long, value_name = "TOOLS", value_delimiter = ',')]
    allowed_tools: Vec<String>,

    /// Maximum number of answers of the model
    #[arg(long, value_name = "N", value_parser = checked(whole_number), allow_negative_numbers = true)]
    max_turns: Option<u64>,

    /// Claude session to continue, by the id that `run` printed at its end
    #[arg(long, value_name = "SESSION")]
    resume: Option<String>,
}

impl RunOptions {
    /// `input_is_terminal` says whether standard input is one. A terminal session needs it.
    fn on_disconnect(&self, input_is_terminal: bool) -> DisconnectAction {
        match self.reconnect {
            _ if self.interactive && self.tty && input_is_terminal => {
                DisconnectAction::Terminal(self.reconnect.unwrap_or(TerminalFlags::RECONNECT))
            }
            Some(patience) => DisconnectAction::Reconnect(patience),
            None => match self.detach {
                Some(DetachPeriod(period)) => DisconnectAction::Detach(period),
                None => DisconnectAction::End,
            },
        }
    }

    /// The parameters of `execute` that do not depend on the connection.
    ///
    /// # Errors
    ///
    /// A variable or a file of variables cannot be read.
    pub(super) fn execute_params(&self) -> Result<ExecuteParams, ClientError> {
        let term = std::env::var("TERM").ok().filter(|_| self.tty);
        let mut env: BTreeMap<_, _> = term.map(|term| ("TERM".to_owned(), term)).into_iter().collect();
        env.extend(environment::read(&self.env_file, &self.variables)?);
        let command = match self.exec {
            true => RequestedCommand::Argv(self.command.clone()),
            false => RequestedCommand::Text(self.command.join(" ")),
        };
        let run = ExecutionSpec {
            command,
            name: self.name.clone(),
            executor: self.executor.clone(),
            cwd: self.cwd.clone(),
            env,
            stdin: self.interactive && !self.tty,
            pty: self.tty.then(size),
            timeout_ms: self.timeout.map(millis),
            stall_timeout_ms: self.stall_timeout.map(millis),
            heartbeat_ms: self.heartbeat.map(millis),
            claude: self.claude.options(),
            ..ExecutionSpec::default()
        };
        // Without --executor the service may run Claude.
        let may_be_claude = !self.exec && self.executor.as_deref().is_none_or(|name| name == EXECUTOR);
        Ok(ExecuteParams { events: may_be_claude, ..run.into() })
    }
}

impl ClaudeFlags {
    /// The parameter `claude` of `execute`, if any of its options is given.
    fn options(&self) -> Option<ClaudeOptions> {
        let ClaudeFlags { model, permission_mode, allowed_tools, max_turns, resume } = self.clone();
        let options = ClaudeOptions { model, permission_mode, allowed_tools, max_turns, resume };
        (options != ClaudeOptions::default()).then_some(options)
    }
}

/// Runs a command through a service. Returns the command's own exit code.
pub(super) async fn run(options: RunOptions) -> Result<u8, ClientError> {
    let on_disconnect = options.on_disconnect(is_input());
    let is_session = matches!(on_disconnect, DisconnectAction::Terminal(_));
    if options.interactive && options.reconnect.is_some() && !is_session {
        let message = "--reconnect cannot be used with -i unless -t is given and standard input is a terminal, because input could be lost";
        return Err(ClientError::new(exit::USAGE, message));
    }
    if options.overflow.is_some() && options.detach.is_none() && options.reconnect.is_none() {
        let message = "--overflow applies to output that nobody has received: add --detach or --reconnect";
        return Err(ClientError::new(exit::USAGE, message));
    }
    let params = options.execute_params()?;
    let is_shell = !options.exec && options.executor.as_deref().is_none_or(|name| name == "shell");
    if is_shell && !options.quiet && !options.json {
        joined::hint(&options.command, options.terminal.color.style());
    }
    let keys = is_session.then(|| options.terminal.keys());
    let style = options.terminal.color.style();
    // The client chooses the id of an execution that may outlive the connection, because the response may be lost.
    let id = (on_disconnect != DisconnectAction::End).then(ExecutionId::random);
    let heartbeat = HeartbeatEstimate::Requested(options.heartbeat);
    let RunOptions { interactive, tty, json, stats, quiet, .. } = options;
    let overflow = options.overflow.unwrap_or_default();
    let run = Some(RunRequest { params, overflow, interactive, tty });
    let shows_elapsed = !json && !tty && !quiet;
    let service = options.service.access()?;
    let loop_options = LoopOptions { service, json, stats, quiet, shows_elapsed, style, run };
    SessionLoop::new(loop_options, LoopPurpose::Run { id, on_disconnect }, keys, heartbeat).run().await
}

#[cfg(test)]
mod tests {
    use cc_executor_actors::id::InstanceId;
    use clap::{Command, FromArgMatches};
    use serde_json::{Value, json};

    use super::*;
    use crate::config::variables::without_environment;

    fn options(words: &[&str]) -> RunOptions {
        let definition = RunOptions::augment_args(Command::new("run").no_binary_name(true));
        let matches = without_environment(definition).try_get_matches_from(words).unwrap();
        RunOptions::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn execute_names_only_what_was_asked_for() {
        let request = |words: &[&str]| {
            let options = options(words);
            let (interactive, tty) = (options.interactive, options.tty);
            RunRequest { params: options.execute_params().unwrap(), overflow: Overflow::Wait, interactive, tty }
        };
        let params = |words: &[&str]| -> Value { serde_json::to_value(request(words).params).unwrap() };
        let plain = params(&["--executor", "shell", "true"]);
        assert_eq!(plain, json!({ "command": "true", "executor": "shell" }));
        let (id, instance) = (ExecutionId::random(), InstanceId::random());
        let detached = request(&["--detach", "--timeout", "0.005", "true"]).sent(Some(id), Some(7), Some(instance));
        assert_eq!(
            serde_json::to_value(detached).unwrap(),
            json!({
                "command": "true", "events": true, "executionId": id, "timeoutMs": 5, "onDisconnect": "detach",
                "detachMs": 7, "instance": instance,
            })
        );
        assert_eq!(params(&["-i", "--", "true"])["stdin"], true);
        let exec = params(&["--exec", "--name", "list", "-e", "A=b=c", "-eB=", "--", "ls", "", "a b"]);
        assert_eq!(exec, json!({ "argv": ["ls", "", "a b"], "name": "list", "env": { "A": "b=c", "B": "" } }));
    }

    #[test]
    fn options_for_claude_have_their_names_on_the_wire() {
        let words = "--model m --permission-mode plan --allowed-tools Bash,Read --max-turns 3 --resume s -- x";
        let expected = json!({
            "model": "m", "permissionMode": "plan", "allowedTools": ["Bash", "Read"], "maxTurns": 3, "resume": "s"
        });
        let given = options(&words.split(' ').collect::<Vec<_>>()).claude.options();
        assert_eq!(serde_json::to_value(given).unwrap(), expected);
        assert_eq!(options(&["--", "x"]).claude.options(), None);
    }

    #[test]
    fn flags_choose_how_a_command_ends_with_its_client() {
        for (flag, action) in [
            ("--json", DisconnectAction::End),
            ("--detach", DisconnectAction::Detach(None)),
            ("-d", DisconnectAction::Detach(None)),
            ("--detach=1h30m", DisconnectAction::Detach(Some(Duration::from_secs(5_400)))),
            ("--reconnect", DisconnectAction::Reconnect(Duration::from_secs(30))),
            ("--reconnect=1.5", DisconnectAction::Reconnect(Duration::from_millis(1500))),
        ] {
            assert_eq!(options(&[flag, "--", "x"]).on_disconnect(true), action, "{flag}");
        }
        let session = |seconds| DisconnectAction::Terminal(Duration::from_secs(seconds));
        for (flags, input_is_terminal, action) in [
            (["-it", "--"], true, session(30)),
            (["-it", "--reconnect=5"], true, session(5)),
            (["-it", "--"], false, DisconnectAction::End),
            (["-t", "--"], true, DisconnectAction::End),
            (["-i", "--"], true, DisconnectAction::End),
        ] {
            let options = options(&[flags[0], flags[1], "x"]);
            assert_eq!(options.on_disconnect(input_is_terminal), action, "{flags:?} {input_is_terminal}");
        }
    }
}
