//! The records in the JSON files of an execution.

use std::{collections::BTreeMap, path::Path};

use cc_executor_actors::{
    client::ClientName,
    id::{ExecutionId, InstanceId},
    name::ExecutionName,
    outcome::Outcome,
    protocol::execute::{DetachOptions, ExecutionSpec},
    stream::PerStream,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    regular::read_record,
    seal::{Sealer, Unsealed},
};

/// `spec.json`: what was asked for, and by whom. Written before the output.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpecRecord {
    /// The id of the execution.
    pub execution_id: ExecutionId,
    /// The client that it belongs to.
    pub owner: ClientName,
    /// The name of the executor.
    pub executor: String,
    /// The command, or the prompt of an agent.
    pub command: String,
    /// The name that its client gave it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<ExecutionName>,
    /// The working directory, if the request had one.
    pub cwd: Option<String>,
    /// The variables of the request, with keyed digests of their values, because these may be secrets.
    pub env: BTreeMap<String, String>,
    /// When it was requested, in RFC 3339.
    pub created: Timestamp,
    /// The interval of its heartbeats, in milliseconds.
    pub heartbeat_ms: u64,
    /// How it continues without a client.
    pub detach: DetachOptions,
    /// The process of the backend that ran it.
    pub instance: InstanceId,
    /// The digest of the request, by which a repeated one is recognized.
    pub request: String,
}

/// `end.json`: how it ended. Written after the output, before any client learns of the end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndRecord {
    /// The ending.
    pub outcome: Outcome,
    /// When it ended, in RFC 3339.
    pub ended: Timestamp,
    /// The offsets of the first bytes that the files still have.
    pub starts: PerStream<u64>,
    /// The offsets after the last bytes that the files have. Less than what was written if the disk failed.
    pub ends: PerStream<u64>,
}

/// `checkpoint.json`: the digest of a beginning of the output, from time to time while the command runs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CheckpointRecord {
    /// The offsets of the first bytes that are not given up.
    pub starts: PerStream<u64>,
    /// The lengths of the beginnings.
    pub bytes: PerStream<u64>,
    /// Their SHA-256, in hexadecimal.
    pub sha256: PerStream<String>,
}

/// A record with its file.
pub trait RecordFile: Serialize + for<'de> Deserialize<'de> {
    /// The name of the file.
    const FILE: &'static str;

    /// Reads the file in this directory under another name; `None` if there is none. Blocks.
    fn read_as(name: &str, sealer: &Sealer, id: ExecutionId, directory: &Path) -> Option<Unsealed<Self>> {
        match read_record(&directory.join(name)) {
            Ok(json) => Some(sealer.unseal(&place::<Self>(id), &json)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(_) => Some(Unsealed::Damaged),
        }
    }

    /// The content of the file of this execution.
    fn sealed(&self, sealer: &Sealer, id: ExecutionId) -> Vec<u8> {
        sealer.seal(&place::<Self>(id), self)
    }

    /// Reads the file in this directory; `None` if there is none. Blocks.
    fn read(sealer: &Sealer, id: ExecutionId, directory: &Path) -> Option<Unsealed<Self>> {
        Self::read_as(Self::FILE, sealer, id, directory)
    }
}

/// What a seal binds a record to: the same record is not valid for another execution or file.
fn place<T: RecordFile>(id: ExecutionId) -> String {
    format!("{id}/{}", T::FILE)
}

impl RecordFile for SpecRecord {
    const FILE: &'static str = "spec.json";
}

impl RecordFile for EndRecord {
    const FILE: &'static str = "end.json";
}

impl RecordFile for CheckpointRecord {
    const FILE: &'static str = "checkpoint.json";
}

impl SpecRecord {
    /// The variables of a request, with digests of their values.
    pub fn digests(sealer: &Sealer, spec: &ExecutionSpec) -> BTreeMap<String, String> {
        spec.env.iter().map(|(name, value)| (name.clone(), sealer.digest(name, value))).collect()
    }
}
