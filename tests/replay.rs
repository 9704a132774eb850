//! The inputs that the fuzzers found worth keeping, once more.

use std::{fs, path::Path};

#[path = "fuzz/bodies.rs"]
mod bodies;

fn replay(target: &str, body: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut n_inputs = 0;
    for entry in fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display())).flatten() {
        println!("{}", entry.path().display());
        body(&fs::read(entry.path()).unwrap());
        n_inputs += 1;
    }
    assert!(n_inputs >= 5, "{target} has only {n_inputs} inputs");
}

#[test]
fn what_a_client_may_send() {
    replay("input", bodies::input);
}

#[test]
fn what_a_backend_may_stream() {
    replay("multiplex", bodies::multiplex);
}

#[test]
fn what_a_plain_backend_may_answer() {
    replay("body_end", bodies::body_end);
}

#[test]
fn what_a_command_may_write() {
    replay("text", bodies::text);
    replay("json_lines", bodies::json_lines);
}

#[test]
fn what_claude_may_print() {
    replay("claude", bodies::claude);
}
