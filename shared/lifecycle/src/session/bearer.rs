//! Bearer tokens for a login.

use std::fmt;
use std::io::ErrorKind;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

/// The owner of a bearer token, for messages.
#[derive(Debug)]
pub(super) enum Subject {
    /// A Kubernetes service account: namespace and name.
    ServiceAccount(String, String),
    /// What the bearer token says, or the name of its file.
    Other(String),
}

/// Reads a bearer token; the error says why there is none.
pub(super) fn read(file: &Path) -> Result<SecretString, String> {
    let problem = |problem: &dyn fmt::Display| format!("{}: {problem}", file.display());
    match std::fs::read_to_string(file) {
        Ok(text) if text.trim().is_empty() => Err(problem(&"it is empty")),
        Ok(text) => Ok(SecretString::from(text.trim())),
        Err(error) if error.kind() == ErrorKind::InvalidData => Err(problem(&"it is not text")),
        Err(error) => Err(problem(&error)),
    }
}

// === impl Subject ===

impl Subject {
    /// The claimed owner of the token in a file.
    pub(super) fn of(file: &Path) -> Self {
        let Some(subject) = read(file).ok().and_then(|token| claimed(&token)) else {
            return Self::Other(format!("the owner of {}", file.display()));
        };
        let account = subject.strip_prefix("system:serviceaccount:");
        match account.and_then(|account| account.split_once(':')) {
            Some((namespace, name)) => Self::ServiceAccount(namespace.to_owned(), name.to_owned()),
            None => Self::Other(format!("`{subject}`")),
        }
    }

    /// The binding rule that would let its owner register the service.
    pub(super) fn likely_rule(&self, auth_method: &str, service: &str) -> String {
        match self {
            Self::ServiceAccount(_, name) if name == service => format!(
                "the usual rule is `consul acl binding-rule create -method={auth_method} -bind-type=service -bind-name='${{serviceaccount.name}}'`"
            ),
            Self::ServiceAccount(..) => format!(
                "with the usual rule (-method={auth_method} -bind-type=service -bind-name='${{serviceaccount.name}}') the service account must have the service's name"
            ),
            Self::Other(_) => format!(
                "the rule of `{auth_method}` must bind it to the service's name (-bind-type=service) or to a role that has it"
            ),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServiceAccount(namespace, name) => {
                write!(f, "service account `{namespace}/{name}`")
            }
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// The claimed subject of a JSON web token (RFC 7519). Not verified: it is only used in
/// messages.
fn claimed(token: &SecretString) -> Option<String> {
    #[derive(Deserialize)]
    struct Claims {
        sub: String,
    }
    let claims = token.expose_secret().split('.').nth(1)?;
    let claims = BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?;
    let Claims { sub } = serde_json::from_slice(&claims).ok()?;
    let is_plain = !sub.is_empty() && sub.len() <= 512 && !sub.chars().any(char::is_control);
    is_plain.then_some(sub)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_token_claims_its_subject() {
        let token = |claims: &str| {
            SecretString::from(format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims)))
        };
        assert_eq!(claimed(&token(r#"{"sub":"web"}"#)).as_deref(), Some("web"));
        for claims in ["", "{}", r#"{"sub":1}"#, r#"{"sub":""}"#, "{\"sub\":\"a\\nb\"}", "x"] {
            assert_eq!(claimed(&token(claims)), None, "{claims}");
        }
        for text in ["", ".", "a.b", "a.!.c"] {
            assert_eq!(claimed(&SecretString::from(text)), None, "{text}");
        }
    }
}
