//! Why a request to the backend failed.

use crate::rpc::{ErrorObject, code};

/// Why a request to the backend failed.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The backend did not answer.
    #[error("{0}")]
    Unreachable(String),
    /// The answer does not follow the protocol, or the backend was restarted at every attempt.
    #[error("{0}")]
    Rejected(String),
    /// The backend refused the request with an error of the protocol.
    #[error("{0}")]
    Refused(ErrorObject),
    /// The connection broke after an execution was requested, so it may have started.
    #[error("{0}")]
    Unsure(String),
    /// The backend was restarted after the request, so the executions of the old process are gone.
    #[error("{0}")]
    Restarted(String),
    /// The stream of an execution ended before its first event, or was not understood.
    #[error("{0}")]
    BrokeOff(String),
}

impl BackendError {
    /// The error that the client gets.
    pub fn into_error(self) -> ErrorObject {
        match self {
            BackendError::Refused(error) => error,
            other => ErrorObject::new(code::BACKEND, other.to_string()),
        }
    }
}
