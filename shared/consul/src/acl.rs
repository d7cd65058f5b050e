//! ACL tokens: login, logout, and whether a token exists.
//!
//! Source: Consul's "ACL HTTP API" page, "Login to Auth Method" and "Logout from
//! Auth Method", and "ACL Token HTTP API", "Read Self Token".

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::agent::Agent;
use crate::error::{Cause, Error, NO_SUCH_TOKEN};

#[derive(Clone, Debug)]
pub struct Login<'a> {
    pub auth_method: &'a str,
    /// The service account's token, or another bearer token that the auth method
    /// accepts.
    pub bearer_token: &'a SecretString,
    /// Identifies the pod in the description of the new token.
    pub meta: &'a BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoggedOut {
    Done,
    WasUnknown,
}

/// Words of a server that rejects a bearer token as invalid, with status 500: parsing,
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

/// Words of a server whose clock says that a bearer token is not valid yet.
///
/// Source: the errors of go-jose's package `jwt`.
const NOT_YET: [&str; 2] = ["not valid yet", "issued in the future"];

/// Whether these words reject a bearer token for good.
fn refuses_proof(words: &str) -> bool {
    let has = |part: &&str| words.contains(part);
    INVALID_PROOF.iter().any(has) && !NOT_YET.iter().any(has)
}

/// The fields of an ACL token that this project reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct OwnToken {
    /// In RFC 3339.
    pub create_time: String,
    /// In RFC 3339; `None`: the token never expires.
    pub expiration_time: Option<String>,
}

// === impl OwnToken ===

impl OwnToken {
    /// The token's total and remaining lifetime by this machine's clock; `None` if it
    /// never expires. The remaining lifetime is clamped to the total.
    pub fn life(&self, now: SystemTime) -> Option<(Duration, Duration)> {
        let end = seconds(self.expiration_time.as_deref()?)?;
        let life = u64::try_from(end.checked_sub(seconds(&self.create_time)?)?).ok()?;
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let left = end.saturating_sub(i64::try_from(now).unwrap_or(i64::MAX));
        let left = u64::try_from(left).unwrap_or(0).min(life);
        Some((Duration::from_secs(life), Duration::from_secs(left)))
    }
}

/// Seconds since 1970 of an RFC 3339 time, such as `2026-11-25T14:36:22.2Z`.
pub fn seconds(time: &str) -> Option<i64> {
    let (date, rest) = time.split_once(['T', 't'])?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let clock = rest.get(..8)?;
    let mut clock = clock.splitn(3, ':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let zone = rest.get(8..)?.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let offset = match zone.split_at_checked(1) {
        Some(("Z" | "z", "")) => 0,
        Some((sign @ ("+" | "-"), zone)) => {
            let (hours, minutes) = zone.split_once(':')?;
            let offset = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
            if sign == "+" { offset } else { -offset }
        }
        _ => return None,
    };
    if !(0..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Counts from March, so that the leap day is the last of a year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 1
        - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second - offset)
}

impl Agent {
    /// Logs in: creates a token, which exists until logout or expiry.
    ///
    /// # Errors
    /// [`Cause::Denied`] if the auth method rejects the login, whatever status the
    /// agent answers with.
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

    /// Reads the ACL token that requests carry; `None` if the servers do not know it.
    pub async fn own_token(&self) -> Result<Option<OwnToken>, Error> {
        match self.call(Method::GET, "/v1/acl/token/self").query("stale", "true").answer().await {
            Ok(token) => Ok(Some(token)),
            Err(error) if error.is_unknown_token() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks any server, not only the leader, whether it knows the token that requests
    /// carry: the agent will ask any of them, too.
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
    /// Whether the token does not exist, or the agent has not heard of it yet: an agent
    /// caches "not found" for 30 s.
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

    #[test]
    fn a_token_tells_how_long_it_lives_yet() {
        let token = OwnToken {
            create_time: "2026-11-25T14:32:31.98+00:00".to_owned(),
            expiration_time: Some("2026-11-25T15:33:31.123456789+01:00".to_owned()),
        };
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let end = 1_795_617_211;
        let life = Duration::from_secs(60);
        assert_eq!(token.life(at(end - 20)), Some((life, Duration::from_secs(20))));
        // The clocks differ.
        assert_eq!(token.life(at(end + 9000)), Some((life, Duration::ZERO)));
        assert_eq!(token.life(at(end - 9000)), Some((life, life)));
        assert_eq!(OwnToken { expiration_time: None, ..token.clone() }.life(at(end)), None);
        for text in ["", "2026", "2026-11-25", "2026-11-25T14:32", "2026-13-25T14:32:31Z", "é"] {
            assert_eq!(seconds(text), None, "{text}");
        }
        assert_eq!(seconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(seconds("2000-02-29T00:00:01Z"), Some(951_782_401));
    }
}
