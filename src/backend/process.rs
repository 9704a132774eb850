//! A command and the line to its shim: what it writes, what it reads, and the orders that must be obeyed.
//!
//! Dropping it closes the line, and the shim then ends the whole tree: an execution that is given up
//! in whatever way leaves nothing behind.

use std::{
    collections::VecDeque,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    sync::Arc,
    time::{Duration, Instant},
};

use cc_executor_actors::protocol::control::TerminalSize;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf, pipe},
    },
    sync::oneshot,
};

use super::{
    deadlines::{COMPLETE_AFTER, OrderWatch, WatchAction},
    pty::{OutputSource, Terminal},
    shim::protocol::{JobSpec, NumberedOrder, Order, ShimEvent, Stdin, TreeGone},
    subreaper::{
        handle::{SubreaperHandle, Subreapers},
        protocol::{SubreaperRequest, SubreaperResponse, Ticket},
    },
};

/// The capacity asked for each pipe, in bytes. With the default of 64 KiB a third of the rate is lost.
/// A refusal is no error: without privileges a user's pipes are limited.
const PIPE_CAPACITY: usize = 256 * 1024;

/// How often a shim is asked whether it lives, and whether its command is stopped.
const INSPECT_EVERY: Duration = Duration::from_secs(2);

/// The same while the command has not been executed yet: a shim that is stopped then leaves its client
/// without any answer.
const INSPECT_STARTING: Duration = Duration::from_millis(500);

/// Orders that may wait for a shim that does not read, in bytes, besides what it was asked to start.
const MAX_UNSENT: usize = 64 * 1024;

/// A command and its shim.
pub struct Process {
    /// What it writes: standard output and standard error. A terminal has only the one.
    pub outputs: [Option<OutputSource>; 2],
    /// What it reads, if anything.
    pub stdin: Option<pipe::Sender>,
    /// The terminal that it runs on.
    pub terminal: Option<Terminal>,
    /// The line to its shim.
    pub line: ShimLink,
}

/// Our ends, and those that a shim gets.
struct StdioEnds {
    outputs: [Option<OutputSource>; 2],
    stdin: Option<pipe::Sender>,
    terminal: Option<Terminal>,
    theirs: Vec<OwnedFd>,
}

impl Process {
    /// Has a shim forked and asks it to start the command, on a terminal of this size if one is given. Waits for
    /// nothing: whether that worked is told by the line.
    ///
    /// # Errors
    ///
    /// The service is short of something: descriptors, processes, memory. Then nothing runs.
    pub fn start(subreapers: &Arc<Subreapers>, spec: JobSpec, size: Option<TerminalSize>) -> io::Result<Process> {
        let StdioEnds { outputs, stdin, terminal, theirs } = match size {
            Some(size) => StdioEnds::terminal(size)?,
            None => StdioEnds::pipes(spec.stdin == Stdin::Pipe)?,
        };
        let (ours, socket) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut descriptors = vec![OwnedFd::from(socket)];
        descriptors.extend(theirs);
        let (shim, answer) = ShimHandle::fork(subreapers, &descriptors)?;
        let (facts, orders) = UnixStream::from_std(ours)?.into_split();
        let mut line = ShimLink {
            facts: BufReader::new(facts).lines(),
            orders,
            unsent: VecDeque::new(),
            next: 1,
            watch: OrderWatch::default(),
            inspect_at: Some(Instant::now() + INSPECT_STARTING),
            inspect_every: INSPECT_STARTING,
            end: LinkEnd::Forking { answer, descriptors, again: Some(Arc::clone(subreapers)) },
            shim,
        };
        // The environment goes through the line: a variable such as LD_PRELOAD is not meant for the shim.
        line.order(Order::Run(Box::new(spec)));
        Ok(Process { outputs, stdin, terminal, line })
    }
}

impl StdioEnds {
    fn pipes(with_stdin: bool) -> io::Result<StdioEnds> {
        let (stdout, stdout_end) = output_pipe()?;
        let (stderr, stderr_end) = output_pipe()?;
        let mut theirs = vec![stdout_end, stderr_end];
        let stdin = if with_stdin {
            let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            theirs.push(read);
            Some(pipe::Sender::from_owned_fd(write)?)
        } else {
            None
        };
        Ok(StdioEnds { outputs: [Some(stdout), Some(stderr)], stdin, terminal: None, theirs })
    }

    fn terminal(size: TerminalSize) -> io::Result<StdioEnds> {
        let (terminal, end) = Terminal::open(size)?;
        Ok(StdioEnds {
            outputs: [Some(terminal.output()?), None],
            stdin: Some(terminal.input()?),
            terminal: Some(terminal),
            theirs: vec![end.try_clone()?, end],
        })
    }
}

/// A pipe: our end to read, and the end that the command writes to.
fn output_pipe() -> io::Result<(OutputSource, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let _ = rustix::pipe::fcntl_setpipe_size(&read, PIPE_CAPACITY);
    Ok((OutputSource::Pipe(pipe::Receiver::from_owned_fd(read)?), write))
}

/// The line to a shim: orders to it, facts from it, and the deadlines of the orders.
pub struct ShimLink {
    facts: Lines<BufReader<OwnedReadHalf>>,
    orders: OwnedWriteHalf,
    unsent: VecDeque<u8>,
    next: u64,
    watch: OrderWatch,
    inspect_at: Option<Instant>,
    inspect_every: Duration,
    end: LinkEnd,
    shim: ShimHandle,
}

/// Whether the shim can still say something.
enum LinkEnd {
    /// Its fork has not been confirmed.
    Forking {
        /// The subreaper's answer.
        answer: oneshot::Receiver<SubreaperResponse>,
        /// What the shim is given. Held until it has it: the orders lie in the socket for whichever shim comes.
        descriptors: Vec<OwnedFd>,
        /// Who may fork it where this subreaper cannot.
        again: Option<Arc<Subreapers>>,
    },
    /// It may.
    Open,
    /// It never will.
    Closed,
}

/// A shim, as its subreaper knows it.
struct ShimHandle {
    subreaper: Arc<SubreaperHandle>,
    ticket: Ticket,
}

impl ShimHandle {
    /// Has the current subreaper fork a shim with these descriptors.
    fn fork(
        subreapers: &Subreapers,
        descriptors: &[OwnedFd],
    ) -> io::Result<(ShimHandle, oneshot::Receiver<SubreaperResponse>)> {
        let subreaper = subreapers.current()?;
        let ticket = subreaper.ticket();
        let answer = subreaper.ask(SubreaperRequest::Fork { ticket }, &descriptors.iter().collect::<Vec<_>>())?;
        Ok((ShimHandle { subreaper, ticket }, answer))
    }
}

impl Drop for ShimHandle {
    fn drop(&mut self) {
        self.subreaper.forget(self.ticket);
    }
}

/// What comes over the line.
#[derive(Debug)]
pub enum LinkMessage {
    /// The shim tells something.
    Fact(ShimEvent),
    /// There was no shim, and nothing ran.
    NotForked(String),
    /// The shim is gone without its last fact.
    Lost,
}

impl ShimLink {
    /// Gives an order. It is sent while [`ShimLink::next`] waits.
    pub fn order(&mut self, order: Order) {
        let number = self.next;
        self.next += 1;
        let now = Instant::now();
        if let Order::End { grace_ms } = order {
            self.watch.completes_by(now + Duration::from_millis(grace_ms) + COMPLETE_AFTER);
        }
        if order == Order::Sweep {
            self.watch.completes_by(now + COMPLETE_AFTER);
        }
        self.watch.sent(number, now, order != Order::Inspect);
        self.unsent.extend(serde_json::to_vec(&NumberedOrder { number, order }).unwrap_or_default());
        self.unsent.push_back(b'\n');
    }

    /// Whether an order that is not needed for the end may be given: not to a shim that reads none.
    pub fn is_listening(&self) -> bool {
        self.unsent.len() < MAX_UNSENT
    }

    /// The next that is told; meanwhile orders are sent. After [`LinkMessage::Lost`] and the last fact nothing comes. May be
    /// dropped and called again.
    pub async fn next(&mut self) -> LinkMessage {
        loop {
            self.send();
            if matches!(self.end, LinkEnd::Closed) {
                return std::future::pending().await;
            }
            let is_forking = matches!(self.end, LinkEnd::Forking { .. });
            let forked = async {
                match &mut self.end {
                    LinkEnd::Forking { answer, .. } => answer.await,
                    LinkEnd::Open | LinkEnd::Closed => std::future::pending().await,
                }
            };
            let fact = tokio::select! {
                biased;
                answer = forked, if is_forking => match answer {
                    Ok(SubreaperResponse::NotForked { message }) => {
                        if let Err(message) = self.fork_again(message) {
                            self.close();
                            return LinkMessage::NotForked(message);
                        }
                        continue;
                    }
                    // Where the subreaper is gone its shim ends, and so do its facts.
                    Ok(_) | Err(_) => {
                        self.end = LinkEnd::Open;
                        continue;
                    }
                },
                fact = self.facts.next_line() => fact,
                _ = self.orders.writable(), if !self.unsent.is_empty() => continue,
            };
            let fact = fact.ok().flatten().and_then(|line| serde_json::from_str(&line).ok());
            match fact {
                Some(ShimEvent::Accepted { number }) => self.watch.acknowledged(number),
                Some(fact) => {
                    match fact {
                        ShimEvent::Started { .. } => self.inspect_every = INSPECT_EVERY,
                        ShimEvent::Gone(_) | ShimEvent::NotStarted { .. } => self.close(),
                        _ => {}
                    }
                    return LinkMessage::Fact(fact);
                }
                None => {
                    self.close();
                    return LinkMessage::Lost;
                }
            }
        }
    }

    /// Has another subreaper fork the shim, once: a command may have lowered what the first one can open. Nothing has
    /// run, because the first one said so. The error says why there is no shim.
    fn fork_again(&mut self, why: String) -> Result<(), String> {
        let LinkEnd::Forking { descriptors, again, .. } = std::mem::replace(&mut self.end, LinkEnd::Open) else {
            return Err(why);
        };
        let subreapers = again.ok_or(why)?;
        let (shim, answer) = ShimHandle::fork(&subreapers, &descriptors).map_err(|error| error.to_string())?;
        self.shim = shim;
        self.end = LinkEnd::Forking { answer, descriptors, again: None };
        Ok(())
    }

    /// Sends what the socket takes now.
    fn send(&mut self) {
        while !self.unsent.is_empty() {
            match self.orders.try_write(self.unsent.as_slices().0) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Nobody reads any more: that it is lost is told by the facts.
                Err(_) => self.unsent.clear(),
            }
        }
    }

    fn close(&mut self) {
        self.end = LinkEnd::Closed;
        self.unsent.clear();
        self.watch = OrderWatch::default();
        self.inspect_at = None;
    }

    /// When [`ShimLink::act`] must be called next.
    pub fn due(&self) -> Option<Instant> {
        [self.watch.due(), self.inspect_at].into_iter().flatten().min()
    }

    /// Does what is due: asks the shim whether it lives, or has it woken or killed where it does not obey. A shim that
    /// is killed is lost.
    pub fn act(&mut self, now: Instant) {
        if self.inspect_at.is_some_and(|at| at <= now) {
            self.inspect_at = Some(now + self.inspect_every);
            if self.watch.is_idle() {
                self.order(Order::Inspect);
            }
        }
        let ticket = self.shim.ticket;
        match self.watch.act(now) {
            None => {}
            Some(WatchAction::Continue) => self.shim.subreaper.tell(SubreaperRequest::Continue { ticket }),
            Some(WatchAction::KillIfStopped) => self.shim.subreaper.tell(SubreaperRequest::KillIfStopped { ticket }),
            Some(WatchAction::Kill) => self.shim.subreaper.tell(SubreaperRequest::Kill { ticket }),
        }
    }

    /// Ends what a lost shim has left behind, and says what is known of that.
    pub fn sweep(&self) -> impl Future<Output = TreeGone> + use<> {
        Arc::clone(&self.shim.subreaper).sweep(self.shim.ticket)
    }
}
