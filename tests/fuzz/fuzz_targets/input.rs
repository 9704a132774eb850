//! Whatever a client sends: WebSocket frames, and the JSON-RPC in them.
#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::input(data));
