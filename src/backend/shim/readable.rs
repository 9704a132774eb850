//! The wait of a thread without a runtime: for descriptors to become readable, or for time to pass.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{
        PollFd, PollFlags, Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
        poll,
    },
    io::Errno,
};

/// Waits for descriptors. Open it before any command runs, because it takes a descriptor itself.
#[derive(Debug)]
pub struct Waiter {
    epoll: OwnedFd,
}

impl Waiter {
    /// Opens the descriptor.
    ///
    /// # Errors
    ///
    /// Too many descriptors are open.
    pub fn open() -> io::Result<Waiter> {
        Ok(Waiter { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Waits until a source can be read or has ended, a signal arrives, or the time has passed. Returns for each
    /// source whether it can be read or has ended; absent sources are not waited for.
    ///
    /// # Errors
    ///
    /// The kernel cannot wait for these descriptors, or one is given twice. The waiter cannot be used any more.
    pub fn wait_readable<const N: usize>(
        &self,
        sources: [Option<BorrowedFd<'_>>; N],
        timeout: Option<Duration>,
    ) -> io::Result<[bool; N]> {
        let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
        let mut fds: Vec<_> = sources.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            // A command has lowered this process's limit of descriptors (prlimit(2)) below the number of sources.
            Err(Errno::INVAL) => return self.wait_without_limit(sources, timeout.as_ref()),
            Err(error) => return Err(error.into()),
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        Ok(sources.map(|source| source.is_some() && ready.next() == Some(true)))
    }

    /// The same with epoll(7), which ignores the limit of descriptors but takes more system calls.
    fn wait_without_limit<const N: usize>(
        &self,
        sources: [Option<BorrowedFd<'_>>; N],
        timeout: Option<&Timespec>,
    ) -> io::Result<[bool; N]> {
        let present = || sources.iter().enumerate().filter_map(|(at, source)| Some((at, (*source)?)));
        for (at, source) in present() {
            epoll::add(&self.epoll, source, EventData::new_u64(at as u64), EventFlags::IN)?;
        }
        let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; N];
        let waited = epoll::wait(&self.epoll, &mut events[..], timeout);
        for (_, source) in present() {
            epoll::delete(&self.epoll, source)?;
        }
        let n_events = match waited {
            Ok(n) => n,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let mut ready = [false; N];
        for event in &events[..n_events] {
            // Copied, because the structure is packed.
            let data = event.data;
            if let Some(ready) = usize::try_from(data.u64()).ok().and_then(|at| ready.get_mut(at)) {
                *ready = true;
            }
        }
        Ok(ready)
    }
}

/// Empties a signalfd(2). The signals themselves carry nothing that the caller needs.
pub fn discard_signals(signals: BorrowedFd<'_>) {
    let _ = rustix::io::read(signals, &mut [0u8; 1024]);
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn epoll_finds_the_sources_that_poll_finds() {
        let waiter = Waiter::open().unwrap();
        let (empty, _writer) = rustix::pipe::pipe().unwrap();
        let (full, full_writer) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&full_writer, b"x").unwrap();
        let (ended, ended_writer) = rustix::pipe::pipe().unwrap();
        drop(ended_writer);
        let sources = || [Some(empty.as_fd()), None, Some(full.as_fd()), Some(ended.as_fd())];
        let expected = [false, false, true, true];
        // Twice, because a wait must leave no source behind.
        for _ in 0..2 {
            assert_eq!(waiter.wait_readable(sources(), None).unwrap(), expected);
            assert_eq!(waiter.wait_without_limit(sources(), None).unwrap(), expected);
        }
        let short = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        assert_eq!(waiter.wait_without_limit([Some(empty.as_fd()), None], Some(&short)).unwrap(), [false, false]);
    }
}
