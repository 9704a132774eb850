//! Tells a final status from the others, in a `statusUpdate` or in the response to `status`.

use cc_executor_actors::outcome::Outcome;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::{ClientError, connection::read, progress::Progress};

/// A status of an execution.
#[derive(Debug)]
pub(super) enum ReceivedStatus {
    /// The execution waits or runs.
    Progress(Progress),
    /// The execution has ended.
    Ended(Box<Outcome>),
}

/// What tells a final status from others.
#[derive(Deserialize)]
struct StatusSummary {
    /// Only the final status has one.
    #[serde(default)]
    reason: Option<IgnoredAny>,
}

impl ReceivedStatus {
    /// Reads the parameters of a `statusUpdate`, or the response to `status`.
    ///
    /// # Errors
    /// The JSON is not a status, or the final status is not valid.
    pub(super) fn read(json: &RawValue) -> Result<Self, ClientError> {
        let StatusSummary { reason } = read(json)?;
        Ok(match reason {
            Some(_) => ReceivedStatus::Ended(read(json)?),
            None => ReceivedStatus::Progress(read(json)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use cc_executor_actors::outcome::{Outcome, Reason, Status};
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_reason_tells_the_final_status() {
        let read = |json: Value| {
            let json = RawValue::from_string(json.to_string()).unwrap();
            ReceivedStatus::read(&json).map_or_else(|error| error.message, |status| format!("{status:?}"))
        };
        let outcome = Outcome::without_process(Status::Cancelled, Reason::Canceled, None);
        let with = |name: &str, value: Value| {
            let mut status = json!(outcome);
            status[name] = value;
            status
        };
        let progress = |status: &str| {
            format!("{:?}", ReceivedStatus::Progress(Progress { status: status.to_owned(), ..Progress::default() }))
        };
        let ended = format!("{:?}", ReceivedStatus::Ended(Box::new(outcome.clone())));
        for (status, expected) in [
            (json!({ "status": "LATER", "backend": "later" }), &progress("LATER")),
            (with("reason", Value::Null), &progress("CANCELLED")),
            (with("later", json!([1])), &ended),
        ] {
            assert_eq!(read(status.clone()), *expected, "{status}");
        }
        let invalid = read(with("exit_code", json!("later")));
        assert!(invalid.contains("not valid"), "it is not taken for a status that is not final: {invalid}");
    }
}
