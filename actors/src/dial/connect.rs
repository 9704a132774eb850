//! A TCP connection, and a tunnel through an HTTP proxy (RFC 9110 section 9.3.6).

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, lookup_host},
    time::{Instant, timeout_at},
};

use super::error::{DialError, ProxyError};

/// The longest head of a proxy's answer that is read, in bytes.
const MAX_ANSWER: usize = 16 * 1024;

/// The longest reason of a proxy that is shown, in characters.
const MAX_REASON: usize = 100;

/// Connects to the first address of a host that takes the connection.
pub async fn tcp(host: &str, port: u16, patience: Duration) -> Result<TcpStream, DialError> {
    let until = Instant::now() + patience;
    let late = || DialError::Timeout { host: host.to_owned(), port, seconds: patience.as_secs() };
    let unknown = |cause: String| DialError::UnknownHost { host: host.to_owned(), cause };
    let addresses = timeout_at(until, lookup_host((host, port))).await.map_err(|_| late())?;
    let addresses = addresses.map_err(|error| unknown(error.to_string()))?;
    let mut last = None;
    for address in addresses {
        match timeout_at(until, TcpStream::connect(address)).await.map_err(|_| late())? {
            Ok(stream) => {
                // Otherwise small messages wait for the acknowledgement of the ones before. A failure shows at the next use.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(cause) => last = Some(DialError::Tcp { address, cause }),
        }
    }
    Err(last.unwrap_or_else(|| unknown("it has no address".to_owned())))
}

/// Has a proxy connect to a host and port. What the stream carries afterwards is between its two ends.
pub async fn tunnel(proxy: &mut TcpStream, to: &str, authorization: Option<&str>) -> Result<(), ProxyError> {
    let credentials = authorization.map(|value| format!("Proxy-Authorization: {value}\r\n")).unwrap_or_default();
    let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{credentials}\r\n");
    proxy.write_all(request.as_bytes()).await.map_err(ProxyError::Broken)?;
    let mut head = Vec::new();
    // Byte by byte, because what follows the head belongs to the tunnel.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_ANSWER {
            return Err(ProxyError::TooLong(MAX_ANSWER));
        }
        let byte = proxy.read_u8().await.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ProxyError::Closed,
            _ => ProxyError::Broken(error),
        })?;
        head.push(byte);
    }
    match status(&head) {
        Some((200..=299, _)) => Ok(()),
        Some((407, _)) if authorization.is_some() => Err(ProxyError::WrongCredentials),
        Some((407, _)) => Err(ProxyError::NoCredentials),
        Some((status, reason)) => Err(ProxyError::Refused { to: to.to_owned(), status, reason }),
        None => Err(ProxyError::NotHttp),
    }
}

/// The status of a response, and its reason without characters that a terminal obeys.
fn status(head: &[u8]) -> Option<(u16, String)> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let line = line.strip_prefix(b"HTTP/1.")?.get(2..)?;
    let status = std::str::from_utf8(line.get(..3)?).ok()?.parse().ok()?;
    let reason = line[3..].trim_ascii().iter().filter(|byte| (b' '..=b'~').contains(byte));
    Some((status, reason.take(MAX_REASON).map(|byte| char::from(*byte)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_is_read() {
        for (head, found) in [
            ("HTTP/1.1 200 Connection established\r\n\r\n", Some((200, "Connection established"))),
            ("HTTP/1.0 403 \u{1b}[2JNo\r\nX: y\r\n\r\n", Some((403, "[2JNo"))),
            ("HTTP/1.1 407\r\n\r\n", Some((407, ""))),
            ("HTTP/2 200\r\n\r\n", None),
            ("SSH-2.0-x\r\n\r\n", None),
            ("HTTP/1.1 x\r\n\r\n", None),
            ("\r\n\r\n", None),
        ] {
            assert_eq!(status(head.as_bytes()), found.map(|(status, reason)| (status, reason.to_owned())), "{head:?}");
        }
    }
}
