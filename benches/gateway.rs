//! Compares the gateway with a plain bridge: the results are ratios.
//!
//! Both use the same stub backend, which streams as fast as it is read. The gateway is the real binary; the bridge is this
//! binary, started again in another role. Their runs are interleaved, and each run checks that each line came once and in
//! order.
#![forbid(unsafe_code)]

mod bridge;
mod client;
mod stub;

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use self::{client::BenchSession, stub::StubBackend};

/// The number of interleaved runs. The median counts.
const RUNS: usize = 5;

/// The lines of one throughput run: 200 MB at 100 bytes each.
const LINES: u64 = 2_000_000;

/// The executions of one latency run.
const SHORT: usize = 300;

/// The output of an execution that may detach: 200 MB.
const DETACHABLE_BYTES: u64 = 200_000_000;

/// The idle sessions whose memory is measured. A gateway has one for eight open files.
const IDLE: usize = 2_000;

/// Sessions that are open at the first reading, so that memory that is allocated once is not counted.
const WARM: usize = 100;

/// The variable that makes this process a bridge: the address of the backend.
const BRIDGE: &str = "CC_BENCH_BRIDGE_BACKEND";

fn main() -> ExitCode {
    if let Ok(backend) = env::var(BRIDGE) {
        return bridge::serve(backend.parse().expect("an address"));
    }
    raise_descriptor_limit();
    let stub = StubBackend::start();
    let gateway = Peer::gateway(&stub);
    let bridge = Peer::bridge(&stub);
    let mut table = Table::default();

    let mut lines = [Vec::new(), Vec::new()];
    let mut chunks = [Vec::new(), Vec::new()];
    for run in 0..RUNS {
        for (at, peer) in [&gateway, &bridge].into_iter().enumerate() {
            lines[at].push(peer.throughput("line"));
            chunks[at].push(peer.throughput("chunk"));
        }
        eprintln!("throughput, run {} of {RUNS}", run + 1);
    }
    let [gateway_lines, bridge_lines] = lines.map(|runs| median(&runs));
    let [gateway_chunks, bridge_chunks] = chunks.map(|runs| median(&runs));
    table.at_least("lines/s, line framing", gateway_lines, bridge_lines, 1.3);
    table.at_least("lines/s, chunk framing against the bridge's line", gateway_chunks, bridge_lines, 3.0);
    table.at_least("lines/s, chunk framing", gateway_chunks, bridge_chunks, 0.95);

    let mut first = [Vec::new(), Vec::new()];
    let mut cancel = [Vec::new(), Vec::new()];
    for run in 0..RUNS {
        for (at, peer) in [&gateway, &bridge].into_iter().enumerate() {
            first[at].push(p99(peer.first_output()));
            cancel[at].push(p99(peer.cancel_to_abort(&stub)));
        }
        eprintln!("latency, run {} of {RUNS}", run + 1);
    }
    let [gateway_first, bridge_first] = first.map(|runs| median(&runs));
    let [gateway_cancel, bridge_cancel] = cancel.map(|runs| median(&runs));
    table.at_most("first output, p99 in microseconds", gateway_first, bridge_first, 1.5);
    table.at_most("cancel to abort, p99 in microseconds", gateway_cancel, bridge_cancel, 1.5);
    table.limit("KiB an idle session", gateway.kib_an_idle_session(), 25.0);
    drop((gateway, bridge));
    detachable(&mut table);
    table.print()
}

/// Compares an execution whose output is kept on disk with one whose output is in memory, from the command to the client.
fn detachable(table: &mut Table) {
    let root = tempfile::tempdir().expect("a temporary directory");
    let source = root.path().join("source");
    fs::write(&source, vec![b'x'; usize::try_from(DETACHABLE_BYTES).expect("it fits")]).expect("a file");
    let state = root.path().join("state");
    let services = [state.to_str().expect("UTF-8"), "none"].map(|state_dir| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cc-executor"));
        command.args(["serve", "--bind", "127.0.0.1:0", "--state-dir", state_dir, "--retention-ms", "0"]);
        Peer::service(command)
    });
    let mut rates = [Vec::new(), Vec::new()];
    for run in 0..RUNS {
        for (at, service) in services.iter().enumerate() {
            let mut session = BenchSession::open(service.address);
            let start = Instant::now();
            session.execute_detachable(&format!("cat {}", source.display()));
            assert_eq!(session.output_length(), DETACHABLE_BYTES, "all output came");
            rates[at].push(DETACHABLE_BYTES as f64 / 1e6 / start.elapsed().as_secs_f64());
        }
        eprintln!("detachable, run {} of {RUNS}", run + 1);
    }
    let [on_disk, in_memory] = rates.map(|runs| median(&runs));
    table.at_least("MB/s, detachable: on disk against in memory", on_disk, in_memory, 0.75);
}

/// A gateway or a bridge, as a process of its own.
struct Peer {
    child: Child,
    address: SocketAddr,
}

impl Peer {
    fn gateway(stub: &StubBackend) -> Peer {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cc-executor"));
        command.args(["serve", "--bind", "127.0.0.1:0", "--max-sessions", "10000"]);
        command.env("CLAUDE_API_URL", format!("http://{}", stub.address));
        // All idle sessions come from one address.
        command.env("CC_EXECUTOR_MAX_SESSIONS_PER_ADDRESS", "100000");
        Peer::service(command)
    }

    /// A service that is ready.
    fn service(mut command: Command) -> Peer {
        command.env("LOG_FORMAT", "json").env("RUST_LOG", "warn,cc_executor=info");
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the gateway starts");
        let mut log = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut address = None;
        let mut up = false;
        while address.is_none() || !up {
            let mut line = String::new();
            assert!(log.read_line(&mut line).expect("a log") > 0, "the gateway did not come up");
            let line: serde_json::Value = serde_json::from_str(&line).expect("JSON lines");
            match line["event"].as_str() {
                Some("service.listening") => address = line["address"].as_str().and_then(|text| text.parse().ok()),
                Some("backend.up") => up = true,
                _ => {}
            }
        }
        // Reads the rest of the log, because a full pipe would block the gateway.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Peer { child, address: address.expect("the log had it") }
    }

    fn bridge(stub: &StubBackend) -> Peer {
        let mut command = Command::new(env::current_exe().expect("a path"));
        let mut child =
            command.env(BRIDGE, stub.address.to_string()).stdout(Stdio::piped()).spawn().expect("the bridge starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout is piped")).read_line(&mut line).expect("an address");
        Peer { child, address: line.trim().parse().expect("an address") }
    }

    /// The throughput in lines of 100 bytes per second.
    fn throughput(&self, framing: &str) -> f64 {
        let mut session = BenchSession::open(self.address);
        let start = Instant::now();
        session.execute(&format!("lines {LINES}"), framing);
        session.check_lines(LINES);
        LINES as f64 / start.elapsed().as_secs_f64()
    }

    /// The times from sending `execute` to the first output.
    fn first_output(&self) -> Vec<Duration> {
        let mut session = BenchSession::open(self.address);
        let once = |session: &mut BenchSession| {
            let start = Instant::now();
            session.execute("lines 1", "chunk");
            session.wait_for("output");
            let took = start.elapsed();
            session.wait_for_end();
            took
        };
        (0..SHORT).map(|_| once(&mut session)).collect()
    }

    /// The times from sending CANCEL to its arrival at the backend.
    fn cancel_to_abort(&self, stub: &StubBackend) -> Vec<Duration> {
        let mut session = BenchSession::open(self.address);
        let once = |session: &mut BenchSession| {
            session.execute("quiet", "chunk");
            session.wait_for("statusUpdate");
            let start = Instant::now();
            session.cancel();
            let aborted_at = stub.next_abort();
            session.wait_for_end();
            aborted_at - start
        };
        (0..SHORT).map(|_| once(&mut session)).collect()
    }

    fn kib_an_idle_session(&self) -> f64 {
        let mut held: Vec<BenchSession> = (0..WARM).map(|_| BenchSession::open(self.address)).collect();
        let before = self.private_kib();
        held.extend((0..IDLE).map(|_| BenchSession::open(self.address)));
        let grown = self.private_kib() - before;
        drop(held);
        grown / IDLE as f64
    }

    /// The private memory of the process, in KiB.
    fn private_kib(&self) -> f64 {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id())).expect("the peer runs");
        let private = rollup.lines().filter(|line| line.starts_with("Private_"));
        private.filter_map(|line| line.split_ascii_whitespace().nth(1)?.parse::<f64>().ok()).sum()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The 99th percentile, in microseconds.
fn p99(mut values: Vec<Duration>) -> f64 {
    values.sort_unstable();
    values[values.len() * 99 / 100].as_secs_f64() * 1e6
}

fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("the soft limit may be raised to the hard one");
}

/// The table of results.
#[derive(Default)]
struct Table {
    rows: Vec<String>,
    missed: bool,
}

impl Table {
    fn at_least(&mut self, name: &str, gateway: f64, bridge: f64, target: f64) {
        self.row(name, gateway, Some(bridge), &format!(">= {target:.2}"), gateway / bridge, gateway / bridge >= target);
    }

    fn at_most(&mut self, name: &str, gateway: f64, bridge: f64, target: f64) {
        self.row(name, gateway, Some(bridge), &format!("<= {target:.2}"), gateway / bridge, gateway / bridge <= target);
    }

    fn limit(&mut self, name: &str, gateway: f64, target: f64) {
        self.row(name, gateway, None, &format!("<= {target:.2}"), gateway, gateway <= target);
    }

    fn row(&mut self, name: &str, gateway: f64, bridge: Option<f64>, target: &str, result: f64, met: bool) {
        let bridge = bridge.map_or_else(|| "-".to_owned(), |bridge| format!("{bridge:.0}"));
        let verdict = if met { "ok" } else { "MISSED" };
        self.missed |= !met;
        self.rows.push(format!("{name:<50} {gateway:>11.0} {bridge:>11} {result:>7.2} {target:>8}  {verdict}"));
    }

    fn print(&self) -> ExitCode {
        println!("{:<50} {:>11} {:>11} {:>7} {:>8}", "", "gateway", "bridge", "ratio", "target");
        for row in &self.rows {
            println!("{row}");
        }
        if self.missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}
