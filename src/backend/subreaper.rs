//! The subreaper: the parent process of the shims. It starts no other processes.
//!
//! It is this same binary, executed again before a runtime exists. It forks a shim for each execution, which is
//! faster than executing one. The tree of a killed shim becomes children of the subreaper: each child that is not a
//! living shim is such an orphan, and the subreaper ends it. When it has no orphans, the trees of all lost shims
//! are gone, because the kernel reparents a process's children before the process can be reaped.
//!
//! The end of its socket means that the backend is gone: the subreaper then ends all processes below it, shims
//! included. The backend's side is in [`handle`].

pub mod handle;
pub mod protocol;
mod socket;

use std::{
    collections::HashMap,
    fs::OpenOptions,
    io,
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
    time::{Duration, Instant},
};

use cc_executor_actors::outcome::Evidence;
use rustix::{
    process::{
        DumpableBehavior, Pid, Resource, Rlimit, Signal, getrlimit, kill_process, set_child_subreaper,
        set_dumpable_behavior, set_parent_process_death_signal, setsid,
    },
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
};

pub use self::protocol::ARGUMENT;
use self::{
    protocol::{SubreaperAction, SubreaperRequest, SubreaperResponse, Ticket},
    socket::Received,
};
use super::shim::{
    self, ShimInheritance,
    cgroup::memory::OomCounter,
    containment::Contained,
    procfs::{Procfs, Stat},
    protocol::{Numbered, TreeGone},
    readable::{Waiter, discard_signals},
    spawn::CommandEnds,
    tree::{Reaped, count, reap_one},
};
use crate::syscall::{ForkTarget, SingleThread, block_signals, close_inherited_from};

/// How long KILL is repeated before the remaining orphans count as survivors. The subreaper repeats it after that, too.
const SWEEP_PATIENCE: Duration = Duration::from_secs(4);

/// The interval between two rounds of a sweep: at first, and after [`SWEEP_PATIENCE`].
const SWEEP_CADENCE: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(100)];

/// The longest time for all processes to end after the backend is gone.
const LAST_PATIENCE: Duration = Duration::from_secs(30);

/// Runs until the backend is gone and all processes below have ended.
pub fn main(contained: Option<&str>) -> ExitCode {
    let Some(contained) = contained.and_then(|text| serde_json::from_str(text).ok()) else { return ExitCode::FAILURE };
    match SubreaperLoop::start(contained).and_then(SubreaperLoop::run) {
        Ok(Role::Subreaper) => ExitCode::SUCCESS,
        // An exit code of 0 tells the subreaper that the shim has seen ECHILD.
        Ok(Role::Shim(single, inherited)) => {
            shim::main(&single, inherited).map_or(ExitCode::FAILURE, |is_proven| ExitCode::from(u8::from(!is_proven)))
        }
        // The backend sees the end of the socket.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Which process has returned from the subreaper's loop.
enum Role {
    /// The subreaper itself, which has nothing more to do.
    Subreaper,
    /// A child that it has forked.
    Shim(SingleThread, ShimInheritance),
}

/// What a forked child keeps of the subreaper. It closes everything else.
struct Forked {
    socket: OwnedFd,
    ends: CommandEnds,
    ticket: Ticket,
}

/// The limits that each shim inherits, and each command from its shim.
const INHERITED_LIMITS: [Resource; 16] = [
    Resource::Cpu,
    Resource::Fsize,
    Resource::Data,
    Resource::Stack,
    Resource::Core,
    Resource::Rss,
    Resource::Nproc,
    Resource::Nofile,
    Resource::Memlock,
    Resource::As,
    Resource::Locks,
    Resource::Sigpending,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Rtprio,
    Resource::Rttime,
];

struct SubreaperLoop {
    single: SingleThread,
    /// Its limits at the start. A command of the same user can change them (prlimit(2)).
    limits: [Rlimit; INHERITED_LIMITS.len()],
    contained: Contained,
    socket: OwnedFd,
    waiter: Waiter,
    signals: OwnedFd,
    procfs: Procfs,
    /// Opened once, for all shims.
    oom_counter: Option<OomCounter>,
    /// Shims hold the reading end, which reaches its end of file when this process ends.
    lifeline: (OwnedFd, OwnedFd),
    shims: HashMap<Ticket, Pid>,
    sweep: Option<Sweep>,
    /// When the end of the backend was noticed.
    ending_since: Option<Instant>,
}

/// A sweep: orphans are being ended.
struct Sweep {
    since: Instant,
    /// The requests that wait for its end.
    requests: Vec<SweepRequest>,
}

/// A request that waits for a sweep.
struct SweepRequest {
    number: u64,
    since: Instant,
    ticket: Ticket,
}

impl SubreaperLoop {
    fn start(contained: Contained) -> io::Result<SubreaperLoop> {
        // Closes descriptors that the service's parent left open, because no process below may have them.
        close_inherited_from(3);
        // Ctrl-C in the service's terminal, or its hang-up, is the service's business.
        setsid()?;
        set_child_subreaper(Some(Pid::INIT))?;
        // The name that ps shows.
        let _ = rustix::thread::set_name(c"cc-subreaper");
        // CONT, so that a stopped subreaper wakes when the backend dies, and reads the end of its socket.
        set_parent_process_death_signal(Some(Signal::CONT))?;
        // Not dumpable, so that commands, which run as the same user, cannot trace it or its shims.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        dup2_stderr(&null)?;
        Ok(SubreaperLoop {
            single: SingleThread::prove()?,
            limits: INHERITED_LIMITS.map(getrlimit),
            contained,
            socket,
            waiter: Waiter::open()?,
            signals: block_signals(&[Signal::CHILD, Signal::CONT])?,
            procfs: Procfs::open()?,
            oom_counter: OomCounter::of_this_process(),
            lifeline: rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?,
            shims: HashMap::new(),
            sweep: None,
            ending_since: None,
        })
    }

    /// Returns when the backend is gone and no child is left, or [`LAST_PATIENCE`] after the backend is gone.
    fn run(mut self) -> io::Result<Role> {
        loop {
            let has_children = self.reap()?;
            if let Some(since) = self.ending_since {
                if !has_children {
                    if let Contained::Cgroup(base) = &self.contained {
                        base.remove_as_last();
                    }
                    return Ok(Role::Subreaper);
                }
                if since.elapsed() > LAST_PATIENCE {
                    return Err(io::Error::other("a process below cannot be ended"));
                }
                self.kill_everything();
            }
            let timeout = self.step_sweep().or(self.ending_since.map(|_| SWEEP_CADENCE[0]));
            if let Some(Forked { socket, ends, ticket }) = self.wait(timeout)? {
                // Drops the writing end of the lifeline with the rest, because only the subreaper itself may hold it.
                let SubreaperLoop { single, contained, oom_counter, lifeline: (lifeline, _), .. } = self;
                let is_first = contained == Contained::PidNamespace;
                let cgroup = match contained {
                    Contained::Cgroup(base) => Some((base, ticket.to_string())),
                    Contained::Tree | Contained::PidNamespace => None,
                };
                let inherited = ShimInheritance { socket, ends, lifeline, cgroup, oom_counter, is_first };
                return Ok(Role::Shim(single, inherited));
            }
        }
    }

    /// Reaps all ended children. Returns false when there are no children.
    fn reap(&mut self) -> io::Result<bool> {
        loop {
            match reap_one()? {
                Reaped::Child(pid, status) => {
                    let ticket = self.shims.iter().find(|(_, shim)| **shim == pid).map(|(ticket, _)| *ticket);
                    if let Some(ticket) = ticket {
                        self.shims.remove(&ticket);
                        // A shim that exits with 0 has seen that it has no children.
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
        self.sweep.get_or_insert_with(|| Sweep { since: Instant::now(), requests: Vec::new() })
    }

    /// Sends KILL to the orphans, and answers the waiting requests once there are none. Returns when to look again.
    fn step_sweep(&mut self) -> Option<Duration> {
        self.sweep.as_ref()?;
        let orphans = self.orphans();
        for orphan in orphans.iter().flatten() {
            // Fails if the orphan has just ended. The id is not reused before this process reaps it.
            let _ = kill_process(*orphan, Signal::KILL);
        }
        let left = orphans.as_ref().ok().map(|orphans| count(orphans.len()));
        let mut sweep = self.sweep.take()?;
        sweep.requests.retain(|request| !self.answer_sweep(request, left));
        if left == Some(0) && sweep.requests.is_empty() {
            return None;
        }
        let is_slow = sweep.requests.is_empty() && sweep.since.elapsed() > SWEEP_PATIENCE;
        self.sweep = Some(sweep);
        Some(SWEEP_CADENCE[usize::from(is_slow)])
    }

    /// Answers a request if no orphan is left or its patience is over. Returns whether it did.
    fn answer_sweep(&self, request: &SweepRequest, left: Option<u32>) -> bool {
        // The lost shim itself may not have been reaped yet.
        let is_swept = left == Some(0) && !self.shims.contains_key(&request.ticket);
        if !is_swept && request.since.elapsed() <= SWEEP_PATIENCE {
            return false;
        }
        let evidence = match self.contained {
            _ if !is_swept => Evidence::Unknown,
            Contained::PidNamespace => Evidence::PidNamespace,
            Contained::Tree | Contained::Cgroup(_) => Evidence::Swept,
        };
        self.clean_cgroup(request.ticket);
        let gone = TreeGone { evidence, survivors: left, ..TreeGone::UNKNOWN };
        self.answer(request.number, &SubreaperResponse::Swept(gone));
        true
    }

    /// The children that are not living shims.
    fn orphans(&self) -> io::Result<Vec<Pid>> {
        let mut children = self.procfs.children()?;
        children.retain(|child| !self.shims.values().any(|shim| shim == child));
        Ok(children)
    }

    fn clean_cgroup(&self, ticket: Ticket) {
        if let Contained::Cgroup(base) = &self.contained {
            // An empty cgroup is the proof even for processes that have moved to another parent.
            base.below(&ticket.to_string()).end(Duration::ZERO);
        }
    }

    fn kill_everything(&self) {
        // KILL also ends stopped shims. Their trees become children of this process.
        for child in self.procfs.children().unwrap_or_else(|_| self.shims.values().copied().collect()) {
            let _ = kill_process(child, Signal::KILL);
        }
        if let Contained::Cgroup(base) = &self.contained {
            base.remove();
        }
    }

    /// Waits for a child's end, a request, or the time-out. Returns a value in a forked child, which becomes a shim.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Option<Forked>> {
        let socket = self.ending_since.is_none().then(|| self.socket.as_fd());
        let [signaled, requested] = self.waiter.wait_readable([Some(self.signals.as_fd()), socket], timeout)?;
        if signaled {
            // The loop looks up which children have ended.
            discard_signals(self.signals.as_fd());
        }
        if requested { Ok(self.on_request()) } else { Ok(None) }
    }

    fn on_request(&mut self) -> Option<Forked> {
        let (request, descriptors) = match socket::receive::<SubreaperRequest>(&self.socket) {
            Received::Message(request, descriptors) => (request, descriptors),
            Received::Nothing => return None,
            Received::End => {
                self.ending_since = Some(Instant::now());
                return None;
            }
        };
        let Numbered { number, message: SubreaperRequest { ticket, action } } = request;
        let shim = self.shims.get(&ticket).copied();
        match action {
            SubreaperAction::Fork => return self.fork(number, ticket, descriptors),
            SubreaperAction::Enforce(action) => {
                // If the state cannot be read, the later, unconditional KILL decides.
                let signal = |shim| action.signal(|| self.procfs.stat(shim).is_ok_and(Stat::is_still));
                if let Some((shim, signal)) = shim.and_then(|shim| Some((shim, signal(shim)?))) {
                    // The id is not reused, because this process has not reaped the shim.
                    let _ = kill_process(shim, signal);
                }
                self.answer(number, &SubreaperResponse::Done);
            }
            SubreaperAction::Sweep => {
                // The shim is killed, because its backend does not read its events any more.
                if let Some(shim) = shim {
                    let _ = kill_process(shim, Signal::KILL);
                }
                self.answer(number, &SubreaperResponse::Accepted);
                let since = Instant::now();
                self.begin_sweep().requests.push(SweepRequest { number, since, ticket });
            }
        }
        None
    }

    fn answer(&self, number: u64, response: &SubreaperResponse) {
        // Waits for a backend that is stopped, because a lost response would make an execution fail. Fails if the backend
        // is gone.
        let _ = socket::send(&self.socket, &Numbered { number, message: response });
    }

    /// Forks a shim, and answers in the parent. Returns a value in the child.
    fn fork(&mut self, number: u64, ticket: Ticket, descriptors: Vec<OwnedFd>) -> Option<Forked> {
        let mut descriptors = descriptors.into_iter();
        let passed = (descriptors.next(), descriptors.next(), descriptors.next(), descriptors.next());
        let (Some(socket), Some(stdout), Some(stderr), stdin) = passed else {
            let message = "too many open files".to_owned();
            self.answer(number, &SubreaperResponse::NotForked { message });
            return None;
        };
        if INHERITED_LIMITS.map(getrlimit) != self.limits {
            // The backend replaces this subreaper, because a shim could not raise a lowered limit.
            let message = "the limits of the subreaper were changed (prlimit(2))".to_owned();
            self.answer(number, &SubreaperResponse::NotForked { message });
            return None;
        }
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
