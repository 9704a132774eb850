//! `make soak`: mixed load and faults for some minutes, then the sums.
//!
//! Lanes of clients run commands of known output, cancel, pause, vanish, and come back through a proxy
//! that breaks connections; now and then a gateway is killed under them. What every execution wrote is
//! known here, so a lost byte is counted, not guessed.
#![forbid(unsafe_code)]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a soak that panics has failed")]
#![allow(dead_code, reason = "the integration tests use the rest of what is shared")]

mod common;

use std::{
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{
    client::{Client, Recording},
    procs,
    proxy::{CutKind, Proxy},
    random,
    service::{Service, binary},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Clients at a time.
const LANES: u64 = 8;

/// How often memory is looked at.
const CADENCE: Duration = Duration::from_secs(1);

/// Growth between the first and the last minute that is called one, in KiB.
const MAX_GROWTH: i64 = 8 * 1024;

#[derive(Default)]
struct Sums {
    sessions: AtomicU64,
    executions: AtomicU64,
    faults: AtomicU64,
    bytes: AtomicU64,
    lost: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

impl Sums {
    fn add(sum: &AtomicU64, n: u64) {
        sum.fetch_add(n, Ordering::Relaxed);
    }

    fn wrong(&self, what: String) {
        eprintln!("wrong: {what}");
        self.wrong.lock().unwrap().push(what);
    }

    /// Compares what arrived with what was written. What was said to be lost is lost all the same.
    fn check(&self, what: &str, got: &[u8], n_lines: u64) {
        let expected = lines(n_lines);
        Sums::add(&self.bytes, got.len() as u64);
        if Sha256::digest(got) != Sha256::digest(&expected) {
            let differ = got.iter().zip(&expected).filter(|(got, expected)| got != expected).count() as u64;
            let lost = differ.max((expected.len() as u64).abs_diff(got.len() as u64));
            eprintln!("lost: {lost} of {} bytes: {what}", expected.len());
            Sums::add(&self.lost, lost);
        }
    }
}

/// What `seq` prints.
fn lines(n: u64) -> Vec<u8> {
    (1..=n).flat_map(|n| format!("{n}\n").into_bytes()).collect()
}

fn session(gateway: &Service, proxy: &Proxy, mark: &str, random: &mut impl FnMut(u64) -> u64, sums: &Sums) {
    let n_lines = 1 + random(200_000);
    let command = format!("setsid sleep {mark} >/dev/null 2>&1 & seq {n_lines}");
    Sums::add(&sums.sessions, 1);
    Sums::add(&sums.executions, 1);
    match random(6) {
        0 | 1 => {
            let mut client = gateway.connect();
            let framing = if random(2) == 0 { "line" } else { "chunk" };
            let story = client.run(json!({ "command": command, "framing": framing }));
            sums.check(&story.end.to_string(), &story.stdout, n_lines);
            if story.end["status"] != "COMPLETED" {
                sums.wrong(story.end.to_string());
            }
            client.close();
        }
        2 => {
            // Through connections that break, with the client that comes back.
            Sums::add(&sums.faults, 1);
            let url = format!("ws://{}", proxy.address);
            let output =
                binary().args(["run", "--url", &url, "--reconnect", "--", &command]).output().expect("run runs");
            sums.check(&String::from_utf8_lossy(&output.stderr), &output.stdout, n_lines);
            if output.status.code() != Some(0) {
                sums.wrong(String::from_utf8_lossy(&output.stderr).into_owned());
            }
        }
        3 => {
            Sums::add(&sums.faults, 1);
            let mut client = gateway.connect();
            client.execute(json!({ "command": format!("{command}; exec sleep {mark}") }));
            let mut story = Recording::default();
            client.follow(&mut story, |story| story.stdout.len() > 1_000 || story.stdout.ends_with(b"\n"));
            client.vanish();
        }
        4 => {
            let mut client = gateway.connect();
            client.execute(json!({ "command": format!("{command}; exec sleep {mark}") }));
            for control in
                [json!({ "type": "PAUSE" }), json!({ "type": "RESUME" }), json!({ "type": "CANCEL", "graceMs": 200 })]
            {
                if let Err(error) = client.call("control", control.clone()) {
                    sums.wrong(format!("{control}: {error}"));
                }
            }
            let end = client.story().end;
            if end["cancel"]["verified"] != true {
                sums.wrong(end.to_string());
            }
            client.close();
        }
        _ => {
            // Left alone for a while, then asked for again.
            Sums::add(&sums.faults, 1);
            let mut client = gateway.connect();
            let id = client.execute(json!({ "command": command, "onDisconnect": "detach" }));
            let mut story = Recording::default();
            let so_far = random(100_000) as usize;
            let over = client.follow(&mut story, |story| story.stdout.len() > so_far);
            client.vanish();
            if !over {
                let mut client = gateway.connect();
                match client.attach(&id, &story) {
                    Ok(_) => drop(client.follow(&mut story, |_| false)),
                    Err(error) => sums.wrong(error.to_string()),
                }
            }
            sums.check(&format!("{} {:?}", story.end, story.gaps), &story.stdout, n_lines);
        }
    }
}

/// A gateway of its own is killed under an execution, and another one goes on with it.
fn killed_gateway(backend: &Service, sums: &Sums) {
    let started = || {
        let gateway = Service::gateway(&backend.url());
        gateway.wait_for_event("backend.up", 1);
        gateway
    };
    let first = started();
    let mut client: Client = first.connect();
    let id = client.execute(json!({ "command": "seq 400000", "onDisconnect": "detach" }));
    let mut story = Recording::default();
    client.follow(&mut story, |story| story.stdout.len() > 100_000);
    first.signal(Signal::KILL);
    let second = started();
    let mut client = second.connect();
    client.attach(&id, &story).expect("the backend has it");
    client.follow(&mut story, |_| false);
    sums.check(&format!("{} {:?}", story.end, story.gaps), &story.stdout, 400_000);
    Sums::add(&sums.sessions, 2);
    Sums::add(&sums.executions, 1);
    Sums::add(&sums.faults, 1);
}

fn mean(samples: &[u64]) -> i64 {
    i64::try_from(samples.iter().sum::<u64>() / samples.len().max(1) as u64).unwrap_or(i64::MAX)
}

fn main() -> ExitCode {
    let minutes: f64 = std::env::var("MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(5.0);
    let until = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let backend = Service::with(
        &["backend"],
        &[("CC_EXECUTOR_RETENTION_MS", "3000"), ("CC_EXECUTOR_MAX_KEPT_BYTES", "33554432")],
    );
    let gateway = Service::gateway(&backend.url());
    gateway.wait_for_event("backend.up", 1);
    let proxy = Proxy::start(gateway.address, |n| {
        let mut random = random(n as u64 + 3);
        let how = if random(2) == 0 { CutKind::Fin } else { CutKind::Reset };
        Some((random(700_000) + 1_000, how))
    });
    let (sums, mark, over) = (Sums::default(), procs::mark(), AtomicBool::new(false));
    let mut memory: Vec<(u64, u64)> = Vec::new();
    println!("soaking for {minutes} minutes with {LANES} lanes");
    thread::scope(|scope| {
        for lane in 0..LANES {
            let (sums, gateway, proxy, mark, over) = (&sums, &gateway, &proxy, &mark, &over);
            scope.spawn(move || {
                let mut random = random(lane + 1);
                while !over.load(Ordering::Relaxed) {
                    session(gateway, proxy, mark, &mut random, sums);
                }
            });
        }
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                killed_gateway(&backend, &sums);
                thread::sleep(Duration::from_secs(2));
            }
        });
        while Instant::now() < until {
            thread::sleep(CADENCE);
            memory.push((gateway.rss_kib(), backend.rss_kib()));
        }
        over.store(true, Ordering::Relaxed);
    });
    let deadline = Instant::now() + Duration::from_secs(20);
    while !procs::with_argument(&mark).is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
    }
    let orphans = procs::with_argument(&mark).len();
    let errors: Vec<Value> =
        [&gateway, &backend].iter().flat_map(|service| service.log()).filter(|line| line["level"] == "ERROR").collect();
    // A minute at each end, after what is kept has come to its limit; of a short soak a third.
    memory.drain(..memory.len().min(10));
    let window = memory.len().min(60).min(memory.len() / 3 + 1);
    let growth = |of: fn(&(u64, u64)) -> u64| {
        let samples: Vec<_> = memory.iter().map(of).collect();
        mean(&samples[samples.len() - window..]) - mean(&samples[..window])
    };
    let (gateway_growth, backend_growth) = (growth(|sample| sample.0), growth(|sample| sample.1));
    let sum = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
    let wrong = sums.wrong.lock().unwrap();
    println!("sessions          {}", sum(&sums.sessions));
    println!("executions        {}", sum(&sums.executions));
    println!("faults injected   {}", sum(&sums.faults) + proxy.n_connections() as u64);
    println!("bytes checked     {}", sum(&sums.bytes));
    println!("lost bytes        {}", sum(&sums.lost));
    println!("orphans           {orphans}");
    println!("wrong endings     {}", wrong.len());
    println!("errors logged     {}", errors.len());
    println!("gateway growth    {gateway_growth} KiB");
    println!("backend growth    {backend_growth} KiB");
    for error in errors.iter().take(5) {
        println!("  {error}");
    }
    let good = sum(&sums.lost) == 0 && orphans == 0 && wrong.is_empty() && errors.is_empty();
    if good && gateway_growth < MAX_GROWTH && backend_growth < MAX_GROWTH {
        println!("ok");
        ExitCode::SUCCESS
    } else {
        println!("NOT ok");
        ExitCode::FAILURE
    }
}
