//! A body that is cut inside TLS is no ending, whatever the connection says.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
    thread,
};

use cc_executor_actors::outcome::Status;
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::json;

use crate::common::{
    certificates::{CertificateFiles, TestCa},
    listener::TestListener,
    service::Service,
    stub::{chunk, chunked_head},
};

/// How a server leaves a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TlsEnd {
    /// With TLS's own end, `close_notify`.
    CloseNotify,
    /// By cutting TCP.
    Cut,
}

/// A legacy image with TLS that answers a command with this response, and then leaves.
fn legacy_image(files: &CertificateFiles, response: Vec<u8>, end: TlsEnd) -> TestListener {
    let certificate = CertificateDer::from_pem_file(&files.certificate).unwrap();
    let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = Arc::new(config.with_single_cert(vec![certificate], key).unwrap());
    TestListener::start(move |stream| {
        let (config, response) = (Arc::clone(&config), response.clone());
        thread::spawn(move || answer(config, stream, &response, end));
    })
}

fn answer(config: Arc<ServerConfig>, stream: TcpStream, response: &[u8], end: TlsEnd) -> Option<()> {
    let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
    let mut request = Vec::new();
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        let mut bytes = [0; 4_096];
        let n = stream.read(&mut bytes).ok().filter(|n| *n > 0)?;
        request.extend_from_slice(&bytes[..n]);
    }
    let health = br#"{"status":"healthy","service":"claude-api"}"#;
    if request.starts_with(b"GET /health ") {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", health.len());
        stream.write_all(&[head.as_bytes(), health].concat()).ok()?;
        stream.conn.send_close_notify();
    } else {
        stream.write_all(response).ok()?;
        if end == TlsEnd::CloseNotify {
            stream.conn.send_close_notify();
        }
    }
    let _ = stream.flush();
    Some(())
}

#[test]
fn a_body_that_is_cut_inside_tls_is_never_completed() {
    let ca = TestCa::new("endings");
    let files = ca.certificate(&["127.0.0.1"]);
    let chunks = [chunked_head("text/plain"), chunk(b"hello ")].concat();
    let whole = [chunks.clone(), chunk(b"world"), b"0\r\n\r\n".to_vec()].concat();
    let without_length = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhello ".to_vec();
    let too_short = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello ".to_vec();
    for (response, end, status, stdout) in [
        (&whole, TlsEnd::CloseNotify, Status::Completed, "hello world"),
        (&whole, TlsEnd::Cut, Status::Completed, "hello world"),
        (&chunks, TlsEnd::CloseNotify, Status::Failed, "hello "),
        (&chunks, TlsEnd::Cut, Status::Failed, "hello "),
        (&without_length, TlsEnd::CloseNotify, Status::Failed, "hello "),
        (&without_length, TlsEnd::Cut, Status::Failed, "hello "),
        (&too_short, TlsEnd::CloseNotify, Status::Failed, "hello "),
        (&too_short, TlsEnd::Cut, Status::Failed, "hello "),
    ] {
        let image = legacy_image(&files, response.clone(), end);
        let url = format!("https://{}", image.address);
        let gateway = Service::gateway_with(&url, &[("CC_EXECUTOR_CA_FILE", &ca.file())]);
        let recording = gateway.connect().run(json!({ "command": "question" }));
        let shown = String::from_utf8_lossy(&recording.stdout).into_owned();
        assert_eq!((recording.status(), shown.as_str()), (status, stdout), "{end:?} {}", recording.end);
    }
}
