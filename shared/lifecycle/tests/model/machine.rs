//! The shipped machines, as what runs them sees them: which act is next, and what
//! follows. Nothing is decided here.

use lifecycle::deregister::Step as DeregisterStep;
use lifecycle::keep::Step as KeepStep;
use lifecycle::register::Ending;
use lifecycle::start::Step as StartStep;
use lifecycle::{Deregister, Half, Keep, Outcome, Register, Rest, Start, TakeBack};

use crate::agent::Request;

/// What a machine wants done.
pub(crate) enum Act {
    Unbury,
    Lock,
    LookFirst,
    LookAgain(Ending),
    Bury,
    /// To log in, or to go on with the token of an earlier run.
    Open,
    /// To log in again, unless the servers know the token.
    Reopen,
    LogIn,
    LogOut,
    /// To log out at the end, if nothing is left.
    Close(Rest),
    Ask(Request),
    Watch,
    /// To wait a while; for taking back, there may be no time left for it.
    Pause {
        ends: bool,
    },
    /// To do what does not concern the registration; it may fail.
    Other(&'static str),
    Nothing,
}

/// A machine that is run by a process.
pub(crate) trait Machine: Copy {
    fn act(self) -> Act;

    fn after(self, outcome: Outcome) -> Self;

    /// Whether it keeps the lock, if it has it.
    fn keeps_lock(self) -> bool;

    /// The request that it waits for an answer to.
    fn request(self) -> Option<Request> {
        match self.act() {
            Act::Ask(request) => Some(request),
            _ => None,
        }
    }

    /// As it would be if what it gave up could not have arrived.
    fn after_given_up(self) -> Self {
        self.after(Outcome::Failed)
    }

    /// Whether it registers again only in order to deregister.
    fn takes_back(self) -> bool {
        false
    }

    /// As it would be if it forgot what it knows.
    fn forgetful(self) -> Self {
        self
    }

    /// As it would be if it took an agent that does not answer as one that forgot.
    fn hasty(self) -> Self {
        self
    }
}

// === impl Machine ===

impl Machine for Register {
    fn act(self) -> Act {
        match self {
            Self::Lock => Act::Lock,
            Self::LookFirst => Act::LookFirst,
            Self::LookAgain(ending) => Act::LookAgain(ending),
            Self::Put(half) => Act::Ask(Request::Put(half)),
            Self::Undo => Act::Ask(Request::Delete(Half::Service)),
            Self::TakeBack(step) => take_back(step),
            Self::End(_) => Act::Nothing,
        }
    }

    fn after(self, outcome: Outcome) -> Self {
        self.next(outcome)
    }

    fn keeps_lock(self) -> bool {
        !matches!(self, Self::End(_))
    }
}

impl Machine for Deregister {
    fn act(self) -> Act {
        match self.step() {
            DeregisterStep::Bury => Act::Bury,
            DeregisterStep::Lock => Act::Lock,
            DeregisterStep::LogIn => Act::Reopen,
            DeregisterStep::Pause => Act::Pause { ends: true },
            DeregisterStep::TakeBack(step) => take_back(step),
            DeregisterStep::End { .. } => Act::Nothing,
        }
    }

    fn after(self, outcome: Outcome) -> Self {
        self.next(outcome)
    }

    fn keeps_lock(self) -> bool {
        !self.is_over()
    }

    fn takes_back(self) -> bool {
        matches!(self.step(), DeregisterStep::TakeBack(_))
    }
}

impl Machine for Keep {
    fn act(self) -> Act {
        match self.step() {
            KeepStep::Watch => Act::Watch,
            KeepStep::See(half) => Act::Ask(Request::See(half)),
            KeepStep::Register(register) => register.act(),
            KeepStep::Look => Act::LookFirst,
            KeepStep::Renew(half) => Act::Ask(Request::Renew(half)),
            KeepStep::Pause => Act::Pause { ends: false },
            KeepStep::LogIn => Act::LogIn,
            KeepStep::LogOut => Act::LogOut,
            KeepStep::End => Act::Nothing,
        }
    }

    fn after(self, outcome: Outcome) -> Self {
        self.next(outcome)
    }

    fn keeps_lock(self) -> bool {
        matches!(self.step(), KeepStep::Register(_))
    }

    fn takes_back(self) -> bool {
        matches!(self.step(), KeepStep::Register(Register::TakeBack(_)))
    }

    fn forgetful(self) -> Self {
        if self.step() == KeepStep::Pause { Self::begin() } else { self }
    }

    fn hasty(self) -> Self {
        if self.step() == KeepStep::Pause { Self::begin().next(Outcome::Missing) } else { self }
    }
}

impl Machine for Start {
    fn act(self) -> Act {
        match self.step() {
            StartStep::Unbury => Act::Unbury,
            StartStep::LogIn => Act::Open,
            StartStep::Register(step) => step.act(),
            StartStep::LogInAgain => Act::LogIn,
            StartStep::Pause => Act::Pause { ends: false },
            StartStep::Provide => Act::Other("write bootstrap and record"),
            StartStep::TakeBack(machine) => machine.act(),
            StartStep::LogOut(rest) => Act::Close(rest),
            StartStep::End { .. } => Act::Nothing,
        }
    }

    fn after(self, outcome: Outcome) -> Self {
        self.next(outcome)
    }

    fn after_given_up(self) -> Self {
        self.next_unsent(Outcome::Failed)
    }

    fn keeps_lock(self) -> bool {
        match self.step() {
            StartStep::Register(step) => step != Register::begin() && step.keeps_lock(),
            // A registration that failed has given it back.
            StartStep::TakeBack(machine) => {
                machine.step() != DeregisterStep::Lock && machine.keeps_lock()
            }
            _ => false,
        }
    }
}

fn take_back(step: TakeBack) -> Act {
    match step {
        TakeBack::RegisterAgain(half, _) => Act::Ask(Request::Put(half)),
        TakeBack::Delete(half, _) => Act::Ask(Request::Delete(half)),
        TakeBack::Look(half, _) | TakeBack::Confirm(half, _) => Act::Ask(Request::See(half)),
        TakeBack::Pause(_) => Act::Pause { ends: true },
        TakeBack::End(_) => Act::Nothing,
    }
}
