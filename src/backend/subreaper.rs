//! The subreaper: the one process whose children are shims, and nothing else.
//!
//! It is this same binary, started again before any runtime exists. It forks a shim for each execution, which is
//! faster than to execute one. A shim that is killed leaves its tree to the subreaper: every child of it that is
//! no living shim is such an orphan, and is ended. When none is left the trees of all lost shims are gone, since
//! a killed process has handed its own children over before it can be reaped.
//!
//! The end of its socket means that the backend is gone: then everything below is ended, shims included. The
//! backend's side of it is in [`handle`].

pub mod handle;
pub mod protocol;

use std::{
    collections::HashMap,
    fs::OpenOptions,
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
    time::{Duration, Instant},
};

use cc_executor_actors::outcome::Evidence;
use rustix::{
    cmsg_space,
    event::{PollFd, PollFlags, Timespec, poll},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send},
    process::{
        DumpableBehavior, Pid, Signal, kill_process, set_child_subreaper, set_dumpable_behavior,
        set_parent_process_death_signal, setsid,
    },
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
};

pub use self::protocol::ARGUMENT;
use self::protocol::{MAX_PASSED, MAX_REQUEST, NumberedRequest, SubreaperRequest, SubreaperResponse, Ticket};
use super::shim::{
    self, ShimInheritance,
    cgroup::kill_cgroup,
    containment::Contained,
    procfs::Procfs,
    protocol::TreeGone,
    spawn::CommandEnds,
    tree::{Reaped, count, reap_one},
};
use crate::syscall::{ForkTarget, SingleThread, block_signals, close_inherited_from};

/// How long orphans may take to end before they are counted as survivors. They are killed on all the same.
const SWEEP_PATIENCE: Duration = Duration::from_secs(4);

/// How soon a sweep looks again: at first, and once its patience is over.
const SWEEP_CADENCE: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(100)];

/// How long everything may take to end once the backend is gone.
const LAST_PATIENCE: Duration = Duration::from_secs(30);

/// Runs until the backend is gone, and nothing is left.
pub fn main(contained: Option<&str>) -> ExitCode {
    let Some(contained) = contained.and_then(|text| serde_json::from_str(text).ok()) else { return ExitCode::FAILURE };
    match SubreaperLoop::start(contained).and_then(SubreaperLoop::run) {
        Ok(Role::Subreaper) => ExitCode::SUCCESS,
        // A status of 0 says that the tree is gone, which was proven.
        Ok(Role::Shim(single, inherited)) => {
            shim::main(&single, inherited).map_or(ExitCode::FAILURE, |is_proven| ExitCode::from(u8::from(!is_proven)))
        }
        // The backend sees the end of the socket.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Which process has returned from the subreaper's loop.
enum Role {
    /// The subreaper, whose work is done.
    Subreaper,
    /// A child that it has forked.
    Shim(SingleThread, ShimInheritance),
}

/// What a forked child takes with it. It gives up everything else of the subreaper.
struct Forked {
    socket: OwnedFd,
    ends: CommandEnds,
    ticket: Ticket,
}

struct SubreaperLoop {
    single: SingleThread,
    contained: Contained,
    socket: OwnedFd,
    signals: OwnedFd,
    procfs: Procfs,
    /// Shims hold the reading end: it ends when this process does.
    lifeline: (OwnedFd, OwnedFd),
    shims: HashMap<Ticket, Pid>,
    sweep: Option<Sweep>,
    /// Since when the backend is gone.
    is_ending: Option<Instant>,
}

/// Orphans are being looked for.
struct Sweep {
    since: Instant,
    /// Who waits for it to be over.
    asked: Vec<SweepRequest>,
}

/// Somebody who waits for a sweep.
struct SweepRequest {
    number: u64,
    since: Instant,
    ticket: Ticket,
}

impl SubreaperLoop {
    fn start(contained: Contained) -> io::Result<SubreaperLoop> {
        // Whoever started the service may have left descriptors open: they are nobody's here.
        close_inherited_from(3);
        // Ctrl-C in the service's terminal, or its hang-up, is the service's business.
        setsid()?;
        set_child_subreaper(Some(Pid::INIT))?;
        // For whoever looks at the processes of this machine.
        let _ = rustix::thread::set_name(c"cc-subreaper");
        // A stopped one wakes when the backend dies, and reads the end of its socket.
        set_parent_process_death_signal(Some(Signal::CONT))?;
        // Commands run as the same user: they must not reach into it, nor into the shims that it forks.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        dup2_stderr(&null)?;
        Ok(SubreaperLoop {
            single: SingleThread::prove()?,
            contained,
            socket,
            signals: block_signals(&[Signal::CHILD, Signal::CONT])?,
            procfs: Procfs::open()?,
            lifeline: rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?,
            shims: HashMap::new(),
            sweep: None,
            is_ending: None,
        })
    }

    /// Ends when the backend is gone and no child is left; at the latest when what is left cannot be ended.
    fn run(mut self) -> io::Result<Role> {
        loop {
            let has_children = self.reap()?;
            if let Some(since) = self.is_ending {
                if !has_children {
                    return Ok(Role::Subreaper);
                }
                if since.elapsed() > LAST_PATIENCE {
                    return Err(io::Error::other("something below cannot be ended"));
                }
                self.kill_everything();
            }
            let timeout = self.step_sweep().or(self.is_ending.map(|_| SWEEP_CADENCE[0]));
            if let Some(Forked { socket, ends, ticket }) = self.wait(timeout)? {
                // The writing end of the lifeline goes with the rest of the subreaper: it must be held by nobody else.
                let SubreaperLoop { single, contained, lifeline: (lifeline, _), .. } = self;
                let is_first = contained == Contained::PidNamespace;
                let cgroup = match contained {
                    Contained::Cgroup(base) => Some((base, ticket.to_string())),
                    Contained::Tree | Contained::PidNamespace => None,
                };
                return Ok(Role::Shim(single, ShimInheritance { socket, ends, lifeline, cgroup, is_first }));
            }
        }
    }

    /// False when there are no children.
    fn reap(&mut self) -> io::Result<bool> {
        loop {
            match reap_one()? {
                Reaped::Child(pid, status) => {
                    let ticket = self.shims.iter().find(|(_, shim)| **shim == pid).map(|(ticket, _)| *ticket);
                    if let Some(ticket) = ticket {
                        self.shims.remove(&ticket);
                        // One that has exited with 0 had no children any more.
                        if status.exit_status() != Some(0) {
                            self.begin_sweep();
                        }
                    }
                }
                Reaped::NoneYet => return Ok(true),
                Reaped::NoChildren => return Ok(false),
            }
        }
    }

    fn begin_sweep(&mut self) -> &mut Sweep {
        self.sweep.get_or_insert_with(|| Sweep { since: Instant::now(), asked: Vec::new() })
    }

    /// Ends the orphans that there are, and answers who waits for there being none. Gives when to look again.
    fn step_sweep(&mut self) -> Option<Duration> {
        self.sweep.as_ref()?;
        let orphans = self.orphans();
        for orphan in orphans.iter().flatten() {
            // It may have ended just now. Only this process reaps it, so the number is still its own.
            let _ = kill_process(*orphan, Signal::KILL);
        }
        let left = orphans.as_ref().ok().map(|orphans| count(orphans.len()));
        let mut sweep = self.sweep.take()?;
        let asked = std::mem::take(&mut sweep.asked);
        for asked in asked {
            // Its shim may not have been reaped yet.
            let is_swept = left == Some(0) && !self.shims.contains_key(&asked.ticket);
            if is_swept || asked.since.elapsed() > SWEEP_PATIENCE {
                let evidence = match self.contained {
                    _ if !is_swept => Evidence::Unknown,
                    Contained::PidNamespace => Evidence::PidNamespace,
                    Contained::Tree | Contained::Cgroup(_) => Evidence::Swept,
                };
                self.clean_cgroup(asked.ticket);
                let gone = TreeGone { evidence, survivors: left, killed: 0 };
                self.answer(asked.number, &SubreaperResponse::Swept(gone));
            } else {
                sweep.asked.push(asked);
            }
        }
        if left == Some(0) && sweep.asked.is_empty() {
            return None;
        }
        let is_slow = sweep.asked.is_empty() && sweep.since.elapsed() > SWEEP_PATIENCE;
        self.sweep = Some(sweep);
        Some(SWEEP_CADENCE[usize::from(is_slow)])
    }

    /// Children that are no shims.
    fn orphans(&self) -> io::Result<Vec<Pid>> {
        let mut children = self.procfs.children()?;
        children.retain(|child| !self.shims.values().any(|shim| shim == child));
        Ok(children)
    }

    fn clean_cgroup(&self, ticket: Ticket) {
        if let Contained::Cgroup(base) = &self.contained {
            // What had moved to another parent would be in it still.
            kill_cgroup(base, &ticket.to_string(), Duration::ZERO);
        }
    }

    fn kill_everything(&self) {
        // A shim that is stopped dies of it, too; its tree then comes to this process.
        for child in self.procfs.children().unwrap_or_else(|_| self.shims.values().copied().collect()) {
            let _ = kill_process(child, Signal::KILL);
        }
        if let Contained::Cgroup(base) = &self.contained {
            shim::cgroup::remove_base(base);
        }
    }

    /// Waits for a child's end, a request, or the time. What it gives makes this process a shim.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Option<Forked>> {
        let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if self.is_ending.is_none() {
            fds.push(PollFd::new(&self.socket, PollFlags::IN));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let (signaled, asked) =
            (!fds[0].revents().is_empty(), fds.get(1).is_some_and(|socket| !socket.revents().is_empty()));
        drop(fds);
        if signaled {
            let mut signals = [0u8; 1024];
            // Which children have ended is looked up; reading only empties it.
            let _ = rustix::io::read(&self.signals, &mut signals);
        }
        if asked { Ok(self.on_request()) } else { Ok(None) }
    }

    fn on_request(&mut self) -> Option<Forked> {
        let mut bytes = [0; MAX_REQUEST];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_PASSED))];
        let mut passed = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let received = match recvmsg(&self.socket, &mut slices, &mut passed, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::INTR) => return None,
            Err(_) => 0,
        };
        if received == 0 {
            self.is_ending = Some(Instant::now());
            return None;
        }
        let mut descriptors = Vec::with_capacity(MAX_PASSED);
        for message in passed.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let NumberedRequest { number, message: request } = serde_json::from_slice(&bytes[..received]).ok()?;
        match request {
            SubreaperRequest::Fork { ticket } => return self.fork(number, ticket, descriptors),
            SubreaperRequest::Continue { ticket } => self.signal(number, ticket, Signal::CONT),
            SubreaperRequest::KillIfStopped { ticket } => {
                let shim = self.shims.get(&ticket).copied();
                // Where that cannot be seen the later, unconditional KILL decides.
                let is_stopped = shim.and_then(|shim| self.procfs.stat(shim).ok()).is_some_and(|stat| stat.is_still());
                if is_stopped {
                    self.signal(number, ticket, Signal::KILL);
                } else {
                    self.answer(number, &SubreaperResponse::Done);
                }
            }
            SubreaperRequest::Kill { ticket } => self.signal(number, ticket, Signal::KILL),
            SubreaperRequest::Sweep { ticket } => {
                // Its backend has lost it: whatever it still does, nobody reads it.
                if let Some(shim) = self.shims.get(&ticket) {
                    let _ = kill_process(*shim, Signal::KILL);
                }
                self.answer(number, &SubreaperResponse::Accepted);
                let since = Instant::now();
                self.begin_sweep().asked.push(SweepRequest { number, since, ticket });
            }
        }
        None
    }

    fn signal(&self, number: u64, ticket: Ticket, signal: Signal) {
        if let Some(shim) = self.shims.get(&ticket) {
            // It has not been reaped, so the number is still its own.
            let _ = kill_process(*shim, signal);
        }
        self.answer(number, &SubreaperResponse::Done);
    }

    fn answer(&self, number: u64, answer: &SubreaperResponse) {
        let message = serde_json::to_vec(&NumberedRequest { number, message: answer }).unwrap_or_default();
        // A backend that is gone, or that reads nothing of this for long, needs no answer.
        let _ = send(&self.socket, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }

    /// Forks a shim, and answers in the parent. Gives what the child needs in the child.
    fn fork(&mut self, number: u64, ticket: Ticket, descriptors: Vec<OwnedFd>) -> Option<Forked> {
        let mut descriptors = descriptors.into_iter();
        let passed = (descriptors.next(), descriptors.next(), descriptors.next(), descriptors.next());
        let (Some(socket), Some(stdout), Some(stderr), stdin) = passed else {
            let message = "its descriptors did not arrive: too many are open".to_owned();
            self.answer(number, &SubreaperResponse::NotForked { message });
            return None;
        };
        let forked = match self.contained {
            Contained::PidNamespace => self.single.fork_into(ForkTarget::PidNamespace),
            Contained::Tree | Contained::Cgroup(_) => self.single.fork(),
        };
        match forked {
            Ok(None) => return Some(Forked { socket, ends: CommandEnds { stdout, stderr, stdin }, ticket }),
            Ok(Some(pid)) => {
                self.shims.insert(ticket, pid);
                self.answer(number, &SubreaperResponse::Forked { pid: pid.as_raw_nonzero().get() });
            }
            Err(error) => self.answer(number, &SubreaperResponse::NotForked { message: error.to_string() }),
        }
        None
    }
}
