//! The ACL token, in a file.

use std::path::Path;

use runtime::Failure;
use secrecy::SecretString;

/// Reads a token; none if the file is empty.
pub fn read(file: &Path) -> Result<Option<SecretString>, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        Failure::usage(format_args!("cannot read the token file {}: {error}", file.display()))
            .hint("check --token-file (CONSUL_HTTP_TOKEN_FILE)")
    })?;
    let token = text.trim();
    Ok((!token.is_empty()).then(|| SecretString::from(token)))
}
