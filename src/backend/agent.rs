//! How the agent CLIs are started: arguments, environment, and what the operator allows.

pub mod claude;
