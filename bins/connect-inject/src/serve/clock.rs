//! The time, as certificates have it.

use std::time::SystemTime;

/// How long before its end a certificate counts as expired: a request must
/// have time to be answered.
pub(super) const LAST_MINUTE: i64 = 60;

/// The time in seconds since 1970.
pub(super) fn now() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or_default()
}
