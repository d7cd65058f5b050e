//! The ACL token in a file.

use std::path::Path;

use secrecy::SecretString;

use crate::SetupError;

/// Reads a token; `None` if the file is empty.
pub fn read(file: &Path) -> Result<Option<SecretString>, SetupError> {
    let text = std::fs::read_to_string(file)
        .map_err(|source| SetupError::Token { path: file.to_owned(), source })?;
    let token = text.trim();
    Ok((!token.is_empty()).then(|| SecretString::from(token)))
}
