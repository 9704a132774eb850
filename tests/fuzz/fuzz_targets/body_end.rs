//! Fuzzes the tracker that finds the end of a legacy response body.
#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::body_end(data));
