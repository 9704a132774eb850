//! A started command: what it writes, what it reads, and the line to its keeper.
//!
//! Dropping it closes the line, and the keeper then ends the whole tree: an execution that is given up
//! in whatever way leaves nothing behind.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    path::Path,
    process::Stdio,
};

use rustix::{
    cmsg_space,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf, pipe},
    },
    process::Command,
    sync::oneshot,
};

use super::{
    keeper::{
        ARGUMENT,
        talk::{Fact, Order, Run, Stdin},
    },
    orphans,
    terminal::Terminal,
};
use cc_executor_actors::protocol::method::Size;

/// The capacity asked for each pipe, in bytes. With the default of 64 KiB a third of the rate is lost.
/// A refusal is no error: without privileges a user's pipes are limited.
const PIPE_CAPACITY: usize = 256 * 1024;

/// A command and its keeper.
pub struct Process {
    /// What it writes: standard output and standard error. A terminal has only the one.
    pub pipes: [Option<pipe::Receiver>; 2],
    /// What it reads, if anything.
    pub stdin: Option<pipe::Sender>,
    /// The terminal that it runs on.
    pub terminal: Option<Terminal>,
    /// The line to its keeper.
    pub line: Line,
}

/// The line to a keeper.
pub struct Line {
    facts: Lines<BufReader<OwnedReadHalf>>,
    orders: OwnedWriteHalf,
    reaped: oneshot::Receiver<()>,
}

/// Our ends, and those that a keeper gets.
struct Ends {
    pipes: [Option<pipe::Receiver>; 2],
    stdin: Option<pipe::Sender>,
    terminal: Option<Terminal>,
    stdout: Stdio,
    stderr: Stdio,
    /// Sent along with the order to run.
    passed: Option<OwnedFd>,
}

impl Process {
    /// Starts a keeper and has it start the command, on a terminal of this size if one is given.
    /// Whether that worked is its first fact.
    pub async fn start(keeper: &Path, run: Run, size: Option<Size>) -> io::Result<Process> {
        let Ends { pipes, stdin, terminal, stdout, stderr, passed } = match size {
            Some(size) => Ends::terminal(size)?,
            None => Ends::pipes(run.stdin == Stdin::Pipe)?,
        };
        let (ours, theirs) = StdUnixStream::pair()?;
        if let Some(passed) = &passed {
            pass(&ours, passed)?;
        }
        // The environment is the command's business and goes through the line: a variable such as
        // LD_PRELOAD is not meant for the keeper, and a secret of the service not for either.
        let mut command = Command::new(keeper);
        command.arg(ARGUMENT).env_clear().stdin(Stdio::from(OwnedFd::from(theirs))).stdout(stdout).stderr(stderr);
        let reaped = orphans::start_keeper(&mut command)?;
        // It holds our copies of the ends that are not ours.
        drop(command);
        ours.set_nonblocking(true)?;
        let (facts, orders) = UnixStream::from_std(ours)?.into_split();
        let mut line = Line { facts: BufReader::new(facts).lines(), orders, reaped };
        line.order(&Order::Run(run)).await?;
        Ok(Process { pipes, stdin, terminal, line })
    }
}

impl Ends {
    fn pipes(with_stdin: bool) -> io::Result<Ends> {
        let (stdout, stdout_end) = output_pipe()?;
        let (stderr, stderr_end) = output_pipe()?;
        let (stdin, passed) = if with_stdin {
            let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            (Some(pipe::Sender::from_owned_fd(write)?), Some(read))
        } else {
            (None, None)
        };
        let pipes = [Some(stdout), Some(stderr)];
        Ok(Ends { pipes, stdin, terminal: None, stdout: stdout_end, stderr: stderr_end, passed })
    }

    fn terminal(size: Size) -> io::Result<Ends> {
        let (terminal, end) = Terminal::open(size)?;
        Ok(Ends {
            pipes: [Some(terminal.output()?), None],
            stdin: Some(terminal.input()?),
            terminal: Some(terminal),
            stdout: Stdio::from(end.try_clone()?),
            stderr: Stdio::from(end),
            passed: None,
        })
    }
}

impl Line {
    /// Gives an order.
    pub async fn order(&mut self, order: &Order) -> io::Result<()> {
        let mut text = serde_json::to_vec(order)?;
        text.push(b'\n');
        self.orders.write_all(&text).await
    }

    /// The next fact; `None` when the keeper is gone. May be dropped and called again.
    pub async fn next(&mut self) -> Option<Fact> {
        let line = self.facts.next_line().await.ok().flatten()?;
        serde_json::from_str(&line).ok()
    }

    /// Waits until the keeper is gone, and then ends what it has left behind. Gives how many processes
    /// could not be ended.
    pub async fn sweep(&mut self) -> u32 {
        // Its tree comes to us only when it has been reaped. The sender is never dropped before that.
        let _ = (&mut self.reaped).await;
        tokio::task::spawn_blocking(orphans::sweep).await.unwrap_or(u32::MAX)
    }
}

/// A pipe: our end to read, and the end that the command writes to.
fn output_pipe() -> io::Result<(pipe::Receiver, Stdio)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let _ = rustix::pipe::fcntl_setpipe_size(&read, PIPE_CAPACITY);
    Ok((pipe::Receiver::from_owned_fd(read)?, Stdio::from(write)))
}

/// Sends a descriptor to a keeper that has not been started yet, with an empty line.
fn pass(socket: &StdUnixStream, descriptor: &OwnedFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut passed = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor.as_fd()];
    if !passed.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for the descriptor of the standard input"));
    }
    sendmsg(socket, &[IoSlice::new(b"\n")], &mut passed, SendFlags::empty())?;
    Ok(())
}
