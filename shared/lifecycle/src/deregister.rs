//! The registration is taken back: the tombstone first, so that nobody makes
//! it again, then the lock, so that one that is under way is waited for.

use super::{Outcome, Rest, TakeBack};

/// A deregistration, and how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Deregister {
    step: Step,
    whole: bool,
    is_locked: bool,
}

/// The steps of a deregistration. Each is taken even if the one before failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Bury,
    /// Take the lock, but leave time for the rest.
    Lock,
    /// Take both halves back.
    TakeBack(TakeBack),
    /// The end; the lock is given back.
    End {
        /// Whether every step was done, and so nothing is left.
        whole: bool,
        /// What the agent may still have. Without the lock that may be what a
        /// registration under way brings.
        rest: Rest,
    },
}

// === impl Deregister ===

impl Deregister {
    /// A deregistration for good.
    pub fn for_good() -> Self {
        Self { step: Step::Bury, whole: true, is_locked: false }
    }

    /// One after which the pod may be registered again.
    pub fn for_now() -> Self {
        Self { step: Step::Lock, whole: true, is_locked: false }
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
            Step::Bury => Self { step: Step::Lock, whole: done, ..self },
            Step::Lock => Self {
                step: Step::TakeBack(TakeBack::begin()),
                whole: self.whole && done,
                is_locked: done,
            },
            Step::TakeBack(step) => match step.next(outcome) {
                TakeBack::End(rest) => {
                    let whole = self.whole && rest == Rest::Nothing;
                    let rest = if self.is_locked { rest } else { Rest::Something };
                    Self { step: Step::End { whole, rest }, ..self }
                }
                step => Self { step: Step::TakeBack(step), ..self },
            },
            Step::End { .. } => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The registration under way that has the lock may bring entries yet.
    #[test]
    fn without_the_lock_something_may_be_left() {
        for (lock, expected) in [(Outcome::Done, Rest::Nothing), (Outcome::Failed, Rest::Something)]
        {
            let mut machine = Deregister::for_good().next(Outcome::Done).next(lock);
            let rest = loop {
                machine = machine.next(match machine.step() {
                    Step::End { rest, .. } => break rest,
                    Step::TakeBack(TakeBack::Look(..) | TakeBack::Confirm(..)) => Outcome::Missing,
                    _ => Outcome::Done,
                });
            };
            assert_eq!(rest, expected);
        }
    }
}
