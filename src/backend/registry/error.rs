//! Why the registry does not admit or find an execution.

use std::time::Duration;

use cc_executor_actors::{
    id::{ExecutionId, InstanceId},
    name::ExecutionName,
    share::{ShareExceeded, ShareScope},
};

use super::{
    places::NoPlace,
    retention::{NoRoom, Resource},
    withdrawn::TooManyWithdrawn,
};

/// A refusal by the registry.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RegistryError {
    /// The service ends.
    #[error("the backend is shutting down: try again in a moment")]
    Draining,
    /// There is no place to run or to wait.
    #[error("{}", no_place(*.0))]
    NoPlace(NoPlace),
    /// There is no room to remember another execution, or its output.
    #[error("{}", no_room(*.0))]
    NoRoom(NoRoom),
    /// The client has canceled too many unknown ids.
    #[error(
        "{} execution ids were canceled before execute arrived, and at most {} are remembered: try again {}",
        .0.exceeded.used, .0.exceeded.limit, when(Some(.0.retry_in_ms))
    )]
    TooManyWithdrawn(TooManyWithdrawn),
    /// Another request of the client has this id.
    #[error("executionId {id} exists already, with another {difference}: choose a new id")]
    IdTaken {
        /// The id.
        id: ExecutionId,
        /// The parameter in which the requests differ.
        difference: &'static str,
    },
    /// An execution of the client that waits or runs has this name.
    #[error("name {name} is taken by execution {id}, which has not ended: choose another name, or wait for its end")]
    NameTaken {
        /// The name.
        name: ExecutionName,
        /// The execution.
        id: ExecutionId,
    },
    /// An execution of another client has this id.
    #[error("executionId {0} is in use: choose a new id")]
    IdInUse(ExecutionId),
    /// The execution was canceled before its request arrived.
    #[error("executionId {0} was canceled before execute arrived, and nothing ran: choose a new id")]
    Withdrawn(ExecutionId),
    /// The id was never known to the client, or was forgotten.
    #[error(
        "unknown execution {id}: it may have ended more than {} ago, or the backend was restarted; list the known ones with GET /executions (cc-executor ps)",
        in_words(*.retention)
    )]
    Unknown {
        /// The id.
        id: ExecutionId,
        /// The backend's process that does not know it.
        instance: InstanceId,
        /// How long executions are remembered after their end.
        retention: Duration,
    },
    /// The execution has ended.
    #[error("execution {0} has ended")]
    Ended(ExecutionId),
    /// The execution's task does not answer.
    #[error("execution {id} did not answer within {} s: try again, or cancel it", .within.as_secs())]
    NoReply {
        /// The id.
        id: ExecutionId,
        /// How long an answer was waited for.
        within: Duration,
    },
}

fn no_place(no_place: NoPlace) -> String {
    let (what, ShareExceeded { scope, limit, used }, setting) = match no_place {
        NoPlace::ToRun(exceeded) => ("run, and none may wait", exceeded, "--max-executions"),
        NoPlace::InQueue(exceeded) => ("are queued", exceeded, "--max-queued"),
    };
    match scope {
        ShareScope::Client => {
            format!(
                "{used} executions of this client {what}, and its share of {setting} is {limit}: try again when one has ended"
            )
        }
        ShareScope::Service => {
            format!("{used} executions {what}, the limit of {setting} is {limit}: try again when one has ended")
        }
    }
}

fn no_room(NoRoom { resource, exceeded, next_in_ms }: NoRoom) -> String {
    let ShareExceeded { scope, limit, used } = exceeded;
    let (of_client, limit_of) = match scope {
        ShareScope::Client => (" of this client", "its share of"),
        ShareScope::Service => ("", "the limit of"),
    };
    match resource {
        Resource::Entries => format!(
            "the backend remembers {used} executions{of_client}, {limit_of} --max-ended: try again {}; the operator can raise --max-ended or lower --retention-ms",
            when(next_in_ms)
        ),
        Resource::StoredBytes => format!(
            "output{of_client} takes {used} bytes on disk, and {limit_of} --max-state-bytes is {limit}: attach to ended executions to fetch it, wait until its retention ends, or execute without onDisconnect \"detach\""
        ),
        Resource::UnfetchedBytes => format!(
            "unfetched output{of_client} takes {used} bytes, and {limit_of} --max-kept-bytes is {limit}: attach to ended executions to fetch it, wait until its retention ends, or execute without onDisconnect \"detach\""
        ),
    }
}

fn when(next_in_ms: Option<u64>) -> String {
    match next_in_ms {
        Some(ms) => format!("in {} s", ms.div_ceil(1_000).max(1)),
        None => "when one has ended and its retention is over".to_owned(),
    }
}

fn in_words(time: Duration) -> String {
    match (time.as_secs(), time.subsec_millis()) {
        (60, 0) => "a minute".to_owned(),
        (seconds, 0) if seconds > 0 && seconds % 60 == 0 => format!("{} minutes", seconds / 60),
        _ => format!("{} s", time.as_secs_f64()),
    }
}
