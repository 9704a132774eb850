//! The fallback where a keeper itself was killed: its tree then becomes the children of the backend.
//!
//! The backend is a subreaper too. Its children are keepers, which are registered here from before
//! anybody could see them until they have been reaped, and orphans of keepers that were lost, which
//! are not. Only the latter are ended here, one by one: `waitpid(-1)` would steal keepers from the
//! runtime.

use std::{
    collections::HashSet,
    fs, io, process,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, waitpid};
use tokio::{
    process::{Child, Command},
    sync::oneshot,
};

use super::keeper::tree::{parent_of, pid};

/// The keepers that have not been reaped.
static KEEPERS: Mutex<Option<HashSet<Pid>>> = Mutex::new(None);

/// How long KILL is repeated before what is left is called a survivor.
const PATIENCE: Duration = Duration::from_secs(5);

fn keepers() -> MutexGuard<'static, Option<HashSet<Pid>>> {
    KEEPERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes this process the one that orphans of its descendants come to.
pub fn adopt() -> io::Result<()> {
    set_child_subreaper(Some(Pid::INIT)).map_err(io::Error::from)
}

/// Starts a keeper. The receiver ends when it has been reaped.
pub fn start_keeper(command: &mut Command) -> io::Result<oneshot::Receiver<()>> {
    // One lock around both: a keeper that is not registered would be taken for an orphan.
    let mut keepers = keepers();
    let mut child = command.spawn()?;
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    keepers.get_or_insert_default().extend(pid);
    drop(keepers);
    let (reaped, is_reaped) = oneshot::channel();
    tokio::spawn(async move {
        reap(&mut child, pid).await;
        // Nobody may be waiting: it matters only where a keeper was lost.
        let _ = reaped.send(());
    });
    Ok(is_reaped)
}

async fn reap(child: &mut Child, pid: Option<Pid>) {
    // It can only fail if somebody else reaped it: then it is gone as well.
    let _ = child.wait().await;
    if let (Some(pid), Some(keepers)) = (pid, keepers().as_mut()) {
        keepers.remove(&pid);
    }
}

/// Ends every child that is no keeper, and gives how many could not be ended. Blocks for as long as
/// that takes.
///
/// A killed process has handed its own children over before it can be reaped: when none is left that
/// is no keeper, the trees of all lost keepers are gone.
pub fn sweep() -> u32 {
    let start = Instant::now();
    loop {
        let orphans = orphans();
        if orphans.is_empty() || start.elapsed() > PATIENCE {
            return u32::try_from(orphans.len()).unwrap_or(u32::MAX);
        }
        for orphan in orphans {
            // Either may find it gone: another sweep was faster.
            let _ = kill_process(orphan, Signal::KILL);
            let _ = waitpid(Some(orphan), WaitOptions::NOHANG);
        }
    }
}

fn orphans() -> Vec<Pid> {
    let me = i32::try_from(process::id()).unwrap_or_default();
    // Held while looking: no keeper can come to be in between.
    let keepers = keepers();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| pid(entry.file_name().to_str()?))
        .filter(|child| !keepers.as_ref().is_some_and(|keepers| keepers.contains(child)))
        .filter(|child| parent_of(*child) == Some(me))
        .collect()
}
