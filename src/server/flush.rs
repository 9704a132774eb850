//! Waits until actix-web has handed all bytes of a response to the kernel.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Sleep, sleep};

use super::connection::ConnectionHandle;

/// How often actix must have flushed into a socket that was not full afterwards.
const FLUSHES: u32 = 3;

/// The interval between two looks at a full socket.
const FULL_CADENCE: Duration = Duration::from_millis(10);

/// The wait at the end of a body. When a body is cut, actix drops the connection with the bytes in its own buffer, and
/// a shutdown ends the whole process, so the buffer must be empty before. Each pending poll lets actix flush, which
/// stops only at a full socket.
#[derive(Default)]
pub struct FlushWait {
    n_flushes: u32,
    wait: Option<Pin<Box<Sleep>>>,
}

impl FlushWait {
    /// Waits; the caller polls nothing else meanwhile.
    pub fn poll(&mut self, socket: Option<&ConnectionHandle>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(wait) = &mut self.wait {
                ready!(wait.as_mut().poll(cx));
                self.wait = None;
            }
            if socket.is_some_and(|socket| !socket.has_room()) {
                self.n_flushes = 0;
                self.wait = Some(Box::pin(sleep(FULL_CADENCE)));
                continue;
            }
            if self.n_flushes == FLUSHES {
                return Poll::Ready(());
            }
            self.n_flushes += 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
    }
}
