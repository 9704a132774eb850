//! The backend's side of a subreaper: it starts one, asks it for shims, and sees to it that it obeys.
//!
//! A thread belongs to each subreaper and lives as long as that does, because the kernel wakes a stopped
//! subreaper when the *thread* that started it ends. The thread reads the answers, and keeps the deadlines by which
//! each request must be answered: a command of the same user can stop or kill the subreaper, too.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use cc_executor_actors::outcome::Evidence;
use log::{error, warn};
use rustix::{
    cmsg_space,
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv,
        sendmsg, socketpair,
    },
    process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, waitpid},
};
use tokio::sync::oneshot;

use super::protocol::{
    ARGUMENT, MAX_PASSED, MAX_REQUEST, NumberedRequest, SubreaperRequest, SubreaperResponse, Ticket,
};
use crate::backend::{
    deadlines::{OrderWatch, WatchAction},
    shim::{
        cgroup::{kill_cgroup, remove_base},
        containment::{Contained, Containment},
        procfs::{pid, stat_of},
        protocol::TreeGone,
    },
};

/// How long what a lost subreaper leaves behind may take to end before it is called unknown.
const ADOPTED_PATIENCE: Duration = Duration::from_secs(5);

/// How often what a lost subreaper left behind is looked at.
const ADOPTED_CADENCE: Duration = Duration::from_millis(2);

/// Makes subreapers: one at a time takes new executions.
#[derive(Debug)]
pub struct Subreapers {
    binary: PathBuf,
    contained: Contained,
    adoption: Arc<Adoption>,
    current: Mutex<Option<Arc<SubreaperHandle>>>,
}

/// A running subreaper. It ends when the last one who holds this is gone.
#[derive(Debug)]
pub struct SubreaperHandle {
    shared: Arc<Shared>,
    contained: Contained,
}

/// What its thread shares with those who ask.
#[derive(Debug)]
struct Shared {
    socket: OwnedFd,
    /// Wakes the thread where it waits without a deadline.
    wake: OwnedFd,
    state: Mutex<HandleState>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct HandleState {
    /// Requests that are not answered.
    waiting: HashMap<u64, PendingRequest>,
    watch: OrderWatch,
    /// The shims that it has forked and that their executions have not lost.
    shims: HashMap<Ticket, Pid>,
    is_lost: bool,
    /// Nobody needs it any more: its end is no loss.
    is_given_up: bool,
    /// How often it was seen, after the loss, that nothing is left but living shims.
    n_clean: u64,
    /// It cannot take new executions: its limits were lowered, perhaps.
    is_unfit: bool,
}

#[derive(Debug)]
struct PendingRequest {
    request: SubreaperRequest,
    answer: oneshot::Sender<SubreaperResponse>,
}

/// What becomes of the children of a subreaper that was lost. They come to this process, if it is a subreaper
/// itself; and it is one only where it had no children when it started: the descendants of these could not be told
/// from orphans.
#[derive(Debug)]
struct Adoption {
    is_subreaper: bool,
    subreapers: Mutex<Vec<Weak<Shared>>>,
    own: Mutex<Vec<Pid>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No critical section panics half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Subreapers {
    /// Starts the first one. To be called before this process has any other children.
    pub fn start(binary: &Path, containment: Containment) -> io::Result<Subreapers> {
        let contained = containment.resolve()?;
        let is_subreaper = own_children()?.is_empty();
        if is_subreaper {
            set_child_subreaper(Some(Pid::INIT))?;
        }
        let adoption = Arc::new(Adoption { is_subreaper, subreapers: Mutex::default(), own: Mutex::default() });
        let subreapers = Subreapers { binary: binary.to_owned(), contained, adoption, current: Mutex::default() };
        subreapers.current()?;
        Ok(subreapers)
    }

    /// What contains executions, for the log.
    pub fn contained(&self) -> &Contained {
        &self.contained
    }

    /// The one that takes new executions. Starts another where it was lost.
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
        let shared = Arc::new(Shared {
            socket: ours,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            state: Mutex::default(),
            next: AtomicU64::new(1),
        });
        let mut command = Command::new(&self.binary);
        command
            .arg(ARGUMENT)
            .arg(serde_json::to_string(&self.contained)?)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let (started, is_started) = std::sync::mpsc::channel();
        let (adoption, thread_shared) = (Arc::clone(&self.adoption), Arc::clone(&shared));
        thread::Builder::new().name("subreaper".to_owned()).spawn(move || {
            let spawned = adoption.spawn(&mut command, &thread_shared);
            // It holds our copy of the other end.
            drop(command);
            match spawned {
                Err(error) => drop(started.send(Err(error))),
                Ok((child, pid)) => {
                    drop(started.send(Ok(())));
                    look_after(&thread_shared, child, pid, &adoption);
                }
            }
        })?;
        is_started.recv().map_err(io::Error::other)??;
        Ok(SubreaperHandle { shared, contained: self.contained.clone() })
    }
}

impl Drop for Subreapers {
    fn drop(&mut self) {
        if let Contained::Cgroup(base) = &self.contained {
            remove_base(base);
        }
    }
}

impl SubreaperHandle {
    fn is_fit(&self) -> bool {
        let state = lock(&self.shared.state);
        !state.is_lost && !state.is_unfit
    }

    /// A name for a shim that no other has had, of whichever subreaper: its cgroup has that name, too.
    pub fn ticket(&self) -> Ticket {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// Asks for something. The answer comes in time, or the sender is dropped because the subreaper was lost.
    /// The error says that it cannot even be asked.
    pub fn ask(
        &self,
        request: SubreaperRequest,
        descriptors: &[&OwnedFd],
    ) -> io::Result<oneshot::Receiver<SubreaperResponse>> {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let message = serde_json::to_vec(&NumberedRequest { number, message: request })?;
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_PASSED))];
        let mut passed = SendAncillaryBuffer::new(&mut space);
        let borrowed: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
        if !borrowed.is_empty() && !passed.push(SendAncillaryMessage::ScmRights(&borrowed)) {
            return Err(io::Error::other("no room for the descriptors of a shim"));
        }
        let (answer, answered) = oneshot::channel();
        let mut state = lock(&self.shared.state);
        if state.is_lost {
            return Err(io::Error::other("the subreaper is gone"));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(&self.shared.socket, &[IoSlice::new(&message)], &mut passed, flags)?;
        let was_idle = state.waiting.is_empty();
        state.waiting.insert(number, PendingRequest { request, answer });
        state.watch.sent(number, Instant::now(), true);
        drop(state);
        if was_idle {
            // The counter cannot overflow: the thread empties it.
            let _ = rustix::io::write(&self.shared.wake, &1u64.to_ne_bytes());
        }
        Ok(answered)
    }

    /// Tells it something that needs no answer. Where it cannot be asked it is lost, and its shims end.
    pub fn tell(&self, request: SubreaperRequest) {
        let _ = self.ask(request, &[]);
    }

    /// Ends what this shim has left behind, and says what is known of that.
    pub async fn sweep(self: Arc<Self>, ticket: Ticket) -> TreeGone {
        if let Ok(answered) = self.ask(SubreaperRequest::Sweep { ticket }, &[])
            && let Ok(SubreaperResponse::Swept(gone)) = answered.await
        {
            return gone;
        }
        // The subreaper was lost as well. Its thread adopts what it left; a cgroup shows by itself what is in it.
        lock(&self.shared.state).shims.remove(&ticket);
        tokio::task::spawn_blocking(move || self.sweep_without(ticket)).await.unwrap_or(TreeGone::UNKNOWN)
    }

    fn sweep_without(&self, ticket: Ticket) -> TreeGone {
        if let Contained::Cgroup(base) = &self.contained
            && kill_cgroup(base, &ticket.to_string(), ADOPTED_PATIENCE)
        {
            return TreeGone::proven(Evidence::CgroupEmpty);
        }
        let until = Instant::now() + ADOPTED_PATIENCE;
        // The look that is under way may have begun before this shim was given up: the one after it counts.
        let wanted = lock(&self.shared.state).n_clean + 2;
        while Instant::now() < until {
            if lock(&self.shared.state).n_clean >= wanted {
                return TreeGone::proven(Evidence::Swept);
            }
            thread::sleep(ADOPTED_CADENCE);
        }
        TreeGone::UNKNOWN
    }

    /// The execution of this shim has read its last word, or has lost it.
    pub fn forget(&self, ticket: Ticket) {
        lock(&self.shared.state).shims.remove(&ticket);
    }
}

impl Drop for SubreaperHandle {
    fn drop(&mut self) {
        lock(&self.shared.state).is_given_up = true;
        // The thread has the socket, too; the subreaper ends on this, and the thread with it.
        let _ = rustix::net::shutdown(&self.shared.socket, rustix::net::Shutdown::Write);
    }
}

/// Reads answers and keeps deadlines until the subreaper is gone, then looks after what it left.
fn look_after(shared: &Arc<Shared>, mut child: Child, pid: Pid, adoption: &Adoption) {
    while step(shared, pid) {}
    let was_given_up = {
        let mut state = lock(&shared.state);
        state.is_lost = true;
        // Whoever waits learns that there is no answer.
        state.waiting.clear();
        state.is_given_up
    };
    // It has ended, or has closed its socket and is of no use: KILL reaches it in any state.
    let _ = child.kill();
    let _ = child.wait();
    adoption.forget(pid);
    if !was_given_up {
        error!(event = "subreaper.lost", pid = pid.as_raw_nonzero().get();
            "the subreaper was ended by somebody else: its shims end their executions; another one is started for the next");
        adoption.look_after(shared);
    }
}

/// Waits once. False when the subreaper is gone.
fn step(shared: &Shared, pid: Pid) -> bool {
    let due = lock(&shared.state).watch.due();
    let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
    let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
    let mut fds = [PollFd::new(&shared.socket, PollFlags::IN), PollFd::new(&shared.wake, PollFlags::IN)];
    if let Err(error) = poll(&mut fds, timeout.as_ref())
        && error != rustix::io::Errno::INTR
    {
        return false;
    }
    let [answered, woken] = fds.map(|fd| !fd.revents().is_empty());
    if woken {
        let _ = rustix::io::read(&shared.wake, &mut [0u8; 8]);
    }
    if answered && !read_answer(shared) {
        return false;
    }
    let deed = lock(&shared.state).watch.act(Instant::now());
    match deed {
        None => {}
        Some(WatchAction::Continue) => signal(pid, Signal::CONT),
        Some(WatchAction::KillIfStopped) if stat_of(pid).is_some_and(|stat| matches!(stat.state, 'T' | 't')) => {
            signal(pid, Signal::KILL);
        }
        Some(WatchAction::KillIfStopped) => {}
        Some(WatchAction::Kill) => {
            warn!(event = "subreaper.silent", pid = pid.as_raw_nonzero().get(); "the subreaper does not answer: it is killed");
            signal(pid, Signal::KILL);
        }
    }
    true
}

/// Signals the subreaper: only its thread reaps it, so the number is still its own.
fn signal(pid: Pid, signal: Signal) {
    let _ = kill_process(pid, signal);
}

fn read_answer(shared: &Shared) -> bool {
    let mut bytes = [0; MAX_REQUEST];
    let n = match recv(&shared.socket, &mut bytes[..], RecvFlags::DONTWAIT) {
        Ok((0, _)) => return false,
        Ok((n, _)) => n,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return true,
        Err(_) => return false,
    };
    let Ok(NumberedRequest::<SubreaperResponse> { number, message: answer }) = serde_json::from_slice(&bytes[..n])
    else {
        return true;
    };
    let mut state = lock(&shared.state);
    state.watch.acknowledged(number);
    if answer == SubreaperResponse::Accepted {
        return true;
    }
    let Some(PendingRequest { request, answer: sender }) = state.waiting.remove(&number) else { return true };
    match (&answer, request) {
        // An execution that has ended meanwhile has forgotten it.
        (SubreaperResponse::Forked { pid }, SubreaperRequest::Fork { ticket }) if !sender.is_closed() => {
            state.shims.extend(Pid::from_raw(*pid).map(|pid| (ticket, pid)));
        }
        (SubreaperResponse::NotForked { .. }, _) => state.is_unfit = true,
        _ => {}
    }
    drop(state);
    // Whoever asked may be gone.
    let _ = sender.send(answer);
    true
}

impl Adoption {
    fn spawn(&self, command: &mut Command, shared: &Arc<Shared>) -> io::Result<(Child, Pid)> {
        // One lock around both: a subreaper that is not listed would be taken for an orphan.
        let mut own = lock(&self.own);
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        own.push(pid);
        lock(&self.subreapers).push(Arc::downgrade(shared));
        Ok((child, pid))
    }

    fn forget(&self, pid: Pid) {
        lock(&self.own).retain(|own| *own != pid);
    }

    /// Ends the orphans that a lost subreaper has left to this process, and reaps its shims, until nobody holds
    /// that subreaper any more.
    fn look_after(&self, shared: &Arc<Shared>) {
        while Arc::strong_count(shared) > 1 {
            if !self.is_subreaper {
                return;
            }
            if self.end_orphans().is_ok_and(|n| n == 0) {
                lock(&shared.state).n_clean += 1;
            }
            let is_waited_for = !lock(&shared.state).shims.is_empty();
            thread::sleep(if is_waited_for { ADOPTED_CADENCE } else { ADOPTED_CADENCE * 10 });
        }
    }

    /// Ends every child that is neither a subreaper nor a living shim. Gives how many there were.
    fn end_orphans(&self) -> io::Result<usize> {
        // Held while looking: no subreaper can come to be in between.
        let own = lock(&self.own);
        let mut children = own_children()?;
        children.retain(|child| !own.contains(child));
        drop(own);
        let shims: Vec<Pid> = {
            let mut subreapers = lock(&self.subreapers);
            subreapers.retain(|shared| shared.strong_count() > 0);
            let shared: Vec<_> = subreapers.iter().filter_map(Weak::upgrade).collect();
            shared.iter().flat_map(|shared| lock(&shared.state).shims.values().copied().collect::<Vec<_>>()).collect()
        };
        let mut n_orphans = 0;
        for child in children {
            if !shims.contains(&child) {
                n_orphans += 1;
                let _ = kill_process(child, Signal::KILL);
            }
            // A shim that has ended its tree has exited.
            let _ = waitpid(Some(child), WaitOptions::NOHANG);
        }
        Ok(n_orphans)
    }
}

/// The children of this process, of all its threads.
fn own_children() -> io::Result<Vec<Pid>> {
    let me = rustix::process::getpid().as_raw_nonzero().get();
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(process) = entry?.file_name().to_str().and_then(pid) else { continue };
        if stat_of(process).is_some_and(|stat| stat.parent == me) {
            children.push(process);
        }
    }
    Ok(children)
}
