//! The files of one execution. Everything here blocks.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use cc_executor_actors::{
    id::ExecutionId,
    stream::{PerStream, Stream},
};

use super::stored_file::StoredFile;

/// The file with the specification, and its name once the disk has failed.
const SPEC: &str = "spec.json";
pub(super) const FAILED_SPEC: &str = "failed.json";

/// The place of an execution's files.
#[derive(Clone, Debug)]
pub struct Entry {
    id: ExecutionId,
    path: PathBuf,
}

impl Entry {
    pub(super) fn new(executions: &Path, id: ExecutionId) -> Self {
        Entry { id, path: executions.join(id.to_string()) }
    }

    /// The execution.
    pub fn id(&self) -> ExecutionId {
        self.id
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files of its output, which are opened when they are needed.
    pub fn files(&self, starts: PerStream<u64>) -> PerStream<Arc<StoredFile>> {
        let file = |stream: Stream| Arc::new(StoredFile::at(self.path.join(stream.as_str()), *starts.get(stream)));
        PerStream { stdout: file(Stream::Stdout), stderr: file(Stream::Stderr) }
    }

    /// Makes the directory, with the files of the output and this specification.
    pub fn create(&self, files: &PerStream<Arc<StoredFile>>, spec: &[u8]) -> io::Result<()> {
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        match builder.create(&self.path) {
            // Files that another backend of this directory left behind and could not remove.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                fs::remove_dir_all(&self.path)?;
                builder.create(&self.path)?;
            }
            made => made?,
        }
        files.stdout.create()?;
        files.stderr.create()?;
        self.write(SPEC, spec)
    }

    /// Writes a file under a temporary name and renames it, so that no reader finds a part of it.
    pub fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let (place, beside) = (self.path.join(name), self.path.join(format!("{name}.new")));
        // A killed backend may have left its temporary file.
        let _ = fs::remove_file(&beside);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        let written = file.write_all(content).and_then(|()| fs::rename(&beside, &place));
        if written.is_err() {
            // The disk may be full, and the rest of the file takes space.
            let _ = fs::remove_file(&beside);
        }
        written
    }

    /// Marks that the disk did not take all of the output. Needs no space.
    pub fn mark_failed(&self) -> io::Result<()> {
        fs::rename(self.path.join(SPEC), self.path.join(FAILED_SPEC))
    }

    /// Removes everything, by way of `removing`, so that a backend that is killed meanwhile leaves no half entry.
    pub fn remove(&self, removing: &Path) -> io::Result<()> {
        let place = removing.join(self.id.to_string());
        // Of an earlier removal that was cut short.
        let _ = fs::remove_dir_all(&place);
        match fs::rename(&self.path, &place) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            moved => moved?,
        }
        for stream in Stream::BOTH {
            // Frees the space also if a reader has the file open: its response is cut.
            let _ = OpenOptions::new().write(true).open(place.join(stream.as_str())).and_then(|file| file.set_len(0));
        }
        fs::remove_dir_all(&place)
    }
}
