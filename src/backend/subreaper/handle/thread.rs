//! The thread of one subreaper: reads its answers, and keeps the deadlines by which it must answer.

use std::{process::Child, sync::Arc, time::Instant};

use log::{error, warn};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{RecvFlags, recv},
    process::{Pid, Signal, kill_process},
};

use super::{PendingRequest, SharedHandle, adoption::Adoption, lock};
use crate::backend::{
    deadlines::WatchAction,
    shim::procfs::stat_of,
    subreaper::protocol::{MAX_REQUEST, NumberedRequest, SubreaperRequest, SubreaperResponse},
};

/// Reads answers and keeps deadlines until the subreaper is gone, then looks after what it left.
pub(super) fn look_after(shared: &Arc<SharedHandle>, mut child: Child, pid: Pid, adoption: &Adoption) {
    while step(shared, pid) {}
    let was_given_up = {
        let mut state = lock(&shared.state);
        state.is_lost = true;
        // Whoever waits learns that there is no answer.
        state.waiting.clear();
        state.is_given_up
    };
    // It has ended, or has closed its socket and is of no use: KILL reaches it in any state.
    let _ = child.kill();
    let _ = child.wait();
    adoption.forget(pid);
    if !was_given_up {
        error!(event = "subreaper.lost", pid = pid.as_raw_nonzero().get();
            "the subreaper was ended by somebody else: its shims end their executions; another one is started for the next");
        adoption.look_after(shared);
    }
}

/// Waits once. False when the subreaper is gone.
fn step(shared: &SharedHandle, pid: Pid) -> bool {
    let due = lock(&shared.state).watch.due();
    let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
    let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
    let mut fds = [PollFd::new(&shared.socket, PollFlags::IN), PollFd::new(&shared.wake, PollFlags::IN)];
    if let Err(error) = poll(&mut fds, timeout.as_ref())
        && error != rustix::io::Errno::INTR
    {
        return false;
    }
    let [answered, woken] = fds.map(|fd| !fd.revents().is_empty());
    if woken {
        let _ = rustix::io::read(&shared.wake, &mut [0u8; 8]);
    }
    if answered && !read_answer(shared) {
        return false;
    }
    let deed = lock(&shared.state).watch.act(Instant::now());
    match deed {
        None => {}
        Some(WatchAction::Continue) => signal(pid, Signal::CONT),
        Some(WatchAction::KillIfStopped) if stat_of(pid).is_some_and(|stat| matches!(stat.state, 'T' | 't')) => {
            signal(pid, Signal::KILL);
        }
        Some(WatchAction::KillIfStopped) => {}
        Some(WatchAction::Kill) => {
            warn!(event = "subreaper.silent", pid = pid.as_raw_nonzero().get(); "the subreaper does not answer: it is killed");
            signal(pid, Signal::KILL);
        }
    }
    true
}

/// Signals the subreaper: only its thread reaps it, so the number is still its own.
fn signal(pid: Pid, signal: Signal) {
    let _ = kill_process(pid, signal);
}

fn read_answer(shared: &SharedHandle) -> bool {
    let mut bytes = [0; MAX_REQUEST];
    let n = match recv(&shared.socket, &mut bytes[..], RecvFlags::DONTWAIT) {
        Ok((0, _)) => return false,
        Ok((n, _)) => n,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return true,
        Err(_) => return false,
    };
    let Ok(NumberedRequest::<SubreaperResponse> { number, message: answer }) = serde_json::from_slice(&bytes[..n])
    else {
        return true;
    };
    let mut state = lock(&shared.state);
    state.watch.acknowledged(number);
    if answer == SubreaperResponse::Accepted {
        return true;
    }
    let Some(PendingRequest { request, answer: sender }) = state.waiting.remove(&number) else { return true };
    match (&answer, request) {
        // An execution that has ended meanwhile has forgotten it.
        (SubreaperResponse::Forked { pid }, SubreaperRequest::Fork { ticket }) if !sender.is_closed() => {
            state.shims.extend(Pid::from_raw(*pid).map(|pid| (ticket, pid)));
        }
        (SubreaperResponse::NotForked { .. }, _) => state.is_unfit = true,
        _ => {}
    }
    drop(state);
    // Whoever asked may be gone.
    let _ = sender.send(answer);
    true
}
