//! Fuzzes the encoder of `output` messages for WebSocket clients.
#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::text(data));
