//! ACL tokens: logging in with a bearer token, and logging out.
//!
//! Source: Consul's "ACL HTTP API" page, "Login to Auth Method", "Logout from
//! Auth Method" and "Read Self Token".

use std::collections::BTreeMap;

use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::agent::Agent;
use crate::error::{Cause, Error};

/// A login: which auth method, with what, and what is noted on the token.
#[derive(Clone, Debug)]
pub struct Login {
    /// The auth method's name.
    pub auth_method: String,
    /// What proves who logs in: the JWT of a service account, mostly.
    pub bearer: SecretString,
    /// Noted on the token, so that an operator can tell whose it is.
    pub meta: BTreeMap<String, String>,
}

/// A token that a login made.
#[derive(Clone, Debug)]
pub struct Token {
    /// Its public name.
    pub accessor: String,
    /// What is sent with requests.
    pub secret: SecretString,
}

impl Agent {
    /// The same agent, asked with that token.
    #[must_use]
    pub fn with_token(&self, token: SecretString) -> Self {
        let mut agent = self.clone();
        agent.config.token = Some(token);
        agent
    }

    /// Logs in. The token's rights follow from the binding rules of the auth
    /// method; without one that fits, the answer is 403.
    pub async fn login(&self, login: &Login) -> Result<Token, Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Body<'a> {
            auth_method: &'a str,
            bearer_token: &'a str,
            meta: &'a BTreeMap<String, String>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            #[serde(rename = "AccessorID")]
            accessor_id: String,
            #[serde(rename = "SecretID")]
            secret_id: SecretString,
        }
        let body = Body {
            auth_method: &login.auth_method,
            bearer_token: login.bearer.expose_secret(),
            meta: &login.meta,
        };
        let Answer { accessor_id, secret_id } =
            self.call(Method::POST, "/v1/acl/login").json(&body).answer().await?;
        Ok(Token { accessor: accessor_id, secret: secret_id })
    }

    /// Logs out: the token that this agent is asked with is gone then. One that
    /// is gone already is fine.
    pub async fn logout(&self) -> Result<(), Error> {
        match self.call(Method::POST, "/v1/acl/logout").done().await {
            Err(error) if error.is_unknown_token() => Ok(()),
            other => other,
        }
    }

    /// Whether the servers know the token that this agent is asked with. The
    /// question goes to any server, and the agent remembers nothing of the answer:
    /// asked anything else, it would remember for 30 s that the token is unknown.
    pub async fn token_is_known(&self) -> Result<bool, Error> {
        match self.call(Method::GET, "/v1/acl/token/self").query("stale", "").done().await {
            Ok(()) => Ok(true),
            Err(error) if error.is_unknown_token() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Error {
    /// Whether the token is unknown, which may be because it is new: a server
    /// that has not heard of it says so, and the agent repeats it for 30 s.
    pub fn is_unknown_token(&self) -> bool {
        matches!(&self.cause, Cause::Denied(words) if words.contains("ACL not found"))
    }
}
