//! A session as `check` sees it: nothing is taken for granted that was not received, and whatever waits
//! too long for the next message is named.

use std::{cell::RefCell, collections::VecDeque, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use cc_executor_actors::protocol::{PerStream, Stream};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout};

use super::super::connection::{Connection, Heard};

/// How often a running execution says that it lives, unless a check wants it otherwise.
const HEARTBEAT_MS: u64 = 5_000;

/// How long one execution of a check may be said to run. All of them take seconds.
const LONGEST: Duration = Duration::from_secs(120);

/// How much of a message is shown to a person, in characters.
const SHOWN: usize = 300;

/// Why a check failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Problem {
    /// What a person should know.
    pub(super) what: String,
    /// The session in which it happened, and the last message that came in it.
    pub(super) session: Option<String>,
    pub(super) last: Option<String>,
}

/// Something was not as it should be.
pub(super) fn wrong(what: impl Into<String>) -> Problem {
    Problem { what: what.into(), session: None, last: None }
}

/// Fails the check with this text unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::client::check::session::wrong(format!($($text)+)));
        }
    };
}
pub(super) use ensure;

/// What a check works with.
pub(super) struct Probe {
    url: String,
    /// How long it may take until the next message. Pings are none, heartbeats are.
    quiet: Duration,
    progress: ProgressBar,
    sessions: RefCell<Vec<String>>,
}

impl Probe {
    pub(super) fn new(url: &str, quiet: Duration, progress: ProgressBar) -> Self {
        Probe { url: url.to_owned(), quiet, progress, sessions: RefCell::default() }
    }

    /// Shows what is being done.
    pub(super) fn doing(&self, what: impl Into<String>) {
        self.progress.set_message(what.into());
    }

    /// How long it may take until the next message.
    pub(super) fn quiet(&self) -> Duration {
        self.quiet
    }

    /// The sessions that were opened.
    pub(super) fn sessions(&self) -> Vec<String> {
        self.sessions.borrow().clone()
    }

    /// A connection of which nothing has been read.
    pub(super) async fn connect(&self) -> Result<Connection, Problem> {
        Connection::open(&self.url).await.map_err(|error| wrong(error.to_string()))
    }

    /// A session that has said who it is.
    pub(super) async fn open(&self) -> Result<Session<'_>, Problem> {
        let connection = self.connect().await?;
        let (hello, id) = (Value::Null, String::new());
        let mut session =
            Session { probe: self, connection, id, hello, last: None, n_calls: 0, passed_by: VecDeque::new() };
        let first = session.recv().await?;
        if first["method"] != "connected" {
            return Err(session.problem("the first message is not connected"));
        }
        session.hello = first["params"].clone();
        session.id = session.hello["sessionId"].as_str().unwrap_or_default().to_owned();
        self.sessions.borrow_mut().push(session.id.clone());
        Ok(session)
    }

    /// Runs a command in a session of its own.
    pub(super) async fn run(&self, params: Value) -> Result<Story, Problem> {
        let mut session = self.open().await?;
        let story = session.run(params).await?;
        session.close().await;
        Ok(story)
    }
}

/// One session.
pub(super) struct Session<'a> {
    probe: &'a Probe,
    connection: Connection,
    id: String,
    /// The params of `connected`.
    pub(super) hello: Value,
    last: Option<String>,
    n_calls: u64,
    passed_by: VecDeque<Value>,
}

/// A stream as it was received.
#[derive(Default)]
pub(super) struct Received {
    pub(super) bytes: Vec<u8>,
    sha256: Sha256,
}

/// An execution as its client saw it.
#[derive(Default)]
pub(super) struct Story {
    /// Its id.
    pub(super) id: String,
    pub(super) streams: PerStream<Received>,
    /// The params of each `statusUpdate`, with when it came.
    pub(super) updates: Vec<(Instant, Value)>,
    /// The params of each `error`.
    pub(super) errors: Vec<Value>,
    /// The final one, once that has come.
    pub(super) end: Value,
    n_gaps: usize,
}

impl Received {
    /// What was received, as text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

impl Story {
    pub(super) fn of(id: &str) -> Self {
        Story { id: id.to_owned(), ..Story::default() }
    }

    /// Where to go on after a broken connection.
    pub(super) fn offsets(&self) -> Value {
        json!({ "stdout": self.streams.stdout.bytes.len(), "stderr": self.streams.stderr.bytes.len() })
    }

    pub(super) fn has_ended(&self) -> bool {
        !self.end.is_null()
    }

    /// Checks status and reason of the end.
    pub(super) fn ended_as(&self, status: &str, reason: &str) -> Result<(), Problem> {
        let end = &self.end;
        ensure!(
            end["status"] == status && end["reason"] == reason,
            "the end should be {status} {reason}, and is {}",
            shown(end)
        );
        Ok(())
    }

    /// Checks that it exited with this code, and that not a byte is missing.
    pub(super) fn exited_with(&self, code: i32) -> Result<(), Problem> {
        self.ended_as(if code == 0 { "COMPLETED" } else { "FAILED" }, "exit")?;
        ensure!(self.end["exit_code"] == code, "the exit code should be {code}: {}", shown(&self.end));
        self.is_whole()
    }

    /// Checks counts and digests against what was received.
    pub(super) fn is_whole(&self) -> Result<(), Problem> {
        ensure!(self.n_gaps == 0, "{} gaps are told in the output", self.n_gaps);
        for stream in Stream::BOTH {
            let (received, name) = (self.streams.get(stream), stream.as_str());
            let (sent, digest) = (&self.end["bytes"][name], &self.end["sha256"][name]);
            ensure!(
                *sent == received.bytes.len(),
                "{} bytes of {name} arrived, and {sent} were written",
                received.bytes.len()
            );
            let own = format!("{:x}", received.sha256.clone().finalize());
            ensure!(*digest == own, "the SHA-256 of {name} is {own}, and was {digest} where it was written");
        }
        Ok(())
    }

    fn on_output(&mut self, params: &Value) -> Result<(), Problem> {
        let stream = if params["type"] == "stdout" { &mut self.streams.stdout } else { &mut self.streams.stderr };
        let decoded = match (params["content"].as_str(), params["contentBase64"].as_str()) {
            (Some(text), None) => text.as_bytes().to_vec(),
            (None, Some(text)) => {
                STANDARD.decode(text).map_err(|error| wrong(format!("base64 that is none: {error}")))?
            }
            _ => return Err(wrong(format!("an output without content: {}", shown(params)))),
        };
        stream.sha256.update(&decoded);
        stream.bytes.extend(decoded);
        ensure!(
            params["end"] == stream.bytes.len(),
            "{} bytes of {} had arrived where the service says {}",
            stream.bytes.len(),
            params["type"],
            params["end"]
        );
        Ok(())
    }
}

impl Session<'_> {
    /// What went wrong here, with what came last.
    pub(super) fn problem(&self, what: impl Into<String>) -> Problem {
        let session = (!self.id.is_empty()).then(|| self.id.clone());
        Problem { what: what.into(), session, last: self.last.clone() }
    }

    /// The same, of something found out by looking at what came.
    fn located(&self, problem: Problem) -> Problem {
        if problem.session.is_some() { problem } else { self.problem(problem.what) }
    }

    /// The next message.
    pub(super) async fn recv(&mut self) -> Result<Value, Problem> {
        match self.passed_by.pop_front() {
            Some(message) => Ok(message),
            None => self.recv_new().await,
        }
    }

    async fn recv_new(&mut self) -> Result<Value, Problem> {
        let quiet = self.probe.quiet;
        let message = async {
            loop {
                match self.connection.next().await {
                    Heard::Message(text) => return Ok(text),
                    Heard::Nothing => {}
                    Heard::Broken(error) => return Err(error),
                }
            }
        };
        let text = match timeout(quiet, message).await {
            Ok(Ok(text)) => text,
            Ok(Err(error)) => return Err(self.problem(error.to_string().trim_start_matches("cc-executor: "))),
            Err(_) => return Err(self.problem(format!("hung: no message came for {} s", quiet.as_secs()))),
        };
        let message: Value = serde_json::from_slice(&text)
            .map_err(|error| self.problem(format!("a message that is not JSON ({error})")))?;
        self.last = Some(shown(&message));
        Ok(message)
    }

    /// Sends a call, and gives its id.
    pub(super) async fn request(&mut self, method: &str, params: Value) -> Result<u64, Problem> {
        self.n_calls += 1;
        let sent = self.connection.call(self.n_calls, method, params).await;
        sent.map_err(|error| self.problem(error.to_string()))?;
        Ok(self.n_calls)
    }

    /// Sends a text as it is.
    pub(super) async fn send(&mut self, text: String) -> Result<(), Problem> {
        self.connection.send(text).await.map_err(|error| self.problem(error.to_string()))
    }

    /// Sends a call and waits for its response: the result, or the error. What comes before it is kept.
    pub(super) async fn call(&mut self, method: &str, params: Value) -> Result<Result<Value, Value>, Problem> {
        let id = self.request(method, params).await?;
        let until = Instant::now() + self.probe.quiet;
        loop {
            if Instant::now() > until {
                return Err(
                    self.problem(format!("hung: {method} is not answered for {} s", self.probe.quiet.as_secs()))
                );
            }
            let message = self.recv_new().await?;
            if message["id"] != id {
                self.passed_by.push_back(message);
                continue;
            }
            return Ok(match message.get("error") {
                Some(error) => Err(error.clone()),
                None => Ok(message["result"].clone()),
            });
        }
    }

    /// The same, of a call that has to succeed.
    pub(super) async fn ask(&mut self, method: &str, params: Value) -> Result<Value, Problem> {
        match self.call(method, params).await? {
            Ok(result) => Ok(result),
            Err(error) => Err(self.problem(format!("{method} is refused: {}", shown(&error)))),
        }
    }

    /// Starts a command. The response must come before anything is told of it.
    pub(super) async fn execute(&mut self, mut params: Value) -> Result<Story, Problem> {
        if params.get("heartbeatMs").is_none() {
            params["heartbeatMs"] = json!(HEARTBEAT_MS);
        }
        let result = self.ask("execute", params).await?;
        if let Some(early) = self.passed_by.front() {
            return Err(self.problem(format!("something came before the response to execute: {}", shown(early))));
        }
        match result["executionId"].as_str() {
            Some(id) if matches!(result["status"].as_str(), Some("started" | "queued")) => Ok(Story::of(id)),
            _ => Err(self.problem("execute is not answered with an execution that has started")),
        }
    }

    /// Reads on until the execution has ended or the story has come so far.
    pub(super) async fn follow(&mut self, story: &mut Story, until: impl Fn(&Story) -> bool) -> Result<(), Problem> {
        let since = Instant::now();
        while !story.has_ended() && !until(story) {
            if since.elapsed() > LONGEST {
                return Err(self.problem(format!("hung: it is said to run for {} s", LONGEST.as_secs())));
            }
            let message = self.recv().await?;
            self.take(story, &message).map_err(|problem| self.located(problem))?;
        }
        Ok(())
    }

    fn take(&self, story: &mut Story, message: &Value) -> Result<(), Problem> {
        let params = &message["params"];
        match message["method"].as_str() {
            Some("output") => story.on_output(params),
            Some("statusUpdate") => {
                ensure!(params["executionId"] == story.id.as_str(), "a status of another execution than {}", story.id);
                story.updates.push((Instant::now(), params.clone()));
                if params.get("reason").is_some() {
                    story.end = params.clone();
                }
                Ok(())
            }
            Some("error") => {
                story.errors.push(params.clone());
                Ok(())
            }
            Some("gap") => {
                story.n_gaps += 1;
                Ok(())
            }
            _ => Err(wrong(format!("an unexpected message: {}", shown(message)))),
        }
    }

    /// Reads to the end, after which there must be nothing.
    pub(super) async fn finish(&mut self, story: &mut Story) -> Result<(), Problem> {
        self.follow(story, |_| false).await?;
        self.ask("ping", json!({})).await?;
        match self.passed_by.front() {
            None => Ok(()),
            Some(late) => Err(self.problem(format!("something came after the end: {}", shown(late)))),
        }
    }

    /// Runs a command to its end.
    pub(super) async fn run(&mut self, params: Value) -> Result<Story, Problem> {
        let mut story = self.execute(params).await?;
        self.finish(&mut story).await?;
        Ok(story)
    }

    /// Leaves properly.
    pub(super) async fn close(mut self) {
        self.connection.close().await;
    }

    /// Reads until the service closes, and gives its code.
    pub(super) async fn close_code(&mut self) -> Result<u16, Problem> {
        loop {
            if let Err(problem) = self.recv().await {
                return self.connection.close_code().ok_or(problem);
            }
        }
    }
}

/// JSON as a person wants to see it: not too much of it, and on one line.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}
