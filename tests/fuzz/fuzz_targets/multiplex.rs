//! Fuzzes the decoder of the multiplexed stream.
#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::multiplex(data));
