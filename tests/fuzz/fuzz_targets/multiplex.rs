//! Whatever a backend streams in Docker's framing.
#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::multiplex(data));
