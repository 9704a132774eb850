//! Completion in a shell. `completions` prints a script that calls this binary for each word; [`complete`] answers such a
//! call. Executions come from the service, so a call is bounded, and silent when the service does not answer.

use std::{ffi::OsStr, path::Path, time::Duration};

use cc_executor_actors::excerpt::cut;
use clap::{Args, Command, FromArgMatches};
use clap_complete::{
    CompleteEnv, Shell,
    engine::{ArgValueCompleter, CompletionCandidate},
    env::Shells,
};
use serde::Deserialize;
use tokio::time::timeout;

use super::{executions::fetch_list, flags::ServiceFlags, http::HttpClient, protect_token};
use crate::console::visible;

/// The variable by which the script tells the binary the shell.
pub(super) const VARIABLE: &str = "CC_EXECUTOR_COMPLETE";

/// How long the service may take, so that a shell never hangs at the tab key.
const PATIENCE: Duration = Duration::from_millis(500);

/// How much of a command is shown beside its id, in bytes.
const MAX_COMMAND: usize = 50;

/// How many characters of an id are completed.
const ID_CHARACTERS: usize = 8;

/// Options of `completions`.
#[derive(Args, Clone, Debug)]
pub struct CompletionsOptions {
    /// Shell that reads the script
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl CompletionsOptions {
    /// The script for a shell. `program` is how this binary was called.
    pub(super) fn script(&self, program: &OsStr) -> String {
        // A name without a directory is found in PATH, by the script too.
        let path = Path::new(program);
        let completer = match path.components().count() {
            0 | 1 => path.to_owned(),
            _ => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
        };
        let name = self.shell.to_string();
        let completer = completer.to_string_lossy();
        let mut script = Vec::new();
        let shells = Shells::builtins();
        let shell = shells.completer(&name).expect("clap_complete has every shell that it names");
        let written = shell.write_registration(VARIABLE, "cc-executor", "cc-executor", &completer, &mut script);
        written.expect("a vector accepts every write");
        String::from_utf8_lossy(&script).into_owned()
    }
}

/// Answers a call of the script. Returns false if this is none.
///
/// # Errors
///
/// The shell is not known.
pub(super) fn complete(definition: fn() -> Command) -> Result<bool, clap::Error> {
    let directory = std::env::current_dir().ok();
    CompleteEnv::with_factory(definition).var(VARIABLE).try_complete(std::env::args_os(), directory.as_deref())
}

/// Completes an execution by its name or the beginning of its id.
pub(super) fn executions() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let Some(current) = current.to_str() else { return Vec::new() };
        let listed = list().unwrap_or_default();
        listed.into_iter().flat_map(|execution| execution.candidates(current)).collect()
    })
}

/// The fields of an execution that are completed or shown. A newer service may have other statuses.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CompletedExecution {
    execution_id: String,
    #[serde(default)]
    name: Option<String>,
    status: String,
    #[serde(default)]
    command: Option<String>,
}

#[derive(Deserialize)]
struct CompletedPage {
    executions: Vec<CompletedExecution>,
}

impl CompletedExecution {
    fn candidates(self, current: &str) -> Vec<CompletionCandidate> {
        let CompletedExecution { execution_id, name, status, command } = self;
        let help = format!("{status} {}", visible(&cut(command.as_deref().unwrap_or_default(), MAX_COMMAND)));
        // What is typed beyond the short form is completed to the whole id.
        let is_long = current.chars().count() > ID_CHARACTERS;
        let id = if is_long { execution_id } else { execution_id.chars().take(ID_CHARACTERS).collect() };
        let values = name.into_iter().chain([id]).filter(|value| value.starts_with(current));
        values.map(|value| CompletionCandidate::new(value).help(Some(help.clone().into()))).collect()
    }
}

/// The first page of the executions; `None` if the service does not answer in time.
fn list() -> Option<Vec<CompletedExecution>> {
    protect_token().ok()?;
    let service = typed_service()?.access().ok()?;
    actix::System::new().block_on(async {
        let url = service.http("/executions");
        let body = timeout(PATIENCE, fetch_list(&HttpClient::new(&service), &url)).await.ok()?.ok()?;
        Some(serde_json::from_slice::<CompletedPage>(&body).ok()?.executions)
    })
}

/// The service that the flags on the line so far and the environment name.
fn typed_service() -> Option<ServiceFlags> {
    let definition = ServiceFlags::augment_args(Command::new("service").no_binary_name(true).ignore_errors(true));
    let words = service_words(std::env::args_os().filter_map(|word| word.into_string().ok()));
    let (matches, problems) = crate::config::value::collect(|| definition.try_get_matches_from(words));
    problems.finish(ServiceFlags::from_arg_matches(&matches.ok()?).ok()?).ok()
}

/// The flags of a line that choose the service, with their values.
fn service_words(line: impl Iterator<Item = String>) -> Vec<String> {
    let names: Vec<_> = ServiceFlags::augment_args(Command::new("service"))
        .get_arguments()
        .filter_map(|arg| Some(format!("--{}", arg.get_long()?)))
        .collect();
    let mut chosen = Vec::new();
    let mut words = line.peekable();
    while let Some(word) = words.next() {
        if names.contains(&word) {
            let value = words.next();
            chosen.extend([Some(word), value].into_iter().flatten());
        } else if word.split_once('=').is_some_and(|(name, _)| names.iter().any(|known| known == name)) {
            chosen.push(word);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_the_beginnings_of_ids_are_completed() {
        let candidates = |current: &str, name: Option<&str>| {
            let execution = CompletedExecution {
                execution_id: "abcd0001-0000-4000-8000-000000000000".to_owned(),
                name: name.map(str::to_owned),
                status: "RUNNING".to_owned(),
                command: Some("make".to_owned()),
            };
            let candidates = execution.candidates(current);
            candidates.iter().map(|one| one.get_value().to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(candidates("", Some("nightly")), ["nightly", "abcd0001"]);
        assert_eq!(candidates("ab", Some("nightly")), ["abcd0001"]);
        assert_eq!(candidates("abcd0001-", None), ["abcd0001-0000-4000-8000-000000000000"]);
        assert_eq!(candidates("x", Some("nightly")), Vec::<String>::new());
    }

    #[test]
    fn the_service_on_the_line_is_asked() {
        let words = |line: &str| service_words(line.split(' ').map(str::to_owned));
        assert_eq!(words("cc-executor -- cc-executor attach --url h:1 --json x"), ["--url", "h:1"]);
        assert_eq!(words("cc-executor attach --url=ws://h:1"), ["--url=ws://h:1"]);
        assert_eq!(words("cc-executor attach --url"), ["--url"]);
    }
}
