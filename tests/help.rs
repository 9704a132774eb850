//! The help texts, compared with those in `tests/help/`: a change of a flag shows as a change of a text. After a change,
//! `WRITE_HELP=1 cargo test --test integration help::` writes them anew.

use std::{env, fs, path::PathBuf};

use crate::common::service::{binary, run_to_exit};

/// The widest line, in columns.
const WIDTH: usize = 80;

fn help(arguments: &[&str]) -> String {
    let (stdout, stderr, exit) = run_to_exit(binary().args(arguments).arg("--help"));
    assert_eq!((stderr.as_str(), exit), ("", 0), "{arguments:?}");
    stdout
}

/// The names of the subcommands in a help text.
fn subcommands(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = list.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    names.map(str::to_owned).collect()
}

/// The command lines of all help texts: each command, and each command of a command.
fn all() -> Vec<Vec<String>> {
    let mut lines = vec![Vec::new()];
    let mut at = 0;
    while let Some(line) = lines.get(at).cloned() {
        let words: Vec<_> = line.iter().map(String::as_str).collect();
        lines.extend(subcommands(&help(&words)).into_iter().map(|name| [line.clone(), vec![name]].concat()));
        at += 1;
    }
    lines
}

#[test]
fn every_help_text_fits_and_is_the_stored_one() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/help");
    let mut stored: Vec<_> = fs::read_dir(&directory).unwrap().map(|file| file.unwrap().file_name()).collect();
    let lines = all();
    assert!(lines.len() > 10, "{lines:?}");
    for line in &lines {
        let words: Vec<_> = line.iter().map(String::as_str).collect();
        let (name, text) = ([&["cc-executor"], words.as_slice()].concat().join("-") + ".txt", help(&words));
        let wide: Vec<_> = text.lines().filter(|line| line.chars().count() > WIDTH).collect();
        assert!(wide.is_empty(), "{name}: {wide:?}");
        let file = directory.join(&name);
        if env::var_os("WRITE_HELP").is_some() {
            fs::write(&file, &text).unwrap();
        }
        let expected = fs::read_to_string(&file).unwrap_or_default();
        assert!(text == expected, "the help of {words:?} is not {}; write it anew:\n{text}", file.display());
        stored.retain(|other| *other != *name);
    }
    assert!(stored.is_empty() || env::var_os("WRITE_HELP").is_some(), "help of commands that are gone: {stored:?}");
}
