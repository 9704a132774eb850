//! What an agent is doing, as a heartbeat states it.

/// What an agent is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Activity {
    /// `thinking`, or `tool: Bash`; nothing when it has said how it ended.
    pub activity: Option<String>,
    /// How often the model has answered.
    pub turns: u32,
}
