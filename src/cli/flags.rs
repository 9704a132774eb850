//! Flags that several client commands share, and the parsers of their values.

use std::time::Duration;

use cc_executor_actors::id::ExecutionId;

pub(super) use super::service::ServiceFlags;
use crate::config::value::{Checker, checked};

/// The time for which `--reconnect` without a value tries to connect again, in seconds.
pub(super) const DEFAULT_RECONNECT: &str = "30";

/// The parser of a time in seconds.
pub(super) fn seconds() -> Checker<Duration> {
    checked(read_seconds)
}

/// The parser of an execution's id.
pub(super) fn execution_id() -> Checker<ExecutionId> {
    let read = |text: &str| {
        text.parse().map_err(|_| format!("must be the id of an execution, not {text:?}; `cc-executor ps` lists them"))
    };
    Checker::new(read, ExecutionId::random)
}

fn read_seconds(text: &str) -> Result<Duration, String> {
    match text.trim_end_matches('s').parse::<f64>() {
        Ok(number) if number > 0.0 && number < 1e9 => Ok(Duration::from_secs_f64(number).max(Duration::from_millis(1))),
        _ => Err(format!("must be a number of seconds such as 30 or 0.5, not {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_seconds() {
        assert_eq!(read_seconds("30"), Ok(Duration::from_secs(30)));
        assert_eq!(read_seconds("0.25s"), Ok(Duration::from_millis(250)));
        for wrong in ["", "0", "-1", "soon", "nan", "inf"] {
            assert!(read_seconds(wrong).is_err(), "{wrong}");
        }
    }
}
