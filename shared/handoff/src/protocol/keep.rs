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
        Self { step, proxy: None, service: None, rested: true, is_due: false }
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
            (Step::Watch | Step::See(_) | Step::Renew(_), Outcome::Missing) => self.lost(),
            (Step::Register, Outcome::Done) => Self { rested: false, ..Self::begin() },
            (Step::Register | Step::Look, Outcome::Buried) => self.at(Step::End),
            (Step::Look, _) => self.at(Step::Renew(Half::Service)),
            (Step::Renew(Half::Service), Outcome::Done) => self.at(Step::Renew(Half::Proxy)),
            (Step::Renew(Half::Proxy), Outcome::Done) => self.at(Step::Watch),
            (Step::Pause, _) => Self { rested: true, ..self }.at(Step::See(Half::Proxy)),
            (Step::LogIn, Outcome::Done) => Self { is_due: true, ..self }.at(Step::Register),
            (step, Outcome::NoToken) if step != Step::LogIn => self.at(Step::LogIn),
            (_, _) => self.at(Step::Pause),
        }
    }

    fn saw(self, half: Half, hash: H) -> Self {
        if self.is_due || self.known(half).is_some_and(|known| *known != hash) {
            return self.lost();
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
