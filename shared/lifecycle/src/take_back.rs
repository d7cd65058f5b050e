//! Proxy and service are taken off the agent: each is tried even if the other
//! fails, and again while there is time. An entry that has become another pod's
//! stays.

use super::{Half, Outcome, Rest};

/// The steps of taking both back. `left` are those that are not known to be
/// gone and not refused either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TakeBack {
    /// Look whether this half is ours.
    Look(Half, Left),
    /// Deregister this half.
    Delete(Half, Left),
    /// Look whether this half is gone: with ACLs, an older agent says that it
    /// did without doing it.
    Confirm(Half, Left),
    /// Wait a while before what is left is tried again; that fails when no time
    /// is left.
    Pause(Left),
    /// The end, and what the agent may still have.
    End(Rest),
}

/// What is left to be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Left {
    proxy: bool,
    service: bool,
    refused: bool,
    token_unknown: bool,
}

// === impl TakeBack ===

impl TakeBack {
    /// The first step.
    pub fn begin() -> Self {
        let left = Left { proxy: true, service: true, refused: false, token_unknown: false };
        Self::Look(Half::Proxy, left)
    }

    /// The step that follows when the act of this one went so.
    #[must_use]
    pub fn next(self, outcome: Outcome) -> Self {
        match (self, outcome) {
            // What is missing is deleted, too: a registration whose answer nobody
            // waited for may arrive yet, which is confirmed afterwards. And an agent
            // that does not let us look may let us delete.
            (
                Self::Look(half, left),
                Outcome::Ours
                | Outcome::Changed
                | Outcome::Missing
                | Outcome::Refused
                | Outcome::NoToken,
            ) => Self::Delete(half, left),
            (Self::Delete(half, left), Outcome::Done) => Self::Confirm(half, left),
            (Self::Look(half, left), Outcome::Foreign)
            | (Self::Confirm(half, left), Outcome::Missing | Outcome::Foreign) => {
                left.without(half).after(half)
            }
            (Self::Delete(half, left) | Self::Confirm(half, left), Outcome::Refused) => {
                Left { refused: true, ..left.without(half) }.after(half)
            }
            (Self::Delete(half, left) | Self::Confirm(half, left), Outcome::NoToken) => {
                Left { token_unknown: true, ..left.without(half) }.after(half)
            }
            (Self::Look(half, left) | Self::Delete(half, left) | Self::Confirm(half, left), _) => {
                left.after(half)
            }
            (Self::Pause(left), Outcome::Done) => left.first(),
            (Self::Pause(_), _) => Self::End(Rest::Something),
            (Self::End(_), _) => self,
        }
    }
}

// === impl Left ===

impl Left {
    /// How many are to be tried in this round yet, that half included.
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

    /// The proxy goes first: a service without a proxy gets no traffic, a proxy
    /// without a service would.
    fn first(self) -> TakeBack {
        let half = if self.proxy { Half::Proxy } else { Half::Service };
        TakeBack::Look(half, self)
    }

    /// Once this half was tried.
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

    /// Takes both back; each delete goes so.
    fn rest(proxy: Outcome, service: Outcome) -> Rest {
        let mut step = TakeBack::begin();
        loop {
            step = step.next(match step {
                TakeBack::Look(..) => Outcome::Ours,
                TakeBack::Delete(Half::Proxy, _) => proxy,
                TakeBack::Delete(Half::Service, _) => service,
                TakeBack::Confirm(..) => Outcome::Missing,
                TakeBack::Pause(_) => Outcome::Failed,
                TakeBack::End(rest) => return rest,
            });
        }
    }

    /// A dead pod stayed in the catalog, passing, because it had logged out.
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
