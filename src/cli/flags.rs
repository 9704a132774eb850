//! Flags that several client commands share.

pub(super) use super::service::ServiceFlags;

/// The time for which `--reconnect` without a value tries to connect again, in seconds.
pub(super) const DEFAULT_RECONNECT: &str = "30";
