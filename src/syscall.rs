//! The system calls for which no crate has a safe function: a fork, signal masks and dispositions, the closing of
//! inherited descriptors, and giving memory back.
//!
//! This is the one file with `unsafe`, because a subreaper that forks its shims starts a command in a third
//! of the time that a second exec takes, and because the C library hides the real-time signals 32 and 33
//! from its own functions. Each function here is safe to call for the reason that it states.
#![allow(unsafe_code)]

use std::{
    fs, io,
    marker::PhantomData,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd},
    ptr,
};

use rustix::process::{Pid, Signal};

/// The number of signals on Linux; signals are numbered from 1 (signal(7)).
const SIGNALS: i32 = 64;

/// The size of the kernel's signal set, in bytes.
const SIGSET_BYTES: usize = 8;

/// From the kernel's sched.h; the constant of the libc crate has the wrong width.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Gives free memory of the C library's heaps back to the system. Other allocators have no such function.
///
/// The C library gives back only what is free at a heap's end. One small allocation that lives there keeps the whole
/// peak of a busy hour.
pub fn trim_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) may be called at any time; it takes the locks of the allocator.
    let _ = unsafe { libc::malloc_trim(0) };
}

/// Proof that this process has one thread. Only such a process may fork and run more than an exec in the child, because
/// otherwise a lock that another thread held would stay locked there for ever. The proof cannot be sent to another
/// thread.
#[derive(Debug)]
pub struct SingleThread(PhantomData<*const ()>);

impl SingleThread {
    /// Looks at /proc. The processes that use this never start a thread afterwards.
    pub fn prove() -> io::Result<SingleThread> {
        match fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(SingleThread(PhantomData)),
            n => Err(io::Error::other(format!("a process with {n} threads cannot fork"))),
        }
    }

    /// Forks (fork(2)). `None` in the child.
    pub fn fork(&self) -> io::Result<Option<Pid>> {
        // SAFETY: with a single thread the child has all that the parent had; see the type.
        let pid = unsafe { libc::fork() };
        if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(Pid::from_raw(pid)) }
    }

    /// Forks a child into new namespaces, or into a cgroup that this descriptor stands for (clone3(2)).
    /// `None` in the child.
    pub fn fork_into(&self, place: ForkTarget<'_>) -> io::Result<Option<Pid>> {
        // SAFETY: all zeros is a valid value of this plain structure of integers.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.exit_signal = libc::SIGCHLD as u64;
        match place {
            ForkTarget::PidNamespace => arguments.flags = (libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u64,
            ForkTarget::Cgroup(directory) => {
                arguments.flags = CLONE_INTO_CGROUP;
                arguments.cgroup = directory.as_raw_fd() as u64;
            }
        }
        // SAFETY: without CLONE_VM and with no stack given this is a fork: the child has a copy of everything.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
        if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(pid).ok().and_then(Pid::from_raw)) }
    }
}

/// The namespace or cgroup of a forked child.
#[derive(Clone, Copy, Debug)]
pub enum ForkTarget<'a> {
    /// As PID 1 of a PID namespace of its own, with mounts of its own.
    PidNamespace,
    /// In this cgroup (version 2).
    Cgroup(BorrowedFd<'a>),
}

/// The kernel's `struct sigaction`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SignalAction {
    handler: usize,
    flags: libc::c_ulong,
    restorer: usize,
    mask: u64,
}

const DEFAULT: SignalAction = SignalAction { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 };

/// Restores the default disposition of each ignored signal except these, and unblocks all signals, because both
/// survive an exec and the process's parent may have changed them.
pub fn reset_ignored_signals(keep: &[Signal]) {
    for number in 1..=SIGNALS {
        if keep.iter().all(|kept| kept.as_raw() != number) && disposition(number) == Some(libc::SIG_IGN) {
            set_default(number);
        }
    }
    set_mask(0);
}

/// Restores the default disposition of every signal and unblocks all, for a command that is about to be executed.
pub fn reset_all_signals() {
    for number in 1..=SIGNALS {
        set_default(number);
    }
    set_mask(0);
}

/// Runs `body` while this signal has its default action, and restores its action then.
pub fn with_default_action(signal: Signal, body: impl FnOnce()) {
    let mut before = DEFAULT;
    let default = DEFAULT;
    // SAFETY: both structures have the kernel's layout, and the default action runs no code of this process.
    let is_set = unsafe { rt_sigaction(signal.as_raw(), &raw const default, &raw mut before) } == 0;
    body();
    if is_set {
        // SAFETY: the kernel itself has returned this action.
        unsafe { rt_sigaction(signal.as_raw(), &raw const before, ptr::null_mut()) };
    }
}

/// Blocks every signal but those of this process's own faults, so that only SIGKILL can end it. The signals in
/// `wanted` can be read from the returned descriptor (signalfd(2)).
pub fn block_signals(wanted: &[Signal]) -> io::Result<OwnedFd> {
    let faults = [libc::SIGILL, libc::SIGTRAP, libc::SIGABRT, libc::SIGBUS, libc::SIGFPE, libc::SIGSEGV, libc::SIGSYS];
    set_mask(!faults.iter().fold(0, |set, number| set | bit(*number)));
    let set = wanted.iter().fold(0u64, |set, signal| set | bit(signal.as_raw()));
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set is read during the call and has the given length; -1 requests a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const set, SIGSET_BYTES, flags) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made it for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes every descriptor from this one on. Only for a process that was just executed and owns none of them, because
/// its parent may have left some open.
pub fn close_inherited_from(first: u32) {
    close_from(first);
}

/// Closes every descriptor but 0, 1, 2 and this one, which becomes 3 and is closed by exec. Only for a forked
/// child that is about to execute a command: its exec may hang, and must not keep the parent's
/// descriptors open.
///
/// # Errors
///
/// The limit of descriptors is below 4. Nothing was closed, and the descriptor is given back.
pub fn keep_only(kept: OwnedFd) -> Result<OwnedFd, (io::Error, OwnedFd)> {
    if kept.as_raw_fd() != KEPT {
        // SAFETY: 3 is given up with everything else: the child uses no other descriptor again.
        if unsafe { libc::dup3(kept.as_raw_fd(), KEPT, libc::O_CLOEXEC) } < 0 {
            return Err((io::Error::last_os_error(), kept));
        }
        drop(kept);
    } else {
        // It stays open under its number.
        let _ = kept.into_raw_fd();
    }
    close_from(KEPT.unsigned_abs() + 1);
    // SAFETY: it is open, and nothing else owns it any more.
    Ok(unsafe { OwnedFd::from_raw_fd(KEPT) })
}

/// The descriptor that [`keep_only`] keeps.
const KEPT: i32 = 3;

fn close_from(first: u32) {
    // SAFETY: the callers' processes use none of these again; see there.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if done == 0 {
        return;
    }
    // If the call is missing or filtered, the descriptors are closed one by one.
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<i32> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| u32::try_from(*fd).is_ok_and(|fd| fd >= first)) {
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
}

fn bit(number: i32) -> u64 {
    1 << (number - 1)
}

fn disposition(number: i32) -> Option<usize> {
    let mut old = DEFAULT;
    // SAFETY: without a new action it only writes one structure of the kernel's layout.
    let result = unsafe { rt_sigaction(number, ptr::null(), &raw mut old) };
    (result == 0).then_some(old.handler)
}

fn set_default(number: i32) {
    let default = DEFAULT;
    // SAFETY: the default disposition runs no code of this process. The kernel refuses KILL and STOP.
    unsafe { rt_sigaction(number, &raw const default, ptr::null_mut()) };
}

fn set_mask(set: u64) {
    // SAFETY: the set is read during the call and has the given length.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const set, ptr::null_mut::<u64>(), SIGSET_BYTES)
    };
}

/// The system call itself: the C library's function refuses 32 and 33, which it uses for its threads.
unsafe fn rt_sigaction(number: i32, new: *const SignalAction, old: *mut SignalAction) -> libc::c_long {
    // SAFETY: the caller's.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, number, new, old, SIGSET_BYTES) }
}
