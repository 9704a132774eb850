//! Opens files of the state directory. Commands of the service's own user can put a FIFO, a link or a huge file in their
//! place, which must neither block a thread nor fill the memory.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::OFlags;

/// The longest record that is read, in bytes. A prompt may be as long as a message (16 MiB), and is escaped.
const MAX_RECORD: u64 = 64 << 20;

/// Opens a regular file for reading. Does not follow a link, and does not wait for the writer of a FIFO.
///
/// # Errors
///
/// There is no such file, or it is not a regular one.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(ErrorKind::InvalidData, "it is not a regular file"))
    }
}

/// Reads a record.
///
/// # Errors
///
/// See [`open`]; or it is longer than any record.
pub(super) fn read_record(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open(path)?.take(MAX_RECORD + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_RECORD {
        return Err(io::Error::new(ErrorKind::InvalidData, "it is longer than any record"));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn a_fifo_or_a_link_is_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        symlink("/dev/zero", at("link")).unwrap();
        std::fs::write(at("file"), "{}").unwrap();
        for name in ["fifo", "link", "missing", "."] {
            assert!(read_record(&at(name)).is_err(), "{name}");
        }
        assert_eq!(read_record(&at("file")).unwrap(), b"{}");
    }
}
