//! The reference of the benchmark: a plain bridge of hyper and tokio-tungstenite. It decodes the same stream, does not split
//! characters, counts offsets, and flushes only when no more data is ready, so that the comparison with the gateway is fair.
//!
//! It writes its messages as JSON of its own, because sharing the gateway's encoder would make the comparison meaningless.

use std::{borrow::Cow, net::SocketAddr, process::ExitCode};

use bytes::Bytes;
use cc_executor_actors::{
    backend_api::{
        BackendEvent, MULTIPLEXED,
        multiplex::{Decoder, StreamPart},
    },
    outcome::Status,
    stream::Stream,
};
use futures_util::{FutureExt, SinkExt, StreamExt, stream::SplitSink};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, body::Incoming};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{WebSocketStream, accept_async, tungstenite::Message};

type Error = Box<dyn std::error::Error + Send + Sync>;
type Sink = SplitSink<WebSocketStream<TcpStream>, Message>;

/// Serves until it is killed, with as many threads as the gateway has workers.
pub fn serve(backend: SocketAddr) -> ExitCode {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    runtime.expect("a runtime").block_on(async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        println!("{}", listener.local_addr().expect("an address"));
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                // An error ends only its session: the client has disconnected.
                tokio::spawn(async move { session(stream, backend).await.ok() });
            }
        }
    })
}

async fn session(stream: TcpStream, backend: SocketAddr) -> Result<(), Error> {
    stream.set_nodelay(true)?;
    let (mut sink, mut source) = accept_async(stream).await?.split();
    send(&mut sink, &json!({ "jsonrpc": "2.0", "method": "connected", "params": {} })).await?;
    sink.flush().await?;
    while let Some(message) = source.next().await {
        let Message::Text(text) = message? else { continue };
        let call: Value = serde_json::from_str(&text)?;
        if call["method"] != "execute" {
            continue;
        }
        let lines = call["params"]["framing"] == "line";
        let id = uuid::Uuid::new_v4().to_string();
        let body = json!({ "question": call["params"]["command"], "executionId": id }).to_string();
        let mut stream = request(backend, Method::POST, "/execute/stream", body).await?;
        let mut decoder = Decoder::default();
        let mut output = Output { lines, carry: Vec::new(), end: 0 };
        'execution: loop {
            let more = match stream.frame().now_or_never() {
                Some(more) => more,
                None => {
                    sink.flush().await?;
                    tokio::select! {
                        more = stream.frame() => more,
                        message = source.next() => {
                            let Some(message) = message else { return Ok(()) };
                            if message?.to_text()?.contains("CANCEL") {
                                let path = format!("/executions/{id}?grace_ms=5000&reason=canceled");
                                tokio::spawn(request(backend, Method::DELETE, path, String::new()));
                            }
                            continue;
                        }
                    }
                }
            };
            let Some(more) = more else { break };
            if let Ok(chunk) = more?.into_data() {
                decoder.push(chunk);
            }
            while let Some(part) = decoder.next_part()? {
                match part {
                    StreamPart::Output(Stream::Stdout, bytes) => output.send(&mut sink, &bytes).await?,
                    StreamPart::Output(Stream::Stderr, _) => {}
                    StreamPart::Event(event) => match serde_json::from_slice(&event)? {
                        BackendEvent::Started(_) => {
                            send(&mut sink, &json!({ "jsonrpc": "2.0", "id": call["id"], "result": { "executionId": id, "status": "started" } })).await?;
                            send(&mut sink, &status(&id, Status::Running)).await?;
                        }
                        BackendEvent::Exit(outcome) => {
                            output.finish(&mut sink).await?;
                            let mut last = status(&id, outcome.status);
                            last["params"]["reason"] = json!(outcome.reason);
                            send(&mut sink, &last).await?;
                            break 'execution;
                        }
                        _ => {}
                    },
                }
            }
        }
        sink.flush().await?;
    }
    Ok(())
}

fn status(id: &str, status: Status) -> Value {
    json!({ "jsonrpc": "2.0", "method": "statusUpdate", "params": { "executionId": id, "status": status } })
}

async fn send(sink: &mut Sink, message: &impl Serialize) -> Result<(), Error> {
    Ok(sink.feed(Message::text(serde_json::to_string(message)?)).await?)
}

async fn request(
    backend: SocketAddr,
    method: Method,
    path: impl Into<Cow<'static, str>>,
    body: String,
) -> Result<Incoming, Error> {
    let stream = TcpStream::connect(backend).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path.into().as_ref())
        .header("host", backend.to_string())
        .header("content-type", "application/json")
        .header("accept", MULTIPLEXED)
        .body(Full::new(Bytes::from(body)))?;
    Ok(sender.send_request(request).await?.into_body())
}

/// Encodes output as messages.
struct Output {
    lines: bool,
    carry: Vec<u8>,
    end: u64,
}

#[derive(Serialize)]
struct Notification<'a> {
    jsonrpc: &'static str,
    method: &'static str,
    params: BridgeParams<'a>,
}

#[derive(Serialize)]
struct BridgeParams<'a> {
    r#type: &'static str,
    content: &'a str,
    end: u64,
}

impl Output {
    async fn send(&mut self, sink: &mut Sink, bytes: &[u8]) -> Result<(), Error> {
        self.carry.extend_from_slice(bytes);
        let carry = std::mem::take(&mut self.carry);
        let mut rest = &carry[..];
        if self.lines {
            while let Some(at) = memchr::memchr(b'\n', rest) {
                self.message(sink, std::str::from_utf8(&rest[..=at])?).await?;
                rest = &rest[at + 1..];
            }
        } else {
            let whole = match std::str::from_utf8(rest) {
                Ok(text) => text.len(),
                Err(error) if error.error_len().is_none() => error.valid_up_to(),
                Err(error) => return Err(error.into()),
            };
            if whole > 0 {
                self.message(sink, std::str::from_utf8(&rest[..whole])?).await?;
            }
            rest = &rest[whole..];
        }
        self.carry = rest.to_vec();
        Ok(())
    }

    async fn finish(&mut self, sink: &mut Sink) -> Result<(), Error> {
        let rest = std::mem::take(&mut self.carry);
        if rest.is_empty() { Ok(()) } else { self.message(sink, std::str::from_utf8(&rest)?).await }
    }

    async fn message(&mut self, sink: &mut Sink, content: &str) -> Result<(), Error> {
        self.end += content.len() as u64;
        let params = BridgeParams { r#type: "stdout", content, end: self.end };
        send(sink, &Notification { jsonrpc: "2.0", method: "output", params }).await
    }
}
