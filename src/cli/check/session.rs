//! A session of a check. It verifies every message that it receives, and reports the wait that takes too long.

use std::{collections::VecDeque, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{
    failure::{CheckFailure, shown},
    probe::Probe,
    transcript::Transcript,
};
use crate::cli::{
    ClientError,
    connection::{Connection, ConnectionEvent},
};

/// The heartbeat period that a check asks for unless it names another.
const HEARTBEAT_MS: u64 = 5_000;

/// The longest time with heartbeats and no progress. The commands of the checks are silent for a few seconds at most;
/// whole executions have no bound, because a network may be slow.
const STUCK: Duration = Duration::from_secs(60);

/// The interval between two attempts.
pub(super) const CADENCE: Duration = Duration::from_millis(50);

/// The executor of the legacy image, which has no names for executors.
const UNNAMED: &str = "default";

const QUEUE_FULL: i64 = -32009;

/// One session.
pub(super) struct CheckSession<'a> {
    probe: &'a Probe,
    connection: Connection,
    id: String,
    /// The params of `connected`.
    pub(super) hello: Value,
    last: Option<String>,
    n_calls: u64,
    passed_by: VecDeque<Value>,
}

impl Probe {
    /// Opens a session.
    pub(super) async fn open(&self) -> Result<CheckSession<'_>, CheckFailure> {
        CheckSession::on(self.connect().await?, self).await
    }

    /// Runs a part of a check in a session of its own; a failure is attributed to that session.
    pub(super) async fn within<T>(
        &self,
        work: impl AsyncFnOnce(&mut CheckSession<'_>) -> Result<T, CheckFailure>,
    ) -> Result<T, CheckFailure> {
        let mut session = self.open().await?;
        let done = work(&mut session).await;
        let done = session.located(done)?;
        session.close().await?;
        Ok(done)
    }
}

impl<'a> CheckSession<'a> {
    /// Opens a session and reads `connected`.
    pub(super) async fn on(connection: Connection, probe: &'a Probe) -> Result<CheckSession<'a>, CheckFailure> {
        let (hello, id) = (Value::Null, String::new());
        let mut session =
            CheckSession { probe, connection, id, hello, last: None, n_calls: 0, passed_by: VecDeque::new() };
        let first = session.recv().await?;
        if first["method"] != "connected" {
            return Err(session.problem("the first message is not connected"));
        }
        session.hello = first["params"].clone();
        session.id = session.hello["sessionId"].as_str().unwrap_or_default().to_owned();
        Ok(session)
    }
}

impl CheckSession<'_> {
    /// The session's id, as it appears in the service's log.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// A failure in this session, with its last message.
    pub(super) fn problem(&self, what: impl Into<String>) -> CheckFailure {
        let session = (!self.id.is_empty()).then(|| self.id.clone());
        CheckFailure { what: what.into(), session, last: self.last.clone() }
    }

    /// The same for a failure that was found in received data.
    pub(super) fn located<T>(&self, found: Result<T, CheckFailure>) -> Result<T, CheckFailure> {
        found.map_err(|problem| if problem.session.is_some() { problem } else { self.problem(problem.what) })
    }

    /// The next message.
    pub(super) async fn recv(&mut self) -> Result<Value, CheckFailure> {
        match self.passed_by.pop_front() {
            Some(message) => Ok(message),
            None => self.recv_new().await,
        }
    }

    async fn recv_new(&mut self) -> Result<Value, CheckFailure> {
        let quiet = self.probe.quiet();
        let message = async {
            loop {
                match self.connection.next().await {
                    ConnectionEvent::Message(text) => return Ok(text),
                    ConnectionEvent::Nothing => {}
                    ConnectionEvent::Broken(error) => return Err(error),
                }
            }
        };
        let text = match timeout(quiet, message).await {
            Ok(Ok(text)) => text,
            Ok(Err(error)) => return Err(self.problem(error.message)),
            Err(_) => return Err(self.problem(format!("hung: no message came for {} s", quiet.as_secs()))),
        };
        let message: Value = serde_json::from_slice(&text)
            .map_err(|error| self.problem(format!("a message that is not JSON ({error})")))?;
        self.last = Some(shown(&message));
        Ok(message)
    }

    /// The result of a send, bounded in time, because the service may not read.
    fn sent(&self, sent: Result<Result<(), ClientError>, tokio::time::error::Elapsed>) -> Result<(), CheckFailure> {
        match sent {
            Ok(sent) => sent.map_err(|error| self.problem(error.message)),
            Err(_) => Err(self.problem(format!("hung: it reads nothing for {} s", self.probe.quiet().as_secs()))),
        }
    }

    /// Sends a call and returns its id.
    pub(super) async fn request(&mut self, method: &str, params: Value) -> Result<u64, CheckFailure> {
        self.n_calls += 1;
        let params = if method == "execute" { self.completed(params) } else { params };
        let sent = timeout(self.probe.quiet(), self.connection.call(self.n_calls, method, params)).await;
        self.sent(sent)?;
        Ok(self.n_calls)
    }

    /// Parameters for a command of the executor `shell`, because the default executor may be Claude, which costs money.
    fn completed(&self, mut params: Value) -> Value {
        if params.get("executor").is_none() && self.hello["executors"] != json!([UNNAMED]) {
            params["executor"] = json!("shell");
        }
        if params.get("heartbeatMs").is_none() {
            params["heartbeatMs"] = json!(HEARTBEAT_MS);
        }
        params
    }

    /// Sends a text as it is.
    pub(super) async fn send(&mut self, text: String) -> Result<(), CheckFailure> {
        let sent = timeout(self.probe.quiet(), self.connection.send(text)).await;
        self.sent(sent)
    }

    /// Sends a call and waits for its response. Messages that arrive before it are kept.
    pub(super) async fn call(&mut self, method: &str, params: Value) -> Result<Result<Value, Value>, CheckFailure> {
        let id = self.request(method, params).await?;
        let until = Instant::now() + self.probe.quiet();
        loop {
            if Instant::now() > until {
                return Err(
                    self.problem(format!("hung: {method} is not answered for {} s", self.probe.quiet().as_secs()))
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

    /// The same for a call that must succeed.
    pub(super) async fn ask(&mut self, method: &str, params: Value) -> Result<Value, CheckFailure> {
        match self.call(method, params).await? {
            Ok(result) => Ok(result),
            Err(error) => Err(self.problem(format!("{method} is refused: {}", shown(&error)))),
        }
    }

    /// Starts a command. The response must come before any notification about it. While the queue is full the call is
    /// repeated as long as other executions make progress.
    pub(super) async fn execute(&mut self, params: Value) -> Result<Transcript, CheckFailure> {
        let result = loop {
            match self.call("execute", params.clone()).await? {
                Ok(result) => break result,
                Err(error) if error["code"] == QUEUE_FULL && self.probe.stuck_for() < self.probe.quiet() => {
                    sleep(CADENCE).await;
                }
                Err(error) => return Err(self.problem(format!("execute is refused: {}", shown(&error)))),
            }
        };
        if let Some(early) = self.passed_by.front() {
            return Err(self.problem(format!("something came before the response to execute: {}", shown(early))));
        }
        match result["executionId"].as_str() {
            Some(id) if matches!(result["status"].as_str(), Some("started" | "queued")) => {
                Ok(Transcript::of(id, Instant::now()))
            }
            _ => Err(self.problem("execute is not answered with an execution that has started")),
        }
    }

    /// Reads until the execution has ended or the condition holds.
    pub(super) async fn follow(
        &mut self,
        story: &mut Transcript,
        until: impl Fn(&Transcript) -> bool,
    ) -> Result<(), CheckFailure> {
        while !story.has_ended() && !until(story) {
            let message = self.recv().await?;
            let now = Instant::now();
            let taken = story.take(&message, now);
            if self.located(taken)? {
                self.probe.got_on(now);
            }
            if story.stuck_for(now) > STUCK {
                return Err(self.problem(format!("hung: nothing but heartbeats for {} s", STUCK.as_secs())));
            }
        }
        Ok(())
    }

    /// Reads to the final status, and checks that no message follows it.
    pub(super) async fn finish(&mut self, story: &mut Transcript) -> Result<(), CheckFailure> {
        self.follow(story, |_| false).await?;
        self.ask("ping", json!({})).await?;
        match self.passed_by.front() {
            None => Ok(()),
            Some(late) => Err(self.problem(format!("something came after the end: {}", shown(late)))),
        }
    }

    /// Runs a command to its end.
    pub(super) async fn run(&mut self, params: Value) -> Result<Transcript, CheckFailure> {
        let mut story = self.execute(params).await?;
        self.finish(&mut story).await?;
        Ok(story)
    }

    /// Closes the session with a close frame.
    pub(super) async fn close(mut self) -> Result<(), CheckFailure> {
        let left = timeout(self.probe.quiet(), self.connection.close()).await;
        self.sent(left.map(Ok))
    }

    /// Reads until the service closes the session, and returns the close code.
    pub(super) async fn close_code(&mut self) -> Result<u16, CheckFailure> {
        loop {
            if let Err(problem) = self.recv().await {
                return self.connection.close_code().ok_or(problem);
            }
        }
    }
}
