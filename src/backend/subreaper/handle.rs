//! The backend's side of a subreaper: starts it, sends it requests, and enforces their deadlines.
//!
//! A thread belongs to each subreaper and lives as long as the subreaper does, because the kernel wakes a stopped
//! subreaper when the *thread* that started it ends. The thread reads the responses and enforces their deadlines,
//! because a command of the same user can stop or kill the subreaper.

mod adoption;
mod state;
mod thread;

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use cc_executor_actors::outcome::Evidence;
use rustix::{
    event::{EventfdFlags, eventfd},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
};
use tokio::sync::oneshot;

use self::{
    adoption::{ADOPTED_CADENCE, Adoption},
    state::{ADOPTED_PATIENCE, HandlePhase, PendingRequest, SharedHandle, UnsentRequest, lock},
};
use super::protocol::{ARGUMENT, SubreaperAction, SubreaperRequest, SubreaperResponse, Ticket};
use crate::backend::shim::{
    containment::{Contained, Containment},
    protocol::{Numbered, TreeGone},
    readable::Waiter,
};

/// Starts subreapers. One at a time takes new executions; a lost one is replaced.
#[derive(Debug)]
pub struct Subreapers {
    binary: PathBuf,
    contained: Contained,
    adoption: Arc<Adoption>,
    current: Mutex<Option<Arc<SubreaperHandle>>>,
}

/// A running subreaper. It ends when the last reference is dropped.
#[derive(Debug)]
pub struct SubreaperHandle {
    shared: Arc<SharedHandle>,
}

impl Subreapers {
    /// Starts the first subreaper. To be called before this process has any other children.
    pub fn start(binary: &Path, containment: Containment) -> io::Result<Subreapers> {
        let contained = containment.resolve()?;
        let not_started = |error: io::Error| {
            let advice = "check that /proc is mounted, and the limits of processes and open files (ulimit -u, -n)";
            io::Error::new(error.kind(), format!("cannot start the subreaper: {error}; {advice}"))
        };
        let adoption = Arc::new(Adoption::prepare().map_err(not_started)?);
        let subreapers = Subreapers { binary: binary.to_owned(), contained, adoption, current: Mutex::default() };
        subreapers.current().map_err(not_started)?;
        Ok(subreapers)
    }

    /// The containment of executions.
    pub fn contained(&self) -> &Contained {
        &self.contained
    }

    /// The subreaper that takes new executions. Starts another if that is lost or unfit.
    pub fn current(&self) -> io::Result<Arc<SubreaperHandle>> {
        let mut current = lock(&self.current);
        if let Some(subreaper) = current.as_ref().filter(|subreaper| subreaper.is_fit()) {
            return Ok(Arc::clone(subreaper));
        }
        let started = Arc::new(self.start_another()?);
        *current = Some(Arc::clone(&started));
        Ok(started)
    }

    fn start_another(&self) -> io::Result<SubreaperHandle> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let contained = match &self.contained {
            Contained::Cgroup(base) => Contained::Cgroup(base.make_for_subreaper()?),
            other => other.clone(),
        };
        let shared = Arc::new(SharedHandle {
            socket: ours,
            waiter: Waiter::open()?,
            wake,
            state: Mutex::default(),
            next: AtomicU64::new(1),
            adopts: self.adoption.adopts(),
            contained,
        });
        let mut command = Command::new(&self.binary);
        command
            .arg(ARGUMENT)
            .arg(serde_json::to_string(&shared.contained)?)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let (started, is_started) = std::sync::mpsc::channel();
        let (adoption, thread_shared) = (Arc::clone(&self.adoption), Arc::clone(&shared));
        std::thread::Builder::new().name("subreaper".to_owned()).spawn(move || {
            let spawned = adoption.spawn(&mut command, &thread_shared);
            // Closes this process's copy of the subreaper's socket.
            drop(command);
            match spawned {
                Err(error) => drop(started.send(Err(error))),
                Ok((child, pid)) => {
                    drop(started.send(Ok(())));
                    thread::look_after(&thread_shared, child, pid, &adoption);
                }
            }
        })?;
        is_started.recv().map_err(io::Error::other)??;
        Ok(SubreaperHandle { shared })
    }
}

impl Drop for Subreapers {
    fn drop(&mut self) {
        if let Contained::Cgroup(base) = &self.contained {
            base.remove();
        }
    }
}

impl SubreaperHandle {
    fn is_fit(&self) -> bool {
        lock(&self.shared.state).phase == HandlePhase::Fit
    }

    /// A new name for a shim, unique over all subreapers, because it also names the cgroup.
    pub fn ticket(&self) -> Ticket {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a request about a shim, with descriptors. If the socket is full, the request waits until the subreaper has
    /// answered an earlier one. The receiver gets the response, or is closed because the subreaper was lost.
    ///
    /// # Errors
    ///
    /// The subreaper is gone.
    pub fn send(
        &self,
        ticket: Ticket,
        action: SubreaperAction,
        descriptors: Arc<[OwnedFd]>,
    ) -> io::Result<oneshot::Receiver<SubreaperResponse>> {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        let mut state = lock(&self.shared.state);
        if matches!(state.phase, HandlePhase::Lost { .. }) {
            return Err(io::Error::other("the subreaper is gone"));
        }
        let message = Numbered { number, message: SubreaperRequest { ticket, action } };
        let was_idle = state.pending.is_empty();
        state.pending.insert(number, PendingRequest { ticket, answer });
        state.unsent.push_back(UnsentRequest { message, descriptors });
        if let Err(error) = state.send(&self.shared.socket) {
            state.pending.remove(&number);
            state.unsent.retain(|unsent| unsent.message.number != number);
            return Err(error);
        }
        drop(state);
        if was_idle {
            // The counter cannot overflow, because the thread empties it.
            let _ = rustix::io::write(&self.shared.wake, &1u64.to_ne_bytes());
        }
        Ok(answered)
    }

    /// Ends the processes that this shim has left behind, and returns what is known of their end.
    pub async fn sweep(self: Arc<Self>, ticket: Ticket) -> TreeGone {
        if let Ok(answered) = self.send(ticket, SubreaperAction::Sweep, Arc::default())
            && let Ok(SubreaperResponse::Swept(gone)) = answered.await
        {
            return gone;
        }
        // The subreaper is lost, too. Its thread ends the orphans, and a cgroup shows by itself whether it is empty.
        lock(&self.shared.state).shims.remove(&ticket);
        tokio::task::spawn_blocking(move || self.sweep_without(ticket)).await.unwrap_or(TreeGone::UNKNOWN)
    }

    fn sweep_without(&self, ticket: Ticket) -> TreeGone {
        let is_cgroup_empty = match &self.shared.contained {
            Contained::Cgroup(base) => base.below(&ticket.to_string()).end(ADOPTED_PATIENCE),
            Contained::Tree | Contained::PidNamespace => false,
        };
        if !self.shared.adopts {
            return if is_cgroup_empty { TreeGone::proven(Evidence::CgroupEmpty) } else { TreeGone::UNKNOWN };
        }
        // Also with an empty cgroup, because a command that runs as root can have left it.
        let until = Instant::now() + ADOPTED_PATIENCE;
        // Two more looks, because the current one may have begun before this shim was forgotten.
        let wanted = lock(&self.shared.state).n_clean() + 2;
        while Instant::now() < until {
            if lock(&self.shared.state).n_clean() >= wanted {
                return TreeGone::proven(Evidence::Swept);
            }
            std::thread::sleep(ADOPTED_CADENCE);
        }
        TreeGone::UNKNOWN
    }

    /// Forgets a shim whose last event its execution has read, or which is lost.
    pub fn forget(&self, ticket: Ticket) {
        lock(&self.shared.state).shims.remove(&ticket);
    }
}

impl Drop for SubreaperHandle {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        if !matches!(state.phase, HandlePhase::Lost { .. }) {
            state.phase = HandlePhase::GivenUp;
        }
        drop(state);
        // The subreaper ends when it reads the end of the socket. Closing would not do, because the thread also holds it.
        let _ = rustix::net::shutdown(&self.shared.socket, rustix::net::Shutdown::Write);
    }
}
