//! Fuzzes the WebSocket frames and JSON-RPC calls of a client.
#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::input(data));
