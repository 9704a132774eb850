//! Files with secrets: who may read or write them, and their content.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

/// The longest file that is read, in bytes: some thousand tokens.
const MAX_BYTES: u64 = 1 << 20;

/// The directories in which container engines and systemd put secrets. Only the service's container or unit has them,
/// and their files may be readable by all of its users.
const SECRET_DIRECTORIES: [&str; 2] = ["/run/secrets", "/var/run/secrets"];

/// The variable by which systemd names the directory of a unit's credentials (systemd.exec(5)).
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// What a file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SecretKind {
    /// A token, which no other user may read or replace.
    Token,
    /// Digests of tokens, which everybody may read and no other user may replace.
    Digests,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// It is missing, or cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It is a pipe, a directory or a device.
    #[error("is not a regular file")]
    NoFile,
    /// It is too long to be what it should be.
    #[error("is longer than {MAX_BYTES} bytes; name the file that holds the secret")]
    TooLong,
    /// Every user may read it.
    #[error("can be read by every user (mode {0:04o}); make it private with chmod 600")]
    Readable(u32),
    /// Every user may write it.
    #[error("can be written by every user (mode {0:04o}); make it private with chmod go-w")]
    Writable(u32),
}

/// The content of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SecretFile {
    /// Its text.
    pub text: String,
    /// What its group may do with it, if its group may read a token or write the file. The rest of a sentence that begins
    /// with the name of the file.
    pub warning: Option<String>,
}

/// Reads a file after a check of who else may read or write it.
///
/// # Errors
/// Other users may read or write it, or it cannot be read.
pub fn read(path: &Path, kind: SecretKind) -> Result<SecretFile, SecretFileError> {
    // A file of digests is read again and again, and a pipe has its content once. A token may come from a pipe, such as
    // a shell's <(command), which has no mode that matters.
    if kind == SecretKind::Digests && !fs::metadata(path)?.is_file() {
        return Err(SecretFileError::NoFile);
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let mode = if metadata.is_file() { metadata.mode() & 0o777 } else { 0 };
    let warning = match access(mode, kind) {
        FileAccess::WritableByAll if !is_in_secret_directory(&file) => return Err(SecretFileError::Writable(mode)),
        FileAccess::ReadableByAll if !is_in_secret_directory(&file) => return Err(SecretFileError::Readable(mode)),
        FileAccess::WritableByGroup => {
            // Without writing, a token could still be read.
            let fix = if kind == SecretKind::Token { "600" } else { "g-w" };
            Some(format!(
                "can be written by the users of its group (mode {mode:04o}); make it private with chmod {fix}"
            ))
        }
        FileAccess::ReadableByGroup => {
            Some(format!("can be read by the users of its group (mode {mode:04o}); make it private with chmod 600"))
        }
        FileAccess::WritableByAll | FileAccess::ReadableByAll | FileAccess::Private => None,
    };
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(SecretFileError::TooLong);
    }
    Ok(SecretFile { text, warning })
}

/// Who besides its owner may do with a file what only its owner should.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FileAccess {
    Private,
    ReadableByGroup,
    WritableByGroup,
    ReadableByAll,
    WritableByAll,
}

fn access(mode: u32, kind: SecretKind) -> FileAccess {
    let is_token = kind == SecretKind::Token;
    if mode & 0o002 != 0 {
        FileAccess::WritableByAll
    } else if is_token && mode & 0o004 != 0 {
        FileAccess::ReadableByAll
    } else if mode & 0o020 != 0 {
        FileAccess::WritableByGroup
    } else if is_token && mode & 0o040 != 0 {
        FileAccess::ReadableByGroup
    } else {
        FileAccess::Private
    }
}

/// Whether an open file is below a directory for secrets. The kernel is asked where the file is, because the path by which
/// it was opened may have links, and these may lead elsewhere by now.
fn is_in_secret_directory(file: &File) -> bool {
    let Ok(path) = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())) else { return false };
    let credentials = std::env::var_os(CREDENTIALS_DIRECTORY).map(PathBuf::from).filter(|path| path.is_absolute());
    let directories = SECRET_DIRECTORIES.iter().map(PathBuf::from).chain(credentials);
    directories.filter_map(|directory| directory.canonicalize().ok()).any(|directory| path.starts_with(directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_private_and_digests_are_not_written_by_others() {
        use FileAccess::{Private, ReadableByAll, ReadableByGroup, WritableByAll, WritableByGroup};
        for (mode, of_token, of_digests) in [
            (0o600, Private, Private),
            (0o400, Private, Private),
            (0o640, ReadableByGroup, Private),
            (0o660, WritableByGroup, WritableByGroup),
            (0o620, WritableByGroup, WritableByGroup),
            (0o644, ReadableByAll, Private),
            (0o604, ReadableByAll, Private),
            (0o666, WritableByAll, WritableByAll),
            (0o602, WritableByAll, WritableByAll),
            (0o777, WritableByAll, WritableByAll),
        ] {
            let found = (access(mode, SecretKind::Token), access(mode, SecretKind::Digests));
            assert_eq!(found, (of_token, of_digests), "{mode:o}");
        }
    }
}
