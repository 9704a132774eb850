//! The wait of a single-threaded process: for descriptors to become readable, or for time to pass.

use std::{io, os::fd::BorrowedFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

/// Waits until a source can be read or has ended, a signal arrives, or the time has passed. Returns for each
/// source whether it can be read or has ended; absent sources are not waited for.
///
/// # Errors
///
/// poll(2) fails.
pub fn wait_readable<const N: usize>(
    sources: [Option<BorrowedFd<'_>>; N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
    let mut fds: Vec<_> = sources.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
    Ok(sources.map(|source| source.is_some() && ready.next() == Some(true)))
}

/// Empties a signalfd(2). The signals themselves carry nothing that the caller needs.
pub fn discard_signals(signals: BorrowedFd<'_>) {
    let _ = rustix::io::read(signals, &mut [0u8; 1024]);
}
