//! Why a registration or deregistration failed.

use std::fmt;

use consul::Error;
use handoff::lock::LockError;
use runtime::file::WriteError;

use super::{Outcome, SessionError, Unused};

/// Why service and proxy are not both registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The agent refused the service.
    #[error("{0}")]
    Agent(#[from] Error),
    /// The agent accepted the service, but refused its proxy.
    #[error("its sidecar proxy: {0}")]
    Proxy(Error),
    /// Another process held the lock.
    #[error("{0}")]
    Lock(#[from] LockError),
}

/// What a deregistration left undone.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// Services that are still registered, by id.
    pub services: Vec<(String, Stays)>,
    /// Why there is no tombstone.
    pub tombstone: Option<WriteError>,
    /// Why it proceeded without the lock.
    pub lock: Option<LockError>,
    /// Why it could not log in again.
    pub login: Option<Box<SessionError>>,
    /// Present if the pod may log out nevertheless.
    pub unused: Option<Unused>,
}

/// Why a service is still registered.
#[derive(Debug, thiserror::Error)]
pub enum Stays {
    /// The agent refused to deregister it.
    #[error("{0}")]
    Agent(#[from] Error),
    /// The agent said that it deregistered it, but did not.
    #[error(
        "the agent said that it is gone, but it is still there: the ACL token may lack service:write on it"
    )]
    StillThere,
    /// The agent did not answer in time.
    #[error("the agent did not answer in time")]
    Unanswered,
}

// === impl RegisterError ===

impl RegisterError {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Agent(error) | Self::Proxy(error) => error.is_transient(),
            Self::Lock(LockError::Held(_)) => true,
            Self::Lock(LockError::File(_)) => false,
        }
    }

    /// Whether the ACL token does not exist, or the agent has not heard of it yet.
    pub fn is_unknown_token(&self) -> bool {
        match self {
            Self::Agent(error) | Self::Proxy(error) => error.is_unknown_token(),
            Self::Lock(_) => false,
        }
    }

    /// The outcome of the step that failed.
    pub fn outcome(&self) -> Outcome {
        if self.is_unknown_token() {
            Outcome::NoToken
        } else {
            Outcome::failed(self.is_transient())
        }
    }

    /// Whether the agent may have received a registration.
    pub fn may_have_arrived(&self) -> bool {
        match self {
            Self::Agent(error) => error.may_have_arrived(),
            Self::Proxy(_) => true,
            Self::Lock(_) => false,
        }
    }
}

// === impl Leftovers ===

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let services =
            self.services.iter().map(|(id, error)| format!("{id} is left on the agent: {error}"));
        let all = services.chain(self.tombstone.iter().map(ToString::to_string));
        let all = all.chain(self.lock.iter().map(ToString::to_string));
        let all: Vec<String> = all.chain(self.login.iter().map(ToString::to_string)).collect();
        f.write_str(&all.join("; "))
    }
}

impl std::error::Error for Leftovers {}

// === impl Stays ===

impl Stays {
    /// Whether trying again may help.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Agent(error) => error.is_transient(),
            Self::StillThere | Self::Unanswered => true,
        }
    }

    /// The outcome of the step that failed.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Agent(error) if error.is_unknown_token() => Outcome::NoToken,
            _ => Outcome::failed(self.is_transient()),
        }
    }
}
