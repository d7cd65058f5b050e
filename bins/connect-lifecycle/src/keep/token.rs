//! The ACL token of the registration: whether it exists, and how to get another.

use std::time::{Duration, SystemTime};

use flags::Report as _;
use handoff::record::AgentRecord;
use lifecycle::{Outcome, SessionError, session};
use runtime::file::write_whole;
use runtime::retry::jitter;
use runtime::{Deadline, Exit, Failure};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use super::trouble::Wrong;
use super::{Keeper, PATIENCE, RENEWAL};
use crate::pod::Pod;

/// How long a login may take, the wait for the servers to know the token included.
const LOG_IN: Duration = Duration::from_secs(30);

/// How long a login may take while the current token is still valid: short, so that
/// heartbeats are not delayed.
const REPLACE: Duration = Duration::from_secs(5);

// === impl Keeper ===

impl Keeper<'_> {
    /// Gets another token: by login if the pod logs in, else from the token file, which
    /// somebody may have rewritten.
    pub(super) async fn log_in(&mut self) -> Result<Outcome, Wrong> {
        let Pod { handoff, record, agent, session } = self.pod;
        let is_due = self.replace_at.is_some_and(|at| at <= Instant::now());
        if let Some(session) = session {
            let deadline = Deadline::after(LOG_IN);
            // Another token would not help if the last one cannot be handed on.
            if is_due && !session.is_unsettled() {
                // If the login fails, the current token is valid for some time yet.
                self.replace_at = Some(Instant::now() + RENEWAL);
                session.replace(Deadline::after(REPLACE)).await.map_err(|error| Wrong {
                    failure: error.failure(),
                    outcome: Outcome::Failed,
                })?;
                "its ACL token was about to expire".clone_into(&mut self.reason);
            } else if session.renew(deadline).await? {
                "its ACL token no longer existed".clone_into(&mut self.reason);
            } else {
                // The servers know the token; the agent caches that it was not found.
                return Ok(Outcome::Failed);
            }
        } else {
            let token = record.agent.token()?;
            if same(token.as_ref(), agent.token().as_ref()) {
                let AgentRecord { token_source, token_file, .. } = &record.agent;
                let hint = match token_source.as_ref().or(token_file.as_ref()) {
                    Some(file) => format!(
                        "it was deleted or has expired: write a new one to {}",
                        file.display()
                    ),
                    None => "ACLs are enabled: give the pod a token".to_owned(),
                };
                let failure = Failure::new(Exit::Denied, "the ACL token does not exist").hint(hint);
                return Err(Wrong { failure, outcome: Outcome::Refused });
            }
            if let Some(token) = &token {
                // For processes of the pod that can't read the original file.
                let copy = write_whole(&handoff.token(), 0o600, token.expose_secret().as_bytes());
                copy.map_err(SessionError::from)?;
            }
            let before = agent.token();
            agent.set_token(token);
            if let Err(error) = session::settle(handoff, agent) {
                // So that the next heartbeat finds the change again.
                agent.set_token(before);
                return Err(error.into());
            }
            "its ACL token changed".clone_into(&mut self.reason);
        }
        if session.is_some() {
            tracing::info!("logged in again: {}", self.reason);
        }
        self.replace_at = None;
        self.is_life_known = false;
        if !handoff.has_envoy_token() {
            // Envoy still uses the old token, which the agent will reject.
            self.restart.request();
        }
        Ok(Outcome::Done)
    }

    /// Whether the token exists, and until when. Asks the servers, because the agent caches
    /// tokens for half a minute. Nothing happens while the servers are away.
    pub(super) async fn look_at_token(&mut self) -> Outcome {
        let Pod { record, agent, session, .. } = self.pod;
        let Some(session) = session else {
            let token = record.agent.token().ok().flatten();
            let is_another = token.is_some() && !same(token.as_ref(), agent.token().as_ref());
            return if is_another { Outcome::NoToken } else { Outcome::Done };
        };
        if session.is_unsettled() {
            // A login that seemed to fail got a token, with which nothing is registered yet.
            return Outcome::NoToken;
        }
        match agent.within(PATIENCE).own_token().await {
            Ok(None) => return Outcome::NoToken,
            Ok(Some(token)) if !self.is_life_known => {
                self.is_life_known = true;
                let age = session.age();
                self.replace_at = token.life(SystemTime::now()).map(|(life, left)| {
                    // With jitter, so that pods that started together don't log in together.
                    Instant::now() + due_in(life, left, age, jitter(life / 10))
                });
            }
            Ok(Some(_)) => {}
            Err(error) => tracing::debug!("cannot read the ACL token: {error}"),
        }
        Outcome::Done
    }
}

/// When to replace a token of that lifetime: at about two thirds of it, but never at once.
/// How much is `left` by this node's clock, which may differ from the servers', matters only
/// if it is not known how long ago the token was issued.
fn due_in(life: Duration, left: Duration, age: Option<Duration>, jitter: Duration) -> Duration {
    let left = age.map_or(left, |age| life.saturating_sub(age));
    left.saturating_sub(life / 3 + jitter).max(RENEWAL)
}

fn same(one: Option<&SecretString>, other: Option<&SecretString>) -> bool {
    one.map(SecretString::expose_secret) == other.map(SecretString::expose_secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_replaced_at_two_thirds_of_its_life_but_never_at_once() {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        assert_eq!(due_in(minutes(60), minutes(60), None, minutes(1)), minutes(39));
        assert_eq!(due_in(minutes(60), minutes(10), None, minutes(1)), RENEWAL);
        assert_eq!(due_in(minutes(60), Duration::ZERO, None, Duration::ZERO), RENEWAL);
        // The clock is ahead: each new token would be due at once.
        assert_eq!(due_in(minutes(60), Duration::ZERO, Some(minutes(2)), minutes(1)), minutes(37));
    }
}
