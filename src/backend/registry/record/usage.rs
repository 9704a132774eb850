//! A compact form of the usage of an ended execution, of which there may be a million.

use std::num::NonZeroU32;

use cc_executor_actors::outcome::Usage;

const KIB: u64 = 1024;

/// The kernel counts the memory of a cgroup in pages, which have a multiple of this size.
const PAGE: u64 = 4 * KIB;

/// A usage in 16 bytes. An `Option` of it takes no more, because no process fits in 0 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct CompactUsage {
    cpu_user_ms: u32,
    cpu_system_ms: u32,
    max_process_rss_kib: NonZeroU32,
    peak_tree_pages: Option<NonZeroU32>,
}

impl CompactUsage {
    /// `None` if a number is too large, such as 50 days of processor time, or not a multiple of its unit.
    pub(super) fn of(usage: Usage) -> Option<CompactUsage> {
        let of_unit = |bytes: u64, unit| {
            let n = u32::try_from(bytes / unit).ok().filter(|_| bytes.is_multiple_of(unit))?;
            NonZeroU32::new(n)
        };
        Some(CompactUsage {
            cpu_user_ms: usage.cpu_user_ms.try_into().ok()?,
            cpu_system_ms: usage.cpu_system_ms.try_into().ok()?,
            max_process_rss_kib: of_unit(usage.max_process_rss_bytes, KIB)?,
            peak_tree_pages: match usage.peak_tree_bytes {
                Some(bytes) => Some(of_unit(bytes, PAGE)?),
                None => None,
            },
        })
    }
}

impl From<CompactUsage> for Usage {
    fn from(compact: CompactUsage) -> Self {
        Usage {
            cpu_user_ms: compact.cpu_user_ms.into(),
            cpu_system_ms: compact.cpu_system_ms.into(),
            max_process_rss_bytes: u64::from(compact.max_process_rss_kib.get()) * KIB,
            peak_tree_bytes: compact.peak_tree_pages.map(|pages| u64::from(pages.get()) * PAGE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_compact_where_nothing_is_lost() {
        let usage = Usage {
            cpu_user_ms: 1_234,
            cpu_system_ms: 0,
            max_process_rss_bytes: 3 * KIB,
            peak_tree_bytes: Some(5 * PAGE),
        };
        let without_peak = Usage { peak_tree_bytes: None, ..usage };
        for usage in [usage, without_peak] {
            assert_eq!(CompactUsage::of(usage).map(Usage::from), Some(usage));
        }
        for usage in [
            Usage { cpu_user_ms: 1 << 32, ..usage },
            Usage { max_process_rss_bytes: 3 * KIB + 1, ..usage },
            Usage { max_process_rss_bytes: 0, ..usage },
            Usage { peak_tree_bytes: Some(PAGE / 2), ..usage },
            Usage { peak_tree_bytes: Some(PAGE << 32), ..usage },
        ] {
            assert_eq!(CompactUsage::of(usage), None, "{usage:?}");
        }
        assert_eq!(size_of::<Option<CompactUsage>>(), 16);
    }
}
