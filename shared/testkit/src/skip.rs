//! Tests that need what a machine may lack.

use std::io::Write;

/// What was found, or nothing with a line that says what is missing; in CI,
/// where the variable `CI` is set, a panic.
///
/// # Panics
/// In CI, if something is missing.
pub fn or_skip<T>(found: Result<T, String>) -> Option<T> {
    match found {
        Ok(found) => Some(found),
        Err(missing) => {
            let ci = std::env::var_os("CI").unwrap_or_default();
            assert!(ci.is_empty(), "{missing}");
            // Past the test runner's capture: a skip is to be seen.
            let _ = writeln!(std::io::stderr(), "skipped: {missing}");
            None
        }
    }
}
