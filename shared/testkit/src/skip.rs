//! Tests that need something that the machine may lack.

use std::io::Write;
use std::path::PathBuf;

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

/// The file or directory that an environment variable names.
///
/// # Errors
/// The variable is not set, or there is no such path; with a hint.
pub fn part(variable: &str) -> Result<PathBuf, String> {
    match std::env::var_os(variable).map(PathBuf::from) {
        Some(path) if path.exists() => Ok(path),
        Some(path) => Err(format!("{variable} names {}, which does not exist", path.display())),
        None => Err(format!("{variable} is not set: scripts/test and scripts/demo set it")),
    }
}
