//! The agent's ACLs: tokens by login.
//!
//! Source: Consul's "ACL HTTP API" page, "Login to Auth Method" and "Logout from
//! Auth Method", and "ACL Token HTTP API", "Read Self Token".

use std::collections::BTreeMap;

use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::agent::Agent;
use crate::error::{Cause, Error};

/// What a login is made with.
#[derive(Clone, Debug)]
pub struct Login<'a> {
    /// The auth method.
    pub auth_method: &'a str,
    /// What proves to it who logs in.
    pub bearer_token: &'a SecretString,
    /// What the token's description says of its owner.
    pub meta: &'a BTreeMap<String, String>,
}

/// What a logout found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoggedOut {
    /// The token was deleted.
    Done,
    /// There was no such token any more.
    WasUnknown,
}

/// How an agent words that there is no such token, or no such auth method.
const NOT_FOUND: &str = "ACL not found";

/// How a server words that the proof is no good, with status 500: parsing,
/// claims and signature of a JWT, and the Kubernetes API server's review.
const BAD_PROOF: [&str; 5] =
    ["missing jwt", "error parsing token", "error validating", "error verifying", "lookup failed"];

impl Agent {
    /// Logs in: has a token made, which lives until it is logged out.
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
                if BAD_PROOF.iter().any(|bad| words.contains(bad)) =>
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
        matches!(&self.cause, Cause::Denied(words) if words.contains(NOT_FOUND))
    }
}
