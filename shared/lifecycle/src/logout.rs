//! When a pod may log out: once the agent has nothing that was registered with the
//! pod's ACL token.
//!
//! The agent updates the servers about an entry with the token that registered it.
//! Without that token, a dead pod stays in the catalog with the last status of its TTL
//! check: passing.

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

    /// Combines the proofs of two registrations with the same tokens.
    pub fn and(self, other: Self) -> Self {
        if self.by_hearsay { self } else { other }
    }
}
