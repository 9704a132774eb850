//! The command of `execute`: a text for an executor, or the words of a program that runs without a shell.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    protocol::{EXEC_EXECUTOR, MAX_COMMAND_BYTES},
    rpc::{
        ErrorObject, code,
        params::{Params, invalid},
    },
};

/// The parameter that holds the words of a program.
const ARGV: &str = "argv";

/// What an execution runs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RequestedCommand {
    /// `command`: a text that the executor interprets, 1 to [`MAX_COMMAND_BYTES`] bytes without NUL. The prompt of an
    /// agent may be as long as a message.
    #[serde(rename = "command")]
    Text(String),
    /// `argv`: a program and its arguments, which the executor [`EXEC_EXECUTOR`] passes to execve(2) as they are. Each
    /// has at most [`MAX_COMMAND_BYTES`] bytes and no NUL; any may be empty.
    Argv(Vec<String>),
}

/// The parameters of [`RequestedCommand`] in the schema: exactly one of them is there.
#[derive(JsonSchema, Serialize)]
pub(super) struct CommandSchema {
    /// The command, 1 to 131071 bytes without NUL. The prompt of an agent may be as long as a message. Required unless
    /// `argv` is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    command: Option<String>,
    /// A program and its arguments, which run without a shell, exactly as they are. Instead of `command`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    argv: Option<Vec<String>>,
}

impl Default for RequestedCommand {
    fn default() -> Self {
        RequestedCommand::Text(String::new())
    }
}

impl RequestedCommand {
    /// The command as one line for people: of words those that a shell would change are quoted.
    pub fn to_text(&self) -> Cow<'_, str> {
        match self {
            RequestedCommand::Text(text) => text.into(),
            RequestedCommand::Argv(words) => words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ").into(),
        }
    }

    /// The words of a program, if it is one.
    pub fn argv(&self) -> Option<&[String]> {
        match self {
            RequestedCommand::Text(_) => None,
            RequestedCommand::Argv(words) => Some(words),
        }
    }

    /// Reads `argv`, or the parameter of this name, which holds a text.
    pub(super) fn from_fields(fields: &mut Params, text: &str) -> Result<Self, ErrorObject> {
        match (fields.string(text)?, fields.take(ARGV)) {
            (Some(_), Some(_)) => {
                Err(invalid(ARGV, format!("{text} and argv are two ways to say what to run: send one of them")))
            }
            (None, Some(words)) => argv(words).map(RequestedCommand::Argv),
            (None, None) => Err(ErrorObject::new(code::PARAMS, format!("{text} is missing: send the command to run"))),
            (Some(command), None) if command.is_empty() => {
                let message = format!("{text} must not be empty: send the command to run");
                Err(ErrorObject::new(code::PARAMS, message).with(json!({ "param": text, "asked": 0, "min": 1 })))
            }
            (Some(command), None) => check_no_nul(text, &command).map(|()| RequestedCommand::Text(command)),
        }
    }

    /// The executor of this command, from that of the request. Words run on [`EXEC_EXECUTOR`] only, and it runs nothing
    /// else.
    pub(super) fn executor(&self, requested: Option<String>) -> Result<Option<String>, ErrorObject> {
        match (self, requested) {
            (RequestedCommand::Argv(_), None) => Ok(Some(EXEC_EXECUTOR.to_owned())),
            (RequestedCommand::Argv(_), Some(name)) if name != EXEC_EXECUTOR => {
                let message =
                    format!("argv runs without a shell, on executor exec only, not on {name:?}: leave out executor");
                Err(invalid("executor", message))
            }
            (RequestedCommand::Text(_), Some(name)) if name == EXEC_EXECUTOR => {
                let message = "executor exec runs the words of argv, not a command: send argv (run: --exec)";
                Err(invalid("executor", message))
            }
            (_, requested) => Ok(requested),
        }
    }
}

fn argv(value: Value) -> Result<Vec<String>, ErrorObject> {
    let Value::Array(items) = value else {
        return Err(invalid(ARGV, "argv must be a list of strings: the program and its arguments"));
    };
    if items.is_empty() {
        return Err(invalid(ARGV, "argv must not be empty: its first word is the program to run"));
    }
    let words = items.into_iter().enumerate().map(|(at, item)| match item {
        Value::String(word) if word.len() > MAX_COMMAND_BYTES => {
            let length = word.len();
            let message = format!("argv[{at}] must have at most {MAX_COMMAND_BYTES} bytes, not {length}");
            Err(invalid(ARGV, message).with(json!({ "param": ARGV, "asked": length, "max": MAX_COMMAND_BYTES })))
        }
        Value::String(word) => check_no_nul(&format!("argv[{at}]"), &word).map(|()| word),
        _ => Err(invalid(ARGV, format!("argv[{at}] must be a string"))),
    });
    words.collect()
}

/// Refuses a text that no process can get.
pub(super) fn check_no_nul(name: &str, text: &str) -> Result<(), ErrorObject> {
    match text.find('\0') {
        None => Ok(()),
        Some(at) => Err(invalid(name, format!("{name} has a NUL at byte {at}: execve(2) cannot pass it to a process"))),
    }
}

/// A word as a shell would have to be given it.
fn quote(word: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_alphanumeric() || "_@%+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_shown_as_a_shell_would_be_given_them() {
        let words = ["printf", "%s\n", "it's", "", "a b", "--x=1", "$HOME", "ü"].map(str::to_owned);
        let shown = RequestedCommand::Argv(words.to_vec()).to_text().into_owned();
        assert_eq!(shown, "printf '%s\n' 'it'\\''s' '' 'a b' --x=1 '$HOME' ü");
        assert_eq!(RequestedCommand::Text("a  'b".to_owned()).to_text(), "a  'b");
    }
}
