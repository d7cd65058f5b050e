//! Starts one service of a pod: logs in, registers, and writes the files that its
//! sidecar starts from. If a step fails or is cut short, deregisters and then logs out.

use super::register::Ending;
use super::{Deregister, Outcome, Register, Rest, deregister};

/// The start of one service, and its progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Start {
    step: Step,
    has_login: bool,
    /// Whether the agent may have received a registration.
    is_sent: bool,
    /// Outcome of the act that made the current registration fail.
    trouble: Outcome,
}

/// Steps of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Remove the tombstone.
    Unbury,
    /// Log in, unless the token of an earlier run is still valid.
    LogIn,
    /// Register service and proxy: the next step of that.
    Register(Register),
    /// Log in again, unless the servers know the token.
    LogInAgain,
    /// Wait before a retry.
    Pause,
    /// Write the files that the sidecar starts from.
    Provide,
    /// Deregister: the progress of that.
    TakeBack(Deregister),
    /// Log out, unless the agent may still need the token.
    LogOut(Rest),
    End {
        /// Whether the sidecar may start.
        is_provided: bool,
    },
}

// === impl Start ===

impl Start {
    /// `is_sent`: an earlier run may have registered the service, with the token that
    /// the pod still has.
    pub fn begin(has_login: bool, is_sent: bool) -> Self {
        Self { step: Step::Unbury, has_login, is_sent, trouble: Outcome::Done }
    }

    /// The step to take now.
    pub fn step(self) -> Step {
        self.step
    }

    /// A signal arrived, the deadline passed, or another service of the pod failed. The
    /// interrupted act may have taken effect.
    #[must_use]
    pub fn cut(self) -> Self {
        match self.step {
            Step::TakeBack(_) | Step::LogOut(_) | Step::End { is_provided: false } => self,
            Step::Register(Register::Put(_)) => Self { is_sent: true, ..self }.undone(),
            _ => self.undone(),
        }
    }

    /// The step after this outcome.
    #[must_use]
    pub fn next(self, outcome: Outcome) -> Self {
        let is_sent = self.is_sent || matches!(self.step, Step::Register(Register::Put(_)));
        Self { is_sent, ..self }.next_unsent(outcome)
    }

    /// The step after this outcome of an act that did not reach the agent.
    #[must_use]
    pub fn next_unsent(self, outcome: Outcome) -> Self {
        match (self.step, outcome) {
            (Step::Unbury, Outcome::Done) => self.at(Step::LogIn),
            (Step::LogIn, Outcome::Done) | (Step::Pause, _) => {
                Self { trouble: Outcome::Done, ..self }.at(Step::Register(Register::begin()))
            }
            (Step::Register(step), _) => {
                let is_trouble = matches!(step, Register::Lock | Register::Put(_));
                let trouble = if is_trouble { outcome } else { self.trouble };
                let start = Self { trouble, ..self };
                match step.next(outcome) {
                    Register::End(ending) => start.registered(ending),
                    step => start.at(Step::Register(step)),
                }
            }
            (Step::LogInAgain, Outcome::Done) => self.at(Step::Pause),
            (Step::Provide, Outcome::Done) => self.at(Step::End { is_provided: true }),
            (Step::TakeBack(machine), _) => {
                let machine = machine.next(outcome);
                self.at(match machine.step() {
                    deregister::Step::End { rest, .. } => Step::LogOut(rest),
                    _ => Step::TakeBack(machine),
                })
            }
            (Step::LogOut(_), _) => self.at(Step::End { is_provided: false }),
            (Step::End { .. }, _) => self,
            (Step::Unbury | Step::LogIn | Step::LogInAgain | Step::Provide, _) => self.undone(),
        }
    }

    /// A registration has ended.
    fn registered(self, ending: Ending) -> Self {
        match (ending, self.trouble) {
            (Ending::Done, _) => self.at(Step::Provide),
            (Ending::Failed, Outcome::NoToken) if self.has_login => self.at(Step::LogInAgain),
            (Ending::Buried, _) | (Ending::Failed, Outcome::NoToken | Outcome::Refused) => {
                self.undone()
            }
            (Ending::Failed, _) => self.at(Step::Pause),
        }
    }

    fn undone(self) -> Self {
        if self.is_sent {
            self.at(Step::TakeBack(Deregister::for_now()))
        } else {
            self.at(Step::LogOut(Rest::Nothing))
        }
    }

    fn at(self, step: Step) -> Self {
        Self { step, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Half;
    use super::*;

    fn registering() -> Start {
        Start::begin(true, false).next(Outcome::Done).next(Outcome::Done)
    }

    /// One registration whose first request has this outcome.
    fn after(outcome: Outcome) -> Step {
        let mut start = registering();
        assert_eq!(start.step(), Step::Register(Register::Lock));
        while let Step::Register(step) = start.step() {
            let is_put = step == Register::Put(Half::Service);
            start = start.next(if is_put { outcome } else { Outcome::Done });
        }
        start.step()
    }

    #[test]
    fn what_passes_is_tried_again_and_what_is_refused_is_taken_back() {
        assert_eq!(after(Outcome::Done), Step::Provide);
        assert_eq!(after(Outcome::Failed), Step::Pause);
        assert_eq!(after(Outcome::NoToken), Step::LogInAgain);
        assert_eq!(after(Outcome::Refused), Step::TakeBack(Deregister::for_now()));
    }

    #[test]
    fn an_agent_that_was_never_reached_has_nothing_to_take_back() {
        let logs_out = Step::LogOut(Rest::Nothing);
        assert_eq!(registering().cut().step(), logs_out);
        let sending = registering().next(Outcome::Done).next(Outcome::Done);
        assert_eq!(sending.step(), Step::Register(Register::Put(Half::Service)));
        assert_eq!(sending.next_unsent(Outcome::Failed).cut().step(), logs_out);
        for sent in [sending, sending.next(Outcome::Failed)] {
            assert_eq!(sent.cut().step(), Step::TakeBack(Deregister::for_now()));
        }
    }

    /// Another service of the pod failed.
    #[test]
    fn what_was_provided_is_taken_back_as_well() {
        let mut start = registering();
        while start.step() != (Step::End { is_provided: true }) {
            start = start.next(Outcome::Done);
        }
        assert_eq!(start.cut().step(), Step::TakeBack(Deregister::for_now()));
    }
}
