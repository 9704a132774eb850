//! The filters of `ps`. Pure.

use cc_executor_actors::backend_api::Snapshot;

use crate::cli::ps_table::{state_of, states};

/// A property that a listed execution must have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum PsFilter {
    /// Its state, as the table shows it.
    State(&'static str),
    /// A part of its name.
    Name(String),
}

impl PsFilter {
    /// In place of a filter that cannot be read.
    pub(super) fn placeholder() -> PsFilter {
        PsFilter::Name(String::new())
    }
}

/// Reads `state=STATE` or `name=PART`.
pub(super) fn read_filter(text: &str) -> Result<PsFilter, String> {
    match text.split_once('=') {
        Some(("state", state)) => {
            let found = states().find(|known| known.eq_ignore_ascii_case(state));
            found.map(PsFilter::State).ok_or_else(|| {
                let known: Vec<_> = states().collect();
                format!("has the state {state:?}, which is none of {}", known.join(", "))
            })
        }
        Some(("name", part)) if !part.is_empty() => Ok(PsFilter::Name(part.to_owned())),
        _ => Err(format!("must be state=STATE or name=PART, not {text:?}")),
    }
}

/// Whether an execution passes: for each key that is given, one of its values.
pub(super) fn passes(filters: &[PsFilter], execution: &Snapshot) -> bool {
    let is_met = |filter: &PsFilter| match filter {
        PsFilter::State(state) => state_of(execution) == *state,
        PsFilter::Name(part) => execution.name.as_ref().is_some_and(|name| name.as_str().contains(part.as_str())),
    };
    let (states, names): (Vec<_>, Vec<_>) = filters.iter().partition(|filter| matches!(filter, PsFilter::State(_)));
    [states, names].into_iter().all(|same_key| same_key.is_empty() || same_key.into_iter().any(is_met))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_of_one_key_add_up_and_keys_narrow_down() {
        let execution = |status: &str, name: Option<&str>, held_back: bool| -> Snapshot {
            serde_json::from_value(json!({
                "executionId": "66666666-6666-4666-8666-666666666666", "executor": "shell", "status": status,
                "name": name, "heldBack": held_back, "elapsedMs": 0, "sinceOutputMs": 0
            }))
            .unwrap()
        };
        let filters = |texts: &[&str]| texts.iter().map(|text| read_filter(text).unwrap()).collect::<Vec<_>>();
        let build = execution("RUNNING", Some("build-1"), false);
        for (texts, expected) in [
            (vec![], true),
            (vec!["state=running"], true),
            (vec!["state=FAILED"], false),
            (vec!["state=failed", "state=running"], true),
            (vec!["name=build"], true),
            (vec!["name=test", "name=d-1"], true),
            (vec!["state=running", "name=test"], false),
            (vec!["state=waiting"], false),
        ] {
            assert_eq!(passes(&filters(&texts), &build), expected, "{texts:?}");
        }
        let held = execution("RUNNING", None, true);
        assert!(passes(&filters(&["state=waiting"]), &held) && !passes(&filters(&["name=x"]), &held));
        for wrong in ["", "state", "state=", "state=odd", "name=", "id=1"] {
            assert!(read_filter(wrong).is_err(), "{wrong}");
        }
    }
}
