//! `make soak`: mixed load and faults for some minutes, then totals.
//!
//! Lanes of clients run commands, cancel, pause, disconnect, and attach again through a proxy that breaks connections;
//! gateways are killed under them. The output of each command is known, so that lost bytes can be counted.
#![forbid(unsafe_code)]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a soak that panics has failed")]
#![allow(dead_code, reason = "the integration tests use the other helpers")]

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

use cc_executor_actors::outcome::Status;
use common::{
    procs,
    proxy::{CutKind, Proxy},
    random,
    recording::Recording,
    service::{Service, binary, run_to_exit},
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// The number of clients at the same time.
const LANES: u64 = 8;

/// The period of memory samples.
const CADENCE: Duration = Duration::from_secs(1);

/// The allowed growth from the first to the last minute, in KiB.
const MAX_GROWTH: i64 = 8 * 1024;

#[derive(Default)]
struct Totals {
    sessions: AtomicU64,
    executions: AtomicU64,
    faults: AtomicU64,
    bytes: AtomicU64,
    lost: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

impl Totals {
    fn add(sum: &AtomicU64, n: u64) {
        sum.fetch_add(n, Ordering::Relaxed);
    }

    fn wrong(&self, what: String) {
        eprintln!("wrong: {what}");
        self.wrong.lock().unwrap().push(what);
    }

    /// Compares the received output with that of the command. Bytes of a reported gap count as lost.
    fn check(&self, what: &str, got: &[u8], n_lines: u64) {
        let expected = lines(n_lines);
        Totals::add(&self.bytes, got.len() as u64);
        if got != expected {
            let differ = got.iter().zip(&expected).filter(|(got, expected)| got != expected).count() as u64;
            let lost = differ.max((expected.len() as u64).abs_diff(got.len() as u64));
            eprintln!("lost: {lost} of {} bytes: {what}", expected.len());
            Totals::add(&self.lost, lost);
        }
    }
}

/// The output of `seq`.
fn lines(n: u64) -> Vec<u8> {
    (1..=n).flat_map(|n| format!("{n}\n").into_bytes()).collect()
}

fn session(gateway: &Service, proxy: &Proxy, mark: &str, random: &mut impl FnMut(u64) -> u64, totals: &Totals) {
    let n_lines = 1 + random(200_000);
    let command = format!("setsid sleep {mark} >/dev/null 2>&1 & seq {n_lines}");
    Totals::add(&totals.sessions, 1);
    Totals::add(&totals.executions, 1);
    match random(6) {
        0 | 1 => {
            let mut client = gateway.connect();
            let framing = if random(2) == 0 { "line" } else { "chunk" };
            let recording = client.run(json!({ "command": command, "framing": framing }));
            totals.check(&recording.end.to_string(), &recording.stdout, n_lines);
            if recording.status() != Status::Completed {
                totals.wrong(recording.end.to_string());
            }
            client.close();
        }
        2 => {
            // `run` reconnects after each cut of the proxy.
            Totals::add(&totals.faults, 1);
            let (stdout, stderr, code) =
                run_to_exit(binary().args(["run", "--url", &proxy.url(), "--reconnect", "--", &command]));
            totals.check(&stderr, stdout.as_bytes(), n_lines);
            if code != 0 {
                totals.wrong(stderr);
            }
        }
        3 => {
            Totals::add(&totals.faults, 1);
            let mut client = gateway.connect();
            client.execute(json!({ "command": format!("{command}; exec sleep {mark}") }));
            let mut recording = Recording::default();
            client.record_until(&mut recording, |recording| {
                recording.stdout.len() > 1_000 || recording.stdout.ends_with(b"\n")
            });
            client.disconnect();
        }
        4 => {
            let mut client = gateway.connect();
            client.execute(json!({ "command": format!("{command}; exec sleep {mark}") }));
            for control in
                [json!({ "type": "PAUSE" }), json!({ "type": "RESUME" }), json!({ "type": "CANCEL", "graceMs": 200 })]
            {
                if let Err(error) = client.call("control", control.clone()) {
                    totals.wrong(format!("{control}: {error}"));
                }
            }
            let end = client.record().end;
            if end["cancel"]["verified"] != true {
                totals.wrong(end.to_string());
            }
            client.close();
        }
        _ => {
            // The execution is detached, and attached again.
            Totals::add(&totals.faults, 1);
            let mut client = gateway.connect();
            let id = client.execute(json!({ "command": command, "onDisconnect": "detach" }));
            let mut recording = Recording::default();
            let so_far = random(100_000) as usize;
            let is_over = client.record_until(&mut recording, |recording| recording.stdout.len() > so_far);
            client.disconnect();
            if !is_over {
                let mut client = gateway.connect();
                match client.attach(&id, &recording) {
                    Ok(_) => client.record_rest(&mut recording),
                    Err(error) => totals.wrong(error.to_string()),
                }
            }
            totals.check(&format!("{} {:?}", recording.end, recording.gaps), &recording.stdout, n_lines);
        }
    }
}

/// Kills a gateway during an execution, and attaches through another gateway.
fn killed_gateway(backend: &Service, totals: &Totals) {
    let first = Service::gateway(&backend.url());
    let mut client = first.connect();
    let id = client.execute(json!({ "command": "seq 400000", "onDisconnect": "detach" }));
    let mut recording = Recording::default();
    client.record_until(&mut recording, |recording| recording.stdout.len() > 100_000);
    first.signal(Signal::KILL);
    let second = Service::gateway(&backend.url());
    let mut client = second.connect();
    client.attach(&id, &recording).expect("the backend has the execution");
    client.record_rest(&mut recording);
    totals.check(&format!("{} {:?}", recording.end, recording.gaps), &recording.stdout, 400_000);
    Totals::add(&totals.sessions, 2);
    Totals::add(&totals.executions, 1);
    Totals::add(&totals.faults, 1);
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
    let proxy = Proxy::start(gateway.address, |n| {
        let mut random = random(n as u64 + 3);
        let kind = if random(2) == 0 { CutKind::Fin } else { CutKind::Reset };
        Some((random(700_000) + 1_000, kind))
    });
    let (totals, mark, is_over) = (Totals::default(), procs::mark(), AtomicBool::new(false));
    let mut memory: Vec<(u64, u64)> = Vec::new();
    println!("soaking for {minutes} minutes with {LANES} lanes");
    thread::scope(|scope| {
        for lane in 0..LANES {
            let (totals, gateway, proxy, mark, is_over) = (&totals, &gateway, &proxy, &mark, &is_over);
            scope.spawn(move || {
                let mut random = random(lane + 1);
                while !is_over.load(Ordering::Relaxed) {
                    session(gateway, proxy, mark, &mut random, totals);
                }
            });
        }
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                killed_gateway(&backend, &totals);
                thread::sleep(Duration::from_secs(2));
            }
        });
        while Instant::now() < until {
            thread::sleep(CADENCE);
            memory.push((gateway.rss_kib(), backend.rss_kib()));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let deadline = Instant::now() + Duration::from_secs(20);
    while !procs::with_argument(&mark).is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
    }
    let orphans = procs::with_argument(&mark).len();
    let errors: Vec<Value> =
        [&gateway, &backend].iter().flat_map(|service| service.log()).filter(|line| line["level"] == "ERROR").collect();
    // Without the first samples, because the retained output must reach its limit first. The window is a minute, or a third of
    // a short soak.
    memory.drain(..memory.len().min(10));
    let window = memory.len().min(60).min(memory.len() / 3 + 1);
    let growth = |of: fn(&(u64, u64)) -> u64| {
        let samples: Vec<_> = memory.iter().map(of).collect();
        mean(&samples[samples.len() - window..]) - mean(&samples[..window])
    };
    let (gateway_growth, backend_growth) = (growth(|sample| sample.0), growth(|sample| sample.1));
    let sum = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
    let wrong = totals.wrong.lock().unwrap();
    println!("sessions          {}", sum(&totals.sessions));
    println!("executions        {}", sum(&totals.executions));
    println!("faults injected   {}", sum(&totals.faults) + proxy.n_connections() as u64);
    println!("bytes checked     {}", sum(&totals.bytes));
    println!("lost bytes        {}", sum(&totals.lost));
    println!("orphans           {orphans}");
    println!("wrong endings     {}", wrong.len());
    println!("errors logged     {}", errors.len());
    println!("gateway growth    {gateway_growth} KiB");
    println!("backend growth    {backend_growth} KiB");
    for error in errors.iter().take(5) {
        println!("  {error}");
    }
    let good = sum(&totals.lost) == 0 && orphans == 0 && wrong.is_empty() && errors.is_empty();
    if good && gateway_growth < MAX_GROWTH && backend_growth < MAX_GROWTH {
        println!("ok");
        ExitCode::SUCCESS
    } else {
        println!("NOT ok");
        ExitCode::FAILURE
    }
}
