//! Deregisters for good: first writes the tombstone, so that nobody registers again,
//! then takes the lock, which waits for a registration in flight.

use super::{Outcome, Rest, TakeBack};

/// A deregistration and its progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Deregister {
    step: Step,
    whole: bool,
    is_locked: bool,
    /// Whether this process can log in, as far as it knows.
    can_log_in: bool,
}

/// Steps of a deregistration. Each is taken even if the one before failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Bury,
    /// Take the lock, but leave time for the rest.
    Lock,
    /// Log in again, unless the servers know the token. Without one that they know, the
    /// agent can't tell them of a deregistration.
    LogIn,
    /// Wait before a retry, because the agent may have cached that it did not find the
    /// token; fails when there is no time left.
    Pause,
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
        Self { step: Step::Bury, whole: true, is_locked: false, can_log_in: false }
    }

    /// Like [`Self::for_good`], but logs in again if the ACL token no longer exists.
    pub fn for_good_with_login() -> Self {
        Self { can_log_in: true, ..Self::for_good() }
    }

    /// Deregisters without a tombstone: the pod may register again.
    pub fn for_now() -> Self {
        Self { step: Step::Lock, ..Self::for_good() }
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
            Step::Lock => {
                let take_back = Step::TakeBack(TakeBack::begin());
                let step = if self.can_log_in { Step::LogIn } else { take_back };
                Self { step, whole: self.whole && done, is_locked: done, ..self }
            }
            Step::LogIn => Self {
                step: Step::TakeBack(TakeBack::begin()),
                can_log_in: outcome != Outcome::Refused,
                ..self
            },
            Step::Pause if done => Self { step: Step::LogIn, ..self },
            Step::Pause => Self { step: Step::End { whole: false, rest: Rest::Something }, ..self },
            Step::TakeBack(step) => match step.next(outcome) {
                TakeBack::End(Rest::TokenUnknown) if self.can_log_in => {
                    Self { step: Step::Pause, ..self }
                }
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
    use crate::Half;

    /// Ends a deregistration whose token the agent does not know, with these outcomes of
    /// the logins. Returns how often the entries were tried.
    fn tries(logins: &[Outcome]) -> (usize, Rest) {
        let mut machine = Deregister::for_good_with_login();
        let (mut logins, mut tries) = (logins.iter(), 0);
        loop {
            machine = machine.next(match machine.step() {
                Step::End { rest, .. } => return (tries, rest),
                Step::LogIn => *logins.next().unwrap(),
                Step::TakeBack(TakeBack::Look(Half::Proxy, _)) => {
                    tries += 1;
                    Outcome::NoToken
                }
                // No time is left.
                Step::Pause if tries == 3 => Outcome::Failed,
                Step::TakeBack(TakeBack::Delete(..) | TakeBack::Look(..)) => Outcome::NoToken,
                _ => Outcome::Done,
            });
        }
    }

    #[test]
    fn an_agent_that_does_not_know_the_token_is_asked_until_the_deadline_or_a_refused_login() {
        let (done, failed, refused) = (Outcome::Done, Outcome::Failed, Outcome::Refused);
        assert_eq!(tries(&[done; 3]), (3, Rest::Something));
        assert_eq!(tries(&[failed, done, done]), (3, Rest::Something));
        assert_eq!(tries(&[refused]), (1, Rest::TokenUnknown));
        assert_eq!(tries(&[failed, refused]), (2, Rest::TokenUnknown));
    }

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
