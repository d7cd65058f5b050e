//! What happens to a pod, and which rule the protocol lacks. Each scene is small
//! enough to be walked through whole.

use std::hash::{Hash, Hasher};

/// What happens to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scene {
    /// The pod ends at some point. Requests are lost, arrive when their sender has
    /// given them up, or are refused; the agent forgets; processes are killed.
    Ending,
    /// As [`Self::Ending`], but every request has its effect at once, and answers
    /// arrive late or not at all.
    LateAnswers,
    /// As [`Self::Ending`], but from the moment that the pod is deleted the agent
    /// takes requests and answers none, and nobody kills: the deadlines have to do.
    Hanging,
    /// The pod lives, with an ACL token by login, which others delete, or which is
    /// about to end and then does.
    Tokens,
    /// The pod ends. Others delete its ACL token at some point, or it ends by itself.
    /// Requests are lost, but there is time enough to repeat them.
    EndingTokens,
    /// The pod lives, and another pod registers with the same ids.
    Neighbour,
    /// The pod lives. The agent goes away and comes back, with or without what it
    /// had; connections to it go silent.
    Restarts,
}

/// A rule of the protocol, or of what it stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rule {
    /// Whoever registers or deregisters has the lock.
    Lock,
    /// A registration looks for the tombstone when it is made.
    SecondLook,
    /// A registration that failed looks for the tombstone, too.
    LookAfterFailure,
    /// The tombstone is written before anything else is done.
    TombstoneFirst,
    /// The service's entry is looked at, too.
    ServiceWatched,
    /// What was made with a token that is gone is made again until that worked.
    TriedUntilDone,
    /// A container that starts takes nothing as made with its token.
    NothingTrustedAtStart,
    /// A token that is about to end is replaced.
    ReplacedAhead,
    /// A token is logged out only when nothing is registered with it any more.
    LoggedOutLast,
    /// A pod logs out only if nothing is registered with its token any more.
    LoggedOutWhenUnused,
    /// A pod that ends logs in again if its token is gone.
    LoggedInToEnd,
    /// What was registered with a token that is gone is registered with another before it
    /// is deregistered.
    RegisteredToDeregister,
    /// What an earlier run of the init container may have registered is deregistered,
    /// too.
    EarlierRunsTakenBack,
    /// A request that was given up may have had its effect.
    GivenUpMayHaveArrived,
    /// Whose an entry is, is looked at.
    OwnersCompared,
    /// Nothing is registered again before the agent was seen without it.
    SeenBeforeRegistered,
    /// A request on a connection that is silent is given up.
    Patience,
    /// What is deregistered is tried until a deadline only.
    Deadline,
}

/// A scene, with or without one of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) scene: Scene,
    pub(crate) left_out: Option<Rule>,
}

// === impl Scene ===

impl Scene {
    /// Whether the pod is deleted at some point.
    pub(crate) fn ends(self) -> bool {
        matches!(self, Self::Ending | Self::LateAnswers | Self::Hanging | Self::EndingTokens)
    }

    /// Whether the sidecar's ACL token may end.
    pub(crate) fn ends_tokens(self) -> bool {
        matches!(self, Self::Tokens | Self::EndingTokens)
    }

    /// Whether nothing is killed, refused or late, and there is time for everything.
    pub(crate) fn is_peaceful(self) -> bool {
        self == Self::EndingTokens
    }

    /// Whether a request may arrive when its sender has given it up.
    pub(crate) fn has_late_requests(self) -> bool {
        matches!(self, Self::Ending | Self::Restarts)
    }
}

// === impl Variant ===

impl Hash for Variant {
    /// It is the same for all states that are compared.
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl Variant {
    pub(crate) fn lacks(self, rule: Rule) -> bool {
        self.left_out == Some(rule)
    }
}
