//! A registration is kept: watched, made again when the agent has lost it or
//! others have changed it, and its TTL checks renewed.

use super::{Half, Outcome};

/// Keeping a registration, and how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Keep {
    step: Step,
    /// Whether the proxy was seen as ours since it was registered last.
    is_known: bool,
    /// Whether it may be registered without a pause: one that is lost as soon as
    /// it is made is not made over and over.
    rested: bool,
    /// Whether it is to be registered whatever the agent has: it was registered
    /// with an ACL token that is gone or about to end, and the agent would go on
    /// using that one.
    is_due: bool,
    /// Whether the TTL checks need no renewal yet: the agent had lost them after
    /// they were renewed, and what it does not have is registered as passing.
    is_fresh: bool,
}

/// The steps of keeping a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Wait until the proxy's entry changes, or until something is to be reported.
    Watch,
    /// Look at the entry of this half.
    See(Half),
    /// Register both halves again.
    Register,
    /// Get another ACL token, if this one is gone or about to end.
    LogIn,
    /// Look for the tombstone. What was taken back and is still there, because
    /// the agent was away, is not kept alive: its TTL runs out.
    Look,
    /// Renew the TTL checks of this half.
    Renew(Half),
    /// Wait a while.
    Pause,
    /// The registration was taken back for good.
    End,
}

// === impl Keep ===

impl Keep {
    /// Keeping a registration of which nothing is known yet.
    pub fn begin() -> Self {
        let step = Step::See(Half::Proxy);
        Self { step, is_known: false, rested: true, is_due: false, is_fresh: false }
    }

    /// Keeping a registration that may have been made with another ACL token than
    /// the one of now: whoever kept it before was cut short.
    pub fn begin_anew() -> Self {
        Self { is_due: true, ..Self::begin() }
    }

    /// What is to be done now.
    pub fn step(&self) -> Step {
        self.step
    }

    /// Whether the registration was seen as ours since it was made last.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// What follows when that went so.
    #[must_use]
    pub fn next(self, outcome: Outcome) -> Self {
        match (self.step, outcome) {
            (Step::End, _) => self,
            // The wait ended before there was news.
            (Step::Watch, Outcome::Done) => self.at(Step::See(Half::Service)),
            (Step::Watch | Step::See(_), Outcome::Ours | Outcome::Changed) if self.is_due => {
                Self { is_fresh: false, ..self }.lost()
            }
            (Step::Watch | Step::See(_), Outcome::Changed) => {
                Self { is_fresh: false, ..self }.lost()
            }
            (Step::Watch, Outcome::Ours) => {
                Self { rested: true, is_known: true, ..self }.at(Step::See(Half::Service))
            }
            (Step::See(Half::Proxy), Outcome::Ours) => {
                Self { is_known: true, ..self }.at(Step::See(Half::Service))
            }
            (Step::See(Half::Service), Outcome::Ours) => self.at(Step::Look),
            (Step::Watch | Step::See(_) | Step::Renew(_), Outcome::Missing) => {
                Self { is_fresh: self.is_known, ..self }.lost()
            }
            (Step::Register, Outcome::Done) => {
                Self { rested: false, is_fresh: self.is_fresh, ..Self::begin() }
            }
            (Step::Register | Step::Look, Outcome::Buried) => self.at(Step::End),
            (Step::Look, _) if self.is_fresh => Self { is_fresh: false, ..self }.at(Step::Watch),
            (Step::Look, _) => self.at(Step::Renew(Half::Service)),
            (Step::Renew(Half::Service), Outcome::Done) => self.at(Step::Renew(Half::Proxy)),
            (Step::Renew(Half::Proxy), Outcome::Done) => self.at(Step::Watch),
            (Step::Pause, _) => {
                Self { rested: true, is_fresh: false, ..self }.at(Step::See(Half::Proxy))
            }
            (Step::LogIn, Outcome::Done) => Self { is_due: true, ..self }.at(Step::Register),
            (step, Outcome::NoToken) if step != Step::LogIn => self.at(Step::LogIn),
            // Also another pod's entry: it is neither replaced nor renewed.
            (_, _) => self.at(Step::Pause),
        }
    }

    /// The agent has lost it, or somebody has changed it.
    fn lost(self) -> Self {
        let step = if self.rested { Step::Register } else { Step::Pause };
        self.at(step)
    }

    fn at(self, step: Step) -> Self {
        Self { step, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_registered_with_a_token_that_is_gone_is_registered_again() {
        let keep = Keep::begin().next(Outcome::Ours).next(Outcome::NoToken);
        assert_eq!(keep.step(), Step::LogIn);
        // The agent has not heard of the new token yet.
        let keep = keep.next(Outcome::Done).next(Outcome::NoToken).next(Outcome::Failed);
        assert_eq!(keep.step(), Step::Pause);
        // It has, and the entry is as it was.
        let keep = keep.next(Outcome::Done).next(Outcome::Ours);
        assert_eq!(keep.step(), Step::Register);
        let keep = keep.next(Outcome::Done).next(Outcome::Ours);
        assert_eq!(keep.step(), Step::See(Half::Service));
    }

    #[test]
    fn what_the_agent_lost_is_registered_with_good_leases() {
        let keep = Keep::begin().next(Outcome::Ours).next(Outcome::Ours);
        let keep = keep.next(Outcome::Done);
        assert_eq!(keep.step(), Step::Renew(Half::Service));
        let keep = keep.next(Outcome::Done).next(Outcome::Done);
        let registered = |keep: Keep| {
            assert_eq!(keep.step(), Step::Register);
            keep.next(Outcome::Done).next(Outcome::Ours).next(Outcome::Ours)
        };
        let restored = registered(keep.next(Outcome::Missing)).next(Outcome::Done);
        assert_eq!(restored.step(), Step::Watch);
        // What is there keeps its checks, as they are.
        let mended = registered(keep.next(Outcome::Changed)).next(Outcome::Done);
        assert_eq!(mended.step(), Step::Renew(Half::Service));
    }

    /// An agent that forgets at once.
    #[test]
    fn what_is_lost_as_soon_as_it_is_made_is_not_made_over_and_over() {
        let keep = Keep::begin().next(Outcome::Missing);
        assert_eq!(keep.step(), Step::Register);
        let keep = keep.next(Outcome::Done).next(Outcome::Missing);
        assert_eq!(keep.step(), Step::Pause);
        let keep = keep.next(Outcome::Done).next(Outcome::Missing);
        assert_eq!(keep.step(), Step::Register);
    }

    /// P14: two pods of one id on a node.
    #[test]
    fn another_pods_entry_is_neither_replaced_nor_renewed() {
        for seen in [Keep::begin(), Keep::begin_anew(), Keep::begin().next(Outcome::Ours)] {
            let keep = seen.next(Outcome::Foreign);
            assert_eq!(keep.step(), Step::Pause);
            let keep = keep.next(Outcome::Done).next(Outcome::Foreign);
            assert_eq!(keep.step(), Step::Pause);
            // It is gone.
            assert_eq!(keep.next(Outcome::Done).next(Outcome::Missing).step(), Step::Register);
        }
    }
}
