//! From the bytes of a process to the text of messages.

pub mod escape;
