//! The options of the executor `claude`.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::rpc::{
    ErrorObject, code,
    params::{Params, ill_typed},
};

/// Options of the executor `claude`. What is absent is left to Claude's own settings.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ClaudeOptions {
    /// The model's name or alias.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What it may do without being asked, such as `acceptEdits`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permission_mode: Option<String>,
    /// Tools that it may use without being asked, such as `Bash(git log:*)`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_tools: Vec<String>,
    /// How often the model may answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_turns: Option<u64>,
    /// The session of Claude that is to go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume: Option<String>,
}

impl ClaudeOptions {
    pub(super) fn from_whole(mut fields: Params) -> Result<Self, ErrorObject> {
        let claude = ClaudeOptions {
            model: word(&mut fields, "model")?,
            permission_mode: word(&mut fields, "permissionMode")?,
            allowed_tools: fields.strings("allowedTools")?,
            max_turns: fields.integer("maxTurns", 1, 1_000_000)?,
            resume: word(&mut fields, "resume")?,
        };
        fields.finish()?;
        for tool in &claude.allowed_tools {
            let plain = tool.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
            if !plain || tool.len() > MAX_OPTION || tool.chars().any(char::is_control) {
                let message = format!("allowedTools has {tool:?}: name tools, such as Bash or \"Bash(git log:*)\"");
                return Err(ErrorObject::new(code::PARAMS, message).with(json!({ "param": "allowedTools" })));
            }
        }
        Ok(claude)
    }
}

/// The longest option of Claude, in bytes.
const MAX_OPTION: usize = 1_000;

/// Takes an option that is one word.
fn word(fields: &mut Params, name: &str) -> Result<Option<String>, ErrorObject> {
    let Some(text) = fields.string(name)? else { return Ok(None) };
    let plain = text.chars().all(|c| !c.is_control() && !c.is_whitespace());
    if text.is_empty() || text.len() > MAX_OPTION || !plain {
        return Err(ill_typed(name, "one word", &Value::String(text)));
    }
    Ok(Some(text))
}
