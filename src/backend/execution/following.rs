//! A command that runs: both streams are read to their ends, the clocks are kept, orders obeyed.
//!
//! One loop. A pipe is read only where the spool lets it be (`Spool::may_read`): a slow consumer slows the command down
//! and nothing grows. Orders, clocks and the keeper are heard all the same.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use cc_executor_actors::{
    backend::api::{Alive, StatusChange, Word},
    claude::watch::{EXIT_PATIENCE, Watch},
    clock::{Stopwatch, millis},
    protocol::{
        Stream,
        method::Size,
        rpc::{ErrorObject, code},
    },
    terminate::{Ending, Status},
};
use log::{info, warn};
use tokio::net::unix::pipe;

pub(super) use super::last::Cause;
use super::{
    Answer, Ask, Body, GRACE_MS, Stand, Terms, at,
    input::Input,
    last::{self, Counted},
    refuse,
};
use crate::backend::{
    claude,
    keeper::talk::{Fact, Gone, LeaderExit, Order},
    process::{Line, Process},
    spool::Moved,
    table::Seat,
    terminal::Terminal,
};

/// The most that is read from a pipe at a time, in bytes.
const READ: usize = 64 * 1024;

/// Reads smaller than this are copied out, so that a few bytes do not hold a whole buffer.
const SMALL: usize = 8 * 1024;

/// The exit code of a program that is not there, as shells have it.
const NOT_FOUND: i32 = 127;

/// After the command's own exit: how long what it left behind may be quiet before it is ended.
const QUIET: Duration = Duration::from_secs(2);

/// After the command's own exit: how long what it left behind may write at all.
const LEFTOVERS_CAP: Duration = Duration::from_secs(10);

/// After the tree is gone: how long a pipe that somebody else still holds may be quiet.
const GONE_QUIET: Duration = Duration::from_millis(100);

/// Waits for the command to have started, then follows it to its end.
pub(super) async fn follow(process: Process, program: &str, body: &mut Body, seat: &Seat) -> Ending {
    let Process { pipes, stdin, terminal, mut line } = process;
    match line.next().await {
        Some(Fact::Started { pid }) => {
            info!(event = "process.started", execution_id:% = body.terms.id, executor = body.terms.executor.as_str(), pid = pid; "process started");
            let now = Instant::now();
            let mut following = Following {
                line,
                pid,
                pipes,
                claude: body.terms.prompt.is_some().then(Watch::default),
                exit_by: None,
                input: match &body.terms.prompt {
                    Some(prompt) => Input::given(stdin, prompt.clone()),
                    None => Input::new(stdin, terminal.is_some()),
                },
                terminal,
                counted: Counted::default(),
                clocks: Clocks::started(now),
                cause: None,
                paused: false,
                steered: VecDeque::new(),
                grace_ms: 0,
                leader: None,
                sweep: None,
                gone: None,
            };
            let stand = following.stand(&body.terms, now);
            body.spool.say(stand.first_word(&body.terms).expect("a running execution has a first word"));
            following.run(body, seat).await;
            following.ending()
        }
        Some(Fact::NotStarted { exit_code: NOT_FOUND, .. }) if body.terms.prompt.is_some() => {
            last::not_started(NOT_FOUND, claude::not_found(program))
        }
        Some(Fact::NotStarted { exit_code, message }) => last::not_started(exit_code, message),
        _ => last::not_started(126, "its keeper ended before it could start the command".to_owned()),
    }
}

/// A command that runs, or whose remains are being read.
struct Following {
    line: Line,
    pid: i32,
    pipes: [Option<pipe::Receiver>; 2],
    terminal: Option<Terminal>,
    input: Input,
    /// Where the command is Claude: what its events say.
    claude: Option<Watch>,
    /// When Claude, which has said how it ended or can say nothing more, must have exited.
    exit_by: Option<Instant>,
    counted: Counted,
    clocks: Clocks,
    cause: Option<Cause>,
    paused: bool,
    /// Who waits for the tree to stand still, or to go on, in the order of the orders.
    steered: VecDeque<Answer>,
    grace_ms: u64,
    leader: Option<LeaderExit>,
    sweep: Option<Sweep>,
    gone: Option<Gone>,
}

/// The clocks of a command. Each stands still while it would say something untrue.
struct Clocks {
    started_at: Instant,
    output_at: Instant,
    /// Stands still while paused.
    total: Stopwatch,
    /// Since the last output; stands still while paused, and while reading is held back.
    quiet: Stopwatch,
}

impl Clocks {
    fn started(now: Instant) -> Self {
        Clocks { started_at: now, output_at: now, total: Stopwatch::started(now), quiet: Stopwatch::started(now) }
    }
}

/// What the command left behind is read until it is quiet, or for so long. Stands still while reading
/// is held back.
struct Sweep {
    since_exit: Stopwatch,
    ordered: bool,
}

/// What woke the loop.
enum Wake {
    Fact(Option<Fact>),
    Ask(Option<Ask>),
    Cause(Cause),
    Heartbeat,
    Wrote,
    Read(usize, std::io::Result<usize>),
    Moved(Moved),
    Quiet,
}

impl Following {
    /// Follows the command until its tree is gone and its pipes are empty.
    ///
    /// It ends: the command's own exit starts the sweep, the sweep and every cause give an order to the
    /// keeper, the keeper answers `Gone` or is gone itself, and a pipe without writers ends. A full ring
    /// holds that back only until somebody attaches or the time without a consumer is over.
    async fn run(&mut self, body: &mut Body, seat: &Seat) {
        let mut buffers = [BytesMut::new(), BytesMut::new()];
        let mut asks_open = true;
        let mut heartbeat_at = Instant::now() + body.terms.heartbeat;
        loop {
            let pipes_open = self.pipes.iter().any(Option::is_some);
            if self.gone.is_some() && !pipes_open {
                return;
            }
            if self.leader.is_some() && !pipes_open {
                self.order_sweep().await;
            }
            body.spool.deliver();
            let may_read = Stream::BOTH.map(|stream| body.spool.may_read(stream));
            let held_back = self.pipes.iter().zip(may_read).any(|(pipe, may)| pipe.is_some() && !may);
            self.run_clocks(held_back);
            let due = self.due(body);
            let [out, err] = &mut self.pipes;
            let [out_buffer, err_buffer] = &mut buffers;
            // In this order: what is rare and must not starve behind a busy pipe, then the pipes, and the
            // quiet time last, so that it never cuts off what is there to be read.
            let wake = tokio::select! {
                biased;
                fact = self.line.next(), if self.gone.is_none() => Wake::Fact(fact),
                ask = body.asks.recv(), if asks_open => Wake::Ask(ask),
                () = at(due.cause.map(|(at, _)| at)) => Wake::Cause(due.cause.map_or(Cause::Timeout, |(_, cause)| cause)),
                () = at(Some(heartbeat_at)) => Wake::Heartbeat,
                () = self.input.write(), if self.input.is_waiting() => Wake::Wrote,
                n = read(out, out_buffer), if may_read[0] && out.is_some() => Wake::Read(0, n),
                n = read(err, err_buffer), if may_read[1] && err.is_some() => Wake::Read(1, n),
                moved = body.spool.moved(body.terms.consumer_stall, body.asked_at) => Wake::Moved(moved),
                () = at(due.quiet) => Wake::Quiet,
            };
            match wake {
                Wake::Fact(Some(fact)) => self.on_fact(fact, body, seat).await,
                Wake::Fact(None) => self.keeper_lost(&body.terms, seat).await,
                Wake::Ask(None) => asks_open = false,
                Wake::Ask(Some(ask)) => self.on_ask(ask, body).await,
                Wake::Cause(cause) => self.end(cause, GRACE_MS, body).await,
                Wake::Heartbeat => {
                    let now = Instant::now();
                    heartbeat_at = now + body.terms.heartbeat;
                    body.look_after_consumer();
                    body.spool.mention(Word::Alive(self.alive(&body.terms, now)));
                }
                Wake::Wrote => {}
                Wake::Read(at, Ok(n)) if n > 0 => {
                    let stream = Stream::BOTH[at];
                    let bytes = take(&mut buffers[at], n);
                    self.counted.add(stream, &bytes);
                    let changed = self.watch_claude(stream, &bytes);
                    body.spool.push(stream, bytes);
                    let now = Instant::now();
                    if changed {
                        body.spool.mention(Word::Alive(self.alive(&body.terms, now)));
                    }
                    self.clocks.output_at = now;
                    self.clocks.quiet.reset(now);
                }
                // The end of the pipe, or a pipe that cannot be read: nothing more comes from it.
                Wake::Read(at, _) => {
                    self.pipes[at] = None;
                    if Stream::BOTH[at] == Stream::Stdout {
                        self.claude_is_silent();
                    }
                }
                Wake::Moved(Moved::Room) => {}
                Wake::Moved(moved) => {
                    if body.left(moved) {
                        self.end(Cause::Disconnected, GRACE_MS, body).await;
                    }
                }
                Wake::Quiet if self.gone.is_some() => self.pipes = [None, None],
                Wake::Quiet => self.order_sweep().await,
            }
        }
    }

    /// Reads along in Claude's events. True if it does something else now.
    fn watch_claude(&mut self, stream: Stream, bytes: &[u8]) -> bool {
        let Some(claude) = &mut self.claude else { return false };
        if stream == Stream::Stderr {
            claude.hear(bytes);
            return false;
        }
        let changed = claude.feed(bytes);
        if claude.outcome().is_some() {
            // Counted from the first time: whatever it says then gives it no more.
            self.exit_by.get_or_insert_with(|| Instant::now() + EXIT_PATIENCE);
        }
        changed
    }

    /// Claude can say nothing more: it has said how it ended by now, or never will.
    fn claude_is_silent(&mut self) {
        if let Some(claude) = &mut self.claude {
            claude.finish();
            self.exit_by.get_or_insert_with(|| Instant::now() + EXIT_PATIENCE);
        }
    }

    /// Lets each clock run exactly while its time counts.
    fn run_clocks(&mut self, held_back: bool) {
        let now = Instant::now();
        self.clocks.total.run(!self.paused, now);
        self.clocks.quiet.run(!self.paused && !held_back, now);
        if let Some(sweep) = &mut self.sweep {
            sweep.since_exit.run(!held_back, now);
        }
    }

    /// What is due next, and when.
    fn due(&self, body: &Body) -> Due {
        let mut causes = Vec::with_capacity(3);
        if self.cause.is_none() && self.leader.is_none() {
            let limit = |ms: Option<u64>| ms.map(Duration::from_millis);
            let timeout = limit(body.terms.timeout_ms).and_then(|limit| self.clocks.total.due_at(limit));
            let stall = limit(body.terms.stall_timeout_ms).and_then(|limit| self.clocks.quiet.due_at(limit));
            match self.exit_by {
                None => {
                    causes.extend(timeout.map(|at| (at, Cause::Timeout)));
                    causes.extend(stall.map(|at| (at, Cause::Stalled)));
                }
                Some(at) if !self.paused => causes.push((at, Cause::Done)),
                Some(_) => {}
            }
        }
        if self.cause != Some(Cause::Disconnected) {
            causes.extend(body.detached_until().map(|at| (at, Cause::Disconnected)));
        }
        let quiet = match (&self.sweep, &self.gone) {
            (_, Some(_)) => self.clocks.quiet.due_at(GONE_QUIET),
            (Some(sweep), None) if !sweep.ordered => {
                let quiet = self.clocks.quiet.due_at(QUIET);
                quiet.zip(sweep.since_exit.due_at(LEFTOVERS_CAP)).map(|(quiet, cap)| quiet.min(cap))
            }
            _ => None,
        };
        Due { cause: causes.into_iter().min_by_key(|(at, _)| *at), quiet }
    }

    async fn on_fact(&mut self, fact: Fact, body: &mut Body, seat: &Seat) {
        match fact {
            Fact::Exited(exit) => {
                let now = Instant::now();
                self.leader = Some(exit);
                self.sweep = Some(Sweep { since_exit: Stopwatch::started(now), ordered: false });
                self.clocks.quiet.reset(now);
                self.input.close();
                self.steered.clear();
                self.set_paused(false);
            }
            Fact::Paused => self.paused(true, body),
            Fact::Resumed => self.paused(false, body),
            Fact::Gone(gone) => {
                self.all_gone(gone, seat);
                // What is left in the pipes is read, whoever takes it.
                body.spool.finish();
            }
            Fact::Started { .. } | Fact::NotStarted { .. } => {}
        }
    }

    fn all_gone(&mut self, gone: Gone, seat: &Seat) {
        self.gone = Some(gone);
        self.clocks.quiet.reset(Instant::now());
        self.steered.clear();
        self.set_paused(false);
        seat.gone(last::report(gone, self.grace_ms));
    }

    /// The keeper has done what was ordered.
    fn paused(&mut self, paused: bool, body: &mut Body) {
        if let Some(answer) = self.steered.pop_front() {
            let _ = answer.send(Ok(()));
        }
        // A cancellation has overtaken it: nobody is told of a pause that is over.
        if self.cause.is_none() && self.leader.is_none() && self.paused != paused {
            self.set_paused(paused);
            let status = if paused { Status::Paused } else { Status::Running };
            info!(event = "process.steered", execution_id:% = body.terms.id, status = status.as_str(); "the process tree is {}",
                status.as_str());
            body.spool.say(Word::Status(StatusChange::to(status)));
        }
    }

    fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
        // The total stands still from this moment, whatever else happens in this turn.
        self.clocks.total.run(!paused, Instant::now());
    }

    async fn on_ask(&mut self, ask: Ask, body: &mut Body) {
        let now = Instant::now();
        let stand = self.stand(&body.terms, now);
        let Some(ask) = body.common(ask, || stand, None) else { return };
        match ask {
            Ask::Cancel { grace_ms, reason } => self.end(Cause::Asked(reason), grace_ms, body).await,
            ask if self.leader.is_some() => refuse(ask, "its command has ended"),
            ask @ (Ask::Pause(_) | Ask::Resume(_)) if self.cause.is_some() => refuse(ask, "it is being ended"),
            Ask::Signal(number, answer) => {
                let sent = self.line.order(&Order::Signal { number }).await;
                let _ = answer.send(sent.map_err(|_| no_keeper()));
            }
            Ask::Pause(answer) => self.steer(&Order::Pause, answer).await,
            Ask::Resume(answer) => self.steer(&Order::Resume, answer).await,
            Ask::Input { bytes, eof, answer } => self.input.take(self.ended(bytes, eof), eof, answer),
            Ask::Resize(size, answer) => {
                let _ = answer.send(self.resize(size));
            }
            Ask::Attach(..) | Ask::Acknowledge(..) | Ask::Describe(_) | Ask::Shed | Ask::Withdraw { .. } => {}
        }
    }

    /// On a terminal a character ends the input.
    fn ended(&self, bytes: Bytes, eof: bool) -> Bytes {
        match &self.terminal {
            Some(terminal) if eof => [&bytes[..], &[terminal.end_of_file()]].concat().into(),
            _ => bytes,
        }
    }

    /// Gives an order that the keeper answers with a fact.
    async fn steer(&mut self, order: &Order, answer: Answer) {
        match self.line.order(order).await {
            Ok(()) => self.steered.push_back(answer),
            Err(_) => {
                let _ = answer.send(Err(no_keeper()));
            }
        }
    }

    fn resize(&self, size: Size) -> Result<(), ErrorObject> {
        let Some(terminal) = &self.terminal else {
            return Err(ErrorObject::new(
                code::NOT_ALLOWED,
                "this command runs on no terminal: ask for one with pty in execute",
            ));
        };
        terminal
            .resize(size)
            .map_err(|error| ErrorObject::new(code::INTERNAL, format!("cannot resize the terminal: {error}")))
    }

    /// Has the keeper end the tree. The first cause is the one that is told; a shorter grace takes effect.
    async fn end(&mut self, cause: Cause, grace_ms: u64, body: &mut Body) {
        if cause == Cause::Disconnected {
            // Nobody comes any more for what did not fit.
            body.left_at = None;
            body.spool.finish();
        }
        if self.leader.is_some() {
            // The command's own ending stands; only what it left behind is ended.
            return self.order_sweep().await;
        }
        if self.cause.is_none() {
            info!(event = "process.ending", execution_id:% = body.terms.id, cause = cause.as_str(), grace_ms = grace_ms; "ending the process");
            self.cause = Some(cause);
            self.grace_ms = grace_ms;
            self.set_paused(false);
            body.spool.say(Word::Status(StatusChange::to(Status::Cancelling)));
        }
        self.grace_ms = self.grace_ms.min(grace_ms);
        // A keeper that is gone is noticed where its facts are read.
        let _ = self.line.order(&Order::End { grace_ms }).await;
    }

    async fn order_sweep(&mut self) {
        if let Some(sweep) = &mut self.sweep
            && !sweep.ordered
        {
            sweep.ordered = true;
            let _ = self.line.order(&Order::Sweep).await;
        }
    }

    /// Somebody killed the keeper. Its tree comes to this process, which ends it.
    async fn keeper_lost(&mut self, terms: &Terms, seat: &Seat) {
        let survivors = self.line.sweep().await;
        warn!(event = "keeper.lost", execution_id:% = terms.id, pid = self.pid, survivors = survivors;
            "the keeper of this execution was ended by somebody else; its processes were ended too");
        self.input.close();
        self.all_gone(Gone { verified: survivors == 0, survivors, killed: 0, escalated: true }, seat);
    }

    fn stand(&self, terms: &Terms, now: Instant) -> Stand {
        let status = match (self.cause, self.paused) {
            (Some(_), _) => Status::Cancelling,
            (None, true) => Status::Paused,
            (None, false) => Status::Running,
        };
        Stand { status, position: None, alive: self.alive(terms, now) }
    }

    fn alive(&self, terms: &Terms, now: Instant) -> Alive {
        let ran = millis(self.clocks.total.elapsed(now));
        let alive = Alive {
            elapsed_ms: millis(now.saturating_duration_since(self.clocks.started_at)),
            since_output_ms: millis(now.saturating_duration_since(self.clocks.output_at)),
            deadline_ms: terms.timeout_ms.map(|timeout_ms| timeout_ms.saturating_sub(ran)),
            ..Alive::default()
        };
        match &self.claude {
            Some(claude) => alive.doing(claude.doing()),
            None => alive,
        }
    }

    fn ending(mut self) -> Ending {
        if let Some(claude) = &mut self.claude {
            claude.finish();
        }
        let mut ending = last::ending(self.leader, self.cause, self.grace_ms, self.gone, self.claude.as_ref());
        if self.cause.is_none() {
            ending.leftovers = self.gone.map_or(0, |gone| gone.killed);
        }
        ending.elapsed_ms = Some(millis(self.clocks.started_at.elapsed()));
        self.counted.into_ending(&mut ending);
        ending
    }
}

/// What is due next.
struct Due {
    /// The execution is ended, for this.
    cause: Option<(Instant, Cause)>,
    /// What is left behind has been quiet for long enough.
    quiet: Option<Instant>,
}

fn no_keeper() -> ErrorObject {
    ErrorObject::new(code::NOT_RUNNING, "its keeper is gone: it is being ended")
}

/// Reads what is there, as soon as there is something. A command that says nothing holds no buffer.
async fn read(pipe: &mut Option<pipe::Receiver>, buffer: &mut BytesMut) -> std::io::Result<usize> {
    let Some(pipe) = pipe else { return Ok(0) };
    loop {
        buffer.reserve(READ);
        match pipe.try_read_buf(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => *buffer = BytesMut::new(),
            read => return read,
        }
        pipe.readable().await?;
    }
}

/// Takes what was read, and leaves the buffer's room for the next read where little was read.
fn take(buffer: &mut BytesMut, n: usize) -> Bytes {
    if n < SMALL {
        let bytes = Bytes::copy_from_slice(&buffer[..n]);
        buffer.clear();
        bytes
    } else {
        buffer.split_to(n).freeze()
    }
}
