//! Whatever Claude may print, read for a client and for its status.
#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::claude(data));
