//! The command line: one clap definition of all commands.
//!
//! The flags of the roles are declared in [`config`], those of a client command beside the command.

use std::ffi::OsString;

use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::{
    attach::{self, AttachOptions},
    cancel::{self, CancelOptions},
    check::{self, CheckOptions},
    completions::{self, CompletionsOptions},
    control::{self, ControlOptions, SignalOptions},
    healthcheck::{self, HealthcheckOptions},
    login::{self, LoginOptions},
    logs::LogsOptions,
    man::ManOptions,
    output::{self, PrintOutputOptions},
    profile::{self, ProfileOptions},
    ps::{self, PsOptions},
    run::{self, RunOptions},
    token::TokenOptions,
};
use crate::config::{
    self, BackendArgs, BackendSettings, GatewaySettings, Problems, ServeArgs,
    value::collect,
    variables::{self, ClientVariables, RoleVariables},
};

/// The widest line of help texts. Wider terminals do not make long lines easier to read.
const HELP_WIDTH: usize = 80;

/// A valid command line.
#[derive(Debug)]
pub enum Invocation {
    /// The role `serve`.
    Serve(Box<GatewaySettings>),
    /// The role `backend`.
    Backend(Box<BackendSettings>),
    /// A client command.
    Client(Box<ClientCommand>),
    /// Print a text: help, the version, or shell completions.
    Print(String),
}

#[derive(Parser, Debug)]
#[command(name = "cc-executor", version, max_term_width = HELP_WIDTH)]
/// Runs commands for remote clients over WebSocket sessions, streams their output, and reports how each one ended
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Serve WebSocket sessions at /ws/mcp (the gateway)
    #[command(after_help = variables_help::<RoleVariables>())]
    Serve(Box<ServeArgs>),
    /// Run commands for gateways (the execution backend)
    #[command(after_help = variables_help::<RoleVariables>())]
    Backend(Box<BackendArgs>),
    #[command(flatten)]
    Client(Box<ClientCommand>),
    /// Print a script that completes commands, flags, names and ids in a shell
    Completions(CompletionsOptions),
    /// Print a manual page, as in `cc-executor man run | man -l -`
    Man(ManOptions),
}

/// A command of a person or a script, with its options.
#[derive(Subcommand, Debug)]
pub enum ClientCommand {
    /// Run a command through a service, and exit with the command's exit code
    #[command(after_help = format!("{}\n\n{}", run::EXIT_CODES, variables_help::<ClientVariables>()))]
    Run(Box<RunOptions>),
    /// Follow an execution from its beginning, and exit with its exit code
    #[command(after_help = format!("{}\n\n{}", attach::EXIT_CODES, variables_help::<ClientVariables>()))]
    Attach(AttachOptions),
    /// Print the output of an execution, or a part of it
    #[command(after_help = format!("{}\n\n{}", output::EXIT_CODES, variables_help::<ClientVariables>()))]
    Output(PrintOutputOptions),
    /// List your executions: those that run, and the last that ended
    #[command(after_help = format!("{}\n\n{}", ps::EXIT_CODES, variables_help::<ClientVariables>()))]
    Ps(PsOptions),
    /// Cancel an execution, and wait until it has ended
    #[command(after_help = format!("{}\n\n{}", cancel::EXIT_CODES, variables_help::<ClientVariables>()))]
    Cancel(CancelOptions),
    /// Stop all processes of an execution until it is resumed
    #[command(after_help = format!("{}\n\n{}", control::EXIT_CODES, variables_help::<ClientVariables>()))]
    Pause(ControlOptions),
    /// Continue a paused execution
    #[command(after_help = format!("{}\n\n{}", control::EXIT_CODES, variables_help::<ClientVariables>()))]
    Resume(ControlOptions),
    /// Send a signal to the process group of an execution
    #[command(after_help = format!("{}\n\n{}", control::EXIT_CODES, variables_help::<ClientVariables>()))]
    Signal(SignalOptions),
    /// Test a running service: output, cancellation, reconnection, limits
    #[command(after_help = format!("{}\n\n{}", check::EXIT_CODES, variables_help::<ClientVariables>()))]
    Check(CheckOptions),
    /// Show JSON log lines as a timeline
    Logs(LogsOptions),
    /// Exit with 0 if a service is ready
    #[command(after_help = format!("{}\n\n{}", healthcheck::EXIT_CODES, variables_help::<ClientVariables>()))]
    Healthcheck(HealthcheckOptions),
    /// Store a service and its token as a profile, after a check of the token
    #[command(after_help = login::EXIT_CODES)]
    Login(LoginOptions),
    /// List, choose and remove the profiles of login
    #[command(after_help = profile::EXIT_CODES)]
    Profile(ProfileOptions),
    /// Make a token for a client of a service
    Token(TokenOptions),
}

/// Reads the command line and the environment.
///
/// # Errors
/// The text for standard error: one line for each problem of a value, or clap's own error.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Invocation, String> {
    match interpret(definition(), words, variables::read) {
        Ok(invocation) => Ok(invocation),
        Err(UsageError::Clap(error)) if error.use_stderr() => Err(error.render().to_string().trim_end().to_owned()),
        Err(UsageError::Clap(error)) => Ok(Invocation::Print(error.render().to_string())),
        Err(UsageError::Values(Problems(lines))) => {
            let lines: Vec<_> = lines.iter().map(|line| format!("cc-executor: {line}")).collect();
            Err(lines.join("\n"))
        }
    }
}

/// Answers a shell that completes a command line. Returns false if no shell asks.
///
/// # Errors
/// The text for standard error.
pub fn complete() -> Result<bool, String> {
    completions::complete(CommandLine::command).map_err(|error| error.render().to_string().trim_end().to_owned())
}

/// A warning for each variable of the environment that looks like a setting and is none.
pub fn unknown_variables() -> Vec<String> {
    // Variables that are not text are none of these.
    let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    config::unknown_variables(std::env::vars_os().filter_map(text), &known_variables())
}

/// The variables of all commands.
fn known_variables() -> Vec<String> {
    let definition = CommandLine::command();
    let without_flag = variables::definition::<RoleVariables>();
    let args = definition.get_subcommands().flat_map(clap::Command::get_arguments).chain(without_flag.get_arguments());
    args.filter_map(|arg| Some(arg.get_env()?.to_str()?.to_owned())).collect()
}

/// The whole definition, in the layout of its help texts.
fn definition() -> clap::Command {
    CommandLine::command().mut_subcommands(|command| command.next_line_help(true).mut_args(in_two_lines))
}

/// Puts the names and defaults that clap adds to a help text on a line of their own. The values of variables are not
/// shown: they may be secret, and they may be long.
fn in_two_lines(arg: Arg) -> Arg {
    let arg = arg.hide_env_values(true);
    match (arg.get_env(), arg.get_help()) {
        (Some(_), Some(help)) => {
            let help = format!("{help}\n");
            arg.help(help)
        }
        _ => arg,
    }
}

/// Why a command line is not valid.
#[derive(Debug)]
enum UsageError {
    /// clap stopped: unknown flags, missing words, but also help and the version.
    Clap(clap::Error),
    /// Problems of the values.
    Values(Problems),
}

impl From<clap::Error> for UsageError {
    fn from(error: clap::Error) -> Self {
        UsageError::Clap(error)
    }
}

impl From<Problems> for UsageError {
    fn from(problems: Problems) -> Self {
        UsageError::Values(problems)
    }
}

/// Turns `help --help` into `help`, because clap takes the flag for the name of a command.
fn without_help_of_help(mut words: Vec<OsString>) -> Vec<OsString> {
    if words.get(1).is_some_and(|word| word == "help")
        && words.get(2).is_some_and(|word| word == "--help" || word == "-h")
    {
        words.truncate(2);
    }
    words
}

fn interpret(
    definition: clap::Command,
    words: impl IntoIterator<Item = OsString>,
    variables: fn() -> RoleVariables,
) -> Result<Invocation, UsageError> {
    let words = without_help_of_help(words.into_iter().collect());
    let program = words.first().cloned().unwrap_or_default();
    let (matches, mut problems) = collect(|| definition.try_get_matches_from(words));
    let matches = matches?;
    let CommandLine { command } = CommandLine::from_arg_matches(&matches)?;
    let (_, options) = matches.subcommand().expect("clap requires a subcommand");
    let mut role_variables = || {
        let (variables, found) = collect(variables);
        problems.extend(found);
        variables
    };
    Ok(match command {
        Command::Serve(args) => {
            let variables = role_variables();
            Invocation::Serve(Box::new(config::serve(*args, options, variables, problems)?))
        }
        Command::Backend(args) => {
            let variables = role_variables();
            Invocation::Backend(Box::new(config::backend(*args, options, variables, problems)?))
        }
        Command::Client(command) => Invocation::Client(problems.finish(command)?),
        Command::Completions(options) => Invocation::Print(options.script(&program)),
        Command::Man(options) => match options.page(CommandLine::command()) {
            Ok(page) => Invocation::Print(page),
            Err(problem) => return Err(Problems(vec![problem]).into()),
        },
    })
}

/// The part of a help text that lists variables without a flag.
fn variables_help<V: Args>() -> String {
    let definition = variables::definition::<V>();
    let names: Vec<_> = definition.get_arguments().filter_map(|arg| Some((arg, arg.get_env()?.to_str()?))).collect();
    let width = names.iter().map(|(_, name)| name.len()).max().unwrap_or_default();
    let lines = names.iter().map(|(arg, name)| format!("\n  {name:width$}  {}", arg.get_help().unwrap_or_default()));
    format!("Environment variables without a flag:{}", lines.collect::<String>())
}

#[cfg(test)]
mod tests;
