//! What a subreaper's thread shares with the executions: unanswered requests, its shims, and whether it takes new ones.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, ErrorKind},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::{Duration, Instant},
};

use rustix::process::Pid;
use tokio::sync::oneshot;

use crate::backend::{
    deadlines::OrderWatch,
    shim::{containment::Contained, protocol::Numbered, readable::Waiter},
    subreaper::{
        protocol::{SubreaperRequest, SubreaperResponse, Ticket},
        socket,
    },
};

/// How long the orphans of a lost subreaper may take to end before the evidence is `unknown`.
pub(super) const ADOPTED_PATIENCE: Duration = Duration::from_secs(5);

/// The state that the thread of a subreaper shares with its executions.
#[derive(Debug)]
pub(super) struct SharedHandle {
    pub(super) socket: OwnedFd,
    /// Used by the thread only.
    pub(super) waiter: Waiter,
    /// Wakes the thread, which waits without a deadline while no request is pending.
    pub(super) wake: OwnedFd,
    pub(super) state: Mutex<HandleState>,
    pub(super) next: AtomicU64,
    /// Whether this process becomes the parent of the subreaper's children when the subreaper is lost.
    pub(super) adopts: bool,
    /// The containment of its executions. A cgroup directory belongs to it alone.
    pub(super) contained: Contained,
}

impl Drop for SharedHandle {
    /// Removes the cgroups when the subreaper and its executions have ended, or it was not started. The last owner is
    /// its thread.
    fn drop(&mut self) {
        if let Contained::Cgroup(base) = &self.contained {
            base.end(ADOPTED_PATIENCE);
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct HandleState {
    pub(super) phase: HandlePhase,
    /// Requests that wait for room in the socket. There is room when the subreaper has answered another one.
    pub(super) unsent: VecDeque<UnsentRequest>,
    /// Requests that are not answered, the unsent ones among them.
    pub(super) pending: HashMap<u64, PendingRequest>,
    pub(super) watch: OrderWatch,
    /// The shims that it has forked and that their executions have not forgotten.
    pub(super) shims: HashMap<Ticket, Pid>,
}

/// How far the life of a subreaper has come. A phase never goes back to one above it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum HandlePhase {
    /// It takes new executions.
    #[default]
    Fit,
    /// It could not fork a shim, perhaps because a command has lowered its limits. It takes no new executions.
    Unfit,
    /// No execution needs it any more, so its end is no loss.
    GivenUp,
    /// It has ended.
    Lost {
        /// How many listings of this process's children have shown only living shims since then.
        n_clean: u64,
    },
}

#[derive(Debug)]
pub(super) struct PendingRequest {
    pub(super) ticket: Ticket,
    pub(super) answer: oneshot::Sender<SubreaperResponse>,
}

#[derive(Debug)]
pub(super) struct UnsentRequest {
    pub(super) message: Numbered<SubreaperRequest>,
    pub(super) descriptors: Arc<[OwnedFd]>,
}

impl HandleState {
    /// Sends what the socket takes now. A request that cannot be sent for a reason of its own is answered with that.
    ///
    /// # Errors
    ///
    /// The subreaper is gone.
    pub(super) fn send(&mut self, socket: &OwnedFd) -> io::Result<()> {
        while let Some(UnsentRequest { message, descriptors }) = self.unsent.front() {
            let number = message.number;
            match socket::send_now(socket, message, descriptors) {
                Ok(false) => break,
                Ok(true) => self.watch.sent(number, Instant::now(), true),
                Err(error) if is_gone(&error) => return Err(error),
                // Only this request fails, for example because too many descriptors are in flight (unix(7)).
                Err(error) => {
                    if let Some(PendingRequest { answer, .. }) = self.pending.remove(&number) {
                        // Fails if the execution has ended.
                        let _ = answer.send(SubreaperResponse::NotForked { message: error.to_string() });
                    }
                }
            }
            self.unsent.pop_front();
        }
        Ok(())
    }

    pub(super) fn n_clean(&self) -> u64 {
        match self.phase {
            HandlePhase::Lost { n_clean } => n_clean,
            HandlePhase::Fit | HandlePhase::Unfit | HandlePhase::GivenUp => 0,
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::NotConnected)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock still guards valid state, because no critical section panics half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;
    use crate::backend::subreaper::{protocol::SubreaperAction, socket::Received};

    const N_REQUESTS: u64 = 1_000;

    fn request(number: u64) -> UnsentRequest {
        let message = SubreaperRequest { ticket: number, action: SubreaperAction::Sweep };
        UnsentRequest { message: Numbered { number, message }, descriptors: Arc::default() }
    }

    #[test]
    fn a_request_that_cannot_be_sent_is_answered_and_holds_up_no_other() {
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair.unwrap();
        let mut state = HandleState::default();
        let (answer, mut answered) = oneshot::channel();
        state.pending.insert(1, PendingRequest { ticket: 1, answer });
        let too_many = (0..100).map(|_| OwnedFd::from(File::open("/dev/null").unwrap()));
        state.unsent.push_back(UnsentRequest { descriptors: too_many.collect(), ..request(1) });
        state.unsent.push_back(request(2));
        state.send(&ours).expect("the subreaper lives");
        assert!(matches!(answered.try_recv(), Ok(SubreaperResponse::NotForked { .. })));
        assert!(state.pending.is_empty() && state.unsent.is_empty());
        let Received::Message(message, _) = socket::receive::<SubreaperRequest>(&theirs) else { panic!("no message") };
        assert_eq!(message.number, 2);
    }

    #[test]
    fn requests_wait_in_their_order_while_the_socket_is_full() {
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair.unwrap();
        let mut state = HandleState::default();
        for number in 0..N_REQUESTS {
            state.unsent.push_back(request(number));
            state.send(&ours).expect("a full socket is no error");
        }
        assert!(!state.unsent.is_empty(), "the socket is full");
        let mut expected = 0;
        while expected < N_REQUESTS {
            match socket::receive::<SubreaperRequest>(&theirs) {
                Received::Message(message, _) => {
                    assert_eq!(message.number, expected);
                    expected += 1;
                }
                Received::Nothing => state.send(&ours).expect("there is room"),
                Received::End => panic!("the socket was closed"),
            }
        }
        assert!(state.unsent.is_empty());
        drop(theirs);
        state.unsent.push_back(request(expected));
        assert!(state.send(&ours).is_err(), "the subreaper is gone");
    }
}
