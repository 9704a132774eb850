//! Fuzzes the reader and the progress tracker of Claude's events.
#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::claude(data));
