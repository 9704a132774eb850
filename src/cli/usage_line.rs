//! The line of `run --stats`.

use cc_executor_actors::outcome::{Outcome, Usage};

/// The time, the processor time and the memory of an execution, as far as they are known.
pub(super) fn usage_line(outcome: &Outcome) -> String {
    let mut parts: Vec<_> = outcome.elapsed_ms.map(seconds).into_iter().collect();
    match outcome.usage {
        Some(Usage { cpu_user_ms, cpu_system_ms, max_process_rss_bytes, peak_tree_bytes }) => {
            parts.push(format!("cpu {} user {} system", seconds(cpu_user_ms), seconds(cpu_system_ms)));
            parts.push(format!("largest process {}", megabytes(max_process_rss_bytes)));
            parts.extend(peak_tree_bytes.map(|bytes| format!("tree at most {}", megabytes(bytes))));
        }
        None => parts.push("usage unknown".to_owned()),
    }
    parts.join(", ")
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1_000, ms % 1_000 / 100)
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(1_000_000))
}

#[cfg(test)]
mod tests {
    use cc_executor_actors::outcome::{Reason, Status};

    use super::*;

    #[test]
    fn the_line_has_what_is_known() {
        let line = |elapsed_ms, usage| {
            let outcome = Outcome::without_process(Status::Completed, Reason::Exit, None);
            usage_line(&Outcome { elapsed_ms, usage, ..outcome })
        };
        let usage = Usage {
            cpu_user_ms: 950,
            cpu_system_ms: 100,
            max_process_rss_bytes: 33_600_000,
            peak_tree_bytes: Some(60_000_000),
        };
        assert_eq!(
            line(Some(1_234), Some(usage)),
            "1.2 s, cpu 0.9 s user 0.1 s system, largest process 34 MB, tree at most 60 MB"
        );
        let usage = Usage { peak_tree_bytes: None, ..usage };
        assert_eq!(line(Some(61_000), Some(usage)), "61.0 s, cpu 0.9 s user 0.1 s system, largest process 34 MB");
        assert_eq!(line(Some(5), None), "0.0 s, usage unknown");
        assert_eq!(line(None, None), "usage unknown", "it never ran");
    }
}
