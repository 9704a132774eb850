//! The Rust sources of the workspace, for the tests of its structure.

use std::{fs, path::Path};

/// The path of a file from the root, and its text.
pub type SourceFile = (String, String);

/// The root of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Reads every Rust file below these directories.
pub fn read_sources(directories: &[&str]) -> Vec<SourceFile> {
    let mut found = Vec::new();
    directories.iter().for_each(|directory| collect(&root().join(directory), &mut found));
    found.sort();
    assert!(found.len() > 30, "the sources are found");
    found
}

fn collect(directory: &Path, found: &mut Vec<SourceFile>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}
