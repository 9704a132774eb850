//! The one place where errors of the backend's modules become JSON-RPC errors, with their codes and `data`. The HTTP
//! status follows from the code, see [`crate::server::refused::Refused`].

use cc_executor_actors::{
    protocol::MAX_INPUT_WAITING,
    rpc::{ErrorObject, code},
    share::{ShareExceeded, ShareScope},
};
use serde_json::json;

use super::{
    agent::claude::PolicyError,
    executor::ExecutorError,
    holds::HoldError,
    job_request::JobError,
    output_buffer::{ConsumerError, OffsetError},
    registry::{error::RegistryError, places::NoPlace},
};

/// When to ask again for a place to run, to wait or to observe, in milliseconds. One may become free at any moment.
const RETRY_PLACE_MS: u64 = 1_000;

impl From<HoldError> for ErrorObject {
    fn from(error: HoldError) -> ErrorObject {
        let (code, data) = match error {
            HoldError::NeverGiven { asked, newest } => {
                (code::PARAMS, json!({ "param": "hold", "asked": asked, "max": newest }))
            }
            HoldError::TakenOver { newest } => (code::NOT_RUNNING, json!({ "reason": "taken_over", "hold": newest })),
        };
        ErrorObject::new(code, error.to_string()).with(data)
    }
}

impl From<OffsetError> for ErrorObject {
    fn from(error: OffsetError) -> ErrorObject {
        let data = json!({ "param": error.stream.as_str(), "asked": error.asked, "max": error.end });
        ErrorObject::new(code::PARAMS, error.to_string()).with(data)
    }
}

impl From<JobError> for ErrorObject {
    fn from(error: JobError) -> ErrorObject {
        let code = match error {
            JobError::Consumer(ConsumerError::Hold(error)) => return error.into(),
            JobError::Consumer(ConsumerError::Offset(error)) => return error.into(),
            // All observers of an execution are of one client, which can send one away.
            JobError::Consumer(ConsumerError::TooManyObservers { limit, used }) => {
                let exceeded = ShareExceeded { scope: ShareScope::Client, limit: limit as u64, used: used as u64 };
                return ErrorObject::new(code::FULL, error.to_string()).over(exceeded, Some(RETRY_PLACE_MS));
            }
            JobError::Queued(_)
            | JobError::NotStarted(_)
            | JobError::Exited(_)
            | JobError::Ending(_)
            | JobError::Ended(_)
            | JobError::ShimSilent(_)
            | JobError::NotPaused(_)
            | JobError::JustEnded(_)
            | JobError::EndedUnread(_)
            | JobError::StdinClosed => code::NOT_RUNNING,
            JobError::NoStdin | JobError::NoTerminal | JobError::NotDetachable => code::NOT_ALLOWED,
            JobError::DetachTooLong { .. } => code::PARAMS,
            JobError::StdinFull { waiting, .. } => {
                let (limit, used) = (MAX_INPUT_WAITING as u64, waiting as u64);
                let exceeded = ShareExceeded { scope: ShareScope::Client, limit, used };
                return ErrorObject::new(code::FULL, error.to_string()).over(exceeded, None);
            }
            JobError::NoReply { .. } | JobError::Resize(_) => code::INTERNAL,
        };
        ErrorObject::new(code, error.to_string())
    }
}

impl From<RegistryError> for ErrorObject {
    fn from(error: RegistryError) -> ErrorObject {
        let over =
            |exceeded, retry_after_ms| ErrorObject::new(code::FULL, error.to_string()).over(exceeded, retry_after_ms);
        let (code, data) = match &error {
            RegistryError::Draining => (code::DRAINING, None),
            RegistryError::NoPlace(NoPlace::ToRun(exceeded) | NoPlace::InQueue(exceeded)) => {
                return over(*exceeded, Some(RETRY_PLACE_MS));
            }
            RegistryError::NoRoom(no_room) => return over(no_room.exceeded, no_room.next_in_ms),
            RegistryError::TooManyWithdrawn(refused) => return over(refused.exceeded, Some(refused.retry_in_ms)),
            RegistryError::IdTaken { difference, .. } => (code::PARAMS, Some(json!({ "param": difference }))),
            RegistryError::NameTaken { id, .. } => (code::PARAMS, Some(json!({ "param": "name", "executionId": id }))),
            RegistryError::IdInUse(_) => (code::PARAMS, Some(json!({ "param": "executionId" }))),
            RegistryError::Withdrawn(_) | RegistryError::Ended(_) => (code::NOT_RUNNING, None),
            // A client can tell from the instance whether the backend was restarted since.
            RegistryError::Unknown { instance, .. } => (code::UNKNOWN_EXECUTION, Some(json!({ "instance": instance }))),
            RegistryError::NoReply { .. } => (code::INTERNAL, None),
        };
        ErrorObject { code, message: error.to_string(), data }
    }
}

impl From<ExecutorError> for ErrorObject {
    fn from(error: ExecutorError) -> ErrorObject {
        let message = error.to_string();
        match error {
            ExecutorError::Unknown { asked, known } => ErrorObject::new(code::NOT_ALLOWED, message)
                .with(json!({ "param": "executor", "asked": asked, "allowed": known })),
            ExecutorError::Spec(error) => error,
            // Only at the start.
            ExecutorError::NotDisabled { .. } | ExecutorError::ExecIsReserved => {
                ErrorObject::new(code::NOT_ALLOWED, message)
            }
            ExecutorError::Policy(error) => error.into(),
        }
    }
}

impl From<PolicyError> for ErrorObject {
    fn from(error: PolicyError) -> ErrorObject {
        let (code, data) = match &error {
            PolicyError::NotAllowed { param, asked, allowed } => {
                (code::NOT_ALLOWED, json!({ "param": param, "asked": asked, "allowed": allowed }))
            }
            PolicyError::OutsideDirectories { asked, allowed } => {
                (code::NOT_ALLOWED, json!({ "param": "cwd", "asked": asked, "allowed": allowed }))
            }
            PolicyError::TooManyTurns { asked, max } => {
                (code::PARAMS, json!({ "param": "maxTurns", "asked": asked, "max": max }))
            }
            PolicyError::Reserved { name } => (code::NOT_ALLOWED, json!({ "param": "env", "asked": name })),
            PolicyError::BypassAsRoot => (code::NOT_ALLOWED, json!({ "param": "permissionMode" })),
        };
        ErrorObject::new(code, error.to_string()).with(data)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use actix_web::ResponseError;
    use cc_executor_actors::{
        id::{ExecutionId, InstanceId},
        stream::Stream,
    };

    use super::*;
    use crate::{
        backend::registry::retention::{NoRoom, Resource},
        server::refused::Refused,
    };

    fn exceeded(scope: ShareScope) -> ShareExceeded {
        ShareExceeded { scope, limit: 4, used: 5 }
    }

    #[test]
    fn refusals_say_what_to_do() {
        let id: ExecutionId = "66666666-6666-4666-8666-666666666666".parse().unwrap();
        let (instance, retention) = (InstanceId::random(), Duration::from_secs(600));
        let no_room = |resource, scope| {
            RegistryError::NoRoom(NoRoom { resource, exceeded: exceeded(scope), next_in_ms: Some(4_001) })
        };
        let table = [
            (
                RegistryError::Unknown { id, instance, retention },
                "unknown execution 66666666-6666-4666-8666-666666666666: it may have ended more than 10 minutes ago, or the backend was restarted; list the known ones with GET /executions (cc-executor ps)",
            ),
            (
                RegistryError::NoReply { id, within: Duration::from_secs(2) },
                "execution 66666666-6666-4666-8666-666666666666 did not answer within 2 s: try again, or cancel it",
            ),
            (
                no_room(Resource::Entries, ShareScope::Service),
                "the backend remembers 5 executions, the limit of --max-ended: try again in 5 s; the operator can raise --max-ended or lower --retention-ms",
            ),
            (
                no_room(Resource::UnfetchedBytes, ShareScope::Client),
                "unfetched output of this client takes 5 bytes, and its share of --max-kept-bytes is 4: attach to ended executions to fetch it, wait until its retention ends, or execute without onDisconnect \"detach\"",
            ),
            (
                RegistryError::NoPlace(NoPlace::ToRun(exceeded(ShareScope::Client))),
                "5 executions of this client run, and none may wait, and its share of --max-executions is 4: try again when one has ended",
            ),
            (
                RegistryError::NoPlace(NoPlace::InQueue(exceeded(ShareScope::Service))),
                "5 executions are queued, the limit of --max-queued is 4: try again when one has ended",
            ),
        ];
        for (error, text) in table {
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn each_error_has_its_code_its_data_and_its_status() {
        let (id, instance) = (ExecutionId::random(), InstanceId::random());
        let table: Vec<(ErrorObject, i64, serde_json::Value, u16)> = vec![
            (
                HoldError::NeverGiven { asked: 7, newest: 2 }.into(),
                code::PARAMS,
                json!({ "param": "hold", "asked": 7, "max": 2 }),
                400,
            ),
            (
                JobError::Consumer(HoldError::TakenOver { newest: 2 }.into()).into(),
                code::NOT_RUNNING,
                json!({ "reason": "taken_over", "hold": 2 }),
                409,
            ),
            (
                JobError::Consumer(OffsetError { stream: Stream::Stderr, asked: 9, end: 8 }.into()).into(),
                code::PARAMS,
                json!({ "param": "stderr", "asked": 9, "max": 8 }),
                400,
            ),
            (
                JobError::Consumer(ConsumerError::TooManyObservers { limit: 50, used: 50 }).into(),
                code::FULL,
                json!({ "limit": 50, "used": 50, "scope": "client", "retryAfterMs": 1_000 }),
                429,
            ),
            (JobError::Ended(id).into(), code::NOT_RUNNING, json!(null), 409),
            (JobError::NoStdin.into(), code::NOT_ALLOWED, json!(null), 403),
            (
                JobError::StdinFull { length: 1, waiting: 1 }.into(),
                code::FULL,
                json!({ "limit": MAX_INPUT_WAITING, "used": 1, "scope": "client", "retryAfterMs": null }),
                429,
            ),
            (JobError::NoReply { id, within: Duration::from_secs(4) }.into(), code::INTERNAL, json!(null), 500),
            (RegistryError::Draining.into(), code::DRAINING, json!(null), 503),
            (
                RegistryError::NoPlace(NoPlace::InQueue(exceeded(ShareScope::Service))).into(),
                code::FULL,
                json!({ "limit": 4, "used": 5, "scope": "service", "retryAfterMs": 1_000 }),
                503,
            ),
            (
                RegistryError::NoRoom(NoRoom {
                    resource: Resource::Entries,
                    exceeded: exceeded(ShareScope::Client),
                    next_in_ms: Some(1_500),
                })
                .into(),
                code::FULL,
                json!({ "limit": 4, "used": 5, "scope": "client", "retryAfterMs": 1_500 }),
                429,
            ),
            (RegistryError::IdInUse(id).into(), code::PARAMS, json!({ "param": "executionId" }), 400),
            (RegistryError::IdTaken { id, difference: "cwd" }.into(), code::PARAMS, json!({ "param": "cwd" }), 400),
            (
                RegistryError::Unknown { id, instance, retention: Duration::from_secs(600) }.into(),
                code::UNKNOWN_EXECUTION,
                json!({ "instance": instance }),
                404,
            ),
            (
                ExecutorError::Unknown { asked: "perl".into(), known: vec!["shell".into()] }.into(),
                code::NOT_ALLOWED,
                json!({ "param": "executor", "asked": "perl", "allowed": ["shell"] }),
                403,
            ),
            (
                PolicyError::OutsideDirectories { asked: "/typo".into(), allowed: vec!["/work".into()] }.into(),
                code::NOT_ALLOWED,
                json!({ "param": "cwd", "asked": "/typo", "allowed": ["/work"] }),
                403,
            ),
            (
                PolicyError::TooManyTurns { asked: 9, max: 5 }.into(),
                code::PARAMS,
                json!({ "param": "maxTurns", "asked": 9, "max": 5 }),
                400,
            ),
            (
                PolicyError::Reserved { name: "PATH".into() }.into(),
                code::NOT_ALLOWED,
                json!({ "param": "env", "asked": "PATH" }),
                403,
            ),
        ];
        for (error, code, data, status) in table {
            assert_eq!((error.code, error.data.clone().unwrap_or_default()), (code, data), "{}", error.message);
            assert_eq!(Refused::from(error.clone()).status_code().as_u16(), status, "{}", error.message);
        }
    }
}
