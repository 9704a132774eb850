//! What is special about the agent CLIs: what they print, and what follows from it.

pub mod claude;
