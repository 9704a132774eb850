//! Tells a final status from the others, in a `statusUpdate` or in the response to `status`.

use cc_executor_actors::outcome::Outcome;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::{ClientError, connection::read};

/// A status of an execution.
#[derive(Debug)]
pub(super) enum ReceivedStatus {
    /// The execution waits or runs. Only the fields that a client uses are read, because a newer service may have other
    /// statuses, and they must not end a client.
    Progress { activity: Option<String> },
    /// The execution has ended.
    Ended(Box<Outcome>),
}

/// The fields of a status that is not final that a client uses.
#[derive(Deserialize)]
struct StatusSummary {
    /// Only the final status has one.
    #[serde(default)]
    reason: Option<IgnoredAny>,
    #[serde(default)]
    activity: Option<String>,
}

impl ReceivedStatus {
    /// Reads the parameters of a `statusUpdate`, or the response to `status`.
    ///
    /// # Errors
    /// The JSON is not a status, or the final status is not valid.
    pub(super) fn read(json: &RawValue) -> Result<Self, ClientError> {
        let StatusSummary { reason, activity } = read(json)?;
        Ok(match reason {
            Some(_) => ReceivedStatus::Ended(read(json)?),
            None => ReceivedStatus::Progress { activity },
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
        let ended = format!("{:?}", ReceivedStatus::Ended(Box::new(outcome.clone())));
        let progress = "Progress { activity: None }";
        for (status, expected) in [
            (json!({ "status": "LATER", "backend": "later" }), progress),
            (with("reason", Value::Null), progress),
            (with("later", json!([1])), &ended),
        ] {
            assert_eq!(read(status.clone()), expected, "{status}");
        }
        let invalid = read(with("exit_code", json!("later")));
        assert!(invalid.contains("not valid"), "it is not taken for a status that is not final: {invalid}");
    }
}
