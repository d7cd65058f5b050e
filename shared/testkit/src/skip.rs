//! Tests that need something that the machine may lack.

use std::io::Write;

/// Passes on what was found. If it is missing, prints what, or panics in CI, where the
/// variable `CI` is set.
///
/// # Panics
/// In CI, if something is missing.
pub fn or_skip<T>(found: Result<T, String>) -> Option<T> {
    match found {
        Ok(found) => Some(found),
        Err(missing) => {
            let ci = std::env::var_os("CI").unwrap_or_default();
            assert!(ci.is_empty(), "{missing}");
            // Bypasses the test runner's capture, so that a skip is visible.
            let _ = writeln!(std::io::stderr(), "skipped: {missing}");
            None
        }
    }
}
