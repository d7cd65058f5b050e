//! When a pod may log out: once the agent has nothing that was registered with the
//! pod's ACL token.
//!
//! The agent tells the servers about an entry with the token that the entry was
//! registered with. Without that token a dead pod stays in the catalog, and its TTL
//! check stays as it was last: passing.

/// What the agent may still have after a registration was taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rest {
    /// Neither half. An entry that is another pod's does not count.
    Nothing,
    /// Halves that the agent does not take off because there is no such ACL token.
    /// A logout makes that no worse.
    TokenUnknown,
    /// Halves that the agent takes off later, for which it needs the token.
    Something,
}

/// Shows that the agent needs none of a session's ACL tokens any more.
/// [`Session::close`](super::Session::close) requires one.
#[derive(Debug)]
#[must_use = "it is what allows the logout"]
pub struct Unused {
    /// The agent found no such token. It remembers that for 30 s, so that the servers
    /// are to be asked, too.
    pub(super) by_hearsay: bool,
}

// === impl Rest ===

impl Rest {
    /// Whether the pod may log out.
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

    /// Shows it of two registrations that were made with the same tokens.
    pub fn and(self, other: Self) -> Self {
        if self.by_hearsay { self } else { other }
    }
}
