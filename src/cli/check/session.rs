//! A session of a check. It verifies every message that it receives, and bounds every wait.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use cc_executor_actors::{
    id::SessionId,
    protocol::{
        MethodParams, PingParams,
        execute::{Acceptance, ExecuteParams, ExecutionSpec},
        notification::Connected,
    },
    rpc::{self, ErrorObject, ReceivedMessage, code},
};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep, timeout};

use super::{
    failure::{CheckFailure, shortened, shown, wrong},
    probe::{Probe, QUIET},
    transcript::Transcript,
};
use crate::cli::{
    ClientError,
    connection::{Connection, ConnectionEvent, not_understood, read},
};

/// The heartbeat period of the commands that name none.
const HEARTBEAT_MS: u64 = 5_000;

/// The longest time with heartbeats and no progress. The commands of the checks are silent for a few seconds at most;
/// whole executions have no bound, because a network may be slow.
const STUCK: Duration = Duration::from_secs(60);

/// The interval between two attempts.
pub(super) const CADENCE: Duration = Duration::from_millis(50);

/// The executor of the legacy image, which has no names for executors.
const UNNAMED: &str = "default";

/// One session.
pub(super) struct CheckSession<'a> {
    probe: &'a Probe,
    connection: Connection,
    /// The parameters of `connected`.
    pub(super) connected: Connected,
    last: Option<String>,
    n_calls: u64,
    /// Messages that arrived while a response was awaited.
    deferred: VecDeque<Bytes>,
}

impl Probe {
    /// Opens a session, and reads `connected`.
    pub(super) async fn open(&self) -> Result<CheckSession<'_>, CheckFailure> {
        let mut connection = self.connect().await?;
        let text = next_message(&mut connection).await?;
        let last = Some(shown_text(&text));
        let connected = connected(&text).map_err(|problem| CheckFailure { last: last.clone(), ..problem })?;
        Ok(CheckSession { probe: self, connection, connected, last, n_calls: 0, deferred: VecDeque::new() })
    }

    /// Runs a part of a check in a session of its own; a failure is attributed to that session.
    pub(super) async fn within<T>(
        &self,
        work: impl AsyncFnOnce(&mut CheckSession<'_>) -> Result<T, CheckFailure>,
    ) -> Result<T, CheckFailure> {
        let mut session = self.open().await?;
        let result = work(&mut session).await;
        let result = session.located(result)?;
        session.close().await?;
        Ok(result)
    }
}

async fn next_message(connection: &mut Connection) -> Result<Bytes, CheckFailure> {
    let message = async {
        loop {
            match connection.next().await {
                ConnectionEvent::Message(text) => return Ok(text),
                ConnectionEvent::Nothing => {}
                ConnectionEvent::Broken(error) => return Err(error),
            }
        }
    };
    match timeout(QUIET, message).await {
        Ok(received) => Ok(received?),
        Err(_) => Err(wrong(format!("hung: no message came for {} s", QUIET.as_secs()))),
    }
}

fn connected(text: &[u8]) -> Result<Connected, CheckFailure> {
    let message = parse(text)?;
    match (message.method.as_deref(), message.params) {
        (Some("connected"), Some(params)) => Ok(read(params)?),
        _ => Err(wrong("the first message is not `connected`")),
    }
}

/// Reads the envelope of a message.
fn parse(text: &[u8]) -> Result<ReceivedMessage<'_>, CheckFailure> {
    Ok(serde_json::from_slice(text).map_err(|error| not_understood(&error))?)
}

fn shown_text(text: &[u8]) -> String {
    shortened(&String::from_utf8_lossy(text))
}

impl CheckSession<'_> {
    /// The session's id, as it appears in the service's log.
    pub(super) fn id(&self) -> SessionId {
        self.connected.session_id
    }

    /// A failure in this session, with its last message.
    pub(super) fn problem(&self, text: impl Into<String>) -> CheckFailure {
        CheckFailure { text: text.into(), session: Some(self.id().to_string()), last: self.last.clone() }
    }

    /// The same for a failure that was found in received data.
    pub(super) fn located<T>(&self, found: Result<T, CheckFailure>) -> Result<T, CheckFailure> {
        found.map_err(|problem| if problem.session.is_some() { problem } else { self.problem(problem.text) })
    }

    /// The next message.
    async fn recv(&mut self) -> Result<Bytes, CheckFailure> {
        match self.deferred.pop_front() {
            Some(message) => Ok(message),
            None => self.recv_new().await,
        }
    }

    async fn recv_new(&mut self) -> Result<Bytes, CheckFailure> {
        let received = next_message(&mut self.connection).await;
        let text = self.located(received)?;
        self.last = Some(shown_text(&text));
        Ok(text)
    }

    /// The result of a send, bounded in time, because the service may not read.
    fn sent(&self, sent: Result<Result<(), ClientError>, tokio::time::error::Elapsed>) -> Result<(), CheckFailure> {
        match sent {
            Ok(sent) => sent.map_err(|error| self.problem(error.message)),
            Err(_) => Err(self.problem(format!("hung: the service reads nothing for {} s", QUIET.as_secs()))),
        }
    }

    /// Sends a text as it is.
    pub(super) async fn send(&mut self, text: String) -> Result<(), CheckFailure> {
        let sent = timeout(QUIET, self.connection.send(text)).await;
        self.sent(sent)
    }

    /// Sends a call and returns its id.
    async fn request(&mut self, method: &str, params: &impl Serialize) -> Result<u64, CheckFailure> {
        self.n_calls += 1;
        self.send(rpc::call_text(self.n_calls, method, params)).await?;
        Ok(self.n_calls)
    }

    /// Sends `execute`, and does not wait for its response.
    pub(super) async fn request_execution(&mut self, run: ExecutionSpec) -> Result<(), CheckFailure> {
        let params = self.execute_params(run);
        self.request(ExecuteParams::NAME, &params).await.map(|_| ())
    }

    /// Parameters for a command of the executor `shell`, because the default executor may be Claude, which costs money.
    pub(super) fn execute_params(&self, run: ExecutionSpec) -> ExecuteParams {
        let has_names = self.connected.executors.as_deref() != Some(&[UNNAMED.to_owned()]);
        let executor = run.executor.or_else(|| has_names.then(|| "shell".to_owned()));
        let heartbeat_ms = run.heartbeat_ms.or(Some(HEARTBEAT_MS));
        ExecutionSpec { executor, heartbeat_ms, ..run }.into()
    }

    /// Sends a call and waits for its response. Messages that arrive before it are kept.
    pub(super) async fn call_raw(
        &mut self,
        method: &str,
        params: &impl Serialize,
    ) -> Result<Result<Box<RawValue>, ErrorObject>, CheckFailure> {
        let id = self.request(method, params).await?;
        let until = Instant::now() + QUIET;
        loop {
            if Instant::now() > until {
                return Err(self.problem(format!("hung: `{method}` is not answered for {} s", QUIET.as_secs())));
            }
            let text = self.recv_new().await?;
            let message = self.located(parse(&text))?;
            match (message.id == Some(id), message.result, message.error) {
                (true, _, Some(error)) => return Ok(Err(error)),
                (true, Some(result), None) => return Ok(Ok(result.to_owned())),
                (true, None, None) => return Err(self.problem("a response has neither a result nor an error")),
                (false, ..) => self.deferred.push_back(text),
            }
        }
    }

    /// Calls a method, and reads its response.
    pub(super) async fn call<P: MethodParams>(
        &mut self,
        params: &P,
    ) -> Result<Result<P::Response, ErrorObject>, CheckFailure> {
        Ok(match self.call_raw(P::NAME, params).await? {
            Ok(result) => Ok(self.located(read(&result).map_err(CheckFailure::from))?),
            Err(error) => Err(error),
        })
    }

    /// The same for a call that must succeed.
    pub(super) async fn ask<P: MethodParams>(&mut self, params: &P) -> Result<P::Response, CheckFailure> {
        self.call(params).await?.map_err(|error| self.problem(format!("`{}` is refused: {}", P::NAME, shown(&error))))
    }

    /// Starts a command. The response must come before any notification about it. While the queue is full the call is
    /// repeated as long as other executions make progress.
    pub(super) async fn execute(&mut self, run: ExecutionSpec) -> Result<Transcript, CheckFailure> {
        let params = self.execute_params(run);
        let result = loop {
            match self.call(&params).await? {
                Ok(result) => break result,
                Err(error) if error.code == code::FULL && self.probe.stuck_for() < QUIET => {
                    sleep(CADENCE).await;
                }
                Err(error) => return Err(self.problem(format!("`execute` is refused: {}", shown(&error)))),
            }
        };
        if let Some(early) = self.deferred.front() {
            return Err(self.problem(format!("a message came before the response to `execute`: {}", shown_text(early))));
        }
        match result.status {
            Acceptance::Started | Acceptance::Queued => Ok(Transcript::of(result.execution_id, Instant::now())),
            Acceptance::Failed => Err(self.problem("`execute` is not answered with an execution that has started")),
        }
    }

    /// Reads until the execution has ended or the condition holds.
    pub(super) async fn follow(
        &mut self,
        transcript: &mut Transcript,
        until: impl Fn(&Transcript) -> bool,
    ) -> Result<(), CheckFailure> {
        while !transcript.has_ended() && !until(transcript) {
            let text = self.recv().await?;
            let now = Instant::now();
            let taken = parse(&text).and_then(|message| transcript.take(&message, now));
            if self.located(taken)? {
                self.probe.record_progress(now);
            }
            if transcript.stuck_for(now) > STUCK {
                return Err(self.problem(format!("hung: nothing but heartbeats for {} s", STUCK.as_secs())));
            }
        }
        Ok(())
    }

    /// Reads to the final status, and checks that no message follows it.
    pub(super) async fn finish(&mut self, transcript: &mut Transcript) -> Result<(), CheckFailure> {
        self.follow(transcript, |_| false).await?;
        self.ask(&PingParams {}).await?;
        match self.deferred.front() {
            None => Ok(()),
            Some(late) => Err(self.problem(format!("a message came after the end: {}", shown_text(late)))),
        }
    }

    /// Runs a command to its end.
    pub(super) async fn run(&mut self, run: ExecutionSpec) -> Result<Transcript, CheckFailure> {
        let mut transcript = self.execute(run).await?;
        self.finish(&mut transcript).await?;
        Ok(transcript)
    }

    /// Closes the session with a close frame.
    pub(super) async fn close(mut self) -> Result<(), CheckFailure> {
        let left = timeout(QUIET, self.connection.close()).await;
        self.sent(left.map(Ok))
    }

    /// The error of a message that the service cannot read: its response has no id that a call could have.
    pub(super) async fn unreadable(&mut self, text: String) -> Result<ErrorObject, CheckFailure> {
        self.send(text).await?;
        let text = self.recv().await?;
        let error = parse(&text)?.error;
        error.ok_or_else(|| self.problem("a message that is not JSON is not refused"))
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
