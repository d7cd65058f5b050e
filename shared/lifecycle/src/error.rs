//! Why a registration was not made, or not taken back.

use std::fmt;

use consul::Error;
use handoff::lock::LockError;
use runtime::{Exit, Failure};

/// Why service and proxy are not both registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The agent did not take the service.
    #[error("{0}")]
    Agent(#[from] Error),
    /// The agent took the service, but not its proxy.
    #[error("its sidecar proxy: {0}")]
    Proxy(Error),
    /// Another process was in the way.
    #[error("{0}")]
    Lock(#[from] LockError),
}

/// What could not be taken back, each with its cause.
#[derive(Debug, Default)]
pub struct Leftovers {
    pub(super) services: Vec<(String, Stays)>,
    pub(super) others: Vec<Failure>,
}

/// Why a service is still on the agent.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stays {
    #[error("{0}")]
    Agent(#[from] Error),
    #[error(
        "the agent said that it is gone, but it is still there: the ACL token may lack service:write on it"
    )]
    StillThere,
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

    /// Whether the cause is that there is no such ACL token, or that the agent
    /// has not heard of it yet.
    pub fn is_unknown_token(&self) -> bool {
        match self {
            Self::Agent(error) | Self::Proxy(error) => error.is_unknown_token(),
            Self::Lock(_) => false,
        }
    }

    /// Whether the agent may have something of it.
    pub fn may_have_arrived(&self) -> bool {
        match self {
            Self::Agent(error) => error.may_have_arrived(),
            Self::Proxy(_) => true,
            Self::Lock(_) => false,
        }
    }
}

impl From<RegisterError> for Failure {
    fn from(error: RegisterError) -> Self {
        match error {
            RegisterError::Agent(error) => error.into(),
            RegisterError::Proxy(error) => Self::from(error).while_doing("its sidecar proxy"),
            RegisterError::Lock(error) => error.into(),
        }
    }
}

// === impl Leftovers ===

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let services =
            self.services.iter().map(|(id, error)| format!("{id} is left on the agent: {error}"));
        let all: Vec<String> =
            services.chain(self.others.iter().map(|other| other.message().to_owned())).collect();
        f.write_str(&all.join("; "))
    }
}

impl std::error::Error for Leftovers {}

impl From<Leftovers> for Failure {
    fn from(leftovers: Leftovers) -> Self {
        let agent = leftovers.services.iter().find_map(|(_, stays)| match stays {
            Stays::Agent(error) => Some(error.exit()),
            Stays::StillThere | Stays::Unanswered => None,
        });
        let other = leftovers.others.first().map(Self::exit);
        Self::new(agent.or(other).unwrap_or(Exit::Deadline), leftovers)
            .hint("what is left becomes critical when its lease runs out, and the agent removes it a minute later")
    }
}

// === impl Stays ===

impl Stays {
    /// Whether trying again may help.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Agent(error) => error.is_transient(),
            Self::StillThere | Self::Unanswered => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_have_one_hint() {
        let other = Failure::new(Exit::Denied, "the ACL token is left").hint("log it out");
        let services = vec![("web-0-web".to_owned(), Stays::StillThere)];
        let failure = Failure::from(Leftovers { services, others: vec![other] }).to_string();
        assert_eq!(failure.matches("hint:").count(), 1, "{failure}");
        assert!(failure.contains("; the ACL token is left"), "{failure}");
    }
}
