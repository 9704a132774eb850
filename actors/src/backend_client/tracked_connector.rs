//! Connectors for awc whose connections see the bytes before awc does: a [`BodyEnd`] notes whether a body really ended,
//! a [`HeadGate`] corrects the head of a body that only the close ends.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_rt::net::{ActixStream, Ready};
use actix_service::{Service, ServiceExt};
use actix_tls::connect::{ConnectError, ConnectInfo, Connection};
use awc::{Connector, http::Uri};
use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body_end::{BodyEnd, HeadGate};
use crate::dial::{DialConfig, DialedStream, Dialer};

/// A connector whose connections report to `end`, if there is one.
pub fn connector(
    dial: DialConfig,
    end: Option<BodyEnd>,
    patience: Duration,
) -> Connector<impl Service<ConnectInfo<Uri>, Response = Connection<Uri, TrackedStream>, Error = ConnectError> + Clone>
{
    let dialer = Dialer::new(dial, patience);
    let longest = dialer.longest();
    let tracked = dialer.map(move |connection: Connection<Uri, DialedStream>| {
        let (io, uri) = connection.into_parts();
        let tracked = TrackedStream { io, end: end.clone(), gate: HeadGate::default(), unread: Bytes::new() };
        Connection::new(uri, tracked)
    });
    // The dialer bounds each of its steps itself.
    Connector::new().connector(tracked).timeout(longest).limit(0)
}

/// How much of a head is read at a time, in bytes.
const HEAD_READ: usize = 4 * 1024;

/// A connection whose responses are tracked: above TLS, where the bytes of HTTP are.
#[derive(Debug)]
pub struct TrackedStream {
    io: DialedStream,
    end: Option<BodyEnd>,
    gate: HeadGate,
    /// Bytes that the gate has let pass, and awc has not read yet.
    unread: Bytes,
}

impl TrackedStream {
    /// Reads until the gate lets the response's head pass, or the stream ends.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gate.has_passed() {
            let mut bytes = [0; HEAD_READ];
            let mut buf = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
            let passed = match buf.filled() {
                [] => Some(self.gate.open()),
                arrived => {
                    follow(&self.end, arrived);
                    self.gate.push(arrived)
                }
            };
            self.unread = passed.unwrap_or_default().into();
        }
        Poll::Ready(Ok(()))
    }
}

fn follow(end: &Option<BodyEnd>, arrived: &[u8]) {
    if let Some(end) = end {
        end.0.borrow_mut().follow(arrived);
    }
}

impl AsyncRead for TrackedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_head(cx))?;
        if !self.unread.is_empty() {
            let n = self.unread.len().min(buf.remaining());
            buf.put_slice(&self.unread[..n]);
            self.unread.advance(n);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        follow(&self.end, &buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TrackedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // awc reads a response only when its request is all written, so this is the next request of a kept
        // connection: a head follows again.
        if self.gate.has_passed() && self.unread.is_empty() {
            self.gate = HeadGate::default();
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl ActixStream for TrackedStream {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        if !self.unread.is_empty() {
            return Poll::Ready(Ok(Ready::READABLE));
        }
        ActixStream::poll_read_ready(&self.io, cx)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        ActixStream::poll_write_ready(&self.io, cx)
    }
}
