//! Service and proxy are registered: the service first, because the proxy's
//! alias check needs it.

use super::{Half, Outcome, TakeBack};

/// The steps of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Register {
    /// Take the lock.
    Lock,
    /// Look for the tombstone, before anything is sent.
    LookFirst,
    /// Register this half.
    Put(Half),
    /// The proxy was refused: take the service back.
    Undo,
    /// Look for the tombstone again: whoever wrote it meanwhile may have lost
    /// patience with the lock. If there is none, it ends so. A request that
    /// failed may have arrived, too.
    LookAgain(Ending),
    /// It was taken back meanwhile: take back what was registered since.
    TakeBack(TakeBack),
    /// The end; the lock is given back.
    End(Ending),
}

/// How a registration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// Service and proxy are registered.
    Done,
    /// The registration was taken back for good.
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

    /// The step that follows when the act of this one went so.
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
