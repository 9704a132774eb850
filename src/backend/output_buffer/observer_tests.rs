//! Observers beside a consumer: what each gets, and that the execution and its consumer see no difference.

use cc_executor_actors::{
    backend_api::{Heartbeat, StartedEvent, StatusChange, StreamInfo},
    id::{ExecutionId, RequestId},
    outcome::{Outcome, Reason, Status},
    protocol::execute::Overflow,
    stream::{GapReason, Stream},
};
use futures_util::FutureExt;
use proptest::prelude::*;

use super::{
    tests::{RING, at, bytes, output_buffer, read},
    *,
};
use crate::backend::holds::Claim;

const LIMIT: usize = 3;

fn observe(output_buffer: &mut OutputBuffer, from: u64, first: Option<BackendEvent>) -> ConsumerFeed {
    let (observer, feed) = Consumer::new(at(from), true);
    output_buffer.observe(observer, first, LIMIT).unwrap();
    feed
}

fn exit() -> BackendEvent {
    BackendEvent::Exit(Outcome::without_process(Status::Completed, Reason::Exit, None))
}

fn started() -> BackendEvent {
    BackendEvent::Started(StartedEvent {
        execution_id: ExecutionId::random(),
        executor: "shell".to_owned(),
        status: Status::Running,
        terms: StreamInfo::default(),
        alive: Heartbeat::default(),
    })
}

#[test]
fn each_observer_gets_everything_and_only_the_consumer_has_a_hold() {
    let (mut output_buffer, mut feed) = output_buffer(UnreadPolicy::Overwrite);
    let first = started();
    let mut early = observe(&mut output_buffer, 0, None);
    output_buffer.send_event(first.clone());
    output_buffer.push(Stream::Stdout, bytes(20, 0));
    let mut late = observe(&mut output_buffer, 0, Some(first.clone()));
    output_buffer.deliver();
    let status = BackendEvent::Status(StatusChange::to(Status::Paused));
    output_buffer.send_event(status.clone());
    let alive = BackendEvent::Alive(Heartbeat::default());
    output_buffer.send_event_if_room(alive.clone());
    let held = first.clone().with_hold(1);
    assert_eq!(read(&mut feed, 0), (20, vec![held, status.clone(), alive.clone()]));
    // The slots of the observers are full, so they get it from the ring.
    output_buffer.push(Stream::Stdout, bytes(5, 20));
    for observer in [&mut early, &mut late] {
        assert_eq!(read(observer, 0), (20, vec![first.clone(), status.clone(), alive.clone()]));
        // Their slots were full when the output came, so it comes from the ring.
    }
    output_buffer.deliver_final(exit);
    assert_eq!(read(&mut feed, 20), (25, vec![exit()]));
    for observer in [&mut early, &mut late] {
        assert_eq!(read(observer, 20), (25, vec![exit()]));
    }
    assert_eq!((output_buffer.is_attached(), output_buffer.n_observers()), (false, 0));
}

#[test]
fn output_at_the_tip_is_shared_and_not_copied() {
    let (mut output_buffer, mut feed) = output_buffer(UnreadPolicy::Overwrite);
    let mut observer = observe(&mut output_buffer, 0, None);
    output_buffer.push(Stream::Stdout, bytes(20, 0));
    let place = |feed: &mut ConsumerFeed| match feed.items.try_recv() {
        Ok(ConsumerItem::Output { bytes, .. }) => bytes.as_ptr(),
        other => panic!("{other:?}"),
    };
    assert_eq!(place(&mut observer), place(&mut feed));
}

#[test]
fn an_observer_that_reads_nothing_holds_nothing_back_and_is_told_the_gap() {
    let (mut output_buffer, mut feed) = output_buffer(UnreadPolicy::Overwrite);
    let mut observer = observe(&mut output_buffer, 0, None);
    let (mut written, mut end) = (0, 0);
    while written < 2_000 * RING {
        assert!(output_buffer.may_read(Stream::Stdout));
        output_buffer.push(Stream::Stdout, bytes(RING, written));
        output_buffer.deliver();
        written += RING;
        (end, _) = read(&mut feed, end);
        assert_eq!(end, written as u64, "the consumer gets it at once");
    }
    let (mut end, mut gaps) = (0, Vec::new());
    while end < written as u64 {
        let (to, events) = read(&mut observer, end);
        (end, gaps) = (to, [gaps, events].concat());
        output_buffer.deliver();
    }
    let [BackendEvent::Gap(gap)] = &gaps[..] else { panic!("one gap: {gaps:?}") };
    assert_eq!((gap.from, gap.reason), ((SLOTS * RING) as u64, GapReason::Overwritten));
}

#[test]
fn an_observer_acknowledges_nothing_and_is_no_consumer() {
    let (mut output_buffer, feed) = output_buffer(UnreadPolicy::Detach(Overflow::Wait));
    drop(feed);
    output_buffer.dismiss(DismissReason::Vanished);
    // Not a gateway, so as a consumer it would acknowledge what it is given.
    let (observer, mut feed) = Consumer::new(at(0), false);
    output_buffer.observe(observer, None, LIMIT).unwrap();
    let mut end = 0;
    while output_buffer.may_read(Stream::Stdout) {
        output_buffer.push(Stream::Stdout, bytes(10, end as usize));
        output_buffer.deliver();
        (end, _) = read(&mut feed, end);
    }
    assert_eq!(end, RING as u64, "the command waits for an acknowledgement");
    assert!(!output_buffer.is_attached());
    assert!(matches!(output_buffer.retained(0), RetainedOutput::Unfetched(_)));
    assert_eq!(output_buffer.holds().newest(), 1);
    // A consumer that attaches dismisses no observer.
    output_buffer.attach(Consumer::new(at(end), true).0, None).unwrap();
    assert_eq!((output_buffer.n_observers(), feed.dismissed.try_recv().is_err()), (1, true));
}

#[test]
fn the_limit_counts_those_that_are_there() {
    let (mut output_buffer, _feed) = output_buffer(UnreadPolicy::Overwrite);
    let mut feeds: Vec<_> = (0..LIMIT - 1).map(|_| observe(&mut output_buffer, 0, None)).collect();
    let claim = Claim::Request(Some(RequestId::random()));
    let attach = |output_buffer: &mut OutputBuffer, claim| {
        let (mut observer, feed) = Consumer::new(at(0), true);
        observer.claim = claim;
        output_buffer.observe(observer, None, LIMIT).map(|()| feed)
    };
    let mut first = attach(&mut output_buffer, claim).unwrap();
    let full = ConsumerError::TooManyObservers { limit: LIMIT, used: LIMIT };
    assert_eq!(attach(&mut output_buffer, Claim::Request(None)).unwrap_err(), full);
    let _again = attach(&mut output_buffer, claim).unwrap();
    assert_eq!(first.dismissed.try_recv(), Ok(DismissReason::Replaced), "the same observer on a new connection");
    assert_eq!(attach(&mut output_buffer, Claim::Request(None)).unwrap_err(), full);
    feeds.pop();
    attach(&mut output_buffer, Claim::Request(None)).unwrap();
    let beyond = Consumer::new(at(1), true).0;
    assert!(matches!(output_buffer.observe(beyond, None, LIMIT), Err(ConsumerError::Offset(_))));
}

#[tokio::test]
async fn an_observer_that_makes_room_leaves_or_vanishes_is_noticed() {
    const LONG: Duration = Duration::from_secs(600);
    let (mut output_buffer, _feed) = output_buffer(UnreadPolicy::Overwrite);
    let [mut reader, leaver, mut sleeper] = [(); 3].map(|()| observe(&mut output_buffer, 0, None));
    let now = Instant::now();
    assert_eq!(output_buffer.consumer_change(LONG, now).now_or_never(), None);
    drop(leaver);
    assert_eq!(output_buffer.consumer_change(LONG, now).await, ConsumerChange::Room);
    assert_eq!(output_buffer.n_observers(), 2);
    for n in 0..=SLOTS {
        output_buffer.push(Stream::Stdout, bytes(1, n));
    }
    output_buffer.dismiss(DismissReason::Vanished);
    output_buffer.deliver();
    assert_eq!(output_buffer.consumer_change(LONG, now).now_or_never(), None, "nobody reads");
    assert_eq!(read(&mut reader, 0).0, SLOTS as u64);
    assert_eq!(output_buffer.consumer_change(LONG, now).now_or_never(), Some(ConsumerChange::Room));
    output_buffer.deliver();
    assert_eq!(read(&mut reader, SLOTS as u64).0, SLOTS as u64 + 1);
    // A poll is no sign of life of an observer.
    let polled_at = Instant::now() + LONG;
    assert_eq!(output_buffer.consumer_change(Duration::from_millis(1), polled_at).await, ConsumerChange::Room);
    assert_eq!(sleeper.dismissed.try_recv(), Ok(DismissReason::Vanished));
    assert!(reader.dismissed.try_recv().is_err());
    assert_eq!(output_buffer.n_observers(), 1);
}

#[test]
fn output_that_is_given_up_is_a_gap_before_the_end() {
    let (mut output_buffer, mut feed) = output_buffer(UnreadPolicy::Overwrite);
    let mut observer = observe(&mut output_buffer, 0, None);
    for n in 0..2 * SLOTS {
        output_buffer.push(Stream::Stdout, bytes(1, n));
        read(&mut feed, n as u64);
    }
    output_buffer.finish();
    output_buffer.give_up_output();
    assert!(output_buffer.memory() > 0, "the consumer keeps it");
    output_buffer.deliver_final(exit);
    output_buffer.give_up_output();
    assert_eq!((output_buffer.memory(), output_buffer.n_observers()), (0, 1));
    assert_eq!(read(&mut observer, 0), (SLOTS as u64, vec![]));
    output_buffer.deliver_final(exit);
    let (end, events) = read(&mut observer, SLOTS as u64);
    let [BackendEvent::Gap(gap), BackendEvent::Exit(_)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((gap.from, end), (SLOTS as u64, 2 * SLOTS as u64));
}

/// What two executions have in common with the same commands: one has observers.
struct Twin {
    output_buffer: OutputBuffer,
    feed: ConsumerFeed,
    end: u64,
}

impl Twin {
    fn new(policy: UnreadPolicy) -> Twin {
        let (output_buffer, feed) = output_buffer(policy);
        Twin { output_buffer, feed, end: 0 }
    }

    fn read(&mut self) -> (u64, Vec<BackendEvent>) {
        let got = read(&mut self.feed, self.end);
        self.end = got.0;
        got
    }
}

proptest! {
    /// However observers come, read and leave: the consumer and the command see no difference, and an observer that
    /// stays gets every byte, or a gap for it.
    #[test]
    fn observers_change_nothing_for_the_execution(
        policy in 0..3usize,
        moves in prop::collection::vec((0..8, 1usize..60), 1..120),
    ) {
        let policy =
            [UnreadPolicy::Overwrite, UnreadPolicy::Detach(Overflow::Wait), UnreadPolicy::Detach(Overflow::Drop)][policy];
        let (mut alone, mut observed) = (Twin::new(policy), Twin::new(policy));
        let mut written = 0;
        let mut observers: Vec<(ConsumerFeed, u64)> = Vec::new();
        for (what, n) in moves {
            match what {
                0 | 1 => {
                    let may_read = alone.output_buffer.may_read(Stream::Stdout);
                    prop_assert_eq!(observed.output_buffer.may_read(Stream::Stdout), may_read);
                    if may_read {
                        alone.output_buffer.push(Stream::Stdout, bytes(n, written));
                        observed.output_buffer.push(Stream::Stdout, bytes(n, written));
                        written += n;
                    }
                }
                2 | 3 => {
                    alone.output_buffer.deliver();
                    observed.output_buffer.deliver();
                    prop_assert_eq!(alone.read(), observed.read());
                }
                4 => {
                    let offsets = at(alone.end);
                    prop_assert_eq!(
                        alone.output_buffer.acknowledge(offsets).is_ok(),
                        observed.output_buffer.acknowledge(offsets).is_ok()
                    );
                }
                5 => {
                    let from = (n as u64).min(written as u64);
                    let (observer, feed) = Consumer::new(at(from), n % 2 == 0);
                    if observed.output_buffer.observe(observer, None, LIMIT).is_ok() {
                        observers.push((feed, from));
                    }
                }
                6 => {
                    if let Some((feed, end)) = observers.get_mut(n % LIMIT) {
                        *end = read(feed, *end).0;
                    }
                }
                _ => {
                    if n % 3 == 0 && !observers.is_empty() {
                        observers.remove(n % observers.len());
                    }
                }
            }
        }
        prop_assert_eq!(alone.output_buffer.retained(0), observed.output_buffer.retained(0));
        for (feed, end) in &mut observers {
            while *end < written as u64 {
                observed.output_buffer.deliver();
                let before = *end;
                *end = read(feed, *end).0;
                prop_assert!(*end > before, "it goes on");
            }
        }
    }
}
