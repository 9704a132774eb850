//! A connection to a service, plain or with TLS.
//!
//! A TLS connection that ends without TLS's own end (`close_notify`) is an error of reading (`UnexpectedEof`), never an
//! end: whoever cuts the TCP connection could otherwise choose where a body without a length ends.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use actix_rt::net::{ActixStream, Ready};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use super::error::DialError;

/// The first bytes of the records that a TLS server may send first: an alert or a handshake, and its major version.
const TLS_RECORDS: [[u8; 2]; 2] = [[0x15, 0x03], [0x16, 0x03]];

/// A connection to a service.
#[derive(Debug)]
pub struct DialedStream(Transport);

#[derive(Debug)]
enum Transport {
    Plain { io: TcpStream, has_read: bool },
    Tls(Box<TlsStream<TcpStream>>),
}

impl DialedStream {
    pub(super) fn plain(io: TcpStream) -> Self {
        DialedStream(Transport::Plain { io, has_read: false })
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>) -> Self {
        DialedStream(Transport::Tls(Box::new(stream)))
    }

    fn tcp(&self) -> &TcpStream {
        match &self.0 {
            Transport::Plain { io, .. } => io,
            Transport::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl AsyncRead for DialedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Plain { io, has_read } => {
                let before = buf.filled().len();
                ready!(Pin::new(io).poll_read(cx, buf))?;
                let arrived = &buf.filled()[before..];
                if !std::mem::replace(has_read, true) && TLS_RECORDS.iter().any(|record| arrived.starts_with(record)) {
                    return Poll::Ready(Err(DialError::PortSpeaksTls.into()));
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for DialedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Transport::Plain { io, .. } => Pin::new(io).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Transport::Plain { io, .. } => Pin::new(io).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Transport::Plain { io, .. } => Pin::new(io).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl ActixStream for DialedStream {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        ActixStream::poll_read_ready(self.tcp(), cx)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        ActixStream::poll_write_ready(self.tcp(), cx)
    }
}
