//! The compact record of an execution that has ended.
//!
//! There may be a million records, so a request is remembered as a digest, and the fields of an ending that most
//! endings do not have lie in boxes of their own. Pure: no task, no clock.

mod usage;

use std::sync::Arc;

use cc_executor_actors::{
    backend_api::{Heartbeat, Snapshot},
    id::{ExecutionId, InstanceId, RequestId},
    outcome::{Outcome, Reason, Status, Storage, Usage},
    protocol::execute::{ExecutionSpec, Overflow},
    stream::PerStream,
};
use sha2::{Digest, Sha256};

use self::usage::CompactUsage;
use crate::backend::{holds::NewestHold, output_buffer::RetainedOutput};

type Sha = [u8; 32];

/// In place of a digest that is still being computed.
const PENDING: &str = "pending";

/// The disk space of an execution besides its output, in bytes: a directory and the blocks of its small files.
const STORED_FIXED_BYTES: usize = 16 * 1024;

/// The digest of a request, which tells it from other requests with the same id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestDigest {
    /// SHA-256 over the SHA-256 of each part.
    whole: Sha,
    /// The beginning of the SHA-256 of each part: enough to name the parameter that differs.
    parts: [[u8; 2]; ExecutionSpec::PARTS.len()],
}

impl RequestDigest {
    /// Differs from the digest of every request.
    pub const UNKNOWN: RequestDigest = RequestDigest { whole: [0; 32], parts: [[0; 2]; ExecutionSpec::PARTS.len()] };

    /// The digest of a request without its id. It has a key, because a reader of a stored digest could otherwise guess the
    /// request and confirm the guess.
    pub fn of(run: &ExecutionSpec, key: &[u8]) -> Self {
        let digests =
            run.parts().map(|value| Sha256::new().chain_update(key).chain_update(value.as_bytes()).finalize());
        let mut whole = Sha256::new();
        digests.iter().for_each(|digest| whole.update(digest));
        RequestDigest { whole: whole.finalize().into(), parts: digests.map(|digest| [digest[0], digest[1]]) }
    }

    /// The digest as a text.
    pub fn to_text(&self) -> String {
        self.whole.iter().chain(self.parts.as_flattened()).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The digest with this text.
    pub fn from_text(text: &str) -> Option<RequestDigest> {
        const WHOLE: usize = 2 * size_of::<Sha>();
        let mut digest = RequestDigest { whole: from_hex(text.get(..WHOLE)?)?, parts: Default::default() };
        let rest = text.get(WHOLE..)?;
        let parts = digest.parts.as_flattened_mut();
        if rest.len() != 2 * parts.len() {
            return None;
        }
        for (at, byte) in parts.iter_mut().enumerate() {
            *byte = u8::from_str_radix(rest.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(digest)
    }

    /// The parameter in which another request differs from this one.
    pub fn difference(&self, other: &RequestDigest) -> Option<&'static str> {
        if self.whole == other.whole {
            return None;
        }
        let differing = self.parts.iter().zip(other.parts).position(|(own, others)| *own != others);
        // One difference in 65 536 does not show in the parts.
        Some(differing.map_or("parameter", |at| ExecutionSpec::PARTS[at]))
    }
}

/// An execution that has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The name of its executor. Shared between records.
    pub executor: Arc<str>,
    /// The interval of its heartbeats, in milliseconds; at most a minute.
    pub heartbeat_ms: u32,
    /// Whether the execution was allowed to continue without a consumer.
    pub may_detach: bool,
    /// The number of its newest hold.
    hold: u32,
    /// The request that made that hold, if it had an id. A gateway may attach again for the same request after the end.
    request: Option<RequestId>,
    status: Status,
    reason: Reason,
    exit_code: Option<i32>,
    elapsed_ms: Option<u64>,
    usage: Option<CompactUsage>,
    /// Absent if it wrote nothing.
    wrote: Option<Box<WrittenBytes>>,
    /// The fields that most endings do not have; the others have their defaults in it.
    rare: Option<Box<Outcome>>,
    /// Its output on disk.
    stored: Option<Box<StoredRecord>>,
}

/// The output of an ended execution on disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredRecord {
    /// The offsets of the first bytes in the files.
    pub starts: PerStream<u64>,
    /// The offsets after the last bytes in the files.
    pub ends: PerStream<u64>,
    /// What happened to the output when its quota was used up.
    pub overflow: Overflow,
    /// Whether a client has acknowledged all of it.
    pub is_fetched: bool,
    /// Whether the files are removed.
    pub is_removed: bool,
    /// Whether the digests are still being computed.
    pub is_pending: bool,
    /// Whether it is whole.
    pub storage: Storage,
    /// The backend's process that ran the execution.
    pub instance: InstanceId,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct WrittenBytes {
    bytes: PerStream<Option<u64>>,
    sha256: PerStream<Option<Sha>>,
}

impl Record {
    /// The record of an execution with this ending.
    pub fn new(executor: Arc<str>, heartbeat_ms: u64, may_detach: bool, ending: &Outcome) -> Self {
        let usage = ending.usage.and_then(CompactUsage::of);
        let wrote = WrittenBytes { bytes: ending.bytes, sha256: each(&ending.sha256, |hex| from_hex(hex)) };
        let rare = Outcome {
            signal: ending.signal.clone(),
            message: ending.message.clone(),
            leftovers: ending.leftovers,
            usage: ending.usage.filter(|_| usage.is_none()),
            cancel: ending.cancel,
            result: ending.result.clone(),
            ..plain(ending.status, ending.reason)
        };
        Record {
            executor,
            heartbeat_ms: u32::try_from(heartbeat_ms).unwrap_or(u32::MAX),
            may_detach,
            hold: 1,
            request: None,
            status: ending.status,
            reason: ending.reason,
            exit_code: ending.exit_code,
            elapsed_ms: ending.elapsed_ms,
            usage,
            wrote: (wrote != WrittenBytes::nothing()).then(|| Box::new(wrote)),
            rare: (rare != plain(ending.status, ending.reason)).then(|| Box::new(rare)),
            stored: None,
        }
    }

    /// Its output on disk.
    pub fn stored(&self) -> Option<&StoredRecord> {
        self.stored.as_deref()
    }

    /// Records its output on disk, or that there is none any more.
    pub fn set_stored(&mut self, stored: Option<StoredRecord>) {
        self.stored = stored.map(Box::new);
    }

    /// Records the digests that were computed after the end.
    pub fn set_digests(&mut self, ending: &Outcome, storage: Storage) {
        let wrote = WrittenBytes { bytes: ending.bytes, sha256: each(&ending.sha256, |hex| from_hex(hex)) };
        self.wrote = (wrote != WrittenBytes::nothing()).then(|| Box::new(wrote));
        if let Some(stored) = &mut self.stored {
            (stored.is_pending, stored.storage) = (false, storage);
        }
    }

    /// Records that its files are removed. Returns whether that is new.
    pub fn set_removed(&mut self) -> bool {
        self.stored.as_mut().is_some_and(|stored| {
            stored.starts = stored.ends;
            !std::mem::replace(&mut stored.is_removed, true)
        })
    }

    /// Records that a client has acknowledged all of it. Returns whether that is new.
    pub fn set_fetched(&mut self) -> bool {
        self.stored.as_mut().is_some_and(|stored| !std::mem::replace(&mut stored.is_fetched, true))
    }

    /// Whether the disk has taken its output.
    pub fn is_whole_on_disk(&self) -> bool {
        self.stored.as_ref().is_some_and(|stored| stored.storage != Storage::Failed)
    }

    /// How much disk space its output takes.
    pub fn stored_output(&self) -> RetainedOutput {
        let Some(stored) = self.stored.as_ref().filter(|stored| !stored.is_removed) else {
            return RetainedOutput::Nothing;
        };
        let kept = |end: u64, start: u64| end.saturating_sub(start);
        let bytes = kept(stored.ends.stdout, stored.starts.stdout) + kept(stored.ends.stderr, stored.starts.stderr);
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).saturating_add(STORED_FIXED_BYTES);
        if stored.is_fetched { RetainedOutput::Fetched(bytes) } else { RetainedOutput::Unfetched(bytes) }
    }

    /// Its newest hold.
    pub fn newest_hold(&self) -> NewestHold {
        (self.hold.into(), self.request)
    }

    /// Records its newest hold.
    pub fn set_newest_hold(&mut self, (number, request): NewestHold) {
        self.hold = u32::try_from(number).unwrap_or(u32::MAX);
        self.request = request;
    }

    /// Its ending.
    pub fn ending(&self) -> Outcome {
        let rare = self.rare.as_deref().cloned().unwrap_or_else(|| plain(self.status, self.reason));
        let nothing = WrittenBytes::nothing();
        let WrittenBytes { bytes, sha256 } = self.wrote.as_deref().unwrap_or(&nothing);
        let pending = || Some(PENDING.to_owned());
        let sha256 = match &self.stored {
            Some(stored) if stored.is_pending => PerStream { stdout: pending(), stderr: pending() },
            _ => each(sha256, |sha| Some(to_hex(sha))),
        };
        Outcome {
            exit_code: self.exit_code,
            elapsed_ms: self.elapsed_ms,
            usage: self.usage.map(Usage::from).or(rare.usage),
            bytes: *bytes,
            sha256,
            storage: self.stored.as_ref().map(|stored| stored.storage),
            ..rare
        }
    }

    /// The state of the execution with this id, as its task would describe it.
    pub fn snapshot(&self, execution_id: ExecutionId, instance: InstanceId, is_followed: bool) -> Snapshot {
        Snapshot {
            execution_id,
            // The registry knows it.
            name: None,
            executor: self.executor.to_string(),
            status: self.status,
            position: None,
            scope: None,
            held_back: false,
            attached: is_followed,
            observers: 0,
            hold: Some(self.hold.into()),
            instance: Some(self.stored.as_ref().map_or(instance, |stored| stored.instance)),
            alive: Heartbeat { elapsed_ms: self.elapsed_ms.unwrap_or(0), ..Heartbeat::default() },
            offsets: self.written(),
            storage: self.stored.as_ref().map(|stored| stored.storage),
            command: None,
            age_ms: None,
            ending: Some(self.ending()),
        }
    }

    /// How much was written to each stream.
    pub fn written(&self) -> PerStream<u64> {
        self.wrote.as_deref().map_or(PerStream::default(), |wrote| wrote.bytes.map(|bytes| bytes.unwrap_or(0)))
    }
}

impl WrittenBytes {
    fn nothing() -> Self {
        let empty = Sha256::digest(b"").into();
        WrittenBytes {
            bytes: PerStream { stdout: Some(0), stderr: Some(0) },
            sha256: PerStream { stdout: Some(empty), stderr: Some(empty) },
        }
    }
}

fn plain(status: Status, reason: Reason) -> Outcome {
    Outcome::without_process(status, reason, None)
}

fn each<T, U>(of: &PerStream<Option<T>>, make: impl Fn(&T) -> Option<U>) -> PerStream<Option<U>> {
    PerStream { stdout: of.stdout.as_ref().and_then(&make), stderr: of.stderr.as_ref().and_then(&make) }
}

fn to_hex(sha: &Sha) -> String {
    sha.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(hex: &str) -> Option<Sha> {
    let mut sha = [0; 32];
    if hex.len() != 2 * sha.len() || !hex.is_ascii() {
        return None;
    }
    for (at, byte) in sha.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(sha)
}

#[cfg(test)]
mod tests {
    use cc_executor_actors::{
        outcome::{CancelReport, Evidence},
        protocol::{
            control::TerminalSize,
            execute::{ClaudeOptions, DetachOptions, Overflow, RequestedCommand},
        },
    };
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_difference_is_named_for_each_parameter() {
        let run = || ExecutionSpec::of("echo");
        type Change = fn(&mut ExecutionSpec);
        let differences: [(&str, Change); ExecutionSpec::PARTS.len()] = [
            ("command", |run| run.command = RequestedCommand::Argv(vec!["echo".to_owned()])),
            ("name", |run| run.name = Some("a-name".parse().unwrap())),
            ("executor", |run| run.executor = Some("python".to_owned())),
            ("cwd", |run| run.cwd = Some("/".to_owned())),
            ("env", |run| drop(run.env.insert("A".to_owned(), "b".to_owned()))),
            ("stdin", |run| run.stdin = true),
            ("pty", |run| run.pty = Some(TerminalSize { rows: 1, cols: 2 })),
            ("timeoutMs", |run| run.timeout_ms = Some(1)),
            ("stallTimeoutMs", |run| run.stall_timeout_ms = Some(1)),
            ("heartbeatMs", |run| run.heartbeat_ms = Some(1)),
            ("onDisconnect, detachMs or overflow", |run| {
                run.detach = Some(DetachOptions { detach_ms: 1, overflow: Overflow::Wait });
            }),
            ("claude", |run| run.claude = Some(ClaudeOptions::default())),
        ];
        let digest = RequestDigest::of(&run(), b"key");
        assert_eq!(digest.difference(&RequestDigest::of(&run(), b"key")), None);
        for (name, change) in differences {
            let mut other = run();
            change(&mut other);
            assert_eq!(digest.difference(&RequestDigest::of(&other, b"key")), Some(name));
            assert_eq!(run().difference(&other), Some(name), "as a whole request says it");
        }
        let mut same = run();
        same.execution_id = Some(cc_executor_actors::id::ExecutionId::random());
        assert_eq!(digest.difference(&RequestDigest::of(&same, b"key")), None, "the id is no part of it");
    }

    fn maybe<T: std::fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
        prop::option::of(of)
    }

    prop_compose! {
        /// Half of them in the kernel's units, and half of any number.
        fn usages()(
            (cpu_user_ms, cpu_system_ms) in (0u64..1 << 33, 0u64..1 << 20),
            (unit, rss, peak) in (prop::sample::select(vec![1, 4_096]), 0u64..1 << 30, maybe(0u64..1 << 30)),
        ) -> Usage {
            let peak_tree_bytes = peak.map(|peak| peak * unit);
            Usage { cpu_user_ms, cpu_system_ms, max_process_rss_bytes: rss * unit, peak_tree_bytes }
        }
    }

    prop_compose! {
        fn endings()(
            status in prop::sample::select(vec![Status::Completed, Status::Cancelled, Status::Failed]),
            reason in prop::sample::select(vec![Reason::Exit, Reason::Signal, Reason::Oom, Reason::Canceled, Reason::BackendLost]),
            (exit_code, signal, message) in (maybe(any::<i32>()), maybe("SIG[A-Z]{3}"), maybe(".{0,20}")),
            (elapsed_ms, leftovers) in (maybe(any::<u64>()), 0u32..3),
            usage in maybe(usages()),
            bytes in (maybe(any::<u64>()), maybe(any::<u64>())),
            sha256 in (maybe("[0-9a-f]{64}"), maybe("[0-9a-f]{64}")),
            cancel in maybe((any::<bool>(), maybe(any::<u32>()), any::<u64>(), any::<bool>())),
        ) -> Outcome {
            let cancel = cancel.map(|(verified, survivors, grace_ms, escalated)| {
                let evidence = if verified { Evidence::Swept } else { Evidence::Unknown };
                CancelReport { verified, survivors, grace_ms, escalated, evidence }
            });
            Outcome {
                exit_code, signal, message, elapsed_ms, leftovers, usage, cancel,
                bytes: PerStream { stdout: bytes.0, stderr: bytes.1 },
                sha256: PerStream { stdout: sha256.0, stderr: sha256.1 },
                ..plain(status, reason)
            }
        }
    }

    proptest! {
        #[test]
        fn an_ending_is_remembered_as_it_was(ending in endings()) {
            let record = Record::new("shell".into(), 15_000, true, &ending);
            prop_assert_eq!(record.ending(), ending);
        }
    }

    #[test]
    fn a_plain_ending_takes_no_memory_beside_its_record() {
        let empty = format!("{:x}", Sha256::digest(b""));
        let mut ending = plain(Status::Failed, Reason::Exit);
        ending.exit_code = Some(3);
        ending.elapsed_ms = Some(5);
        let (max_process_rss_bytes, peak_tree_bytes) = (3 << 20, Some(1 << 20));
        ending.usage = Some(Usage { cpu_user_ms: 2, cpu_system_ms: 1, max_process_rss_bytes, peak_tree_bytes });
        ending.bytes = PerStream { stdout: Some(0), stderr: Some(0) };
        ending.sha256 = PerStream { stdout: Some(empty.clone()), stderr: Some(empty) };
        let record = Record::new("shell".into(), 15_000, false, &ending);
        assert!(record.wrote.is_none() && record.rare.is_none(), "{record:?}");
        assert_eq!(record.ending(), ending);
        assert!(size_of::<Record>() <= 112 && size_of::<RequestDigest>() <= 56, "{}", size_of::<Record>());
    }
}
