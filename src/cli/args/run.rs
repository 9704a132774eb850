//! Flags of `run`.

use std::time::Duration;

use cc_executor_actors::{clock::millis, protocol::execute::ClaudeOptions};
use clap::Args;

use super::client::{ServiceArgs, seconds};
use crate::{
    cli::{DEFAULT_RECONNECT, DisconnectAction, RunOptions},
    config::{
        Problems,
        value::{Checked, checked},
    },
};

/// What `--help` of `run` says about exit codes.
pub const EXIT_CODES: &str = "\
Exit codes:
  the command's own, or 128 + N if signal N ended it
   64  wrong use: flags, parameters, unknown executor
   69  service or backend unreachable, silent, restarted, lost or rejecting
   70  output damaged on the way, or a part of it lost
   74  output not writable
   75  service full or shutting down; execution ended because nobody attached
   77  not authorized
  124  total or stall time-out
  126  command not startable: working directory, permission
  127  program missing
  130  Ctrl-C
  141  output closed by its reader
  143  canceled by another client";

/// Flags of `run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    service: ServiceArgs,

    /// Executor that runs the command; the service has a default
    #[arg(long, value_name = "NAME")]
    executor: Option<String>,

    /// Kill the command after SECONDS, such as 30 or 0.5
    #[arg(long, value_name = "SECONDS", value_parser = checked(seconds))]
    timeout: Option<Checked<Duration>>,

    /// Kill the command after SECONDS without output
    #[arg(long, value_name = "SECONDS", value_parser = checked(seconds))]
    stall_timeout: Option<Checked<Duration>>,

    /// Interval of the service's status messages, 1 to 60 (15 if not given)
    #[arg(long, value_name = "SECONDS", value_parser = checked(seconds))]
    heartbeat: Option<Checked<Duration>>,

    /// Working directory, on the backend's machine
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,

    /// Forward standard input to the command
    #[arg(long, short)]
    interactive: bool,

    /// Run the command on a terminal
    #[arg(long, short)]
    tty: bool,

    /// Reconnect and continue when the connection breaks, for up to SECONDS (30 if not given)
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, value_parser = checked(seconds))]
    #[arg(default_missing_value = DEFAULT_RECONNECT, conflicts_with_all = ["interactive", "detach"])]
    reconnect: Option<Checked<Duration>>,

    /// Print the execution's id and exit; the command keeps running for as long as the service allows
    #[arg(long, conflicts_with_all = ["interactive", "json"])]
    detach: bool,

    /// Print the service's messages instead of the output
    #[arg(long)]
    json: bool,

    /// Command to run; several words are joined by a space, as ssh does
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    command: Vec<String>,

    // Last, because its heading is also that of what follows.
    #[command(flatten)]
    claude: ClaudeFlags,
}

/// Options of the executor `claude`, beside the prompt.
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

    /// Answers that the model may give
    #[arg(long, value_name = "N")]
    max_turns: Option<Checked<u64>>,

    /// Session of Claude to continue
    #[arg(long, value_name = "SESSION")]
    resume: Option<String>,
}

impl RunArgs {
    pub fn validate(self) -> Result<RunOptions, Problems> {
        let mut problems = Problems::default();
        let url = self.service.url(&mut problems);
        let mut time = |checked: Option<Checked<Duration>>| checked.map(|checked| problems.valid(checked));
        let [timeout, stall_timeout, heartbeat, reconnect] =
            [self.timeout, self.stall_timeout, self.heartbeat, self.reconnect].map(&mut time);
        let leave = match reconnect {
            Some(patience) => DisconnectAction::Returns(patience),
            None if self.detach => DisconnectAction::GoesOn,
            None => DisconnectAction::Ends,
        };
        let options = RunOptions {
            url,
            executor: self.executor,
            timeout_ms: timeout.map(millis),
            stall_timeout_ms: stall_timeout.map(millis),
            heartbeat_ms: heartbeat.map(millis),
            cwd: self.cwd,
            claude: self.claude.on_the_wire(&mut problems),
            json: self.json,
            interactive: self.interactive,
            tty: self.tty,
            leave,
            command: self.command.join(" "),
        };
        problems.finish(options)
    }
}

impl ClaudeFlags {
    /// The parameter `claude` of `execute`, if any of its options is given.
    fn on_the_wire(self, problems: &mut Problems) -> Option<ClaudeOptions> {
        let ClaudeFlags { model, permission_mode, allowed_tools, max_turns, resume } = self;
        let max_turns = max_turns.map(|checked| problems.valid(checked));
        let options = ClaudeOptions { model, permission_mode, allowed_tools, max_turns, resume };
        (options != ClaudeOptions::default()).then_some(options)
    }
}
