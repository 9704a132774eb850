//! Executions are handed over again and again, through connections that are cut at random.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use cc_executor_actors::rpc::code;
use serde_json::{Value, json};

use crate::common::{
    LONGEST_WAIT, PATIENCE,
    client::{Client, Frame},
    proxy::{CutKind, Proxy},
    random, scale,
    service::Service,
    wait_until,
};

/// The number of executions that are handed over at the same time, each in a lane.
const LANES: u64 = 4;

/// Bytes that an execution writes for each handover. Each line has ten and holds its number, so that an offset determines
/// the content.
const BYTES_A_HOLD: u64 = 200_000;

/// How a hold ended for its consumer.
#[derive(Clone, PartialEq, Debug)]
enum HoldEnd {
    /// The execution ended, with this final status.
    Terminal(Value),
    Detached,
    Closed,
}

/// How fast a consumer reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pace {
    Fast,
    Slow,
    /// Not at all until its lane is over.
    Stopped,
}

/// The ranges of output that one consumer got, and how its hold ended.
struct FollowedOutput {
    ranges: Vec<(u64, u64)>,
    end: HoldEnd,
}

/// Whether the command writes this content from this offset on.
fn is_written(content: &[u8], from: u64) -> bool {
    let first = from / 10;
    let lines = content.len() as u64 / 10 + 2;
    let text: Vec<u8> = (first..first + lines).flat_map(|n| format!("{:09}\n", n + 1).into_bytes()).collect();
    text[(from % 10) as usize..].starts_with(content)
}

/// Reads a hold to its end, and checks that its session sends nothing about it afterwards.
fn read_hold(mut client: Client, from: u64, pace: Pace, progress: &AtomicU64, is_over: &AtomicBool) -> FollowedOutput {
    if pace == Pace::Stopped {
        wait_until("the lane is over", 30 * PATIENCE, || is_over.load(Ordering::SeqCst));
    }
    let (mut at, mut ranges) = (from, Vec::new());
    let start = Instant::now();
    let end = loop {
        assert!(start.elapsed() < LONGEST_WAIT, "waited in vain for the end of a hold");
        if pace == Pace::Slow {
            thread::sleep(Duration::from_millis(2));
        }
        let message = match client.recv() {
            Frame::Text(message) => message,
            Frame::Ping(_) | Frame::Pong(_) => continue,
            Frame::Close(..) | Frame::End => break HoldEnd::Closed,
        };
        let params = &message["params"];
        match message["method"].as_str() {
            Some("output") => {
                let content = params["content"].as_str().expect("the content is text").as_bytes();
                assert!(is_written(content, at), "{content:?} at {at}");
                let to = at + content.len() as u64;
                assert_eq!(params["end"], to);
                ranges.push((at, to));
                at = to;
                progress.fetch_max(at, Ordering::SeqCst);
            }
            Some("gap") => {
                assert_eq!(params["from"], at);
                at = params["to"].as_u64().unwrap();
            }
            Some("detached") => {
                assert_eq!((&params["reason"], &params["offsets"]["stdout"]), (&json!("taken_over"), &json!(at)));
                break HoldEnd::Detached;
            }
            Some("statusUpdate") if !params["reason"].is_null() => break HoldEnd::Terminal(params.clone()),
            _ => {}
        }
    };
    if end != HoldEnd::Closed {
        let ping = client.request("ping", json!({}));
        loop {
            match client.recv() {
                Frame::Text(message) if message["id"] == ping => break,
                Frame::Text(message) => panic!("after the end of a hold, {end:?}: {message}"),
                Frame::Ping(_) | Frame::Pong(_) => {}
                Frame::Close(..) | Frame::End => break,
            }
        }
    }
    FollowedOutput { ranges, end }
}

/// Sets the flag when dropped, so that stopped consumers continue even if their lane panics.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Hands one execution over `n` times, and returns what each consumer got. Consumers connect through `proxies`, which cut
/// connections. The last one connects to a gateway directly, so that it sees the ending.
fn hand_over(lane: u64, n: u64, proxies: &[SocketAddr], gateways: &[SocketAddr]) -> Vec<FollowedOutput> {
    let mut next = random(lane + 1);
    let lines = (n + 1) * BYTES_A_HOLD / 10;
    let (progress, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let _guard = SetOnDrop(&is_over);
        let mut holds = Vec::new();
        let mut id = Value::Null;
        for hold in 0..=n {
            let pace = if hold == n { Pace::Fast } else { [Pace::Fast, Pace::Slow, Pace::Stopped][next(3) as usize] };
            let mut from;
            let mut tries = 0;
            let client = loop {
                let addresses = if hold == n { gateways } else { proxies };
                let mut client = Client::connect(addresses[next(addresses.len() as u64) as usize]);
                from = progress.load(Ordering::SeqCst);
                let result = if hold == 0 {
                    let command = format!("seq -f %09.0f {lines}");
                    client.call("execute", json!({ "command": command, "onDisconnect": "detach", "heartbeatMs": 5000 }))
                } else {
                    let offsets = json!({ "stdout": from, "stderr": 0 });
                    client.call("attach", json!({ "executionId": id, "offsets": offsets }))
                };
                match result {
                    Ok(result) => {
                        id = result["executionId"].clone();
                        break client;
                    }
                    // The connection to the backend was cut during the request.
                    Err(error) if error.code == code::BACKEND && tries < 20 => tries += 1,
                    Err(error) => panic!("lane {lane}, hold {hold}: {error}"),
                }
            };
            let (progress, is_over) = (&progress, &is_over);
            holds.push(scope.spawn(move || read_hold(client, from, pace, progress, is_over)));
            let until = from + next(BYTES_A_HOLD);
            wait_until("the consumer has read this far, or cannot", 3 * PATIENCE, || {
                pace == Pace::Stopped
                    || progress.load(Ordering::SeqCst) >= until
                    || holds.last().is_some_and(|hold| hold.is_finished())
            });
        }
        is_over.store(true, Ordering::SeqCst);
        holds.into_iter().map(|hold| hold.join().expect("the consumer does not panic")).collect()
    })
}

#[test]
fn handovers_lose_no_byte_and_end_each_hold_once() {
    let n = scale(60, 1_000) as u64 / LANES;
    let backend = Service::with(&["backend"], &[("CC_EXECUTOR_RING_BYTES", "262144")]);
    let cut = |seed: u64, at_least: u64| {
        move |connection: usize| {
            let mut next = random(seed * 100_000 + connection as u64);
            let kind = if next(2) == 0 { CutKind::Fin } else { CutKind::Reset };
            (next(3) == 0).then(|| (at_least + next(400_000), kind))
        }
    };
    let to_backend = [1, 2].map(|seed| Proxy::start(backend.address, cut(seed, 2_000)));
    let gateways = to_backend.each_ref().map(|proxy| Service::gateway(&proxy.url()));
    // 20 000 bytes are enough to open a session and to attach.
    let to_gateways = [3, 4].map(|seed| Proxy::start(gateways[seed as usize - 3].address, cut(seed, 20_000)));
    let proxies = &to_gateways.each_ref().map(|proxy| proxy.address);
    let direct = &gateways.each_ref().map(|gateway| gateway.address);
    let lanes: Vec<_> = thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES).map(|lane| scope.spawn(move || hand_over(lane, n, proxies, direct))).collect();
        lanes.into_iter().map(|lane| lane.join().expect("the lane does not panic")).collect()
    });
    let total = (n + 1) * BYTES_A_HOLD;
    let mut ends = [0; 3];
    for (lane, holds) in lanes.iter().enumerate() {
        let mut ranges: Vec<_> = holds.iter().flat_map(|hold| hold.ranges.clone()).collect();
        ranges.sort_unstable();
        let reached =
            ranges.iter().fold(0, |reached, (from, to)| if *from <= reached { reached.max(*to) } else { reached });
        for hold in holds {
            match &hold.end {
                HoldEnd::Detached => ends[0] += 1,
                HoldEnd::Closed => ends[1] += 1,
                HoldEnd::Terminal(end) => {
                    ends[2] += 1;
                    assert_eq!(
                        (&end["status"], &end["bytes"]["stdout"]),
                        (&json!("COMPLETED"), &json!(total)),
                        "{end}"
                    );
                }
            }
        }
        let last = holds.last().map(|hold| &hold.end);
        assert!(matches!(last, Some(HoldEnd::Terminal(_))), "lane {lane}: {last:?}");
        assert_eq!(reached, total, "lane {lane}: bytes that no consumer got");
    }
    println!("{} handovers: {} detached, {} closed, {} ended", n * LANES, ends[0], ends[1], ends[2]);
    assert!(ends[0] > 0 && ends[1] > 0, "there were handovers and cuts: {ends:?}");
}
