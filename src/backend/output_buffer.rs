//! What a command has written, on its way to whoever follows it: one ring a stream, and one consumer.
//!
//! A consumer reads from the rings at its own pace, from any offset that is still kept; a live one gets
//! what is read without a copy. Back-pressure is decided in [`OutputBuffer::may_read`]. An execution that may
//! go on without a consumer keeps what nobody has acknowledged; any other overwrites, and waits for
//! its consumer alone.

mod consumer;
mod retention;
mod ring;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cc_executor_actors::{
    backend_api::BackendEvent,
    protocol::execute::Overflow,
    stream::{PerStream, Stream},
};

use self::ring::Ring;
pub use self::{
    consumer::{Consumer, ConsumerChange, ConsumerFeed, ConsumerItem, DismissReason, SLOTS},
    retention::{RetainedOutput, UnreadPolicy},
};
use super::holds::{Claim, ClaimResult, HoldError, Holds};

/// The most that is read from a pipe at a time, in bytes.
pub const READ: usize = 64 * 1024;

/// A stream whose ring is not full is read once more: as much as one read takes.
const SLACK: usize = READ;

/// Offsets that the output of an execution does not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("offset {asked} of {} is beyond its {end} bytes", .stream.as_str())]
pub struct OffsetError {
    /// The stream.
    pub stream: Stream,
    /// The offset.
    pub asked: u64,
    /// How much was written to the stream so far.
    pub end: u64,
}

/// Why a consumer does not get the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AttachError {
    /// It claims to have more than was written.
    #[error(transparent)]
    Offset(#[from] OffsetError),
    /// Its claim does not count.
    #[error(transparent)]
    Hold(#[from] HoldError),
}

/// The output of one execution.
#[derive(Debug)]
pub struct OutputBuffer {
    rings: PerStream<Ring>,
    acknowledged: PerStream<u64>,
    policy: UnreadPolicy,
    /// How much of each stream may wait for acknowledgement, in bytes.
    limits: PerStream<u64>,
    holds: Holds,
    consumer: Option<Consumer>,
    unsaid: VecDeque<BackendEvent>,
    /// Nothing more will be written, or read.
    finished: bool,
    /// Which stream is looked at first: they take turns.
    first: usize,
}

impl OutputBuffer {
    /// A buffer with rings of so many bytes.
    pub fn new(policy: UnreadPolicy, ring_bytes: PerStream<usize>, consumer: Consumer) -> Self {
        let ring = |bytes: usize| Ring::new(bytes + SLACK);
        let holds = Holds::first(match consumer.claim {
            Claim::Request(request) => request,
            Claim::Number(_) | Claim::Back(_) => None,
        });
        OutputBuffer {
            rings: PerStream { stdout: ring(ring_bytes.stdout), stderr: ring(ring_bytes.stderr) },
            acknowledged: PerStream::default(),
            policy,
            limits: ring_bytes.map(|bytes| bytes as u64),
            holds,
            consumer: Some(consumer),
            unsaid: VecDeque::new(),
            finished: false,
            first: 0,
        }
    }

    /// The buffer of an execution that has ended, and of whose output nothing is kept.
    pub fn without_output(written: PerStream<u64>, holds: Holds) -> Self {
        OutputBuffer {
            holds,
            rings: PerStream {
                stdout: Ring::without_bytes(written.stdout),
                stderr: Ring::without_bytes(written.stderr),
            },
            acknowledged: PerStream::default(),
            policy: UnreadPolicy::Overwrite,
            limits: PerStream::default(),
            consumer: None,
            unsaid: VecDeque::new(),
            finished: true,
            first: 0,
        }
    }

    /// How much was written to each stream.
    pub fn written(&self) -> PerStream<u64> {
        PerStream { stdout: self.rings.stdout.end(), stderr: self.rings.stderr.end() }
    }

    /// The holds of the execution.
    pub fn holds(&self) -> &Holds {
        &self.holds
    }

    /// Whether somebody follows it.
    pub fn is_attached(&self) -> bool {
        self.consumer.is_some()
    }

    /// Whether it goes on without a consumer.
    pub fn may_detach(&self) -> bool {
        self.policy != UnreadPolicy::Overwrite
    }

    /// Whether a stream's pipe may be read: back-pressure begins here.
    pub fn may_read(&self, stream: Stream) -> bool {
        match (self.policy, &self.consumer) {
            (UnreadPolicy::Overwrite, Some(consumer)) => consumer.items.capacity() > 0,
            (UnreadPolicy::Detach(Overflow::Wait), _) => {
                self.finished || self.rings.get(stream).end() - self.acknowledged.get(stream) < *self.limits.get(stream)
            }
            (UnreadPolicy::Overwrite, None) | (UnreadPolicy::Detach(Overflow::Drop), _) => true,
        }
    }

    /// Takes what was read. A consumer that has had everything before gets it as it is.
    pub fn push(&mut self, stream: Stream, bytes: Bytes) {
        let ring = self.rings.get_mut(stream);
        let before = ring.end();
        ring.push(&bytes);
        if let Some(consumer) = &mut self.consumer
            && *consumer.cursor.get(stream) == before
            && self.unsaid.is_empty()
            && consumer.items.capacity() > 0
        {
            *consumer.cursor.get_mut(stream) = ring.end();
            // One that is gone is noticed where it is waited for.
            let _ = consumer.items.try_send(ConsumerItem::Output { stream, bytes });
            self.acknowledge_sent();
        }
    }

    /// Makes room for so many more bytes of a stream, without overwriting output that is unacknowledged or unread.
    pub fn make_room(&mut self, stream: Stream, more: usize) {
        let acknowledged = match self.policy {
            UnreadPolicy::Detach(Overflow::Wait) => Some(*self.acknowledged.get(stream)),
            UnreadPolicy::Detach(Overflow::Drop) | UnreadPolicy::Overwrite => None,
        };
        let cursor = self.consumer.as_ref().map(|consumer| *consumer.cursor.get(stream));
        let ring = self.rings.get_mut(stream);
        let from = acknowledged.into_iter().chain(cursor).min().unwrap_or(ring.end());
        ring.make_room(from, more);
    }

    /// Says a word as soon as there is room, before any output that has not been handed over. Of words
    /// of one kind only the newest waits.
    pub fn send_event(&mut self, word: BackendEvent) {
        let replaces = |older: &BackendEvent| {
            matches!(
                (older, &word),
                (BackendEvent::Queued(_), BackendEvent::Queued(_) | BackendEvent::Started(_))
                    | (BackendEvent::Status(_), BackendEvent::Status(_))
            )
        };
        if self.unsaid.back().is_some_and(replaces) {
            self.unsaid.pop_back();
        }
        self.unsaid.push_back(word.with_hold(self.holds.newest()));
        self.deliver();
    }

    /// Says a word if there is room now.
    pub fn mention(&mut self, word: BackendEvent) {
        if let Some(consumer) = &self.consumer
            && self.unsaid.is_empty()
        {
            // A consumer without room has signs of life enough waiting for it.
            let _ = consumer.items.try_send(ConsumerItem::Word(word));
        }
    }

    /// The pipes may be read to their ends from now on, whoever takes that.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// Nothing will be written any more: the last word waits for whoever has had everything.
    pub fn end(&mut self) {
        self.finished = true;
        self.rings.stdout.finish();
        self.rings.stderr.finish();
    }

    /// Memory that the rings take, in bytes.
    pub fn memory(&self) -> usize {
        self.rings.stdout.memory() + self.rings.stderr.memory()
    }

    /// Hands over what there is, as far as there is room. True when the consumer has had everything.
    pub fn deliver(&mut self) -> bool {
        let now = Instant::now();
        loop {
            let Some(consumer) = &mut self.consumer else { return false };
            if consumer.items.capacity() == 0 {
                consumer.blocked_since.get_or_insert(now);
                return false;
            }
            consumer.blocked_since = None;
            let item = match self.unsaid.pop_front() {
                Some(word) => ConsumerItem::Word(word),
                None => match consumer.next_item(&self.rings, &mut self.first, self.policy, &self.acknowledged) {
                    Some(item) => item,
                    None => return true,
                },
            };
            if consumer.items.try_send(item).is_err() {
                return false;
            }
            self.acknowledge_sent();
        }
    }

    /// Hands over the last word, after everything else. The consumer is then done.
    pub fn deliver_last(&mut self, last: impl FnOnce() -> BackendEvent) {
        if self.deliver()
            && let Some(consumer) = self.consumer.take()
        {
            let _ = consumer.items.try_send(ConsumerItem::Word(last()));
        }
    }

    /// What is kept, of an execution that has ended: `fixed` is the memory that it takes besides its output.
    pub fn kept(&self, fixed: usize) -> RetainedOutput {
        let behind = |stream| self.acknowledged.get(stream) < &self.rings.get(stream).end();
        let bytes = fixed + self.memory();
        if self.is_attached() {
            RetainedOutput::Followed(bytes)
        } else if self.memory() == 0 {
            RetainedOutput::Nothing
        } else if self.may_detach() && Stream::BOTH.into_iter().any(behind) {
            RetainedOutput::Unfetched(bytes)
        } else {
            RetainedOutput::Fetched(bytes)
        }
    }

    /// Nobody but a gateway acknowledges: what was handed to anybody else counts as received.
    fn acknowledge_sent(&mut self) {
        if let Some(consumer) = self.consumer.as_ref().filter(|consumer| !consumer.is_gateway) {
            for stream in Stream::BOTH {
                let acknowledged = self.acknowledged.get_mut(stream);
                *acknowledged = (*acknowledged).max(*consumer.cursor.get(stream));
            }
        }
    }

    /// Takes note of what a client has received.
    ///
    /// # Errors
    ///
    /// Offsets beyond the end: nothing has changed then.
    pub fn acknowledge(&mut self, offsets: PerStream<u64>) -> Result<(), OffsetError> {
        self.check_offsets(offsets)?;
        for stream in Stream::BOTH {
            let acknowledged = self.acknowledged.get_mut(stream);
            *acknowledged = (*acknowledged).max(*offsets.get(stream));
        }
        Ok(())
    }

    /// Gives the output to a consumer that may have it, from where it has it; the one before is sent away.
    /// `first` is what the new one is told before anything else. A consumer whose hold is over is sent
    /// away itself, with the single message that another consumer has taken over.
    ///
    /// # Errors
    ///
    /// Offsets beyond the end, or a hold that was never given: nothing has changed then.
    pub fn attach(&mut self, consumer: Consumer, first: Option<BackendEvent>) -> Result<ClaimResult, AttachError> {
        self.check_offsets(consumer.cursor)?;
        let claimed = self.holds.claim(consumer.claim)?;
        let why = match claimed {
            ClaimResult::New => DismissReason::TakenOver,
            ClaimResult::Same => DismissReason::Replaced,
            ClaimResult::TakenOver => {
                consumer.dismiss(DismissReason::TakenOver);
                return Ok(claimed);
            }
        };
        if consumer.has_arrived {
            self.acknowledge(consumer.cursor)?;
        }
        self.unsaid.clear();
        self.unsaid.extend(first.map(|word| word.with_hold(self.holds.newest())));
        if let Some(before) = self.consumer.replace(consumer) {
            before.dismiss(why);
        }
        Ok(claimed)
    }

    /// Lets go of a consumer that is gone, or takes nothing.
    pub fn dismiss(&mut self, why: DismissReason) {
        if let Some(consumer) = self.consumer.take() {
            consumer.dismiss(why);
        }
    }

    fn check_offsets(&self, offsets: PerStream<u64>) -> Result<(), OffsetError> {
        for stream in Stream::BOTH {
            let (asked, end) = (*offsets.get(stream), self.rings.get(stream).end());
            if asked > end {
                return Err(OffsetError { stream, asked, end });
            }
        }
        Ok(())
    }

    /// Whether the consumer is known to live, however little it reads: its gateway has asked lately.
    pub fn is_known_to_live(&mut self, lives: bool) {
        if let Some(watch) = self.consumer.as_mut().and_then(|consumer| consumer.watch.as_mut()) {
            watch.hold_off(lives);
        }
    }

    /// Waits until the consumer makes room, is gone, or has vanished: it took nothing for so long, and
    /// its gateway did not ask for it since `asked_at` either.
    pub async fn moved(&self, patience: Duration, asked_at: Instant) -> ConsumerChange {
        let Some(consumer) = &self.consumer else { return std::future::pending().await };
        consumer.changed(patience, asked_at, self.finished).await
    }
}

#[cfg(test)]
mod tests {
    use cc_executor_actors::{
        backend_api::StatusChange,
        outcome::{Outcome, Reason, Status},
        stream::GapReason,
    };
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    const RING: usize = 100;

    fn output_buffer(policy: UnreadPolicy) -> (OutputBuffer, ConsumerFeed) {
        let (consumer, feed) = Consumer::new(PerStream::default(), true);
        (OutputBuffer::new(policy, PerStream { stdout: RING, stderr: RING }, consumer), feed)
    }

    fn bytes(n: usize, from: usize) -> Bytes {
        (from..from + n).map(|at| (at % 251) as u8).collect()
    }

    fn at(stdout: u64) -> PerStream<u64> {
        PerStream { stdout, stderr: 0 }
    }

    /// Reads what is there: the bytes of stdout by their offset, and the words.
    fn read(feed: &mut ConsumerFeed, from: u64) -> (u64, Vec<BackendEvent>) {
        let (mut end, mut words) = (from, Vec::new());
        while let Ok(item) = feed.items.try_recv() {
            match item {
                ConsumerItem::Output { bytes: got, .. } => {
                    assert_eq!(got, bytes(got.len(), end as usize), "the right bytes at {end}");
                    end += got.len() as u64;
                }
                ConsumerItem::Word(word) => {
                    if let BackendEvent::Gap(gap) = &word {
                        assert_eq!(gap.from, end);
                        end = gap.to;
                    }
                    words.push(word);
                }
            }
        }
        (end, words)
    }

    #[test]
    fn one_that_may_not_detach_waits_for_its_consumers_room_alone() {
        let (mut output_buffer, mut feed) = output_buffer(UnreadPolicy::Overwrite);
        let mut written = 0;
        while output_buffer.may_read(Stream::Stdout) {
            output_buffer.push(Stream::Stdout, bytes(RING, written));
            written += RING;
        }
        assert_eq!(written, SLOTS * RING);
        assert_eq!(read(&mut feed, 0), (written as u64, vec![]));
        assert!(output_buffer.may_read(Stream::Stdout));
        output_buffer.dismiss(DismissReason::Vanished);
        assert!(output_buffer.may_read(Stream::Stdout), "nobody is waited for");
    }

    #[test]
    fn what_nobody_acknowledged_is_never_overwritten() {
        let (mut output_buffer, feed) = output_buffer(UnreadPolicy::Detach(Overflow::Wait));
        drop(feed);
        output_buffer.dismiss(DismissReason::Vanished);
        let mut written = 0;
        while output_buffer.may_read(Stream::Stdout) {
            output_buffer.push(Stream::Stdout, bytes(7, written));
            written += 7;
        }
        assert!((RING..RING + 7).contains(&written));
        assert!(output_buffer.may_read(Stream::Stderr), "the other stream has a ring of its own");
        let (consumer, mut feed) = Consumer::new(at(10), true);
        output_buffer.attach(consumer, None).unwrap();
        output_buffer.deliver();
        assert_eq!(read(&mut feed, 10), (written as u64, vec![]));
        assert!(output_buffer.may_read(Stream::Stdout), "what it has is acknowledged by attaching");
        output_buffer.push(Stream::Stdout, bytes(7, written));
        assert!(!output_buffer.may_read(Stream::Stdout), "sent is not received");
        output_buffer.acknowledge(at(50)).unwrap();
        output_buffer.acknowledge(at(20)).unwrap();
        assert!(output_buffer.may_read(Stream::Stdout));
        let beyond = OffsetError { stream: Stream::Stdout, asked: written as u64 + 8, end: written as u64 + 7 };
        assert_eq!(output_buffer.acknowledge(at(written as u64 + 8)), Err(beyond));
        let consumer = Consumer::new(at(written as u64 + 8), true).0;
        assert_eq!(output_buffer.attach(consumer, None), Err(AttachError::Offset(beyond)));
        assert!(output_buffer.is_attached(), "the one before stays");
    }

    #[tokio::test]
    async fn room_that_is_made_between_looking_and_waiting_is_noticed() {
        let (mut output_buffer, mut feed) = output_buffer(UnreadPolicy::Overwrite);
        for n in 0..=SLOTS {
            output_buffer.push(Stream::Stdout, bytes(1, n));
        }
        assert!(!output_buffer.deliver(), "there is one more piece than there is room");
        feed.items.try_recv().unwrap();
        let moved = output_buffer.moved(Duration::from_secs(60), Instant::now());
        assert_eq!(moved.now_or_never(), Some(ConsumerChange::Room));
    }

    #[test]
    fn what_is_dropped_is_said_in_its_place() {
        let (mut output_buffer, mut feed) = output_buffer(UnreadPolicy::Detach(Overflow::Drop));
        let whole = 2 * (RING + SLACK);
        let mut written = 0;
        while written < whole {
            assert!(output_buffer.may_read(Stream::Stdout));
            output_buffer.push(Stream::Stdout, bytes(64, written));
            written += 64;
        }
        let mut end = 0;
        let mut gaps = Vec::new();
        while end < written as u64 {
            output_buffer.deliver();
            let (to, words) = read(&mut feed, end);
            end = to;
            gaps.extend(words);
        }
        let Some(BackendEvent::Gap(gap)) = gaps.first() else { panic!("a gap: {gaps:?}") };
        assert_eq!((gap.from, gap.to, gap.reason), (256, (written - RING - SLACK) as u64, GapReason::Dropped));
    }

    #[test]
    fn a_new_consumer_sends_the_old_one_away_and_is_told_where_it_stands_first() {
        let (mut output_buffer, mut old) = output_buffer(UnreadPolicy::Overwrite);
        output_buffer.push(Stream::Stdout, bytes(10, 0));
        let (consumer, mut feed) = Consumer::new(at(4), true);
        let first = BackendEvent::Status(StatusChange::to(Status::Running));
        output_buffer.attach(consumer, Some(first.clone())).unwrap();
        assert_eq!(old.dismissed.try_recv(), Ok(DismissReason::TakenOver));
        let ending = Outcome::without_process(Status::Completed, Reason::Exit, None);
        output_buffer.deliver_last(|| BackendEvent::Exit(ending.clone()));
        assert_eq!(read(&mut feed, 4), (10, vec![first, BackendEvent::Exit(ending)]));
        assert!(!output_buffer.is_attached());
    }

    #[test]
    fn one_whose_output_is_gone_says_all_at_once() {
        let mut output_buffer =
            OutputBuffer::without_output(PerStream { stdout: 9, stderr: 5 }, Holds::since((1, None)));
        let (consumer, mut feed) = Consumer::new(at(4), true);
        let first = BackendEvent::Status(StatusChange::to(Status::Running));
        output_buffer.attach(consumer, Some(first.clone())).unwrap();
        let ending = Outcome::without_process(Status::Completed, Reason::Exit, None);
        output_buffer.deliver_last(|| BackendEvent::Exit(ending.clone()));
        assert!(!output_buffer.is_attached(), "nothing more is to be said");
        let words: Vec<_> = std::iter::from_fn(|| feed.items.try_recv().ok()).collect();
        assert_eq!(words.len(), SLOTS);
        let gap = |at: usize| match &words[at] {
            ConsumerItem::Word(BackendEvent::Gap(gap)) => (gap.from, gap.to, gap.reason),
            other => panic!("{other:?}"),
        };
        assert_eq!([gap(1), gap(2)], [(4, 9, GapReason::Overwritten), (0, 5, GapReason::Overwritten)]);
        assert!(matches!(
            (&words[0], &words[3]),
            (ConsumerItem::Word(BackendEvent::Status(_)), ConsumerItem::Word(BackendEvent::Exit(_)))
        ));
        let beyond = OffsetError { stream: Stream::Stdout, asked: 10, end: 9 };
        assert_eq!(output_buffer.attach(Consumer::new(at(10), true).0, None), Err(beyond.into()));
    }

    #[test]
    fn of_the_words_that_wait_only_the_newest_of_a_kind_is_said() {
        let (mut output_buffer, mut feed) = output_buffer(UnreadPolicy::Overwrite);
        for n in 0..SLOTS {
            output_buffer.push(Stream::Stdout, bytes(1, n));
        }
        for status in [Status::Paused, Status::Running, Status::Paused, Status::Cancelling] {
            output_buffer.send_event(BackendEvent::Status(StatusChange::to(status)));
        }
        assert_eq!(read(&mut feed, 0).0, SLOTS as u64);
        output_buffer.deliver();
        assert_eq!(read(&mut feed, 0).1, [BackendEvent::Status(StatusChange::to(Status::Cancelling))]);
    }

    proptest! {
        /// However writing, reading, vanishing and attaching alternate: a client that keeps what it got
        /// has every byte in the end, or was told of the gap.
        #[test]
        fn no_byte_is_lost_in_silence(
            policy in 0..3usize,
            moves in prop::collection::vec((0..5, 1usize..60), 1..80),
        ) {
            let policy = [UnreadPolicy::Overwrite, UnreadPolicy::Detach(Overflow::Wait), UnreadPolicy::Detach(Overflow::Drop)][policy];
            let (mut output_buffer, mut feed) = output_buffer(policy);
            let (mut written, mut end, mut lost) = (0usize, 0u64, 0u64);
            for (what, n) in moves {
                match what {
                    0 | 1 => if output_buffer.may_read(Stream::Stdout) {
                        output_buffer.push(Stream::Stdout, bytes(n, written));
                        written += n;
                    },
                    2 => {
                        output_buffer.deliver();
                        let (to, words) = read(&mut feed, end);
                        end = to;
                        for word in words {
                            let BackendEvent::Gap(gap) = word else { panic!("{word:?}") };
                            lost += gap.to - gap.from;
                        }
                    }
                    // What was handed over and not read is lost with the connection.
                    3 => {
                        let (consumer, new) = Consumer::new(at(end), true);
                        output_buffer.attach(consumer, None).unwrap();
                        feed = new;
                    }
                    _ => output_buffer.acknowledge(at(end)).unwrap(),
                }
            }
            while end < written as u64 {
                output_buffer.deliver();
                let before = end;
                let (to, words) = read(&mut feed, end);
                end = to;
                lost += words.iter().map(|word| if let BackendEvent::Gap(gap) = word { gap.to - gap.from } else { 0 }).sum::<u64>();
                prop_assert!(end > before, "it goes on");
            }
            prop_assert_eq!(end, written as u64);
            if policy == UnreadPolicy::Detach(Overflow::Wait) {
                prop_assert_eq!(lost, 0);
            }
        }
    }
}
