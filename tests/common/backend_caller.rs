//! Calls a backend with its token: as an operator, or in the name of a client as a gateway does.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
};

use serde_json::{Value, json};

use super::{PATIENCE, http, service::Service};

/// The token of the backends in these tests.
pub const BACKEND_TOKEN: &str = "the-token-of-the-backend-in-tests-32";

/// A backend with this token, and with these further arguments.
pub fn backend_with_token(arguments: &[&str]) -> Service {
    Service::with(&[&["backend"], arguments].concat(), &[("CC_EXECUTOR_BACKEND_TOKEN", BACKEND_TOKEN)])
}

/// A gateway of that backend, with these further variables.
pub fn gateway_with_token(backend: &Service, env: &[(&str, &str)]) -> Service {
    Service::gateway_with(&backend.url(), &[&[("CC_EXECUTOR_BACKEND_TOKEN", BACKEND_TOKEN)], env].concat())
}

/// Who calls the backend.
#[derive(Clone, Copy)]
pub struct BackendCaller<'a> {
    address: SocketAddr,
    client: Option<&'a str>,
}

impl<'a> BackendCaller<'a> {
    /// A client with this name.
    pub fn client(backend: &Service, name: &'a str) -> Self {
        BackendCaller { address: backend.address, client: Some(name) }
    }

    /// The operator.
    pub fn operator(backend: &Service) -> Self {
        BackendCaller { address: backend.address, client: None }
    }

    fn headers(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut headers = vec![("Authorization".to_owned(), format!("Bearer {BACKEND_TOKEN}"))];
        headers.extend(self.client.map(|name| ("cc-executor-client".to_owned(), name.to_owned())));
        headers.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        headers
    }

    /// Sends a request, and returns its connection.
    pub fn send(&self, request: &str, more: &[(&str, &str)], body: &str) -> TcpStream {
        let headers = self.headers(more);
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        http::send(self.address, request, &headers, body)
    }

    /// Sends a request and reads its response.
    pub fn exchange(&self, request: &str, more: &[(&str, &str)], body: &str) -> http::HttpResponse {
        let headers = self.headers(more);
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        http::exchange(self.address, request, &headers, body)
    }

    /// The status and the JSON that answer a request without a body.
    pub fn ask(&self, request: &str) -> (u16, Value) {
        let more: &[_] = if request.starts_with("POST") { &[http::JSON] } else { &[] };
        let response = self.exchange(request, more, if more.is_empty() { "" } else { "{}" });
        let json = serde_json::from_str(&response.body);
        (response.status, json.unwrap_or_else(|error| panic!("{request}: {error}: {}", response.body)))
    }

    /// Runs a command to its end. The status, and the output or the error.
    pub fn run(&self, execute: &Value) -> http::HttpResponse {
        self.exchange("POST /execute/stream", &[http::JSON], &execute.to_string())
    }

    /// The JSON-RPC error that refuses an execution, with the HTTP status and head.
    pub fn refusal(&self, execute: &Value) -> (u16, Value, String) {
        let response = self.run(execute);
        let error = serde_json::from_str(&response.body);
        (response.status, error.unwrap_or_else(|_| panic!("a refusal: {}", response.body)), response.head)
    }

    /// Starts a detachable execution, whose client leaves as soon as it has begun or is queued.
    pub fn detach(&self, command: &str, more: &[(&str, &str)]) -> String {
        let execute = json!({ "question": command, "onDisconnect": "detach", "detachMs": 600_000 });
        let stream = self.send("POST /execute/stream", &[&[http::JSON], more].concat(), &execute.to_string());
        let mut reader = BufReader::new(stream);
        let mut id = None;
        loop {
            let mut line = String::new();
            assert!(reader.read_line(&mut line).expect("a response") > 0, "the head ends");
            let line = line.trim_end().to_ascii_lowercase();
            if line.starts_with("http/") {
                assert!(line.contains(" 200"), "{line}");
            }
            id = id.or(line.strip_prefix("x-execution-id: ").map(str::to_owned));
            if line.is_empty() {
                let _ = reader.get_ref().shutdown(Shutdown::Both);
                return id.expect("the response names the execution");
            }
        }
    }

    /// All pages of the list of executions.
    pub fn list(&self) -> Vec<Value> {
        let (mut executions, mut after) = (Vec::new(), String::new());
        loop {
            let (status, page) = self.ask(&format!("GET /executions?limit=200{after}"));
            assert_eq!(status, 200, "{page}");
            executions.extend(page["executions"].as_array().expect("a list").iter().cloned());
            let Some(next) = page["next"].as_str() else { return executions };
            after = format!("&after={next}");
        }
    }

    /// Sends requests without a body on one connection, each after the response to the one before. Yields the statuses.
    pub fn ask_on_one_connection(&self, requests: impl Iterator<Item = String>) -> impl Iterator<Item = u16> {
        let headers = self.headers(&[("Content-Length", "0")]);
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut end = String::new();
        http::push_headers(&mut end, self.address, &headers);
        let mut stream = TcpStream::connect(self.address).expect("the backend listens");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        requests.map(move |request| {
            stream.write_all(format!("{request} HTTP/1.1\r\n{end}\r\n").as_bytes()).expect("the backend reads");
            read_response(&mut reader)
        })
    }
}

/// Reads one response of a connection that stays open, and returns its status.
fn read_response(reader: &mut BufReader<TcpStream>) -> u16 {
    let (mut status, mut length, mut is_chunked) = (0, 0, false);
    loop {
        let line = read_line(reader);
        if line.is_empty() {
            break;
        }
        if let Some(rest) = line.strip_prefix("http/1.1 ") {
            status = rest[..3].parse().expect("a status");
        }
        is_chunked |= line == "transfer-encoding: chunked";
        length = line.strip_prefix("content-length: ").map_or(length, |length| length.parse().expect("a length"));
    }
    while is_chunked {
        let size = usize::from_str_radix(&read_line(reader), 16).expect("the size of a chunk");
        reader.read_exact(&mut vec![0; size]).expect("a chunk");
        assert_eq!(read_line(reader), "", "the end of a chunk");
        is_chunked = size > 0;
    }
    reader.read_exact(&mut vec![0; length]).expect("the body");
    status
}

fn read_line(reader: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    assert!(reader.read_line(&mut line).expect("a response") > 0, "the connection stays open");
    line.trim_end().to_ascii_lowercase()
}
