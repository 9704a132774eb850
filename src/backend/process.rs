//! A command: the pipes or the terminal that connect it with the backend, and the link to its shim.
//!
//! Dropping the link ends the whole tree, so an execution that is given up leaves no process behind, also when its task panics.

pub mod shim_link;

use std::{io, os::fd::OwnedFd, sync::Arc};

use cc_executor_actors::protocol::control::TerminalSize;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::net::unix::pipe;

use self::shim_link::ShimLink;
use super::{
    pty::{OutputSource, Terminal},
    shim::protocol::{JobSpec, Stdin},
    subreaper::handle::Subreapers,
};

/// The capacity asked for each pipe, in bytes. With the default of 64 KiB a third of the rate is lost.
/// A refusal is no error: without privileges a user's pipes are limited.
const PIPE_CAPACITY: usize = 256 * 1024;

/// A command and its shim.
pub struct Process {
    /// The backend's ends of its standard input and outputs.
    pub stdio: Stdio,
    /// The link to its shim.
    pub link: ShimLink,
}

/// The backend's ends of a command's standard input and outputs.
pub struct Stdio {
    /// Standard output and standard error. A terminal has only the former.
    pub outputs: [Option<OutputSource>; 2],
    /// Standard input, where it is not empty.
    pub stdin: Option<pipe::Sender>,
    /// The terminal that the command runs on.
    pub terminal: Option<Terminal>,
}

impl Process {
    /// Has a shim forked and orders it to start the command, on a terminal of this size if one is given. Does not wait
    /// for the result, which the link reports.
    ///
    /// # Errors
    ///
    /// The service is short of descriptors, processes or memory. Nothing runs.
    pub fn start(subreapers: &Arc<Subreapers>, spec: JobSpec, size: Option<TerminalSize>) -> io::Result<Process> {
        let (stdio, command_ends) = match size {
            Some(size) => Stdio::terminal(size)?,
            None => Stdio::pipes(spec.stdin == Stdin::Pipe)?,
        };
        Ok(Process { stdio, link: ShimLink::start(subreapers, command_ends, spec)? })
    }
}

impl Stdio {
    fn pipes(with_stdin: bool) -> io::Result<(Stdio, Vec<OwnedFd>)> {
        let (stdout, stdout_end) = output_pipe()?;
        let (stderr, stderr_end) = output_pipe()?;
        let mut stdio = Stdio { outputs: [Some(stdout), Some(stderr)], stdin: None, terminal: None };
        let mut command_ends = vec![stdout_end, stderr_end];
        if with_stdin {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            command_ends.push(read);
            stdio.stdin = Some(pipe::Sender::from_owned_fd(write)?);
        }
        Ok((stdio, command_ends))
    }

    fn terminal(size: TerminalSize) -> io::Result<(Stdio, Vec<OwnedFd>)> {
        let (terminal, end) = Terminal::open(size)?;
        let (output, input) = (terminal.output()?, terminal.input()?);
        let stdio = Stdio { outputs: [Some(output), None], stdin: Some(input), terminal: Some(terminal) };
        Ok((stdio, vec![end.try_clone()?, end]))
    }
}

/// The backend's end and the command's end of a pipe.
fn output_pipe() -> io::Result<(OutputSource, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let _ = fcntl_setpipe_size(&read, PIPE_CAPACITY);
    Ok((OutputSource::Pipe(pipe::Receiver::from_owned_fd(read)?), write))
}
