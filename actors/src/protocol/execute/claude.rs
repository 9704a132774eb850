//! The options of the executor `claude`.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::excerpt::Quoted;
use crate::rpc::{
    ErrorObject,
    params::{Params, ill_typed, invalid},
};

/// The longest option of Claude, in bytes.
const MAX_OPTION: usize = 1_000;

/// Options of the executor `claude`. For an absent option Claude's own settings apply.
#[derive(Clone, PartialEq, Eq, Debug, Default, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaudeOptions {
    /// The model's name or alias.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The permission mode, such as `acceptEdits`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permission_mode: Option<String>,
    /// Tools that Claude may use without permission, such as `Bash(git log:*)`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_tools: Vec<String>,
    /// The largest number of answers of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_turns: Option<u64>,
    /// The id of the Claude session to continue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume: Option<String>,
}

impl ClaudeOptions {
    pub(super) fn from_object(mut fields: Params) -> Result<Self, ErrorObject> {
        let claude = ClaudeOptions {
            model: word(&mut fields, "model")?,
            permission_mode: word(&mut fields, "permissionMode")?,
            allowed_tools: fields.strings("allowedTools")?,
            max_turns: fields.integer("maxTurns", 1, 1_000_000)?,
            resume: word(&mut fields, "resume")?,
        };
        fields.finish()?;
        let is_name = |tool: &str| {
            tool.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
                && tool.len() <= MAX_OPTION
                && !tool.contains(char::is_control)
        };
        match claude.allowed_tools.iter().find(|tool| !is_name(tool)) {
            None => Ok(claude),
            Some(tool) => {
                let message =
                    format!("allowedTools has {}: name tools, such as Bash or \"Bash(git log:*)\"", Quoted(tool));
                Err(invalid("allowedTools", message))
            }
        }
    }
}

/// Takes an option that is a single word.
fn word(fields: &mut Params, name: &str) -> Result<Option<String>, ErrorObject> {
    let Some(text) = fields.string(name)? else { return Ok(None) };
    if text.is_empty() || text.len() > MAX_OPTION || text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(ill_typed(name, "one word", &Value::String(text)));
    }
    Ok(Some(text))
}
