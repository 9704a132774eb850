//! The thread of one subreaper: reads its responses, and enforces their deadlines.

use std::{os::fd::AsFd, process::Child, sync::Arc, time::Instant};

use log::{error, warn};
use rustix::process::{Pid, kill_process};

use super::{
    adoption::Adoption,
    state::{HandlePhase, PendingRequest, SharedHandle, lock},
};
use crate::backend::{
    deadlines::WatchAction,
    shim::{
        procfs::{Stat, stat_of},
        protocol::Numbered,
    },
    subreaper::{
        protocol::SubreaperResponse,
        socket::{self, Received},
    },
};

/// Reads responses and enforces deadlines until the subreaper is gone, then ends the orphans that it left.
pub(super) fn look_after(shared: &Arc<SharedHandle>, mut child: Child, pid: Pid, adoption: &Adoption) {
    while step(shared, pid) {}
    let was_given_up = {
        let mut state = lock(&shared.state);
        // Closes the receivers of all pending requests, and the descriptors of those that were not sent.
        state.pending.clear();
        state.unsent.clear();
        std::mem::replace(&mut state.phase, HandlePhase::Lost { n_clean: 0 }) == HandlePhase::GivenUp
    };
    // It has ended, or has closed its socket and cannot work. KILL also ends a stopped process.
    let _ = child.kill();
    let _ = child.wait();
    adoption.forget(pid);
    if !was_given_up {
        error!(event = "subreaper.lost", pid = pid.as_raw_nonzero().get();
            "the subreaper was killed: its shims end their executions, and the next execution starts another subreaper");
        adoption.look_after(shared);
    }
}

/// Waits once. Returns false when the subreaper is gone.
fn step(shared: &SharedHandle, pid: Pid) -> bool {
    let due = lock(&shared.state).watch.due();
    let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
    let sources = [Some(shared.socket.as_fd()), Some(shared.wake.as_fd())];
    let Ok([answered, woken]) = shared.waiter.wait_readable(sources, timeout) else { return false };
    if woken {
        let _ = rustix::io::read(&shared.wake, &mut [0u8; 8]);
    }
    if answered {
        // Deadlines are judged when all arrived responses are read, because this process may have been stopped.
        return read_answer(shared);
    }
    let action = lock(&shared.state).watch.act(Instant::now());
    if action == Some(WatchAction::Kill) {
        warn!(event = "subreaper.silent", pid = pid.as_raw_nonzero().get(); "the subreaper does not answer: it is killed");
    }
    let is_stopped = || stat_of(pid).is_some_and(Stat::is_still);
    if let Some(signal) = action.and_then(|action| action.signal(is_stopped)) {
        // The id is not reused, because only this thread reaps the subreaper.
        let _ = kill_process(pid, signal);
    }
    true
}

/// Reads a response. Returns false when the subreaper is gone.
fn read_answer(shared: &SharedHandle) -> bool {
    let Numbered { number, message: answer } = match socket::receive(&shared.socket) {
        Received::Message(response, _) => response,
        Received::Nothing => return true,
        Received::End => return false,
    };
    let mut state = lock(&shared.state);
    state.watch.acknowledged(number);
    if state.send(&shared.socket).is_err() {
        return false;
    }
    if answer == SubreaperResponse::Accepted {
        return true;
    }
    let Some(PendingRequest { ticket, answer: sender }) = state.pending.remove(&number) else { return true };
    match answer {
        // An execution that has ended meanwhile has forgotten its shim.
        SubreaperResponse::Forked { pid } if !sender.is_closed() => {
            state.shims.extend(Pid::from_raw(pid).map(|pid| (ticket, pid)));
        }
        SubreaperResponse::NotForked { .. } if state.phase == HandlePhase::Fit => state.phase = HandlePhase::Unfit,
        _ => {}
    }
    drop(state);
    // Fails if the execution has ended.
    let _ = sender.send(answer);
    true
}
