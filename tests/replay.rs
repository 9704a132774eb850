//! Each fuzzer's body with the inputs of its corpus.

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
fn input_corpus() {
    replay("input", bodies::input);
}

#[test]
fn multiplex_corpus() {
    replay("multiplex", bodies::multiplex);
}

#[test]
fn body_end_corpus() {
    replay("body_end", bodies::body_end);
}

#[test]
fn output_corpus() {
    replay("text", bodies::text);
    replay("json_lines", bodies::json_lines);
}

#[test]
fn claude_corpus() {
    replay("claude", bodies::claude);
}
