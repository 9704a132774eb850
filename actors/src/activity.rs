//! The activity of an agent, as heartbeats report it.

/// The activity of an agent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Activity {
    /// `thinking`, or `tool: Bash`; `None` once it has reported its result.
    pub activity: Option<String>,
    /// The number of answers of the model.
    pub turns: u32,
}
