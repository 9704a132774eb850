//! A pseudo-terminal (pty(7)), as far as it is more than a pipe: its size, and what ends its input.

use std::{io, os::fd::OwnedFd};

use cc_executor_actors::protocol::method::Size;
use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{SpecialCodeIndex, Winsize, tcgetattr, tcsetwinsize},
};
use tokio::net::unix::pipe;

/// End of file as a terminal's driver has it by default: Ctrl-D.
const DEFAULT_VEOF: u8 = 4;

/// Our end of a terminal.
pub struct Terminal(OwnedFd);

impl Terminal {
    /// A new terminal of this size, and the end that a command gets.
    pub fn open(size: Size) -> io::Result<(Terminal, OwnedFd)> {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        // Before anybody can ask for it.
        tcsetwinsize(&ours, winsize(size))?;
        let name = ptsname(&ours, Vec::new())?;
        let theirs = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok((Terminal(ours), theirs))
    }

    /// What is written to it. Its end comes as an error (EIO), when nobody has the other end open.
    pub fn output(&self) -> io::Result<pipe::Receiver> {
        pipe::Receiver::from_owned_fd_unchecked(self.0.try_clone()?)
    }

    /// What is typed on it.
    pub fn input(&self) -> io::Result<pipe::Sender> {
        pipe::Sender::from_owned_fd_unchecked(self.0.try_clone()?)
    }

    /// Tells the terminal its size; its foreground processes get SIGWINCH.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        Ok(tcsetwinsize(&self.0, winsize(size))?)
    }

    /// What ends the input, as the terminal is set now.
    pub fn end_of_file(&self) -> u8 {
        tcgetattr(&self.0).map_or(DEFAULT_VEOF, |set| set.special_codes[SpecialCodeIndex::VEOF])
    }
}

fn winsize(size: Size) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 }
}
