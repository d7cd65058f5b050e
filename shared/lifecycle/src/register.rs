//! Registers service and proxy: the service first, because the proxy's alias check
//! needs it.

use super::{Half, Outcome, TakeBack};

/// Steps of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Register {
    /// Take the lock.
    Lock,
    /// Look for the tombstone before anything is sent.
    LookFirst,
    /// Register this entry.
    Put(Half),
    /// The agent refused the proxy: deregister the service.
    Undo,
    /// Look for the tombstone again: a deregistration that waited for the lock in vain
    /// may have written it. Without one, this is the end. A failed request may have
    /// arrived, too.
    LookAgain(Ending),
    /// The pod has deregistered meanwhile: deregister what was registered since.
    TakeBack(TakeBack),
    /// The end; releases the lock.
    End(Ending),
}

/// How a registration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    Done,
    /// The pod has deregistered for good.
    Buried,
    /// An act failed. If it was refused, nothing is left of it.
    Failed,
}

// === impl Register ===

impl Register {
    /// The first step.
    pub fn begin() -> Self {
        Self::Lock
    }

    /// The step after this outcome.
    #[must_use]
    pub fn next(self, outcome: Outcome) -> Self {
        match (self, outcome) {
            (Self::Lock, Outcome::Done) => Self::LookFirst,
            (Self::LookFirst, Outcome::Buried) => Self::End(Ending::Buried),
            (Self::LookFirst, _) => Self::Put(Half::Service),
            (Self::Put(Half::Service), Outcome::Done) => Self::Put(Half::Proxy),
            (Self::Put(Half::Proxy), Outcome::Done) => Self::LookAgain(Ending::Done),
            (Self::Put(Half::Proxy), Outcome::Refused | Outcome::NoToken) => Self::Undo,
            (Self::Put(_) | Self::Undo, _) => Self::LookAgain(Ending::Failed),
            (Self::LookAgain(_), Outcome::Buried) => Self::TakeBack(TakeBack::begin()),
            (Self::LookAgain(ending), _) => Self::End(ending),
            (Self::TakeBack(step), _) => match step.next(outcome) {
                TakeBack::End(_) => Self::End(Ending::Buried),
                step => Self::TakeBack(step),
            },
            (Self::Lock, _) => Self::End(Ending::Failed),
            (Self::End(_), _) => self,
        }
    }
}
