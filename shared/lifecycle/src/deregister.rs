//! Deregisters for good: first writes the tombstone, so that nobody registers again,
//! then takes the lock, which waits for a registration in flight.

use super::{Outcome, Rest, TakeBack};

/// A deregistration and its progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Deregister {
    step: Step,
    whole: bool,
    is_locked: bool,
}

/// Steps of a deregistration. Each is taken even if the one before failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Bury,
    /// Take the lock, but leave time for the rest.
    Lock,
    /// Deregister service and proxy.
    TakeBack(TakeBack),
    /// The end; releases the lock.
    End {
        /// Whether every step succeeded, so that nothing is left.
        whole: bool,
        /// What the agent may still have. Without the lock, that includes what a
        /// registration in flight brings.
        rest: Rest,
    },
}

// === impl Deregister ===

impl Deregister {
    /// Deregisters for good: with a tombstone.
    pub fn for_good() -> Self {
        Self { step: Step::Bury, whole: true, is_locked: false }
    }

    /// Deregisters without a tombstone: the pod may register again.
    pub fn for_now() -> Self {
        Self { step: Step::Lock, whole: true, is_locked: false }
    }

    /// The step to take now.
    pub fn step(self) -> Step {
        self.step
    }

    /// Whether this is the end.
    pub fn is_over(self) -> bool {
        matches!(self.step, Step::End { .. })
    }

    /// The step after this outcome.
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

    /// The registration in flight that holds the lock may still arrive.
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
