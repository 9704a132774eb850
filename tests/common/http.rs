//! HTTP/1.1 requests written by hand, because a test may stop reading a response anywhere.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use super::PATIENCE;

pub const JSON: (&str, &str) = ("Content-Type", "application/json");
pub const CLOSE: (&str, &str) = ("Connection", "close");

/// A response that was read to the end of its connection.
pub struct HttpResponse {
    pub status: u16,
    pub head: String,
    /// The body, without its chunk framing.
    pub body: String,
}

/// Sends a request such as `GET /health`, and returns its connection. The `Host` header is the address, if `headers` has
/// none.
pub fn send(address: SocketAddr, request: &str, headers: &[(&str, &str)], body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the service listens");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut head = format!("{request} HTTP/1.1\r\nContent-Length: {}\r\n", body.len());
    push_headers(&mut head, address, headers);
    stream.write_all(format!("{head}\r\n{body}").as_bytes()).unwrap();
    stream
}

/// Appends the headers, and a `Host` header if they have none.
pub fn push_headers(head: &mut String, address: SocketAddr, headers: &[(&str, &str)]) {
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head.push_str(&format!("Host: {address}\r\n"));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
}

/// Reads the status of a response, and nothing after it.
pub fn read_status(stream: &mut TcpStream) -> u16 {
    let mut start = [0; "HTTP/1.1 200".len()];
    stream.read_exact(&mut start).expect("a response");
    String::from_utf8_lossy(&start[9..]).parse().expect("a status")
}

/// Sends a request and reads its response.
pub fn exchange(address: SocketAddr, request: &str, headers: &[(&str, &str)], body: &str) -> HttpResponse {
    let mut text = String::new();
    let headers = [headers, &[CLOSE]].concat();
    send(address, request, &headers, body).read_to_string(&mut text).expect("a response");
    let (head, body) = text.split_once("\r\n\r\n").expect("a response with a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let head = head.to_ascii_lowercase();
    let is_chunked = head.contains("transfer-encoding: chunked");
    HttpResponse { status, body: if is_chunked { dechunked(body) } else { body.to_owned() }, head }
}

/// The content of a chunked body (RFC 9112 section 7.1).
fn dechunked(mut body: &str) -> String {
    let mut content = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("the size of a chunk");
        content.push_str(&rest[..size]);
        body = rest[size..].strip_prefix("\r\n").expect("the end of a chunk");
    }
    content
}
