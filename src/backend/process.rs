//! A started command: its two pipes, and the line to its keeper.
//!
//! Dropping it closes the line, and the keeper then ends the whole tree: an execution that is given up
//! in whatever way leaves nothing behind.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    path::Path,
    process::Stdio,
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
        talk::{Fact, Order, Run},
    },
    orphans,
};

/// The capacity asked for each pipe, in bytes. With the default of 64 KiB a third of the rate is lost.
/// A refusal is no error: without privileges a user's pipes are limited.
const PIPE_CAPACITY: usize = 256 * 1024;

/// A command and its keeper.
pub struct Process {
    /// What it writes to standard output.
    pub stdout: pipe::Receiver,
    /// What it writes to standard error.
    pub stderr: pipe::Receiver,
    /// The line to its keeper.
    pub line: Line,
}

/// The line to a keeper.
pub struct Line {
    facts: Lines<BufReader<OwnedReadHalf>>,
    orders: OwnedWriteHalf,
    reaped: oneshot::Receiver<()>,
}

impl Process {
    /// Starts a keeper and has it start the command. Whether that worked is its first fact.
    pub async fn start(keeper: &Path, run: Run) -> io::Result<Process> {
        let (stdout, stdout_end) = output_pipe()?;
        let (stderr, stderr_end) = output_pipe()?;
        let (ours, theirs) = StdUnixStream::pair()?;
        // The environment is the command's business and goes through the line: a variable such as
        // LD_PRELOAD is not meant for the keeper, and a secret of the service not for either.
        let mut command = Command::new(keeper);
        command
            .arg(ARGUMENT)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(stdout_end)
            .stderr(stderr_end);
        let reaped = orphans::start_keeper(&mut command)?;
        // It holds our copies of the ends that are not ours.
        drop(command);
        ours.set_nonblocking(true)?;
        let (facts, orders) = UnixStream::from_std(ours)?.into_split();
        let mut line = Line { facts: BufReader::new(facts).lines(), orders, reaped };
        line.order(&Order::Run(run)).await?;
        Ok(Process { stdout, stderr, line })
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
}

impl Line {
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
