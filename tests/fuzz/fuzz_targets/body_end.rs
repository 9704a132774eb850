//! Whatever HTTP a plain backend answers with: where does its body end?
#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::body_end(data));
