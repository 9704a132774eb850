//! The backend's end of the socket to a shim: sends orders, receives events, and keeps the deadlines of the orders.

use std::{
    collections::VecDeque,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::oneshot::{self, error::TryRecvError},
};

use crate::backend::{
    deadlines::{COMPLETE_AFTER, OrderWatch, WatchAction},
    shim::protocol::{JobSpec, Numbered, Order, ShimEvent, StartError, TreeGone},
    subreaper::{
        handle::{SubreaperHandle, Subreapers},
        protocol::{SubreaperAction, SubreaperResponse, Ticket},
    },
};

/// The interval of inspections, which show that a shim lives, and whether its command is stopped.
const INSPECT_EVERY: Duration = Duration::from_secs(2);

/// The interval before the command is executed. Shorter, because until then the client of a stopped shim gets no
/// message.
const INSPECT_STARTING: Duration = Duration::from_millis(500);

/// How many bytes of orders may wait for a shim that does not read, besides the order to start.
const MAX_UNSENT: usize = 64 * 1024;

/// The link to a shim.
pub struct ShimLink {
    events: Lines<BufReader<OwnedReadHalf>>,
    orders: OwnedWriteHalf,
    unsent: VecDeque<u8>,
    next_number: u64,
    watch: OrderWatch,
    /// The response of the subreaper that is to wake the shim.
    enforcing: Option<oneshot::Receiver<SubreaperResponse>>,
    inspect_at: Option<Instant>,
    inspect_every: Duration,
    state: LinkState,
    shim: ShimHandle,
}

/// Whether events of the shim can still come.
enum LinkState {
    /// The fork of the shim has not been confirmed.
    Forking {
        /// The subreaper's response.
        response: oneshot::Receiver<SubreaperResponse>,
        /// The descriptors for the shim. Kept until it has them, because the socket holds the orders for it.
        descriptors: Arc<[OwnedFd]>,
        /// Where a second attempt is made if this subreaper cannot fork.
        retry: Option<Arc<Subreapers>>,
    },
    /// The shim was forked.
    Open,
    /// The shim has sent its last event or is lost, or there never was one.
    Closed,
}

/// A shim, as its subreaper knows it.
struct ShimHandle {
    subreaper: Arc<SubreaperHandle>,
    ticket: Ticket,
}

impl ShimHandle {
    /// Has the current subreaper fork a shim with these descriptors.
    fn fork(
        subreapers: &Subreapers,
        descriptors: Arc<[OwnedFd]>,
    ) -> io::Result<(ShimHandle, oneshot::Receiver<SubreaperResponse>)> {
        let subreaper = subreapers.current()?;
        let ticket = subreaper.ticket();
        let response = subreaper.send(ticket, SubreaperAction::Fork, descriptors)?;
        Ok((ShimHandle { subreaper, ticket }, response))
    }
}

impl Drop for ShimHandle {
    fn drop(&mut self) {
        self.subreaper.forget(self.ticket);
    }
}

impl ShimLink {
    /// Has a shim forked and orders it to start the command with these ends of its pipes or its terminal.
    ///
    /// # Errors
    ///
    /// The service is short of descriptors, processes or memory. Nothing runs.
    pub fn start(subreapers: &Arc<Subreapers>, command_ends: Vec<OwnedFd>, spec: JobSpec) -> io::Result<ShimLink> {
        let (socket, shim_socket) = StdUnixStream::pair()?;
        socket.set_nonblocking(true)?;
        let mut descriptors = vec![OwnedFd::from(shim_socket)];
        descriptors.extend(command_ends);
        let descriptors = Arc::from(descriptors);
        let (shim, response) = ShimHandle::fork(subreapers, Arc::clone(&descriptors))?;
        let (events, orders) = UnixStream::from_std(socket)?.into_split();
        let mut link = ShimLink {
            events: BufReader::new(events).lines(),
            orders,
            unsent: VecDeque::new(),
            next_number: 1,
            watch: OrderWatch::default(),
            enforcing: None,
            inspect_at: Some(Instant::now() + INSPECT_STARTING),
            inspect_every: INSPECT_STARTING,
            state: LinkState::Forking { response, descriptors, retry: Some(Arc::clone(subreapers)) },
            shim,
        };
        // The environment goes over the socket, because a variable such as LD_PRELOAD must not reach the shim itself.
        link.order(Order::Run(Box::new(spec)));
        Ok(link)
    }

    /// Gives an order. It is sent while [`ShimLink::next`] waits.
    pub fn order(&mut self, order: Order) {
        let number = self.next_number;
        self.next_number += 1;
        let now = Instant::now();
        match order {
            Order::End { grace_ms } => {
                self.watch.completes_by(now + Duration::from_millis(grace_ms) + COMPLETE_AFTER);
            }
            Order::Sweep => self.watch.completes_by(now + COMPLETE_AFTER),
            _ => {}
        }
        self.watch.sent(number, now, order != Order::Inspect);
        self.unsent.extend(serde_json::to_vec(&Numbered { number, message: order }).unwrap_or_default());
        self.unsent.push_back(b'\n');
    }

    /// Whether an order that is not needed for the end may be given: not while the shim leaves too many orders unread.
    pub fn is_listening(&self) -> bool {
        self.unsent.len() < MAX_UNSENT
    }

    /// The next event, or `None` if the shim is lost. Sends orders meanwhile. Never returns after that or after the
    /// last event. May be dropped and called again.
    pub async fn next(&mut self) -> Option<ShimEvent> {
        loop {
            self.send();
            let line = tokio::select! {
                biased;
                response = response(&mut self.state) => {
                    // If the subreaper was lost, its shim ends, and so do the events.
                    if let Some(SubreaperResponse::NotForked { message }) = response
                        && let Err(cause) = self.fork_again(message)
                    {
                        self.close();
                        return Some(ShimEvent::NotStarted(StartError::no_process(cause)));
                    }
                    continue;
                }
                line = self.events.next_line(), if !matches!(self.state, LinkState::Closed) => line,
                _ = self.orders.writable(), if !self.unsent.is_empty() => continue,
            };
            let event = line.ok().flatten().and_then(|line| serde_json::from_str(&line).ok());
            match event {
                Some(ShimEvent::Accepted { number }) => {
                    self.watch.acknowledged(number);
                    continue;
                }
                Some(ShimEvent::Started { .. }) => self.inspect_every = INSPECT_EVERY,
                Some(ShimEvent::Gone(_) | ShimEvent::NotStarted(_)) | None => self.close(),
                Some(_) => {}
            }
            return event;
        }
    }

    /// Has another subreaper fork the shim, once, because a command may have lowered the limits of the first one.
    /// Nothing has run, because the first one reported that it did not fork. The error is why there is no shim.
    fn fork_again(&mut self, cause: String) -> Result<(), String> {
        let LinkState::Forking { descriptors, retry, .. } = std::mem::replace(&mut self.state, LinkState::Open) else {
            return Err(cause);
        };
        let subreapers = retry.ok_or(cause)?;
        let (shim, response) =
            ShimHandle::fork(&subreapers, Arc::clone(&descriptors)).map_err(|error| error.to_string())?;
        self.shim = shim;
        self.state = LinkState::Forking { response, descriptors, retry: None };
        Ok(())
    }

    /// Sends what the socket takes now.
    fn send(&mut self) {
        while !self.unsent.is_empty() {
            match self.orders.try_write(self.unsent.as_slices().0) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The shim is gone, which the end of its events reports.
                Err(_) => self.unsent.clear(),
            }
        }
    }

    fn close(&mut self) {
        self.state = LinkState::Closed;
        self.unsent.clear();
        self.watch = OrderWatch::default();
        self.inspect_at = None;
    }

    /// When [`ShimLink::act`] must be called next.
    pub fn due(&self) -> Option<Instant> {
        [self.watch.due(), self.inspect_at].into_iter().flatten().min()
    }

    /// Does what is due: orders an inspection, or has a shim woken or killed that has not acknowledged an order. A
    /// killed shim is lost.
    pub fn act(&mut self, now: Instant) {
        if self.inspect_at.is_some_and(|at| at <= now) {
            self.inspect_at = Some(now + self.inspect_every);
            if self.watch.is_idle() {
                self.order(Order::Inspect);
            }
        }
        if let Some(action) = self.watch.act(now) {
            // One request at a time, because each order that a busy shim acknowledges late makes another one due, and a
            // client sends any number of orders.
            let is_under_way =
                matches!(self.enforcing.as_mut().map(oneshot::Receiver::try_recv), Some(Err(TryRecvError::Empty)));
            if action == WatchAction::Kill || !is_under_way {
                // Fails only if the subreaper is lost; its shims end then.
                let subreaper = &self.shim.subreaper;
                self.enforcing =
                    subreaper.send(self.shim.ticket, SubreaperAction::Enforce(action), Arc::default()).ok();
            }
        }
    }

    /// Ends the processes that a lost shim has left behind, and returns what is known of their end.
    pub fn sweep(&self) -> impl Future<Output = TreeGone> + use<> {
        Arc::clone(&self.shim.subreaper).sweep(self.shim.ticket)
    }
}

/// Waits for the response to the fork, once. `None` if the subreaper was lost.
async fn response(state: &mut LinkState) -> Option<SubreaperResponse> {
    let LinkState::Forking { response, .. } = state else { return std::future::pending().await };
    let response = response.await.ok();
    if !matches!(response, Some(SubreaperResponse::NotForked { .. })) {
        *state = LinkState::Open;
    }
    response
}
