//! Removes proxy and service from the agent: each is tried even if the other fails, and
//! retried while there is time. An entry that has become another pod's stays.

use super::{Half, Outcome, Rest};

/// Steps of removing both. `left` are those that are neither known to be gone nor
/// refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TakeBack {
    /// Read whether this entry is ours.
    Look(Half, Left),
    /// Register this entry again with the current ACL token: the agent tells the servers
    /// of a deregistration with the token of the registration, which they no longer know.
    RegisterAgain(Half, Left),
    /// Deregister this entry.
    Delete(Half, Left),
    /// Read whether this entry is gone: with ACLs, an older agent reports success
    /// without deregistering it.
    Confirm(Half, Left),
    /// Wait before a retry; fails when there is no time left.
    Pause(Left),
    /// The end, and what the agent may still have.
    End(Rest),
}

/// What is left to be deregistered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Left {
    proxy: bool,
    service: bool,
    refused: bool,
    token_unknown: bool,
}

// === impl TakeBack ===

impl TakeBack {
    pub fn begin() -> Self {
        let left = Left { proxy: true, service: true, refused: false, token_unknown: false };
        Self::Look(Half::Proxy, left)
    }

    /// The step after this outcome.
    #[must_use]
    pub fn next(self, outcome: Outcome) -> Self {
        match (self, outcome) {
            // A missing entry is deregistered, too: a registration whose answer nobody
            // waited for may still arrive, which is confirmed afterwards. And an agent
            // that denies reading may allow deregistering.
            (
                Self::Look(half, left),
                Outcome::Ours
                | Outcome::Changed
                | Outcome::Missing
                | Outcome::Refused
                | Outcome::NoToken,
            ) => Self::Delete(half, left),
            (Self::Look(half, left), Outcome::Outdated) => Self::RegisterAgain(half, left),
            // A token that may not register may perhaps deregister.
            (Self::RegisterAgain(half, left), Outcome::Done | Outcome::Refused) => {
                Self::Delete(half, left)
            }
            (Self::Delete(half, left), Outcome::Done) => Self::Confirm(half, left),
            (Self::Look(half, left), Outcome::Foreign)
            | (Self::Confirm(half, left), Outcome::Missing | Outcome::Foreign) => {
                left.without(half).after(half)
            }
            (Self::Delete(half, left) | Self::Confirm(half, left), Outcome::Refused) => {
                Left { refused: true, ..left.without(half) }.after(half)
            }
            (
                Self::RegisterAgain(half, left)
                | Self::Delete(half, left)
                | Self::Confirm(half, left),
                Outcome::NoToken,
            ) => Left { token_unknown: true, ..left.without(half) }.after(half),
            (
                Self::Look(half, left)
                | Self::RegisterAgain(half, left)
                | Self::Delete(half, left)
                | Self::Confirm(half, left),
                _,
            ) => left.after(half),
            (Self::Pause(left), Outcome::Done) => left.first(),
            (Self::Pause(_), _) => Self::End(Rest::Something),
            (Self::End(_), _) => self,
        }
    }
}

// === impl Left ===

impl Left {
    /// How many entries are still to be tried in this round, including this one.
    pub fn to_be_tried_from(self, half: Half) -> u32 {
        match half {
            Half::Proxy => 1 + u32::from(self.service),
            Half::Service => 1,
        }
    }

    /// What the agent has of those that are not tried any more.
    fn rest(self) -> Rest {
        match self {
            Self { refused: true, .. } => Rest::Something,
            Self { token_unknown: true, .. } => Rest::TokenUnknown,
            _ => Rest::Nothing,
        }
    }

    fn without(self, half: Half) -> Self {
        match half {
            Half::Proxy => Self { proxy: false, ..self },
            Half::Service => Self { service: false, ..self },
        }
    }

    /// The proxy goes first: a service without a proxy gets no traffic, but a proxy
    /// without a service would.
    fn first(self) -> TakeBack {
        let half = if self.proxy { Half::Proxy } else { Half::Service };
        TakeBack::Look(half, self)
    }

    /// The step after this entry was tried.
    fn after(self, half: Half) -> TakeBack {
        if half == Half::Proxy && self.service {
            TakeBack::Look(Half::Service, self)
        } else if self.proxy || self.service {
            TakeBack::Pause(self)
        } else {
            TakeBack::End(self.rest())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Deregisters both with these outcomes.
    fn rest(proxy: Outcome, service: Outcome) -> Rest {
        let mut step = TakeBack::begin();
        loop {
            step = step.next(match step {
                TakeBack::Look(..) => Outcome::Ours,
                TakeBack::RegisterAgain(..) => Outcome::Done,
                TakeBack::Delete(Half::Proxy, _) => proxy,
                TakeBack::Delete(Half::Service, _) => service,
                TakeBack::Confirm(..) => Outcome::Missing,
                TakeBack::Pause(_) => Outcome::Failed,
                TakeBack::End(rest) => return rest,
            });
        }
    }

    /// A dead pod stayed in the catalog as passing, because it had logged out.
    #[test]
    fn the_token_stays_if_the_agent_may_need_it() {
        let (done, no_token) = (Outcome::Done, Outcome::NoToken);
        assert_eq!(rest(done, done), Rest::Nothing);
        assert_eq!(rest(no_token, done), Rest::TokenUnknown);
        for left in [Outcome::Failed, Outcome::Refused] {
            assert_eq!(rest(done, left), Rest::Something);
            assert_eq!(rest(left, no_token), Rest::Something);
            assert_eq!(rest(no_token, left), Rest::Something);
        }
    }
}
