//! Maintains a registration until its pod ends: watches it, registers again when the
//! agent has lost it or somebody has changed it, and renews its TTL checks.

use super::register::Ending;
use super::{Half, Outcome, Register};

/// The state of maintaining a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Keep {
    step: Step,
    /// Whether the proxy was seen as ours since the last registration.
    is_known: bool,
    /// Whether it may be registered without a pause: an agent that loses it at once
    /// must not cause a loop.
    rested: bool,
    /// Whether it must be registered again whatever the agent has: its ACL token is
    /// gone or about to expire, and the agent would go on using that one.
    is_due: bool,
    /// Whether the TTL checks need no renewal yet: the agent lost them after their
    /// renewal, and they were registered as passing.
    is_fresh: bool,
    /// Whether the agent answered "ACL not found" during the current registration.
    lacks_token: bool,
    /// Whether the pod ends. A registration in flight is completed, so that it can't
    /// arrive after the deregistration; nothing else is done.
    is_stopped: bool,
}

/// Steps of maintaining a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Wait until the proxy's entry changes, or until something has to be reported.
    Watch,
    /// Read this entry.
    See(Half),
    /// Register service and proxy again: the next step of that.
    Register(Register),
    /// Log out replaced ACL tokens: everything has been registered again with the new
    /// one.
    LogOut,
    /// Replace an ACL token that is gone or about to expire.
    LogIn,
    /// Look for the tombstone. An entry that should be deregistered but is still there,
    /// because the agent was away, is not renewed: its TTL check expires.
    Look,
    /// Renew the TTL checks of this entry.
    Renew(Half),
    /// Wait before a retry.
    Pause,
    /// The end: the pod has deregistered for good, or ends.
    End,
}

// === impl Keep ===

impl Keep {
    /// Starts without knowledge of the registration.
    pub fn begin() -> Self {
        let step = Step::See(Half::Proxy);
        Self {
            step,
            is_known: false,
            rested: true,
            is_due: false,
            is_fresh: false,
            lacks_token: false,
            is_stopped: false,
        }
    }

    /// Starts with a registration that may have been made with an older ACL token,
    /// because the earlier run was cut short.
    pub fn begin_with_registration_due() -> Self {
        Self { is_due: true, ..Self::begin() }
    }

    /// The step to take now.
    pub fn step(&self) -> Step {
        self.step
    }

    /// Whether the entry was seen as ours since the last registration.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// The pod ends.
    #[must_use]
    pub fn stop(self) -> Self {
        let step = match self.step {
            step @ Step::Register(register) if register != Register::begin() => step,
            _ => Step::End,
        };
        Self { step, is_stopped: true, ..Self::begin() }
    }

    /// The step after this outcome.
    #[must_use]
    pub fn next(self, outcome: Outcome) -> Self {
        match (self.step, outcome) {
            (Step::Register(step), _) => {
                let lacks_token = self.lacks_token || outcome == Outcome::NoToken;
                let keep = Self { lacks_token, ..self };
                match step.next(outcome) {
                    Register::End(ending) => keep.registered(ending),
                    step => keep.at(Step::Register(step)),
                }
            }
            (Step::End, _) => self,
            // The wait ended without news.
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
            (Step::LogOut, _) => self.at(Step::See(Half::Proxy)),
            (Step::Look, Outcome::Buried) => self.at(Step::End),
            (Step::Look, _) if self.is_fresh => Self { is_fresh: false, ..self }.at(Step::Watch),
            (Step::Look, _) => self.at(Step::Renew(Half::Service)),
            (Step::Renew(Half::Service), Outcome::Done) => self.at(Step::Renew(Half::Proxy)),
            (Step::Renew(Half::Proxy), Outcome::Done) => self.at(Step::Watch),
            (Step::Pause, _) => {
                Self { rested: true, is_fresh: false, ..self }.at(Step::See(Half::Proxy))
            }
            (Step::LogIn, Outcome::Done) => {
                Self { is_due: true, ..self }.at(Step::Register(Register::begin()))
            }
            (step, Outcome::NoToken) if step != Step::LogIn => self.at(Step::LogIn),
            // Another pod's entry is neither replaced nor renewed.
            (_, _) => self.at(Step::Pause),
        }
    }

    /// The agent has lost the entry, or somebody has changed it.
    fn lost(self) -> Self {
        let step = if self.rested { Step::Register(Register::begin()) } else { Step::Pause };
        self.at(step)
    }

    /// A registration has ended.
    fn registered(self, ending: Ending) -> Self {
        let lacks_token = self.lacks_token;
        let keep = Self { lacks_token: false, ..self };
        match ending {
            _ if self.is_stopped => keep.at(Step::End),
            Ending::Done => {
                let begun = Self::begin().at(Step::LogOut);
                Self { rested: false, is_fresh: self.is_fresh, ..begun }
            }
            Ending::Buried => keep.at(Step::End),
            Ending::Failed if lacks_token => keep.at(Step::LogIn),
            Ending::Failed => keep.at(Step::Pause),
        }
    }

    fn at(self, step: Step) -> Self {
        Self { step, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGISTER: Step = Step::Register(Register::Lock);

    /// Completes a registration.
    fn registered(mut keep: Keep) -> Keep {
        assert_eq!(keep.step(), REGISTER);
        while let Step::Register(_) = keep.step() {
            keep = keep.next(Outcome::Done);
        }
        assert_eq!(keep.step(), Step::LogOut);
        keep.next(Outcome::Done)
    }

    #[test]
    fn what_was_registered_with_a_token_that_is_gone_is_registered_again() {
        let keep = Keep::begin().next(Outcome::Ours).next(Outcome::NoToken);
        assert_eq!(keep.step(), Step::LogIn);
        // The agent has not heard of the new token yet.
        let keep = keep.next(Outcome::Done);
        let keep = keep.next(Outcome::Done).next(Outcome::Done).next(Outcome::NoToken);
        let keep = keep.next(Outcome::Done);
        assert_eq!(keep.step(), Step::LogIn);
        let keep = keep.next(Outcome::Failed);
        assert_eq!(keep.step(), Step::Pause);
        // It has, and the entry is unchanged.
        let keep = keep.next(Outcome::Done).next(Outcome::Ours);
        let keep = registered(keep).next(Outcome::Ours);
        assert_eq!(keep.step(), Step::See(Half::Service));
    }

    #[test]
    fn what_the_agent_lost_is_registered_with_good_leases() {
        let keep = Keep::begin().next(Outcome::Ours).next(Outcome::Ours);
        let keep = keep.next(Outcome::Done);
        assert_eq!(keep.step(), Step::Renew(Half::Service));
        let keep = keep.next(Outcome::Done).next(Outcome::Done);
        let seen = |keep: Keep| registered(keep).next(Outcome::Ours).next(Outcome::Ours);
        let restored = seen(keep.next(Outcome::Missing)).next(Outcome::Done);
        assert_eq!(restored.step(), Step::Watch);
        // Existing entries keep their checks.
        let mended = seen(keep.next(Outcome::Changed)).next(Outcome::Done);
        assert_eq!(mended.step(), Step::Renew(Half::Service));
    }

    /// An agent that loses registrations at once.
    #[test]
    fn what_is_lost_as_soon_as_it_is_made_is_not_made_over_and_over() {
        let keep = registered(Keep::begin().next(Outcome::Missing)).next(Outcome::Missing);
        assert_eq!(keep.step(), Step::Pause);
        let keep = keep.next(Outcome::Done).next(Outcome::Missing);
        assert_eq!(keep.step(), REGISTER);
    }

    /// Two pods of one id on a node. Reported in
    /// <https://github.com/hashicorp/consul-k8s/issues/690>.
    #[test]
    fn another_pods_entry_is_neither_replaced_nor_renewed() {
        for seen in
            [Keep::begin(), Keep::begin_with_registration_due(), Keep::begin().next(Outcome::Ours)]
        {
            let keep = seen.next(Outcome::Foreign);
            assert_eq!(keep.step(), Step::Pause);
            let keep = keep.next(Outcome::Done).next(Outcome::Foreign);
            assert_eq!(keep.step(), Step::Pause);
            // The entry is gone.
            assert_eq!(keep.next(Outcome::Done).next(Outcome::Missing).step(), REGISTER);
        }
    }

    /// A registration in flight at SIGTERM.
    #[test]
    fn a_registration_under_way_is_brought_to_its_end_when_the_pod_ends() {
        let keep = Keep::begin().next(Outcome::Missing).next(Outcome::Done).next(Outcome::Done);
        let mut keep = keep.stop();
        assert_eq!(keep.step(), Step::Register(Register::Put(Half::Service)));
        while let Step::Register(_) = keep.step() {
            keep = keep.next(Outcome::Done);
        }
        assert_eq!(keep.step(), Step::End);
        assert_eq!(Keep::begin().stop().step(), Step::End);
    }
}
