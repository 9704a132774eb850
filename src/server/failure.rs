//! The context of an error of the system.

use std::io;

/// Adds what failed, and perhaps what to do, to an error of the system.
pub fn failed(what: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}
