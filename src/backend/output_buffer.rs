//! The output of one execution between its pipes and its consumer: one ring for each stream, at most one consumer, and
//! any number of observers.
//!
//! A consumer reads from the rings at its own pace, from any offset that they still hold; output that it can take at
//! once is handed over without a copy. Back-pressure on the command is decided in [`OutputBuffer::may_read`]. An
//! execution that may continue without a consumer keeps unacknowledged output; any other waits for its consumer and
//! overwrites the rest.
//!
//! An observer reads like a consumer, but the execution waits for none of them: an observer has no hold, acknowledges
//! nothing, and finds a gap where the rings hold its bytes no longer.

mod consumer;
mod error;
mod extent;
mod kept;
mod observers;
mod retention;
mod ring;
mod stored;

use std::time::{Duration, Instant};

use bytes::Bytes;
use cc_executor_actors::{
    backend_api::BackendEvent,
    protocol::execute::Overflow,
    stream::{PerStream, Stream},
};

pub use self::{
    consumer::{Consumer, ConsumerChange, ConsumerFeed, ConsumerItem, DismissReason, SLOTS},
    error::{ConsumerError, OffsetError},
    extent::StreamExtent,
    retention::{RetainedOutput, UnreadPolicy},
    stored::{StoredOutput, StoredRange},
};
use self::{kept::KeptOutput, observers::Observers};
use super::holds::{Claim, ClaimResult, Holds};

/// The most that is read from a pipe at a time, in bytes.
pub const READ: usize = 64 * 1024;

/// The capacity of a ring beyond its limit: a stream below its limit is read once more, which adds at most one read.
const SLACK: usize = READ;

/// The output of one execution.
#[derive(Debug)]
pub struct OutputBuffer {
    kept: KeptOutput,
    holds: Holds,
    consumer: Option<Consumer>,
    observers: Observers,
    /// Whether the execution has ended, or is being ended because no consumer came.
    is_ending: bool,
}

impl OutputBuffer {
    /// A buffer with rings of this size for an execution that this consumer has created. With `stored`, everything that
    /// is added is on disk already, and the rings are the hot part of it.
    pub fn new(
        policy: UnreadPolicy,
        ring_bytes: PerStream<usize>,
        stored: Option<StoredOutput>,
        consumer: Consumer,
    ) -> Self {
        let holds = Holds::first(match consumer.claim {
            Claim::Request(request) => request,
            Claim::Number(_) | Claim::Back(_) => None,
        });
        OutputBuffer {
            kept: KeptOutput::new(policy, ring_bytes, SLACK, stored),
            holds,
            consumer: Some(consumer),
            observers: Observers::default(),
            is_ending: false,
        }
    }

    /// The buffer of an execution that has ended and whose output is not retained, or on disk only.
    pub fn without_output(written: PerStream<u64>, stored: Option<StoredOutput>, holds: Holds) -> Self {
        OutputBuffer {
            kept: KeptOutput::without_rings(written, stored),
            holds,
            consumer: None,
            observers: Observers::default(),
            is_ending: true,
        }
    }

    /// Sets the policy of an execution that has ended, and whether its output was acknowledged.
    pub fn set_policy(&mut self, policy: UnreadPolicy, is_fetched: bool) {
        self.kept.policy = policy;
        if is_fetched {
            self.kept.acknowledge(self.kept.written());
        }
    }

    /// How much was written to each stream.
    pub fn written(&self) -> PerStream<u64> {
        self.kept.written()
    }

    /// The holds of the execution.
    pub fn holds(&self) -> &Holds {
        &self.holds
    }

    /// Whether a consumer is attached.
    pub fn is_attached(&self) -> bool {
        self.consumer.is_some()
    }

    /// Whether the execution may continue without a consumer.
    pub fn may_detach(&self) -> bool {
        self.kept.policy != UnreadPolicy::Overwrite
    }

    /// Whether a stream's pipe may be read. Back-pressure on the command begins here: a pipe that is not read fills,
    /// and then the command's writes block.
    pub fn may_read(&self, stream: Stream) -> bool {
        match (self.kept.policy, &self.consumer) {
            (UnreadPolicy::Overwrite, Some(consumer)) => consumer.items.capacity() > 0,
            (UnreadPolicy::Detach(Overflow::Wait), _) => self.is_ending || self.kept.may_wait_for_client(stream),
            (UnreadPolicy::Overwrite, None) | (UnreadPolicy::Detach(Overflow::Drop), _) => true,
        }
    }

    /// What is on disk.
    pub fn stored(&self) -> Option<&StoredOutput> {
        self.kept.stored.as_ref()
    }

    /// What of a stream can be read now.
    pub fn extent(&self, stream: Stream) -> StreamExtent {
        self.kept.extent(stream)
    }

    /// Up to `most` bytes of a stream's ring from this offset on; none if they are not there.
    pub fn ring_piece(&self, stream: Stream, from: u64, most: usize) -> &[u8] {
        self.kept.rings.get(stream).piece(from, most)
    }

    /// Records how many bytes this execution may keep on disk because of the limit of all executions.
    pub fn grant(&mut self, bytes: u64) {
        if let Some(stored) = &mut self.kept.stored {
            stored.grant(bytes);
        }
    }

    /// The disk has failed: from here on the rings keep the output, as without a state directory.
    pub fn stop_storing(&mut self) {
        if let Some(stored) = &mut self.kept.stored {
            stored.stop();
        }
    }

    /// Lets go of the files, which frees the disk space of removed ones.
    pub fn forget_files(&mut self) {
        self.kept.stored = None;
    }

    /// Gives up stored output beyond the quota. Returns whether disk space can be freed.
    pub fn give_up(&mut self) -> bool {
        self.kept.give_up_stored(self.is_ending)
    }

    /// Adds output. A consumer or observer that has received everything before it gets it without a copy.
    pub fn push(&mut self, stream: Stream, bytes: Bytes) {
        let before = self.kept.push(stream, &bytes);
        self.observers.push(stream, before, &bytes);
        if let Some(consumer) = &mut self.consumer
            && consumer.can_take(stream, before)
        {
            consumer.take(stream, bytes);
            self.acknowledge_sent();
        }
    }

    /// Makes room for this many more bytes of a stream, so that unacknowledged and unread output is not overwritten.
    pub fn make_room(&mut self, stream: Stream, more: usize) {
        let cursor = self.consumer.as_ref().map(|consumer| *consumer.cursor.get(stream));
        self.kept.make_room(stream, more, cursor);
    }

    /// Sends an event as soon as the consumer has room, before undelivered output. Of undelivered events of one kind
    /// only the newest is sent. The same for each observer.
    pub fn send_event(&mut self, event: BackendEvent) {
        self.observers.queue_event(&event);
        if let Some(consumer) = &mut self.consumer {
            consumer.queue_event(event.with_hold(self.holds.newest()));
        }
        self.deliver();
    }

    /// Sends an event if the consumer has room now. Only for heartbeats: a consumer without room has items to read,
    /// which show that the execution lives. The same for each observer.
    pub fn send_event_if_room(&mut self, event: BackendEvent) {
        self.observers.send_event_if_room(&event);
        if let Some(consumer) = &self.consumer {
            consumer.send_event_if_room(event);
        }
    }

    /// The execution is being ended because no consumer came: unacknowledged output does not hold the pipes back any
    /// more.
    pub fn set_ending(&mut self) {
        self.is_ending = true;
    }

    /// Nothing more will be written. Gives back memory that the rings do not need.
    pub fn finish(&mut self) {
        self.is_ending = true;
        self.kept.finish();
    }

    /// Memory that the rings take, in bytes.
    pub fn memory(&self) -> usize {
        self.kept.memory()
    }

    /// Hands over events and output while the consumer has room, and likewise to the observers. Returns true when the
    /// consumer has received everything.
    pub fn deliver(&mut self) -> bool {
        let now = Instant::now();
        self.observers.deliver(&self.kept, now);
        let Some(consumer) = &mut self.consumer else { return false };
        let has_everything = consumer.deliver(&self.kept, now);
        self.acknowledge_sent();
        has_everything
    }

    /// Hands over the final event when the consumer has received everything else, and lets go of the consumer. The same
    /// for each observer.
    pub fn deliver_final(&mut self, event: impl Fn() -> BackendEvent) {
        let has_everything = self.deliver();
        for observer in self.observers.take_served(&self.kept, Instant::now()) {
            observer.finish(event());
        }
        if has_everything && let Some(consumer) = self.consumer.take() {
            consumer.finish(event());
        }
    }

    /// Whether every byte was acknowledged.
    pub fn is_fetched(&self) -> bool {
        self.kept.is_fetched()
    }

    /// The retained output of an execution that has ended. `fixed` is the memory that it takes besides its output.
    pub fn retained(&self, fixed: usize) -> RetainedOutput {
        let bytes = fixed + self.memory();
        if self.is_attached() {
            RetainedOutput::Followed(bytes)
        } else if self.memory() == 0 {
            RetainedOutput::Nothing
        } else if self.may_detach() && !self.is_fetched() {
            RetainedOutput::Unfetched(bytes)
        } else {
            RetainedOutput::Fetched(bytes)
        }
    }

    /// Only gateways send acknowledgements: output that was handed to any other consumer counts as received.
    fn acknowledge_sent(&mut self) {
        if let Some(consumer) = self.consumer.as_ref().filter(|consumer| !consumer.is_gateway) {
            self.kept.acknowledge(consumer.handed);
        }
    }

    /// Records that a client has received everything before these offsets.
    ///
    /// # Errors
    ///
    /// The offsets are beyond the end. Nothing has changed then.
    pub fn acknowledge(&mut self, offsets: PerStream<u64>) -> Result<(), OffsetError> {
        self.kept.check_offsets(offsets)?;
        self.kept.acknowledge(offsets);
        Ok(())
    }

    /// Attaches a consumer from its offsets on, and dismisses the one before. The new consumer gets the event `first`
    /// before anything else. A consumer whose hold is not the newest is dismissed itself, with the single message that
    /// another consumer has taken over.
    ///
    /// # Errors
    ///
    /// The offsets are beyond the end, or the hold was never given. Nothing has changed then.
    pub fn attach(
        &mut self,
        mut consumer: Consumer,
        first: Option<BackendEvent>,
    ) -> Result<ClaimResult, ConsumerError> {
        self.kept.check_offsets(consumer.cursor)?;
        let claimed = self.holds.claim(consumer.claim)?;
        let reason = match claimed {
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
        if let Some(event) = first {
            consumer.queue_event(event.with_hold(self.holds.newest()));
        }
        if let Some(before) = self.consumer.replace(consumer) {
            before.dismiss(reason);
        }
        Ok(claimed)
    }

    /// Adds an observer that reads from its offsets on, and gets the event `first` before anything else. It replaces
    /// the one of the same request.
    ///
    /// # Errors
    ///
    /// The offsets are beyond the end, or there are `limit` observers. Nothing has changed then.
    pub fn observe(
        &mut self,
        mut observer: Consumer,
        first: Option<BackendEvent>,
        limit: usize,
    ) -> Result<(), ConsumerError> {
        self.kept.check_offsets(observer.cursor)?;
        if let Some(event) = first {
            observer.queue_event(event);
        }
        self.observers.add(observer, limit)
    }

    /// How many observers there are.
    pub fn n_observers(&self) -> usize {
        self.observers.len()
    }

    /// Gives up the output of an ended execution, which is evicted or forgotten. An observer that has not received all
    /// of it gets a gap. A consumer keeps it.
    pub fn give_up_output(&mut self) {
        if self.consumer.is_none() {
            self.kept.drop_rings();
        }
    }

    /// Lets go of a consumer that is gone or does not read.
    pub fn dismiss(&mut self, reason: DismissReason) {
        if let Some(consumer) = self.consumer.take() {
            consumer.dismiss(reason);
        }
    }

    /// Records whether the consumer is known to be alive however little it reads, because its gateway has polled
    /// lately.
    pub fn set_consumer_alive(&mut self, is_alive: bool) {
        if let Some(timeout) = self.consumer.as_mut().and_then(|consumer| consumer.peer_timeout.as_mut()) {
            timeout.suspend(is_alive);
        }
    }

    /// Waits until the consumer makes room, is gone, or has vanished: it has read nothing for `patience`, and its
    /// gateway has not polled since `polled_at` either. Also returns when an observer has made room or is removed.
    pub async fn consumer_change(&mut self, patience: Duration, polled_at: Instant) -> ConsumerChange {
        let change = async {
            let Some(consumer) = &self.consumer else { return std::future::pending().await };
            consumer.change(patience, polled_at, self.is_ending).await
        };
        if self.observers.is_empty() {
            return change.await;
        }
        tokio::select! {
            biased;
            change = change => change,
            () = self.observers.change(patience) => {
                self.observers.remove_lost(patience, Instant::now());
                ConsumerChange::Room
            }
        }
    }
}

#[cfg(test)]
mod observer_tests;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cc_executor_actors::{
        backend_api::StatusChange,
        outcome::{Outcome, Reason, Status},
        stream::GapReason,
    };
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::{kept::RECEIVED_MARGIN, *};
    use crate::backend::storage::stored_file::StoredFile;

    pub(super) const RING: usize = 100;

    pub(super) fn output_buffer(policy: UnreadPolicy) -> (OutputBuffer, ConsumerFeed) {
        let (consumer, feed) = Consumer::new(PerStream::default(), true);
        (OutputBuffer::new(policy, PerStream { stdout: RING, stderr: RING }, None, consumer), feed)
    }

    pub(super) fn bytes(n: usize, from: usize) -> Bytes {
        (from..from + n).map(|at| (at % 251) as u8).collect()
    }

    pub(super) fn at(stdout: u64) -> PerStream<u64> {
        PerStream { stdout, stderr: 0 }
    }

    /// Reads what is there: the bytes of stdout by their offset, ranges of the file unread, and the events.
    pub(super) fn read(feed: &mut ConsumerFeed, from: u64) -> (u64, Vec<BackendEvent>) {
        let (mut end, mut events) = (from, Vec::new());
        while let Ok(item) = feed.items.try_recv() {
            match item {
                ConsumerItem::Output { bytes: got, .. } => {
                    assert_eq!(got, bytes(got.len(), end as usize), "the right bytes at {end}");
                    end += got.len() as u64;
                }
                ConsumerItem::Stored(range, _) => {
                    assert_eq!(range.from, end);
                    end = range.to;
                }
                ConsumerItem::Event(event) => {
                    if let BackendEvent::Gap(gap) = &event {
                        assert_eq!(gap.from, end);
                        end = gap.to;
                    }
                    events.push(event);
                }
            }
        }
        (end, events)
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
        assert!(output_buffer.may_read(Stream::Stdout), "it waits for no consumer");
    }

    #[test]
    fn output_that_a_library_has_received_is_kept_for_its_program() {
        const MIB: usize = 1 << 20;
        let policy = UnreadPolicy::Detach(Overflow::Wait);
        let (consumer, mut feed) = Consumer::new(at(0), true);
        let mut output_buffer = OutputBuffer::new(policy, PerStream { stdout: MIB, stderr: 0 }, None, consumer);
        let mut written = 0;
        while written < 10 * MIB {
            assert!(output_buffer.may_read(Stream::Stdout));
            output_buffer.push(Stream::Stdout, bytes(READ, written));
            output_buffer.deliver();
            assert_eq!(read(&mut feed, written as u64).0, (written + READ) as u64);
            written += READ;
            output_buffer.acknowledge(at(written as u64)).unwrap();
        }
        let from = (written - RECEIVED_MARGIN) as u64;
        let (mut again, mut feed) = Consumer::new(at(from), true);
        again.has_arrived = false;
        output_buffer.attach(again, None).unwrap();
        let mut end = from;
        while end < written as u64 {
            output_buffer.deliver();
            let (read_to, events) = read(&mut feed, end);
            assert!(events.is_empty() && read_to > end, "no gap at {end}: {events:?}");
            end = read_to;
        }
    }

    #[test]
    fn unacknowledged_output_is_never_overwritten() {
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
        assert_eq!(output_buffer.attach(consumer, None), Err(ConsumerError::Offset(beyond)));
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
        let moved = output_buffer.consumer_change(Duration::from_secs(60), Instant::now());
        assert_eq!(moved.now_or_never(), Some(ConsumerChange::Room));
    }

    #[test]
    fn dropped_output_is_a_gap_in_its_place() {
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
            let (to, events) = read(&mut feed, end);
            end = to;
            gaps.extend(events);
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
        output_buffer.deliver_final(|| BackendEvent::Exit(ending.clone()));
        assert_eq!(read(&mut feed, 4), (10, vec![first, BackendEvent::Exit(ending)]));
        assert!(!output_buffer.is_attached());
    }

    #[test]
    fn one_whose_output_is_gone_says_all_at_once() {
        let mut output_buffer =
            OutputBuffer::without_output(PerStream { stdout: 9, stderr: 5 }, None, Holds::since((1, None)));
        let (consumer, mut feed) = Consumer::new(at(4), true);
        let first = BackendEvent::Status(StatusChange::to(Status::Running));
        output_buffer.attach(consumer, Some(first.clone())).unwrap();
        let ending = Outcome::without_process(Status::Completed, Reason::Exit, None);
        output_buffer.deliver_final(|| BackendEvent::Exit(ending.clone()));
        assert!(!output_buffer.is_attached(), "no item is left to send");
        let events: Vec<_> = std::iter::from_fn(|| feed.items.try_recv().ok()).collect();
        assert_eq!(events.len(), SLOTS);
        let gap = |at: usize| match &events[at] {
            ConsumerItem::Event(BackendEvent::Gap(gap)) => (gap.from, gap.to, gap.reason),
            other => panic!("{other:?}"),
        };
        assert_eq!([gap(1), gap(2)], [(4, 9, GapReason::Overwritten), (0, 5, GapReason::Overwritten)]);
        assert!(matches!(
            (&events[0], &events[3]),
            (ConsumerItem::Event(BackendEvent::Status(_)), ConsumerItem::Event(BackendEvent::Exit(_)))
        ));
        let beyond = OffsetError { stream: Stream::Stdout, asked: 10, end: 9 };
        assert_eq!(output_buffer.attach(Consumer::new(at(10), true).0, None), Err(beyond.into()));
    }

    #[test]
    fn of_undelivered_events_of_a_kind_only_the_newest_is_sent() {
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
        /// has every byte in the end, or a gap for it.
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
                        let (to, events) = read(&mut feed, end);
                        end = to;
                        for event in events {
                            let BackendEvent::Gap(gap) = event else { panic!("{event:?}") };
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
                let (to, events) = read(&mut feed, end);
                end = to;
                lost += events.iter().map(|event| if let BackendEvent::Gap(gap) = event { gap.to - gap.from } else { 0 }).sum::<u64>();
                prop_assert!(end > before, "it goes on");
            }
            prop_assert_eq!(end, written as u64);
            if policy == UnreadPolicy::Detach(Overflow::Wait) {
                prop_assert_eq!(lost, 0);
            }
        }
    }

    fn stored_buffer(policy: UnreadPolicy, quota: u64) -> (OutputBuffer, ConsumerFeed) {
        let (consumer, feed) = Consumer::new(PerStream::default(), true);
        let file = || Arc::new(StoredFile::at("/nowhere".into(), 0));
        let stored = StoredOutput::new(PerStream { stdout: file(), stderr: file() }, quota);
        (OutputBuffer::new(policy, PerStream { stdout: RING, stderr: RING }, Some(stored), consumer), feed)
    }

    #[test]
    fn with_a_file_nothing_waits_for_the_client_below_the_quota() {
        const MIB: usize = 1 << 20;
        let (mut output_buffer, mut feed) = stored_buffer(UnreadPolicy::Detach(Overflow::Wait), 9 * MIB as u64);
        let mut written = 0;
        while output_buffer.may_read(Stream::Stdout) {
            output_buffer.push(Stream::Stdout, bytes(MIB, written));
            written += MIB;
        }
        assert_eq!(written, 9 * MIB);
        let (mut end, mut events) = (0, Vec::new());
        while !output_buffer.deliver() {
            let (next, more) = read(&mut feed, end);
            end = next;
            events.extend(more);
        }
        assert_eq!((read(&mut feed, end).0, events), (written as u64, vec![]), "from the file, then from the ring");
        output_buffer.acknowledge(at(8 * MIB as u64)).unwrap();
        assert!(output_buffer.may_read(Stream::Stdout));
        assert!(!output_buffer.give_up(), "the margin is kept");
        for _ in 0..5 {
            output_buffer.push(Stream::Stdout, bytes(MIB, written));
            written += MIB;
        }
        assert!(output_buffer.give_up());
        assert_eq!(output_buffer.stored().unwrap().kept(), 13 * MIB as u64);
    }

    #[test]
    fn when_the_disk_fails_the_ring_takes_over_without_a_gap() {
        let (mut output_buffer, mut feed) = stored_buffer(UnreadPolicy::Detach(Overflow::Wait), u64::MAX);
        output_buffer.push(Stream::Stdout, bytes(1_000_000, 0));
        output_buffer.stop_storing();
        let mut written = 1_000_000;
        while output_buffer.may_read(Stream::Stdout) {
            output_buffer.push(Stream::Stdout, bytes(10, written));
            written += 10;
        }
        assert_eq!(written, 1_000_000 + RING);
        output_buffer.make_room(Stream::Stdout, 3_000_000);
        output_buffer.push(Stream::Stdout, bytes(3_000_000, written));
        written += 3_000_000;
        output_buffer.finish();
        let (mut end, mut events) = (0, Vec::new());
        while !output_buffer.deliver() {
            let (next, more) = read(&mut feed, end);
            end = next;
            events.extend(more);
        }
        assert_eq!((read(&mut feed, end).0, events), (written as u64, vec![]));
    }

    #[test]
    fn a_dropping_execution_tells_the_gap_before_its_files() {
        let (mut output_buffer, mut feed) = stored_buffer(UnreadPolicy::Detach(Overflow::Drop), 1 << 20);
        let (_, mut end) = (read(&mut feed, 0), 0);
        for _ in 0..8 {
            assert!(output_buffer.may_read(Stream::Stdout));
            output_buffer.push(Stream::Stdout, bytes(1 << 20, end));
            end += 1 << 20;
        }
        assert!(output_buffer.give_up());
        output_buffer.finish();
        let (consumer, mut feed) = Consumer::new(PerStream::default(), true);
        output_buffer.attach(consumer, None).unwrap();
        assert!(output_buffer.deliver());
        let ConsumerItem::Stored(range, reason) = feed.items.try_recv().unwrap() else { panic!("a range of the file") };
        assert_eq!((range.from, range.to, range.file.start(), reason), (0, end as u64, 7 << 20, GapReason::Dropped));
        assert!(feed.items.try_recv().is_err(), "one item has all of it");
    }
}
