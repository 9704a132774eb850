//! The terminal of a command (pty(7)), and the source of a command's output, which is a pipe or a terminal.

use std::{io, os::fd::OwnedFd};

use bytes::BytesMut;
use cc_executor_actors::protocol::control::TerminalSize;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{SpecialCodeIndex, Winsize, tcgetattr, tcsetwinsize},
};
use tokio::net::unix::pipe;

/// End of file as a terminal's driver has it by default: Ctrl-D.
const DEFAULT_VEOF: u8 = 4;

/// More than a terminal's driver buffers, which is 64 KiB and 4 KiB of lines. Bytes beyond it were written by other
/// processes after the command's processes were gone.
const TERMINAL_REMAINDER: usize = 128 * 1024;

/// The backend's end of a terminal.
pub struct Terminal {
    fd: OwnedFd,
    /// The command's end, held open because a read fails with EIO while no process has it open, and a process may open
    /// it again (`/dev/tty`). So the output ends when the processes are gone and a read finds nothing.
    _command_end: OwnedFd,
}

impl Terminal {
    /// A new terminal of this size, and the end that a command gets.
    pub fn open(size: TerminalSize) -> io::Result<(Terminal, OwnedFd)> {
        let fd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&fd)?;
        unlockpt(&fd)?;
        // Before the command can read the size.
        tcsetwinsize(&fd, winsize(size))?;
        let name = ptsname(&fd, Vec::new())?;
        let command_end = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok((Terminal { fd, _command_end: command_end.try_clone()? }, command_end))
    }

    /// The source of the command's output.
    pub fn output(&self) -> io::Result<OutputSource> {
        Ok(OutputSource::Terminal(pipe::Receiver::from_owned_fd_unchecked(self.fd.try_clone()?)?))
    }

    /// The sink for the command's input.
    pub fn input(&self) -> io::Result<pipe::Sender> {
        pipe::Sender::from_owned_fd_unchecked(self.fd.try_clone()?)
    }

    /// Tells the terminal its size; its foreground processes get SIGWINCH.
    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        Ok(tcsetwinsize(&self.fd, winsize(size))?)
    }

    /// The character that ends the input, as the terminal is set now.
    pub fn end_of_file(&self) -> u8 {
        tcgetattr(&self.fd).map_or(DEFAULT_VEOF, |set| set.special_codes[SpecialCodeIndex::VEOF])
    }
}

fn winsize(size: TerminalSize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 }
}

/// The source of a command's output.
#[derive(Debug)]
pub enum OutputSource {
    /// A pipe, which ends when no process has its other end open.
    Pipe(pipe::Receiver),
    /// A terminal, which never ends by itself.
    Terminal(pipe::Receiver),
}

impl OutputSource {
    fn receiver(&self) -> &pipe::Receiver {
        let (OutputSource::Pipe(receiver) | OutputSource::Terminal(receiver)) = self;
        receiver
    }

    /// Waits until there is something to read.
    pub async fn readable(&self) -> io::Result<()> {
        self.receiver().readable().await
    }

    /// Reads without waiting.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is nothing to read yet.
    pub fn try_read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        self.receiver().try_read_buf(buffer)
    }

    /// Reads the rest after the command's processes are gone, piece by piece, without waiting. From a pipe it reads only
    /// the bytes that are in it now, because other processes may write to it later. A terminal is read until it is
    /// empty, because FIONREAD (tty_ioctl(4)) counts only its line buffer.
    pub fn read_remainder(&self, piece: usize, mut take: impl FnMut(&[u8])) {
        let mut left = match self {
            OutputSource::Pipe(pipe) => {
                usize::try_from(rustix::io::ioctl_fionread(pipe).unwrap_or_default()).unwrap_or(usize::MAX)
            }
            OutputSource::Terminal(_) => TERMINAL_REMAINDER,
        };
        let mut buffer = vec![0; piece];
        while left > 0 {
            let n = left.min(buffer.len());
            // Not through the runtime, which may not have noticed yet that there are bytes to read.
            match rustix::io::read(self.receiver(), &mut buffer[..n]) {
                Ok(0) => return,
                Ok(n) => {
                    take(&buffer[..n]);
                    left -= n;
                }
                Err(Errno::INTR) => {}
                // EAGAIN or EIO: the terminal is empty. A pipe cannot hold less than it reported.
                Err(_) => return,
            }
        }
    }
}
