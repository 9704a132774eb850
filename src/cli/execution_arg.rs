//! The argument that says which execution: its id, the beginning of its id, or its name. The service finds the last two,
//! because its list comes in pages.

use cc_executor_actors::{
    excerpt::cut,
    id::ExecutionId,
    name::{ExecutionName, ExecutionRef},
};
use serde::Deserialize;

use super::{
    ClientError, connection::not_understood, duration::in_words, executions::fetch_list, exit, http::HttpClient,
    service::ServiceAccess,
};
use crate::{
    config::value::Checker,
    console::{self, visible},
};

/// How many matches are listed.
const MAX_LISTED: usize = 10;

/// How much of each command is shown, in bytes.
const MAX_COMMAND: usize = 60;

/// The parser of the argument.
pub(super) fn execution_ref() -> Checker<ExecutionRef> {
    let read =
        |text: &str| text.parse().map_err(|why| format!("{why}, not {text:?}; `cc-executor ps` lists your executions"));
    Checker::new(read, || ExecutionRef::Id(ExecutionId::random()))
}

/// The fields of an execution that tell it from others. A newer service may have other statuses.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MatchingExecution {
    execution_id: ExecutionId,
    #[serde(default)]
    name: Option<ExecutionName>,
    status: String,
    #[serde(default)]
    age_ms: Option<u64>,
    #[serde(default)]
    command: Option<String>,
}

#[derive(Deserialize)]
struct MatchPage {
    executions: Vec<MatchingExecution>,
}

/// The id of the execution. A whole id is not looked up.
///
/// # Errors
///
/// No execution of the caller matches, or several do.
pub(super) async fn resolve(service: &ServiceAccess, reference: &ExecutionRef) -> Result<ExecutionId, ClientError> {
    if let ExecutionRef::Id(id) = reference {
        return Ok(*id);
    }
    let url = format!("{}?match={reference}", service.http("/executions"));
    let body = fetch_list(&HttpClient::new(service), &url).await?;
    let page: MatchPage = serde_json::from_slice(&body).map_err(|error| not_understood(&error))?;
    match page.executions.as_slice() {
        [one] => Ok(one.execution_id),
        [] => Err(ClientError::new(
            exit::UNAVAILABLE,
            format!("no execution of yours matches {reference}: `cc-executor ps --all` lists them"),
        )),
        several => {
            lines_of(several).iter().for_each(|line| console::report_line(line));
            let message = format!("{} executions match {reference}: give more of the id", several.len());
            Err(ClientError::new(exit::USAGE, message))
        }
    }
}

/// The matches of an ambiguous text, a line each.
fn lines_of(several: &[MatchingExecution]) -> Vec<String> {
    let listed = several.iter().take(MAX_LISTED).map(|execution| {
        let MatchingExecution { execution_id, name, status, age_ms, command } = execution;
        let name = name.as_ref().map_or("-", ExecutionName::as_str);
        let age = age_ms.map_or_else(|| "-".to_owned(), in_words);
        let command = cut(command.as_deref().unwrap_or_default(), MAX_COMMAND);
        format!("{execution_id}  {name}  {}  {age}  {}", visible(status), visible(&command))
    });
    let more = several.len().saturating_sub(MAX_LISTED);
    listed.chain((more > 0).then(|| format!("and {more} more"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ambiguity_lists_what_tells_the_executions_apart() {
        let execution = |name: Option<&str>| MatchingExecution {
            execution_id: "ab000000-0000-4000-8000-000000000000".parse().unwrap(),
            name: name.map(|name| name.parse().unwrap()),
            status: "RUNNING".to_owned(),
            age_ms: Some(61_000),
            command: Some("make\x1b[31m\nall".to_owned()),
        };
        let lines = lines_of(&[execution(Some("nightly")), execution(None)]);
        assert_eq!(lines[0], r"ab000000-0000-4000-8000-000000000000  nightly  RUNNING  1m1s  make\u001b[31m\nall");
        let many: Vec<_> = (0..12).map(|_| execution(None)).collect();
        assert_eq!(lines_of(&many)[10..], ["and 2 more"]);
    }
}
