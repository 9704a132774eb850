//! Paths of files that exist only during one test.

use std::{
    fs,
    ops::Deref,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::procs;

/// A path that no other test uses. Its file is removed when this is dropped.
pub struct TempPath(PathBuf);

impl TempPath {
    /// A path without a file.
    pub fn new(name: &str) -> TempPath {
        TempPath(std::env::temp_dir().join(format!("cc-executor-{name}-{}", procs::mark())))
    }

    /// A file with this content.
    pub fn with_content(name: &str, content: impl AsRef<[u8]>) -> TempPath {
        let path = TempPath::new(name);
        fs::write(&path.0, content).unwrap();
        path
    }

    /// Sets the permissions of the file.
    pub fn set_mode(&self, mode: u32) {
        fs::set_permissions(&self.0, fs::Permissions::from_mode(mode)).unwrap();
    }

    pub fn as_str(&self) -> &str {
        self.0.to_str().expect("the path is UTF-8")
    }
}

impl Deref for TempPath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A directory for one test, below the one that cargo gives. Every user may read it.
pub fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", procs::mark()));
    fs::create_dir_all(&path).expect("cargo's directory is writable");
    path
}
