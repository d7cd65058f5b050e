//! YAML, read as kubectl reads it.

use serde_json::Value;

/// Reads one document.
///
/// # Errors
/// A sentence with line and column.
pub(crate) fn value(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str(text)
        .map_err(|error| format!("invalid YAML: {}", error.without_snippet()))
}
