//! A client's connection, as actix reads and writes it and as the roles observe it.
//!
//! actix owns the [`Socket`]; the data of the connection has a [`super::connection::ConnectionHandle`] to the same stream.

use std::{
    cell::{Cell, RefCell},
    io::{self, ErrorKind},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use actix_web::rt::net::TcpStream;
use bytes::BufMut;
use rustix::{
    io::Errno,
    net::{Shutdown, shutdown},
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// The most that is read at once, in bytes. actix judges the length of a request's head (128 KiB) between two reads, so a
/// longer read would let a head of twice that length pass.
const MAX_READ: usize = 16 * 1024;

/// The connection that actix reads and writes.
#[derive(Debug)]
pub struct Socket {
    stream: Arc<TcpStream>,
    window: Rc<ReadWindow>,
}

/// Bounds what actix reads ahead of a session, so that a client that is held back does not fill its buffers.
#[derive(Debug, Default)]
pub struct ReadWindow {
    /// In bytes; unbounded if `None`.
    size: Cell<Option<usize>>,
    /// How many bytes were read since the window was opened, and not taken yet.
    untaken: Cell<usize>,
    reader: RefCell<Option<Waker>>,
}

impl Socket {
    /// A connection that sends each write at once, because a client waits for a message however short it is.
    pub fn new(stream: TcpStream) -> Self {
        // Fails only if the connection has ended.
        let _ = stream.set_nodelay(true);
        Socket { stream: Arc::new(stream), window: Rc::default() }
    }

    /// The connection.
    pub fn stream(&self) -> &Arc<TcpStream> {
        &self.stream
    }

    /// The bound of reading ahead.
    pub fn window(&self) -> &Rc<ReadWindow> {
        &self.window
    }

    /// After a transfer of less than was asked for, the kernel has no more, so that the next one waits for an event first
    /// (epoll(7), edge-triggered). Without this each message costs one more system call. No event is lost, because they
    /// come to the thread that runs this.
    fn expect_event(&self, interest: Interest) {
        let _ = self.stream.try_io(interest, || Err::<(), _>(ErrorKind::WouldBlock.into()));
    }
}

impl ReadWindow {
    /// Has actix read at most this many bytes more than are taken.
    pub fn open(&self, bytes: usize) {
        self.size.set(Some(bytes));
        self.untaken.set(0);
    }

    /// This many bytes were taken.
    pub fn take(&self, n_bytes: usize) {
        // Bytes that came with the head of the request were read before the window was opened.
        self.untaken.set(self.untaken.get().saturating_sub(n_bytes));
        self.wake();
    }

    /// Removes the bound, because the session takes nothing any more.
    pub fn remove(&self) {
        self.size.set(None);
        self.wake();
    }

    /// Whether nothing is read until the session takes some of what was read.
    pub fn is_full(&self) -> bool {
        self.size.get().is_some_and(|size| self.untaken.get() >= size)
    }

    fn wake(&self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn count(&self, n_read: usize) {
        if self.size.get().is_some() {
            self.untaken.set(self.untaken.get() + n_read);
        }
    }

    /// Waits until there is room, and returns how much.
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<usize> {
        let room = self.size.get().map_or(usize::MAX, |size| size.saturating_sub(self.untaken.get()));
        if room == 0 {
            self.reader.replace(Some(cx.waker().clone()));
            return Poll::Pending;
        }
        Poll::Ready(room)
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = ready!(self.window.poll_room(cx)).min(buf.remaining()).min(MAX_READ);
        let n_bytes = loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read_buf(&mut (&mut *buf).limit(room)) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => break read?,
            }
        };
        if 0 < n_bytes && n_bytes < room {
            self.expect_event(Interest::READABLE);
        }
        self.window.count(n_bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                written => {
                    if written.as_ref().is_ok_and(|n_bytes| *n_bytes < bytes.len()) {
                        self.expect_event(Interest::WRITABLE);
                    }
                    return Poll::Ready(written);
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match shutdown(&*self.stream, Shutdown::Write) {
            // The peer has ended the connection before.
            Ok(()) | Err(Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use actix_web::rt::net::TcpListener;
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[actix_web::test]
    async fn no_more_is_read_than_the_window_has_room_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut socket = Socket::new(listener.accept().await.unwrap().0);
        client.write_all(&[1; 100]).await.unwrap();
        drop(client);
        let mut bytes = [0; 100];
        assert_eq!(socket.read(&mut bytes[..20]).await.unwrap(), 20);
        let window = Rc::clone(socket.window());
        window.open(30);
        assert_eq!(socket.read(&mut bytes).await.unwrap(), 30);
        assert!(socket.read(&mut bytes).now_or_never().is_none());
        window.take(10);
        assert_eq!(socket.read(&mut bytes).await.unwrap(), 10);
        let read = async { socket.read(&mut bytes).await.unwrap() };
        let remove = async {
            // After the reader has found no room.
            tokio::task::yield_now().await;
            window.remove();
        };
        assert_eq!(tokio::join!(read, remove).0, 40);
        assert_eq!(socket.read(&mut bytes).await.unwrap(), 0, "the end of the stream");
    }
}
