//! The registration is kept true: watched, made again when it is lost, and its
//! leases renewed.

use super::{Half, Outcome};

/// Keeping a registration, and how far it is.
///
/// An entry is right if it is as it was seen first after it was registered. That
/// is remembered whatever the agent answers meanwhile, until it is registered
/// again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Keep<H> {
    step: Step,
    proxy: Option<H>,
    service: Option<H>,
    /// Whether it may be registered without a pause: one that is lost as soon as
    /// it is made is not made over and over.
    rested: bool,
    /// Whether it is to be registered whatever the agent has: that was registered
    /// with an ACL token that is gone, which the agent would go on using.
    is_due: bool,
    /// Whether the leases need no renewal yet: the agent had lost them after they
    /// were renewed, and what it does not have is registered with good ones.
    is_fresh: bool,
}

/// The steps of keeping a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Wait until the proxy's entry is another than is [known](Keep::known), or
    /// until something is to be reported.
    Watch,
    /// Look at the entry of this half.
    See(Half),
    /// Register both halves again.
    Register,
    /// Have another ACL token, if this one is really gone.
    LogIn,
    /// Look for the tombstone. What was taken back and is still there, because
    /// the agent was away, is not kept alive: its lease runs out.
    Look,
    /// Renew the lease of this half.
    Renew(Half),
    /// Wait a while.
    Pause,
    /// The registration was taken back for good.
    End,
}

// === impl Keep ===

impl<H: PartialEq> Keep<H> {
    /// Keeping a registration of which nothing is known yet.
    pub fn begin() -> Self {
        let step = Step::See(Half::Proxy);
        Self { step, proxy: None, service: None, rested: true, is_due: false, is_fresh: false }
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

    /// The content hash of a half that is right, once it has been seen.
    pub fn known(&self, half: Half) -> Option<&H> {
        match half {
            Half::Service => self.service.as_ref(),
            Half::Proxy => self.proxy.as_ref(),
        }
    }

    /// What follows when that went so.
    #[must_use]
    pub fn next(self, outcome: Outcome<H>) -> Self {
        match (self.step, outcome) {
            (Step::End, _) => self,
            (Step::Watch, Outcome::Found(hash)) => {
                Self { rested: true, ..self }.saw(Half::Proxy, hash)
            }
            (Step::See(half), Outcome::Found(hash)) => self.saw(half, hash),
            // The wait ended before there was news.
            (Step::Watch, Outcome::Done) => self.at(Step::See(Half::Service)),
            (Step::Watch | Step::See(_) | Step::Renew(_), Outcome::Missing) => {
                Self { is_fresh: self.proxy.is_some(), ..self }.lost()
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
            (_, _) => self.at(Step::Pause),
        }
    }

    fn saw(self, half: Half, hash: H) -> Self {
        if self.is_due || self.known(half).is_some_and(|known| *known != hash) {
            return Self { is_fresh: false, ..self }.lost();
        }
        match half {
            Half::Proxy => Self { proxy: Some(hash), ..self }.at(Step::See(Half::Service)),
            Half::Service => Self { service: Some(hash), ..self }.at(Step::Look),
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
        let keep = Keep::begin().next(Outcome::Found(1)).next(Outcome::NoToken);
        assert_eq!(keep.step(), Step::LogIn);
        // The agent has not heard of the new token yet.
        let keep = keep.next(Outcome::Done).next(Outcome::NoToken).next(Outcome::Failed);
        assert_eq!(keep.step(), Step::Pause);
        // It has, and the entry is as it was.
        let keep = keep.next(Outcome::Done).next(Outcome::Found(1));
        assert_eq!(keep.step(), Step::Register);
        let keep = keep.next(Outcome::Done).next(Outcome::Found(1));
        assert_eq!(keep.step(), Step::See(Half::Service));
    }

    #[test]
    fn what_the_agent_lost_is_registered_with_good_leases() {
        let keep = Keep::begin().next(Outcome::Found(1)).next(Outcome::Found(1));
        let keep = keep.next(Outcome::Done);
        assert_eq!(keep.step(), Step::Renew(Half::Service));
        let keep = keep.next(Outcome::Done).next(Outcome::Done);
        let registered = |keep: Keep<u8>| {
            assert_eq!(keep.step(), Step::Register);
            keep.next(Outcome::Done).next(Outcome::Found(1)).next(Outcome::Found(1))
        };
        let restored = registered(keep.next(Outcome::Missing)).next(Outcome::Done);
        assert_eq!(restored.step(), Step::Watch);
        // What is there keeps its leases, as they are.
        let mended = registered(keep.next(Outcome::Found(2))).next(Outcome::Done);
        assert_eq!(mended.step(), Step::Renew(Half::Service));
    }

    /// Two pods of one id on a node, or an agent that forgets at once.
    #[test]
    fn what_is_lost_as_soon_as_it_is_made_is_not_made_over_and_over() {
        let keep = Keep::begin().next(Outcome::<u8>::Missing);
        assert_eq!(keep.step(), Step::Register);
        let keep = keep.next(Outcome::Done).next(Outcome::Missing);
        assert_eq!(keep.step(), Step::Pause);
        let keep = keep.next(Outcome::Done).next(Outcome::Missing);
        assert_eq!(keep.step(), Step::Register);
    }
}
