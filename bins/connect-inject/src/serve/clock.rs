//! The time, as certificates express it.

use std::time::SystemTime;

// Units, in seconds.
pub(super) const MINUTE: i64 = 60;
pub(super) const HOUR: i64 = 60 * MINUTE;
pub(super) const DAY: i64 = 24 * HOUR;

/// A certificate counts as expired this many seconds early, so that a request in flight can
/// still be answered.
pub(super) const LAST_MINUTE: i64 = 60;

/// The current time in seconds since 1970.
pub(super) fn now() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or_default()
}
