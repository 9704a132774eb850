//! Flags of the commands that help an operator: `check`, `logs` and `completions`.

use clap::{Args, Command};
use clap_complete::{Shell, generate};

use super::client::ServiceArgs;
use crate::{
    cli::{CheckOptions, LogsOptions},
    config::Problems,
};

/// What `--help` of `check` says about exit codes.
pub const CHECK_EXIT_CODES: &str = "\
Exit codes:
   0  all checks passed
   1  a check failed
  69  the service cannot be reached";

/// Flags of `check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    #[command(flatten)]
    service: ServiceArgs,

    /// Run only these checks, separated by commas; --list names all
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,

    /// List the checks
    #[arg(long)]
    list: bool,

    /// Print a JSON line for each check
    #[arg(long)]
    json: bool,

    /// JSON log of the service, from which the lines of a failed session are shown
    #[arg(long, value_name = "FILE")]
    logs: Option<String>,
}

impl CheckArgs {
    pub fn validate(self) -> Result<CheckOptions, Problems> {
        let mut problems = Problems::default();
        let url = self.service.url(&mut problems);
        problems.finish(CheckOptions { url, only: self.only, list: self.list, json: self.json, logs: self.logs })
    }
}

/// Flags of `logs`.
#[derive(Args, Clone, Debug)]
pub struct LogsArgs {
    /// Show only this session and its executions; the beginning of the id suffices
    #[arg(long, value_name = "ID")]
    session: Option<String>,

    /// Show only this execution; the beginning of the id suffices
    #[arg(long, value_name = "ID")]
    execution: Option<String>,

    /// Show only this event, such as session.closed, or a group of events, such as session
    #[arg(long, value_name = "NAME")]
    event: Option<String>,

    /// File of JSON log lines, such as the output of `docker logs`; - is standard input
    #[arg(value_name = "FILE")]
    file: String,
}

impl From<LogsArgs> for LogsOptions {
    fn from(LogsArgs { session, execution, event, file }: LogsArgs) -> Self {
        LogsOptions { session, execution, event, file }
    }
}

/// Flags of `completions`.
#[derive(Args, Clone, Debug)]
pub struct CompletionsArgs {
    /// Shell that reads the script
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl CompletionsArgs {
    /// The script that completes this command line.
    pub fn script(&self, definition: &mut Command) -> String {
        let mut script = Vec::new();
        let name = definition.get_name().to_owned();
        generate(self.shell, definition, &name, &mut script);
        let script = String::from_utf8_lossy(&script).into_owned();
        match self.shell {
            // clap_complete spells the hyphen of a program's name in two ways, so that no flag of a subcommand is
            // completed: https://github.com/clap-rs/clap/issues/6421
            Shell::Bash => script.replace(&name.replace('-', "__subcmd__"), &name.replace('-', "__")),
            _ => script,
        }
    }
}
