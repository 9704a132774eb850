//! The one place where errors of the backend's modules become JSON-RPC errors, with their codes and `data`. The HTTP
//! status follows from the code, see [`crate::server::refused::Refused`].

use cc_executor_actors::rpc::{ErrorObject, code};
use serde_json::json;

use super::{
    agent::claude::PolicyError,
    executor::ExecutorError,
    holds::HoldError,
    job_request::JobError,
    output_buffer::{ConsumerError, OffsetError},
    registry::error::RegistryError,
};

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
            JobError::NoStdin | JobError::NoTerminal => code::NOT_ALLOWED,
            JobError::StdinFull { .. } => code::FULL,
            JobError::NoReply(_) | JobError::Resize(_) => code::INTERNAL,
        };
        ErrorObject::new(code, error.to_string())
    }
}

impl From<RegistryError> for ErrorObject {
    fn from(error: RegistryError) -> ErrorObject {
        let (code, data) = match &error {
            RegistryError::Draining => (code::DRAINING, None),
            RegistryError::Full { max, max_queued } => {
                (code::FULL, Some(json!({ "max": max, "maxQueued": max_queued })))
            }
            RegistryError::TooManyEnded { max_ended, next_in_ms } => {
                (code::FULL, Some(json!({ "maxEnded": max_ended, "retryInMs": next_in_ms })))
            }
            RegistryError::TooMuchUnfetched { held, max } => (code::FULL, Some(json!({ "held": held, "max": max }))),
            RegistryError::IdTaken { difference, .. } => (code::PARAMS, Some(json!({ "param": difference }))),
            RegistryError::Withdrawn(_) | RegistryError::Ended(_) => (code::NOT_RUNNING, None),
            // A client can tell from the instance whether the backend was restarted since.
            RegistryError::Unknown { instance, .. } => (code::UNKNOWN_EXECUTION, Some(json!({ "instance": instance }))),
            RegistryError::NoReply => (code::INTERNAL, None),
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
    use actix_web::ResponseError;
    use cc_executor_actors::{
        id::{ExecutionId, InstanceId},
        stream::Stream,
    };

    use super::*;
    use crate::server::refused::Refused;

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
            (JobError::Ended(id).into(), code::NOT_RUNNING, json!(null), 409),
            (JobError::NoStdin.into(), code::NOT_ALLOWED, json!(null), 403),
            (JobError::StdinFull { length: 1, waiting: 1 }.into(), code::FULL, json!(null), 429),
            (JobError::NoReply(id).into(), code::INTERNAL, json!(null), 500),
            (RegistryError::Draining.into(), code::DRAINING, json!(null), 503),
            (
                RegistryError::Full { max: 1, max_queued: 2 }.into(),
                code::FULL,
                json!({ "max": 1, "maxQueued": 2 }),
                429,
            ),
            (
                RegistryError::TooManyEnded { max_ended: 3, next_in_ms: Some(1_500) }.into(),
                code::FULL,
                json!({ "maxEnded": 3, "retryInMs": 1_500 }),
                429,
            ),
            (RegistryError::IdTaken { id, difference: "cwd" }.into(), code::PARAMS, json!({ "param": "cwd" }), 400),
            (
                RegistryError::Unknown { id, instance }.into(),
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
