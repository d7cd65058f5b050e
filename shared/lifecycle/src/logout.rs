//! When a pod may log out: once the agent has nothing that was registered with the
//! pod's ACL token.
//!
//! The agent updates the servers about an entry with the token that registered it.
//! Without that token, a dead pod stays in the catalog with the last status of its TTL
//! check: passing.

use std::time::Duration;

use consul::{Agent, Error};
use registration::pod::Pair;
use runtime::Deadline;
use runtime::retry::{self, Stopped};

/// What the agent may still have after a deregistration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rest {
    /// Nothing. An entry of another pod does not count.
    Nothing,
    /// Entries that the agent does not deregister because the ACL token does not exist.
    /// A logout makes that no worse.
    TokenUnknown,
    /// Entries that the agent will deregister later, for which it needs the token.
    Something,
}

/// Proof that the agent no longer needs a session's ACL tokens.
/// [`Session::close`](super::Session::close) requires it.
#[derive(Debug)]
#[must_use = "it is what allows the logout"]
pub struct Unused {
    /// Based on the agent's answer that the token does not exist. Since it caches that
    /// for 30 s, the servers have to be asked, too.
    pub(super) by_hearsay: bool,
}

/// Why it is not known that the servers have heard of a deregistration.
#[derive(Debug, thiserror::Error)]
enum Unheard {
    #[error("the servers still list the pod, which the agent has deregistered")]
    Yet,
    #[error("{0}")]
    Agent(#[from] Error),
}

/// Time after which it is logged that the servers have not heard of a deregistration.
const SLOW: Duration = Duration::from_secs(1);

// === impl Rest ===

impl Rest {
    /// The proof that the pod may log out, if it may.
    pub fn unused(self) -> Option<Unused> {
        match self {
            Self::Nothing => Some(Unused { by_hearsay: false }),
            Self::TokenUnknown => Some(Unused { by_hearsay: true }),
            Self::Something => None,
        }
    }
}

// === impl Unused ===

impl Unused {
    /// No registration was ever sent with the tokens of the session.
    pub fn never_registered() -> Self {
        Self { by_hearsay: false }
    }

    /// Waits until the servers have heard of the deregistration, and returns the proof only
    /// then: an agent confirms it at once, also while there is no leader, and needs the pod's
    /// token to tell the servers later. Without the token, they would go on listing a dead pod.
    pub async fn heard(self, agent: &Agent, pair: &Pair, deadline: Deadline) -> Option<Self> {
        let Pair { service, proxy } = pair;
        let attempt = || async {
            for entry in [proxy, service] {
                if agent.is_in_catalog(entry).await? {
                    return Err(Unheard::Yet);
                }
            }
            Ok(())
        };
        let passes = |unheard: &Unheard| match unheard {
            Unheard::Yet => true,
            Unheard::Agent(error) => error.is_transient(),
        };
        let asked = retry::until_quietly(deadline, retry::REPLICATION, SLOW, passes, attempt).await;
        match asked {
            // Without the right to ask, the agent's word has to do.
            Ok(()) | Err(Stopped::Final(_)) => Some(self),
            Err(stopped @ Stopped::Deadline(..)) => {
                tracing::warn!("cannot confirm the deregistration with the servers: {stopped}");
                None
            }
        }
    }

    /// Combines the proofs of two registrations with the same tokens.
    pub fn and(self, other: Self) -> Self {
        if self.by_hearsay { self } else { other }
    }
}
