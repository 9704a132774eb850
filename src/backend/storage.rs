//! The state directory: the output of executions that may detach, on disk, and how they ended.
//!
//! ```text
//! STATE_DIR/lock                                held by one backend
//! STATE_DIR/alive                               its time says when a backend last used the directory
//! STATE_DIR/executions/ID/{spec.json,stdout,stderr,checkpoint.json,end.json}
//! STATE_DIR/damaged/ID                          entries that could not be read
//! STATE_DIR.key                                 the key of the seals
//! ```
//!
//! [`directory`] is the whole directory. Every call that may wait for the disk runs on a thread of its own: of tokio's blocking pool for one execution
//! ([`writer`]) or a reader, or of [`removal`]. An entry is created by [`entry`], and read at the start by [`restore`].
//! The module knows neither jobs nor clients' connections.

pub mod directory;
pub mod entry;
pub mod location;
mod lock;
pub mod records;
mod regular;
pub mod removal;
pub mod restore;
mod seal;
pub mod stored_file;
pub mod writer;

pub use self::{
    directory::{StateDir, StateDirError},
    seal::Sealer,
};
