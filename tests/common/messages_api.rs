//! A scripted Messages API. The prompt `run COMMAND` becomes a call of the Bash tool, the result of a tool becomes the answer,
//! and any other prompt is echoed. `background FIRST then SECOND` runs FIRST as a background task, answers, and runs SECOND
//! after the notification that FIRST has ended. Each request may be refused instead.
//!
//! Its messages are raw JSON, because they belong to another service's protocol.

use std::{
    io::Write,
    net::TcpStream,
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};

use super::stub::{Request, Stub, chunk, chunked_head, respond};

/// The status and the error type of a refusal (documentation of the Messages API, errors).
pub type Refusal = (u16, &'static str);

/// A running API, which records its requests.
pub struct MessagesApi {
    stub: Stub,
}

impl MessagesApi {
    /// An API that answers every request.
    pub fn start() -> MessagesApi {
        MessagesApi::refusing(|_| None)
    }

    /// An API that may refuse a request, by its number from 0.
    pub fn refusing(refusal: impl Fn(usize) -> Option<Refusal> + Send + Sync + 'static) -> MessagesApi {
        let n = AtomicUsize::new(0);
        let stub = Stub::start(move |request, stream| {
            if !is_messages_request(request) {
                return respond(stream, 404, &error("not_found_error"));
            }
            let n = n.fetch_add(1, Ordering::SeqCst);
            match refusal(n) {
                Some((status, kind)) => respond(stream, status, &error(kind)),
                None => answer(stream, n, &request.body),
            }
        });
        MessagesApi { stub }
    }

    pub fn url(&self) -> String {
        self.stub.url()
    }

    /// The requests for messages so far.
    pub fn requests(&self) -> Vec<Request> {
        self.stub.requests().into_iter().filter(is_messages_request).collect()
    }
}

fn is_messages_request(request: &Request) -> bool {
    request.method == "POST" && request.path.split('?').next() == Some("/v1/messages")
}

fn error(kind: &str) -> String {
    json!({ "type": "error", "error": { "type": kind, "message": "refused by the test" } }).to_string()
}

/// The last text or tool result of a conversation.
enum LastInput {
    Text(String),
    ToolResult(String),
}

/// The texts of a content, which is a string or a list of blocks.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => blocks.iter().filter_map(|block| block["text"].as_str()).collect(),
        _ => String::new(),
    }
}

fn last_input(body: &Value) -> LastInput {
    let messages = body["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let content = messages.iter().rfind(|message| message["role"] == "user").map(|message| &message["content"]);
    let Some(Value::Array(blocks)) = content else { return LastInput::Text(content.map(text_of).unwrap_or_default()) };
    match blocks.iter().find(|block| block["type"] == "tool_result") {
        Some(block) => LastInput::ToolResult(text_of(&block["content"])),
        // The CLI adds texts for the model before the prompt.
        None => {
            LastInput::Text(blocks.iter().rev().find_map(|block| block["text"].as_str()).unwrap_or_default().to_owned())
        }
    }
}

/// The two commands, if the conversation began with `background FIRST then SECOND`.
fn background_of(body: &Value) -> Option<(String, String)> {
    let first = body["messages"].as_array()?.iter().find(|message| message["role"] == "user")?;
    let prompt = text_of(&first["content"]);
    let (first, second) = prompt.rsplit_once("background ")?.1.split_once(" then ")?;
    Some((first.to_owned(), second.to_owned()))
}

fn bash(n: usize, input: &Value) -> (Value, Value, &'static str) {
    (
        json!({ "type": "tool_use", "id": format!("toolu_{n:04}"), "name": "Bash", "input": {} }),
        json!({ "type": "input_json_delta", "partial_json": input.to_string() }),
        "tool_use",
    )
}

fn answer(stream: &mut TcpStream, n: usize, body: &Value) {
    let (block, delta, stop_reason) = match last_input(body) {
        LastInput::Text(prompt) => match (prompt.strip_prefix("run "), background_of(body)) {
            (Some(command), _) => bash(n, &json!({ "command": command })),
            (None, Some((_, second))) if prompt.contains("<task-notification>") => {
                bash(n, &json!({ "command": second }))
            }
            (None, Some((first, _))) => bash(n, &json!({ "command": first, "run_in_background": true })),
            (None, None) => text_block(&format!("You said: {prompt}")),
        },
        LastInput::ToolResult(result) => text_block(&format!("The result is {result}")),
    };
    let usage = json!({ "input_tokens": 1, "output_tokens": 1 });
    let message = json!({
        "id": format!("msg_{n:04}"), "type": "message", "role": "assistant", "model": body["model"], "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": usage,
    });
    let mut out = chunked_head("text/event-stream");
    for event in [
        json!({ "type": "message_start", "message": message }),
        json!({ "type": "content_block_start", "index": 0, "content_block": block }),
        json!({ "type": "content_block_delta", "index": 0, "delta": delta }),
        json!({ "type": "content_block_stop", "index": 0 }),
        json!({
            "type": "message_delta", "delta": { "stop_reason": stop_reason, "stop_sequence": null }, "usage": usage,
        }),
        json!({ "type": "message_stop" }),
    ] {
        let name = event["type"].as_str().expect("a type");
        out.extend(chunk(format!("event: {name}\ndata: {event}\n\n").as_bytes()));
    }
    out.extend(chunk(b""));
    let _ = stream.write_all(&out);
}

fn text_block(text: &str) -> (Value, Value, &'static str) {
    (json!({ "type": "text", "text": "" }), json!({ "type": "text_delta", "text": text }), "end_turn")
}
