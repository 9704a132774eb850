//! A connector for awc whose connections let a [`Follower`](super::framing::Follower) see what arrives.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_rt::net::{ActixStream, Ready, TcpStream};
use actix_service::{Service, ServiceExt};
use actix_tls::connect::{ConnectError, ConnectInfo, Connection, Connector as TcpConnector, Resolver};
use awc::{Connector, http::Uri};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::BodyEnd;

/// A connector whose connections report to `end`.
pub fn connector(
    end: BodyEnd,
    patience: Duration,
) -> Connector<impl Service<ConnectInfo<Uri>, Response = Connection<Uri, Observed>, Error = ConnectError> + Clone> {
    let observed =
        TcpConnector::new(Resolver::default()).service().map(move |connection: Connection<Uri, TcpStream>| {
            let (io, uri) = connection.into_parts();
            Connection::new(uri, Observed { io, end: end.clone() })
        });
    Connector::new().connector(observed).timeout(patience).limit(0)
}

/// A TCP stream that is watched.
pub struct Observed {
    io: TcpStream,
    end: BodyEnd,
}

impl std::fmt::Debug for Observed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.io.fmt(f)
    }
}

impl AsyncRead for Observed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.end.0.borrow_mut().follow(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Observed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl ActixStream for Observed {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        ActixStream::poll_read_ready(&self.io, cx)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        ActixStream::poll_write_ready(&self.io, cx)
    }
}
