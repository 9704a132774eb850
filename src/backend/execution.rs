//! One execution in the backend: reads both pipes to their end, keeps the clocks, obeys orders, and
//! says how it ended.
//!
//! It is one task. It hands on output through a small channel, and reads a pipe only with a place in
//! that channel in hand: a slow consumer slows the command down and nothing grows. Orders, clocks and
//! the keeper are heard all the same.

mod last;

use std::{pin::pin, time::Duration};

use bytes::{Bytes, BytesMut};
use cc_executor_actors::{
    backend::api::{Alive, Started, StatusChange, Word},
    id::ExecutionId,
    protocol::{DEFAULT_GRACE_MS, Stream},
    terminate::{CancelReason, CancelReport, Ending, Reason, Status},
};
use log::{info, warn};
use sha2::{Digest, Sha256};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use self::last::{Cause, Counted};
use super::{
    keeper::talk::{Fact, Gone, LeaderExit, Order},
    process::{Line, Process},
};

/// Pieces of output, or words, that wait for the consumer.
pub const SLOTS: usize = 4;

/// The most that is read from a pipe at a time, in bytes.
const READ: usize = 64 * 1024;

/// Reads smaller than this are copied out, so that a few bytes do not hold a whole buffer.
const SMALL: usize = 8 * 1024;

/// After the command's own exit: how long what it left behind may be quiet before it is ended.
const QUIET: Duration = Duration::from_secs(2);

/// After the command's own exit: how long what it left behind may write at all.
const LEFTOVERS_CAP: Duration = Duration::from_secs(10);

/// After the tree is gone: how long a pipe that somebody else still holds may be quiet.
const GONE_QUIET: Duration = Duration::from_millis(100);

/// What the consumer of a stream is given.
#[derive(Debug)]
pub enum Item {
    /// Output, with how far its stream has come with it.
    Output {
        /// Which stream.
        stream: Stream,
        /// The bytes.
        bytes: Bytes,
    },
    /// A word of the backend. `Exit` is the last item.
    Word(Word),
}

/// What others ask of an execution.
#[derive(Debug)]
pub enum Ask {
    /// End it.
    Cancel {
        /// Milliseconds between TERM and KILL.
        grace_ms: u64,
        /// Who wanted it.
        reason: CancelReason,
    },
    /// Send a signal to its process group; the answer is whether the command was still there.
    Signal(i32, oneshot::Sender<bool>),
}

/// What an execution needs to know of itself.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Its id.
    pub id: ExecutionId,
    /// What runs it.
    pub executor: String,
    /// Total time-out, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// How often a sign of life is sent.
    pub heartbeat: Duration,
}

/// What is told about an execution while it runs.
#[derive(Clone, Copy, Debug)]
pub enum Told {
    /// Its status changed.
    Status(Status),
    /// Its processes are gone. Their last output may still wait for the consumer.
    Gone(CancelReport),
}

/// Waits for the command to have started, then follows it to its end. The last word is the caller's.
pub async fn run(
    process: Process,
    terms: &Terms,
    consumer: &mpsc::Sender<Item>,
    asks: mpsc::UnboundedReceiver<Ask>,
    told: impl Fn(Told),
) -> Ending {
    let Process { stdout, stderr, mut line } = process;
    let ending = match line.next().await {
        Some(Fact::Started { pid }) => {
            info!(event = "process.started", execution_id:% = terms.id, executor = terms.executor.as_str(), pid = pid; "process started");
            let started = Started { execution_id: terms.id, executor: terms.executor.clone() };
            // The channel is empty: there is a place, or the consumer is gone, which the loop notices.
            let _ = consumer.try_send(Item::Word(Word::Started(started)));
            told(Told::Status(Status::Running));
            let now = Instant::now();
            let mut following = Following {
                line,
                pid,
                pipes: [Some(stdout), Some(stderr)],
                counted: Counted::default(),
                started_at: now,
                output_at: now,
                cause: None,
                unsaid: false,
                grace_ms: 0,
                leader: None,
                sweep: None,
                gone: None,
            };
            following.follow(terms, consumer, asks, &told).await;
            following.ending()
        }
        Some(Fact::NotStarted { exit_code, message }) => last::not_started(exit_code, message),
        _ => last::not_started(126, "its keeper ended before it could start the command".to_owned()),
    };
    info!(event = "process.finished", execution_id:% = terms.id, status = ending.status.as_str(), reason = ending.reason.as_str(),
        exit_code:serde = ending.exit_code, signal:serde = ending.signal, stdout_bytes:serde = ending.bytes.stdout,
        stderr_bytes:serde = ending.bytes.stderr, leftovers = ending.leftovers, ms:serde = ending.elapsed_ms; "process finished");
    ending
}

/// A command that runs, or whose remains are being read.
struct Following {
    line: Line,
    pid: i32,
    pipes: [Option<pipe::Receiver>; 2],
    counted: Counted,
    started_at: Instant,
    output_at: Instant,
    cause: Option<Cause>,
    /// CANCELLING has not been said to the consumer yet.
    unsaid: bool,
    grace_ms: u64,
    leader: Option<LeaderExit>,
    sweep: Option<Sweep>,
    gone: Option<Gone>,
}

/// What the command left behind is read until it is quiet, or for so long.
struct Sweep {
    quiet_at: Instant,
    cap_at: Instant,
    ordered: bool,
}

/// What woke the loop.
enum Wake<'a> {
    Place(mpsc::Permit<'a, Item>),
    ConsumerGone,
    Read(usize, std::io::Result<usize>),
    Ask(Option<Ask>),
    Fact(Option<Fact>),
    Timeout,
    Quiet,
    Heartbeat,
}

impl Following {
    /// Follows the command until its tree is gone and its pipes are empty.
    ///
    /// It ends: the command's own exit starts the sweep, the sweep and every cause give an order to the
    /// keeper, the keeper answers `Gone` or is gone itself, and a pipe without writers ends.
    async fn follow(
        &mut self,
        terms: &Terms,
        consumer: &mpsc::Sender<Item>,
        mut asks: mpsc::UnboundedReceiver<Ask>,
        told: &impl Fn(Told),
    ) {
        let deadline = terms.timeout_ms.map(|ms| self.started_at + Duration::from_millis(ms));
        let mut buffers = [BytesMut::new(), BytesMut::new()];
        let mut place = None;
        let mut wanted_since = Instant::now();
        let mut consumer_gone = false;
        let mut asks_open = true;
        let mut heartbeat_at = self.started_at + terms.heartbeat;
        loop {
            let pipes_open = self.pipes.iter().any(Option::is_some);
            if self.gone.is_some() && !pipes_open {
                return;
            }
            if self.leader.is_some() && !pipes_open {
                self.order_sweep().await;
            }
            let can_read = place.is_some() || consumer_gone;
            let [out, err] = &mut self.pipes;
            let [out_buffer, err_buffer] = &mut buffers;
            let quiet_at = match (&self.sweep, &self.gone) {
                (_, Some(_)) => Some(self.output_at.max(wanted_since) + GONE_QUIET),
                (Some(sweep), None) if !sweep.ordered => Some(sweep.quiet_at.min(sweep.cap_at)),
                _ => None,
            };
            // In this order: what is rare and must not starve behind a busy pipe, then the pipes, and the
            // quiet time last, so that it never cuts off what is there to be read.
            let wake = tokio::select! {
                biased;
                ask = asks.recv(), if asks_open => Wake::Ask(ask),
                fact = self.line.next(), if self.gone.is_none() => Wake::Fact(fact),
                () = at(deadline), if self.cause.is_none() && self.leader.is_none() => Wake::Timeout,
                () = sleep_until(heartbeat_at) => Wake::Heartbeat,
                n = read(out, out_buffer), if can_read && out.is_some() => Wake::Read(0, n),
                n = read(err, err_buffer), if can_read && err.is_some() => Wake::Read(1, n),
                permit = consumer.reserve(), if !can_read && (pipes_open || self.unsaid) => permit.map_or(Wake::ConsumerGone, Wake::Place),
                () = consumer.closed(), if !consumer_gone => Wake::ConsumerGone,
                // Time counts against what is left behind only while somebody could read it.
                () = at(quiet_at), if can_read => Wake::Quiet,
            };
            match wake {
                Wake::Place(permit) => {
                    place = self.say_status(permit);
                    let held_back = wanted_since.elapsed();
                    if let Some(sweep) = &mut self.sweep {
                        sweep.quiet_at += held_back;
                        sweep.cap_at += held_back;
                    }
                }
                Wake::ConsumerGone => {
                    consumer_gone = true;
                    place = None;
                    self.end(Cause::Disconnected, DEFAULT_GRACE_MS, terms, told).await;
                }
                Wake::Read(at, Ok(n)) if n > 0 => {
                    let stream = Stream::BOTH[at];
                    let bytes = take(&mut buffers[at], n);
                    self.counted.add(stream, &bytes);
                    self.output_at = Instant::now();
                    if let Some(sweep) = &mut self.sweep {
                        sweep.quiet_at = self.output_at + QUIET;
                    }
                    if let Some(permit) = place.take() {
                        permit.send(Item::Output { stream, bytes });
                        wanted_since = self.output_at;
                    }
                }
                // The end of the pipe, or a pipe that cannot be read: nothing more comes from it.
                Wake::Read(at, _) => self.pipes[at] = None,
                Wake::Ask(None) => asks_open = false,
                Wake::Ask(Some(Ask::Cancel { grace_ms, reason })) => {
                    self.end(Cause::Asked(reason), grace_ms, terms, told).await;
                    place = place.and_then(|permit| self.say_status(permit));
                }
                Wake::Ask(Some(Ask::Signal(number, answer))) => {
                    let there = self.leader.is_none() && self.line.order(&Order::Signal { number }).await.is_ok();
                    let _ = answer.send(there);
                }
                Wake::Fact(Some(Fact::Exited(exit))) => {
                    let now = Instant::now();
                    self.leader = Some(exit);
                    self.sweep = Some(Sweep { quiet_at: now + QUIET, cap_at: now + LEFTOVERS_CAP, ordered: false });
                }
                Wake::Fact(Some(Fact::Gone(gone))) => {
                    self.gone = Some(gone);
                    self.output_at = Instant::now();
                    told(Told::Gone(last::report(gone, self.grace_ms)));
                }
                Wake::Fact(Some(_)) => {}
                Wake::Fact(None) => self.keeper_lost(terms, told).await,
                Wake::Timeout => {
                    self.end(Cause::Timeout, DEFAULT_GRACE_MS, terms, told).await;
                    place = place.and_then(|permit| self.say_status(permit));
                }
                Wake::Quiet if self.gone.is_some() => self.pipes = [None, None],
                Wake::Quiet => self.order_sweep().await,
                Wake::Heartbeat => {
                    let now = Instant::now();
                    heartbeat_at = now + terms.heartbeat;
                    let alive = Alive {
                        elapsed_ms: millis(now - self.started_at),
                        since_output_ms: millis(now - self.output_at),
                    };
                    // A consumer that has no room now has signs of life enough waiting for it.
                    let _ = consumer.try_send(Item::Word(Word::Alive(alive)));
                }
            }
        }
    }

    /// Has the keeper end the tree. The first cause is the one that is told; a shorter grace takes effect.
    async fn end(&mut self, cause: Cause, grace_ms: u64, terms: &Terms, told: &impl Fn(Told)) {
        if self.leader.is_some() {
            // The command's own ending stands; only what it left behind is ended.
            return self.order_sweep().await;
        }
        if self.cause.is_none() {
            info!(event = "process.ending", execution_id:% = terms.id, cause = cause.as_str(), grace_ms = grace_ms; "ending the process");
            self.cause = Some(cause);
            self.unsaid = true;
            self.grace_ms = grace_ms;
            told(Told::Status(Status::Cancelling));
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

    /// Uses a place for CANCELLING where that has not been said yet; gives it back otherwise.
    fn say_status<'a>(&mut self, place: mpsc::Permit<'a, Item>) -> Option<mpsc::Permit<'a, Item>> {
        if !std::mem::take(&mut self.unsaid) {
            return Some(place);
        }
        place.send(Item::Word(Word::Status(StatusChange { status: Status::Cancelling })));
        None
    }

    /// Somebody killed the keeper. Its tree comes to this process, which ends it.
    async fn keeper_lost(&mut self, terms: &Terms, told: &impl Fn(Told)) {
        let survivors = self.line.sweep().await;
        warn!(event = "keeper.lost", execution_id:% = terms.id, pid = self.pid, survivors = survivors;
            "the keeper of this execution was ended by somebody else; its processes were ended too");
        let gone = Gone { verified: survivors == 0, survivors, killed: 0, escalated: true };
        told(Told::Gone(last::report(gone, self.grace_ms)));
        self.gone = Some(gone);
        self.output_at = Instant::now();
    }

    fn ending(self) -> Ending {
        let mut ending = last::ending(self.leader, self.cause, self.grace_ms, self.gone);
        if self.cause.is_none() {
            ending.leftovers = self.gone.map_or(0, |gone| gone.killed);
        }
        ending.elapsed_ms = Some(millis(self.started_at.elapsed()));
        self.counted.into_ending(&mut ending);
        ending
    }
}

async fn read(pipe: &mut Option<pipe::Receiver>, buffer: &mut BytesMut) -> std::io::Result<usize> {
    let Some(pipe) = pipe else { return Ok(0) };
    buffer.reserve(READ);
    pipe.read_buf(buffer).await
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

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => pin!(sleep_until(time)).await,
        None => std::future::pending().await,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// An ending of an execution that could not be started at all.
pub fn not_started(message: String) -> Ending {
    let ending = last::not_started(126, message);
    debug_assert_eq!(ending.reason, Reason::NotStarted);
    ending
}

/// The digest and count of one stream.
#[derive(Default)]
struct Tally {
    bytes: u64,
    sha256: Sha256,
}

impl Tally {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.sha256.update(bytes);
    }
}
