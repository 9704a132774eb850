//! The body of a streaming response: the output of an execution and its events, in one of four formats.
//!
//! `body` is the stream that actix-web polls, `encoder` writes the formats (Claude's is in `claude`), and `stored` reads
//! what is on disk.

mod body;
mod claude;
mod encoder;
mod format;
mod stored;

pub use self::{body::StreamBody, format::StreamFormat};
