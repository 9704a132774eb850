//! The command line: what can be typed, and what it means.

use std::{collections::BTreeMap, time::Duration};

use cc_executor_actors::{clock::millis, id::ExecutionId};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Map, Value, json};

use crate::{
    cli::{self, ClientError},
    config::SETTINGS,
};

/// Exit code of a wrong use: `EX_USAGE` of sysexits(3).
pub const EX_USAGE: u8 = 64;

/// What was typed.
#[derive(Debug)]
pub enum Invocation {
    /// The role `serve`, with its flags by the names of their settings.
    Serve(BTreeMap<String, String>),
    /// The role `backend`.
    Backend(BTreeMap<String, String>),
    /// Run a command.
    Run(cli::RunOptions),
    /// Follow an execution.
    Attach(cli::AttachOptions),
    /// List executions.
    Ps(cli::PsOptions),
    /// Cancel an execution.
    Cancel(cli::CancelOptions),
    /// Ask whether a service is ready.
    Healthcheck(String),
    /// Ask a service for everything that it promises.
    Check(cli::CheckOptions),
    /// Read a service's log.
    Logs(cli::LogsOptions),
}

/// Reads the command line. The error is what is to be printed, and the exit code.
pub fn parse(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Invocation, (String, u8)> {
    let matches = command().try_get_matches_from(arguments).map_err(|error| {
        let code = if error.use_stderr() { EX_USAGE } else { 0 };
        (error.render().to_string(), code)
    })?;
    match matches.subcommand() {
        Some(("serve", found)) => Ok(Invocation::Serve(settings(found))),
        Some(("backend", found)) => Ok(Invocation::Backend(settings(found))),
        Some(("run", found)) => run_options(found).map(Invocation::Run).map_err(usage_error),
        Some(("attach", found)) => attach_options(found).map(Invocation::Attach).map_err(usage_error),
        Some(("ps", found)) => url(found)
            .map(|url| Invocation::Ps(cli::PsOptions { url, json: found.get_flag("json") }))
            .map_err(usage_error),
        Some(("cancel", found)) => cancel_options(found).map(Invocation::Cancel).map_err(usage_error),
        Some(("check", found)) => check_options(found).map(Invocation::Check).map_err(usage_error),
        Some(("logs", found)) => Ok(Invocation::Logs(logs_options(found))),
        Some(("healthcheck", found)) => {
            let url = found.get_one::<String>("url").cloned();
            Ok(Invocation::Healthcheck(url.unwrap_or_else(|| cli::DEFAULT_READY_URL.to_owned())))
        }
        _ => Err((command().render_help().to_string(), EX_USAGE)),
    }
}

fn command() -> Command {
    Command::new("cc-executor")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Runs commands for remote clients over WebSocket sessions, streams what they write, and never lies about how they ended")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(role("serve", "Serve WebSocket sessions at /ws/mcp (the gateway)", true))
        .subcommand(role("backend", "Run commands for gateways (the execution backend)", false))
        .subcommand(
            Command::new("run")
                .about("Run a command through a service, and exit as it did")
                .after_help(
                    "Exit codes: the command's own; 128+N ended by signal N; 124 time-out; 126 not startable; 127 program missing; \
                     130 Ctrl-C; 141 output closed by its reader; 143 canceled by another; 64 usage; 69 service or backend unreachable, silent, restarted, lost or \
                     rejecting; \
                     70 output damaged on the way, or a part of it lost; 74 output not writable; 75 full, draining, or ended because \
                     nobody attached; 77 not authorized.\n\
                     The token is read from CC_EXECUTOR_TOKEN or the file that CC_EXECUTOR_TOKEN_FILE names.",
                )
                .arg(service())
                .arg(Arg::new("executor").long("executor").value_name("NAME").help("what runs the command (the service's default)"))
                .arg(Arg::new("timeout").long("timeout").value_name("SECONDS").help("end the command after so long, such as 30 or 0.5"))
                .arg(Arg::new("stall-timeout").long("stall-timeout").value_name("SECONDS").help("end it when nothing was written for so long"))
                .arg(Arg::new("heartbeat").long("heartbeat").value_name("SECONDS").help("how often the service says how it is, 1 to 60 (15); seen with --json"))
                .arg(Arg::new("cwd").long("cwd").value_name("DIR").help("the working directory, on the service's machine"))
                .args(claude())
                .arg(Arg::new("interactive").long("interactive").short('i').action(ArgAction::SetTrue).help("the command reads our standard input"))
                .arg(Arg::new("tty").long("tty").short('t').action(ArgAction::SetTrue).help("the command runs on a terminal"))
                .arg(reconnect("when the connection breaks, come back and go on").conflicts_with_all(["interactive", "detach"]))
                .arg(
                    Arg::new("detach")
                        .long("detach")
                        .action(ArgAction::SetTrue)
                        .conflicts_with_all(["interactive", "json"])
                        .help("print the execution's id and leave; it goes on as long as the service lets it"),
                )
                .arg(json())
                .arg(
                    Arg::new("command")
                        .value_name("COMMAND")
                        .required(true)
                        .num_args(1..)
                        .trailing_var_arg(true)
                        .help("the command; several words are joined by a space, as ssh does"),
                ),
        )
        .subcommand(
            Command::new("attach")
                .about("Follow an execution that is there already, from its beginning, and exit as it did")
                .arg(service())
                .arg(json())
                .arg(reconnect("when the connection breaks, come back and go on"))
                .arg(id()),
        )
        .subcommand(
            Command::new("ps").about("List the executions of a service's backend").arg(service()).arg(json()),
        )
        .subcommand(
            Command::new("cancel")
                .about("Cancel an execution, and wait for its end")
                .arg(service())
                .arg(Arg::new("grace").long("grace").value_name("SECONDS").help("the time between TERM and KILL (5)"))
                .arg(id()),
        )
        .subcommand(
            Command::new("check")
                .about("Ask a running service for everything that it promises, and say what of it works")
                .after_help("Exits with 0 only if all passed, and with 1 if not; 69 if the service is not there.")
                .arg(service())
                .arg(
                    Arg::new("only")
                        .long("only")
                        .value_name("NAMES")
                        .value_delimiter(',')
                        .action(ArgAction::Append)
                        .help("only these, with commas; --list names them"),
                )
                .arg(Arg::new("list").long("list").action(ArgAction::SetTrue).help("say which checks there are"))
                .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("print a JSON line for each"))
                .arg(Arg::new("logs").long("logs").value_name("FILE").help("the service's JSON log: what it says of a session that failed is shown")),
        )
        .subcommand(
            Command::new("logs")
                .about("Read JSON log lines, also those of `docker logs`, as a timeline")
                .arg(Arg::new("session").long("session").value_name("ID").help("only a session and its executions; the id's beginning will do"))
                .arg(Arg::new("execution").long("execution").value_name("ID").help("only an execution; the id's beginning will do"))
                .arg(Arg::new("event").long("event").value_name("NAME").help("only an event, such as session.closed, or a kind of them, such as session"))
                .arg(Arg::new("file").value_name("FILE").required(true).help("a file, or - for standard input")),
        )
        .subcommand(
            Command::new("healthcheck")
                .about("Exit 0 if a service is ready, else say why: 1 it is not, 69 no answer for 10 s")
                .arg(Arg::new("url").long("url").value_name("URL").help("what to ask (http://127.0.0.1:8003/ready)")),
        )
}

/// The flags for Claude: name on the command line, name on the wire, what it takes, and what it does.
const CLAUDE: &[(&str, &str, &str, &str)] = &[
    ("model", "model", "NAME", "claude: the model"),
    (
        "permission-mode",
        "permissionMode",
        "MODE",
        "claude: what it may do unasked, such as acceptEdits or bypassPermissions",
    ),
    (
        "allowed-tools",
        "allowedTools",
        "TOOLS",
        "claude: tools it may use unasked, with commas, such as \"Bash(git log:*),Read\"",
    ),
    ("max-turns", "maxTurns", "N", "claude: how often the model may answer"),
    ("resume", "resume", "SESSION", "claude: the session to go on with"),
];

fn claude() -> impl Iterator<Item = Arg> {
    CLAUDE.iter().map(|(flag, _, value, help)| {
        let argument = Arg::new(*flag).long(*flag).value_name(*value).help(*help);
        match *flag {
            "max-turns" => argument.value_parser(clap::value_parser!(u64)),
            "allowed-tools" => argument.value_delimiter(',').action(ArgAction::Append),
            _ => argument,
        }
    })
}

fn claude_options(found: &ArgMatches) -> Option<Value> {
    let mut options = Map::new();
    for (flag, name, ..) in CLAUDE {
        let value = match *flag {
            "max-turns" => found.get_one::<u64>(flag).map(|n| json!(n)),
            "allowed-tools" => found.get_many::<String>(flag).map(|tools| json!(tools.collect::<Vec<_>>())),
            _ => found.get_one::<String>(flag).map(|text| json!(text)),
        };
        options.extend(value.map(|value| ((*name).to_owned(), value)));
    }
    (!options.is_empty()).then_some(Value::Object(options))
}

fn service() -> Arg {
    Arg::new("url").long("url").value_name("URL").help("the service (ws://127.0.0.1:8003/ws/mcp)")
}

fn json() -> Arg {
    Arg::new("json").long("json").action(ArgAction::SetTrue).help("print what the service says, as it says it")
}

fn reconnect(help: &'static str) -> Arg {
    Arg::new("reconnect")
        .long("reconnect")
        .value_name("SECONDS")
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value(cli::DEFAULT_RECONNECT)
        .help(help)
}

fn id() -> Arg {
    Arg::new("id").value_name("ID").required(true).help("the execution's id")
}

fn role(name: &'static str, about: &'static str, gateway: bool) -> Command {
    let settings = SETTINGS.iter().filter(|setting| gateway || !setting.gateway_only);
    let arguments = settings.map(|setting| {
        let argument =
            Arg::new(setting.name).long(setting.flag()).help(format!("{} [env: {}]", setting.help, setting.name));
        match setting.value {
            Some(value) => argument.value_name(value).action(ArgAction::Set),
            None => argument.action(ArgAction::SetTrue),
        }
    });
    Command::new(name)
        .about(about)
        .args(arguments)
        .after_help(
            "Secrets come from the environment or from a file, never from a flag: CC_EXECUTOR_TOKEN, CC_EXECUTOR_BACKEND_TOKEN, \
             or the same with _FILE and a path. What a role demands may also be given as …_SHA256. Logs: RUST_LOG, LOG_FORMAT=text|json.",
        )
}

fn settings(found: &ArgMatches) -> BTreeMap<String, String> {
    let known = SETTINGS.iter().filter(|setting| found.try_contains_id(setting.name).unwrap_or(false));
    known
        .filter_map(|setting| {
            let value = match setting.value {
                Some(_) => found.get_one::<String>(setting.name).cloned()?,
                None => found.get_flag(setting.name).then(|| "true".to_owned())?,
            };
            Some((setting.name.to_owned(), value))
        })
        .collect()
}

fn usage_error(error: ClientError) -> (String, u8) {
    (error.to_string(), error.exit_code())
}

fn url(found: &ArgMatches) -> Result<String, ClientError> {
    cli::websocket_url(found.get_one::<String>("url").map(String::as_str))
}

fn seconds(found: &ArgMatches, flag: &str) -> Result<Option<Duration>, ClientError> {
    found.get_one::<String>(flag).map(|text| cli::seconds(flag, text)).transpose()
}

fn execution_id(found: &ArgMatches) -> Result<ExecutionId, ClientError> {
    cli::execution_id(found.get_one::<String>("id").map(String::as_str).unwrap_or_default())
}

fn attach_options(found: &ArgMatches) -> Result<cli::AttachOptions, ClientError> {
    let (url, id, json) = (url(found)?, execution_id(found)?, found.get_flag("json"));
    Ok(cli::AttachOptions { url, id, json, reconnect: seconds(found, "reconnect")? })
}

fn cancel_options(found: &ArgMatches) -> Result<cli::CancelOptions, ClientError> {
    Ok(cli::CancelOptions { url: url(found)?, id: execution_id(found)?, grace: seconds(found, "grace")? })
}

fn check_options(found: &ArgMatches) -> Result<cli::CheckOptions, ClientError> {
    Ok(cli::CheckOptions {
        url: url(found)?,
        only: found.get_many::<String>("only").into_iter().flatten().cloned().collect(),
        list: found.get_flag("list"),
        json: found.get_flag("json"),
        logs: found.get_one::<String>("logs").cloned(),
    })
}

fn logs_options(found: &ArgMatches) -> cli::LogsOptions {
    let text = |name: &str| found.get_one::<String>(name).cloned();
    cli::LogsOptions {
        session: text("session"),
        execution: text("execution"),
        event: text("event"),
        file: text("file").unwrap_or_default(),
    }
}

fn run_options(found: &ArgMatches) -> Result<cli::RunOptions, ClientError> {
    let text = |name: &str| found.get_one::<String>(name).cloned();
    let words: Vec<&str> = found.get_many::<String>("command").into_iter().flatten().map(String::as_str).collect();
    Ok(cli::RunOptions {
        url: url(found)?,
        executor: text("executor"),
        timeout_ms: seconds(found, "timeout")?.map(millis),
        stall_timeout_ms: seconds(found, "stall-timeout")?.map(millis),
        heartbeat_ms: seconds(found, "heartbeat")?.map(millis),
        cwd: text("cwd"),
        claude: claude_options(found),
        json: found.get_flag("json"),
        interactive: found.get_flag("interactive"),
        tty: found.get_flag("tty"),
        leave: match seconds(found, "reconnect")? {
            Some(patience) => cli::DisconnectAction::Returns(patience),
            None if found.get_flag("detach") => cli::DisconnectAction::GoesOn,
            None => cli::DisconnectAction::Ends,
        },
        command: words.join(" "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(line: &str) -> Result<Invocation, (String, u8)> {
        parse(line.split(' ').map(Into::into))
    }

    #[test]
    fn flags_have_the_names_of_their_settings() {
        let Ok(Invocation::Serve(found)) =
            typed("cc-executor serve --max-sessions 7 --claude-api-url http://x --insecure-no-auth")
        else {
            panic!("is a serve");
        };
        assert_eq!(found["CC_EXECUTOR_MAX_SESSIONS"], "7");
        assert_eq!(found["CLAUDE_API_URL"], "http://x");
        assert_eq!(found["CC_EXECUTOR_INSECURE_NO_AUTH"], "true");
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn a_wrong_use_exits_with_64_and_help_with_0() {
        for line in [
            "cc-executor",
            "cc-executor nope",
            "cc-executor backend --max-sessions 7",
            "cc-executor run",
            "cc-executor run --timeout soon x",
            "cc-executor run -i --reconnect x",
            "cc-executor attach 7",
            "cc-executor cancel",
        ] {
            assert_eq!(typed(line).unwrap_err().1, EX_USAGE, "{line}");
        }
        assert_eq!(typed("cc-executor --help").unwrap_err().1, 0);
    }

    #[test]
    fn the_words_of_a_command_are_joined_and_its_flags_left_alone() {
        let Ok(Invocation::Run(options)) = typed("cc-executor run --timeout 0.5 -- ls -la --json") else {
            panic!("is a run")
        };
        assert_eq!((options.command.as_str(), options.timeout_ms, options.json), ("ls -la --json", Some(500), false));
    }
}
