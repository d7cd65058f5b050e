//! ACL tokens: login, logout, and whether a token exists.
//!
//! Source: Consul's "ACL HTTP API" page, "Login to Auth Method" and "Logout from
//! Auth Method", and "ACL Token HTTP API", "Read Self Token".

use std::collections::BTreeMap;

use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::agent::Agent;
use crate::error::{Cause, Error, NO_SUCH_TOKEN};

/// The parameters of a login.
#[derive(Clone, Debug)]
pub struct Login<'a> {
    /// The auth method.
    pub auth_method: &'a str,
    /// The service account's token, or another that the auth method accepts.
    pub bearer_token: &'a SecretString,
    /// The owner, as the new token's description shows it.
    pub meta: &'a BTreeMap<String, String>,
}

/// What a logout found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoggedOut {
    /// The token was deleted.
    Done,
    /// The token did not exist.
    WasUnknown,
}

/// How a server words that the bearer token is invalid, with status 500: parsing,
/// claims and signature of a JWT; the Kubernetes auth method's parsing, and the
/// Kubernetes API server's review.
const INVALID_PROOF: [&str; 6] = [
    "missing jwt",
    "error parsing token",
    "error validating",
    "error verifying",
    "failed to parse and validate JWT",
    "lookup failed",
];

/// How it words that a bearer token becomes valid later, by its own clock.
///
/// Source: the errors of go-jose's package `jwt`.
const NOT_YET: [&str; 2] = ["not valid yet", "issued in the future"];

/// Whether these words refuse a bearer token for good.
fn refuses_proof(words: &str) -> bool {
    let has = |part: &&str| words.contains(part);
    INVALID_PROOF.iter().any(has) && !NOT_YET.iter().any(has)
}

impl Agent {
    /// Logs in: creates a token, which exists until it is logged out or expires.
    ///
    /// # Errors
    /// [`Cause::Denied`] if the auth method refuses who logs in, whatever the
    /// status by which the agent says it.
    pub async fn log_in(&self, login: &Login<'_>) -> Result<SecretString, Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Body<'a> {
            auth_method: &'a str,
            bearer_token: &'a str,
            meta: &'a BTreeMap<String, String>,
        }
        #[derive(Deserialize)]
        struct Token {
            #[serde(rename = "SecretID")]
            secret_id: SecretString,
        }
        let Login { auth_method, bearer_token, meta } = login;
        let body = Body { auth_method, bearer_token: bearer_token.expose_secret(), meta };
        let call = self.call(Method::POST, "/v1/acl/login").anonymous().json(&body);
        match call.answer().await {
            Ok(Token { secret_id }) => Ok(secret_id),
            Err(Error { request, cause: Cause::Unavailable(500, words) })
                if refuses_proof(&words) =>
            {
                Err(Error { request, cause: Cause::Denied(words) })
            }
            Err(error) => Err(error),
        }
    }

    /// Logs out: deletes the token that requests carry.
    pub async fn log_out(&self) -> Result<LoggedOut, Error> {
        match self.call(Method::POST, "/v1/acl/logout").done().await {
            Ok(()) => Ok(LoggedOut::Done),
            Err(error) if error.is_unknown_token() => Ok(LoggedOut::WasUnknown),
            Err(error) => Err(error),
        }
    }

    /// Asks whether the token that requests carry is known, of any server, not
    /// only of the leader: the agent is going to ask any of them, too.
    pub async fn knows_token(&self) -> Result<bool, Error> {
        let call = self.call(Method::GET, "/v1/acl/token/self").query("stale", "true");
        match call.done().await {
            Ok(()) => Ok(true),
            Err(error) if error.is_unknown_token() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Error {
    /// Whether the cause is that there is no such token, or that the agent has
    /// not heard of it yet: it remembers this for 30 s.
    pub fn is_unknown_token(&self) -> bool {
        matches!(&self.cause, Cause::Denied(words) if words.contains(NO_SUCH_TOKEN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_bearer_token_is_final_and_one_that_is_not_valid_yet_is_not() {
        for words in [
            "error validating claims: square/go-jose/jwt: validation failed, token is expired (exp)",
            "error verifying token: no known key successfully validated the token signature",
            "failed to parse and validate JWT: square/go-jose: compact JWS format must have three parts",
            "lookup failed: service account name doesn't match",
            "missing jwt",
        ] {
            assert!(refuses_proof(words), "{words}");
        }
        for words in [
            "error validating claims: square/go-jose/jwt: validation failed, token not valid yet (nbf)",
            "error validating token: token is not valid yet",
            "error validating claims: go-jose/jwt: validation field, token issued in the future (iat)",
            "No cluster leader",
        ] {
            assert!(!refuses_proof(words), "{words}");
        }
    }
}
