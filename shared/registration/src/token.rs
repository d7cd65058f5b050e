//! An ACL token within a registration.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, Serializer};

/// An ACL token. It appears in request bodies, but not in `Debug` output.
#[derive(Clone)]
pub struct Token(SecretString);

// === impl Token ===

impl Token {
    pub fn new(token: SecretString) -> Self {
        Self(token)
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.0.expose_secret() == other.0.expose_secret()
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose_secret())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_sent_and_never_shown() {
        let token = Token::new("s3cret".into());
        assert_eq!(serde_json::to_string(&token).unwrap(), "\"s3cret\"");
        assert!(!format!("{token:?}").contains("s3cret"));
        assert_ne!(token, Token::new("other".into()));
    }
}
