//! The keeper: a small process beside each execution that ends the whole process tree, whatever happens.
//!
//! It is this same binary, started again before any runtime exists. It is a subreaper: descendants that
//! lose their parent, those that left the process group included, become its children. So the tree is
//! gone exactly when `waitpid` says that there are no children (ECHILD). That is a proof; a scan of
//! /proc is not.
//!
//! It hears its backend on a socket that is its standard input. End of file means that the backend
//! died: the tree is ended at once. Standard output and error are the command's pipes and are given up
//! as soon as the command has them.

pub mod leader;
mod oom;
pub mod stand;
pub mod talk;
pub mod tree;

use std::{
    fs::OpenOptions,
    io::{self, ErrorKind, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    cmsg_space,
    event::{PollFd, PollFlags, Timespec, poll},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::{Pid, Resource, Rlimit, Signal, getrlimit, setrlimit},
};

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

use self::{
    oom::OomScore,
    stand::Standstill,
    talk::{Fact, Gone, LeaderExit, Order},
    tree::Tree,
};

/// The first argument that makes the binary a keeper.
pub const ARGUMENT: &str = "keeper";

/// How long KILL is repeated before what is left is called a survivor: a process of another user
/// (set-user-ID), or one that the kernel holds.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// Runs one command to its end. Returns when its whole tree is gone.
pub fn main() -> ExitCode {
    match keep() {
        Ok(()) => ExitCode::SUCCESS,
        // The backend sees the end of the socket without a last word, and says so.
        Err(_) => ExitCode::FAILURE,
    }
}

fn keep() -> io::Result<()> {
    // Ctrl-C in the service's terminal, or its hang-up, is the service's business: it gives orders. A
    // session of its own keeps those away, handlers the rest; the command gets the defaults back.
    rustix::process::setsid()?;
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2] {
        signal_hook::flag::register(signal, Arc::default())?;
    }
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    rustix::process::set_child_subreaper(Some(Pid::INIT))?;
    let (wake, woken) = UnixStream::pair()?;
    woken.set_nonblocking(true)?;
    signal_hook::low_level::pipe::register(SIGCHLD, wake)?;

    let mut backend = Backend { socket, input: Vec::new(), passed: None };
    let Some(Order::Run(run)) = backend.wait_for_order()? else { return Ok(()) };
    if let Some(soft) = run.descriptor_limit {
        // The service raised its own; a program that closes all it might have would take long.
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(soft), ..limit })?;
    }
    let score = OomScore::open();
    // The command runs as the same user: it must not reach into its keeper.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    let pipe = backend.passed.take();
    let leader = score.raised(|| leader::start(&run, pipe));
    give_up_output()?;
    match leader {
        Ok(leader) => {
            backend.tell(&Fact::Started { pid: leader.as_raw_nonzero().get() });
            let stand = Standstill::default();
            Keeper { tree: Tree::new(leader), backend: Some(backend), woken, end: End::Running, stand }.run()
        }
        Err(fact) => {
            backend.tell(&fact);
            Ok(())
        }
    }
}

/// Lets go of the command's pipes, or end of file would never come.
fn give_up_output() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// The backend, as the keeper hears it.
struct Backend {
    socket: UnixStream,
    input: Vec<u8>,
    /// A descriptor that came along with an order.
    passed: Option<OwnedFd>,
}

impl Backend {
    fn wait_for_order(&mut self) -> io::Result<Option<Order>> {
        loop {
            if let Some(order) = self.next_order() {
                return Ok(Some(order));
            }
            if !self.read()? {
                return Ok(None);
            }
        }
    }

    /// Reads once. False at the end.
    fn read(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut passed = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(&self.socket, &mut slices, &mut passed, RecvFlags::CMSG_CLOEXEC);
        for message in passed.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.passed = descriptors.last().or(self.passed.take());
            }
        }
        match received.map(|received| received.bytes).map_err(io::Error::from) {
            Ok(0) => Ok(false),
            Ok(n) => {
                self.input.extend_from_slice(&bytes[..n]);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn next_order(&mut self) -> Option<Order> {
        loop {
            let end = self.input.iter().position(|byte| *byte == b'\n')?;
            let line: Vec<u8> = self.input.drain(..=end).collect();
            // An empty line only brings a descriptor.
            if line.len() > 1 {
                return serde_json::from_slice(&line).ok();
            }
        }
    }

    fn tell(&mut self, fact: &Fact) {
        let mut line = serde_json::to_vec(fact).unwrap_or_default();
        line.push(b'\n');
        // A backend that is gone is noticed where it is read.
        let _ = self.socket.write_all(&line);
    }
}

/// How far the end has come. Each step is taken once; the loop in [`Keeper::run`] walks them.
enum End {
    /// Nobody wants it ended.
    Running,
    /// TERM was sent; KILL follows at this time.
    Asked { kill_at: Instant },
    /// KILL is repeated until nothing is left, or until this time.
    Killing { since: Instant, escalated: bool },
}

struct Keeper {
    tree: Tree,
    backend: Option<Backend>,
    woken: UnixStream,
    end: End,
    stand: Standstill,
}

impl Keeper {
    /// Ends when no child is left: every turn either waits for a fact, or kills and reaps. Only a
    /// process that cannot be killed keeps it, and that only for [`KILL_PATIENCE`].
    fn run(mut self) -> io::Result<()> {
        loop {
            if let Some(exit) = self.tree.reap()? {
                self.tell(&Fact::Exited(exit));
            }
            if self.tree.is_gone() {
                return self.finish(0);
            }
            let timeout = match self.end {
                End::Running => None,
                End::Asked { kill_at } => {
                    self.tree.signal_orphans_once(Signal::TERM);
                    let left = kill_at.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        self.end = End::Killing { since: Instant::now(), escalated: true };
                        continue;
                    }
                    Some(left)
                }
                End::Killing { since, .. } => {
                    let survivors = self.tree.kill();
                    if since.elapsed() > KILL_PATIENCE {
                        return self.finish(survivors);
                    }
                    Some(Duration::from_millis(1))
                }
            };
            self.wait(timeout)?;
        }
    }

    fn finish(&mut self, survivors: u32) -> io::Result<()> {
        let escalated = matches!(self.end, End::Killing { escalated: true, .. });
        let killed = self.tree.n_killed();
        self.tell(&Fact::Gone(Gone { verified: survivors == 0, survivors, killed, escalated }));
        Ok(())
    }

    fn tell(&mut self, fact: &Fact) {
        if let Some(backend) = &mut self.backend {
            backend.tell(fact);
        }
    }

    /// Waits for a child's end, an order, or the time.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = vec![PollFd::new(&self.woken, PollFlags::IN)];
        if let Some(backend) = &self.backend {
            fds.push(PollFd::from_borrowed_fd(backend.socket.as_fd(), PollFlags::IN));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let heard = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        let mut wakes = [0; 64];
        while matches!((&self.woken).read(&mut wakes), Ok(n) if n > 0) {}
        if heard { self.hear() } else { Ok(()) }
    }

    fn hear(&mut self) -> io::Result<()> {
        let Some(backend) = &mut self.backend else { return Ok(()) };
        if !backend.read()? {
            // The backend died. Nobody is left to be polite for.
            self.backend = None;
            self.kill_now(false);
            return Ok(());
        }
        while let Some(order) = self.backend.as_mut().and_then(Backend::next_order) {
            match order {
                Order::Run(_) => {}
                Order::Pause => {
                    self.stand.still();
                    self.tell(&Fact::Paused);
                }
                Order::Resume => {
                    self.stand.go();
                    self.tell(&Fact::Resumed);
                }
                Order::Signal { number } => self.tree.signal_group(number),
                Order::End { grace_ms } => self.end_within(Duration::from_millis(grace_ms)),
                Order::Sweep => self.kill_now(false),
            }
        }
        Ok(())
    }

    /// TERM now, KILL after the grace. Asked again, a shorter grace takes effect.
    fn end_within(&mut self, grace: Duration) {
        let kill_at = Instant::now() + grace;
        match &mut self.end {
            End::Running => {
                self.tree.terminate();
                // What stands still hears TERM only when it goes on.
                self.stand.go();
                self.end = End::Asked { kill_at };
            }
            End::Asked { kill_at: planned } => *planned = kill_at.min(*planned),
            End::Killing { .. } => {}
        }
    }

    fn kill_now(&mut self, escalated: bool) {
        if !matches!(self.end, End::Killing { .. }) {
            self.end = End::Killing { since: Instant::now(), escalated };
        }
    }
}

/// How the command's own process ended, from its wait status.
pub fn leader_exit(status: rustix::process::WaitStatus) -> Option<LeaderExit> {
    if let Some(code) = status.exit_status() {
        return Some(LeaderExit::Code(code));
    }
    status.terminating_signal().map(LeaderExit::Signal)
}
