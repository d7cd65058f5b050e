//! The registration is taken back: the tombstone first, so that nobody makes
//! it again, then the lock, so that one that is under way is waited for.

use super::{Outcome, TakeBack};

/// A deregistration, and how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Deregister {
    step: Step,
    whole: bool,
}

/// The steps of a deregistration. Each is taken even if the one before failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Write the tombstone.
    Bury,
    /// Take the lock, but leave time for the rest.
    Lock,
    /// Take both halves back.
    TakeBack(TakeBack),
    /// The end; the lock is given back.
    End {
        /// Whether every step was done, and so nothing is left.
        whole: bool,
    },
}

// === impl Deregister ===

impl Deregister {
    /// A deregistration for good.
    pub fn for_good() -> Self {
        Self { step: Step::Bury, whole: true }
    }

    /// One after which the pod may be registered again.
    pub fn for_now() -> Self {
        Self { step: Step::Lock, whole: true }
    }

    /// What is to be done now.
    pub fn step(self) -> Step {
        self.step
    }

    /// Whether nothing is to be done any more.
    pub fn is_over(self) -> bool {
        matches!(self.step, Step::End { .. })
    }

    /// What follows when that went so.
    #[must_use]
    pub fn next(self, outcome: Outcome) -> Self {
        let done = matches!(outcome, Outcome::Done);
        match self.step {
            Step::Bury => Self { step: Step::Lock, whole: done },
            Step::Lock => {
                Self { step: Step::TakeBack(TakeBack::begin()), whole: self.whole && done }
            }
            Step::TakeBack(step) => match step.next(outcome) {
                TakeBack::End { gone } => {
                    Self { step: Step::End { whole: self.whole && gone }, ..self }
                }
                step => Self { step: Step::TakeBack(step), ..self },
            },
            Step::End { .. } => self,
        }
    }
}
