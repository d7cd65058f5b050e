//! Performs the steps of registering and deregistering: the only part of the protocol
//! that knows the agent, the directory and the time.

use std::time::Duration;

use consul::error::Cause;
use consul::{Agent, Error};
use handoff::Handoff;
use handoff::lock::{Lock, LockError};
use registration::pod::Pair;
use runtime::file::WriteError;
use runtime::{Deadline, retry};

use super::deregister::Step;
use super::error::Stays;
use super::register::Ending;
use super::{
    Deregister, Entry, Half, Leftovers, Outcome, Register, RegisterError, Rest, Session,
    SessionError, TakeBack, Unused,
};

/// Result of an attempt to register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// Service and proxy are registered.
    Done,
    /// The pod has deregistered for good; nothing was registered.
    Buried,
}

/// A registration or deregistration in progress. Dropping it releases the lock.
pub struct Drive<'a> {
    handoff: &'a Handoff,
    agent: &'a Agent,
    /// Boxed, because it is part of every future that awaits this.
    pair: Box<Pair>,
    deadline: Deadline,
    /// `None` if the pod does not log in, or if another process does.
    session: Option<&'a Session>,
    no_login: Option<Box<SessionError>>,
    /// Held until the end.
    lock: Option<Lock>,
    removal: Removal,
    no_tombstone: Option<WriteError>,
    /// Why it proceeds without the lock.
    no_lock: Option<LockError>,
}

/// State of deregistering service and proxy.
struct Removal {
    /// Time limit for the current entry: an agent that hangs on one must leave time for
    /// the other.
    share: Deadline,
    pauses: Box<dyn Iterator<Item = Duration>>,
    /// Why an entry is still registered.
    stays: Vec<(Half, Stays)>,
}

/// Registers a service and its proxy: the service first, because the proxy's alias
/// check needs it. If the agent refuses the proxy, the service is deregistered.
pub async fn register(
    handoff: &Handoff,
    agent: &Agent,
    pair: &Pair,
    deadline: Deadline,
) -> Result<Registered, RegisterError> {
    let mut drive = Drive::new(handoff, agent, pair.clone(), deadline);
    let mut step = Register::begin();
    let mut failure = None;
    loop {
        if let Register::End(ending) = step {
            return match ending {
                Ending::Done => Ok(Registered::Done),
                Ending::Buried => Ok(Registered::Buried),
                Ending::Failed => Err(failure.expect("it ends so only when an act failed")),
            };
        }
        step = step.next(drive.act(step).await.unwrap_or_else(|error| {
            let outcome = error.outcome();
            failure = Some(error);
            outcome
        }));
    }
}

/// Deregisters a proxy and its service without a tombstone: the pod may register again.
pub async fn retract(
    handoff: &Handoff,
    agent: &Agent,
    pair: &Pair,
    deadline: Deadline,
) -> Result<Unused, Leftovers> {
    Drive::new(handoff, agent, pair.clone(), deadline).deregister(Deregister::for_now()).await
}

/// Deregisters a proxy and its service for good. Each step is tried even if the one
/// before failed, and retried until the deadline. An entry that the agent does not know
/// counts as deregistered.
pub async fn deregister(
    handoff: &Handoff,
    agent: &Agent,
    pair: &Pair,
    deadline: Deadline,
) -> Result<Unused, Leftovers> {
    Drive::new(handoff, agent, pair.clone(), deadline).deregister(Deregister::for_good()).await
}

/// Like [`deregister`], but logs in again if the ACL token of the session no longer exists.
/// The caller logs the new token out.
pub async fn deregister_with_login(
    handoff: &Handoff,
    session: &Session,
    agent: &Agent,
    pair: &Pair,
    deadline: Deadline,
) -> Result<Unused, Leftovers> {
    let drive = Drive::new(handoff, agent, pair.clone(), deadline).with_session(Some(session));
    drive.deregister(Deregister::for_good_with_login()).await
}

// === impl Drive ===

impl<'a> Drive<'a> {
    /// Prepares a registration or deregistration of that pair.
    pub fn new(handoff: &'a Handoff, agent: &'a Agent, pair: Pair, deadline: Deadline) -> Self {
        let removal = Removal {
            share: deadline,
            pauses: Box::new(retry::NODE_AGENT.pauses()),
            stays: Vec::new(),
        };
        Self {
            handoff,
            agent,
            pair: Box::new(pair),
            deadline,
            session: None,
            no_login: None,
            lock: None,
            removal,
            no_tombstone: None,
            no_lock: None,
        }
    }

    /// With the pod's session: what was registered with a token that it has replaced is
    /// registered again before it is deregistered.
    #[must_use]
    pub fn with_session(self, session: Option<&'a Session>) -> Self {
        Self { session, ..self }
    }

    /// Performs a step of a registration.
    pub async fn act(&mut self, step: Register) -> Result<Outcome, RegisterError> {
        match step {
            Register::Lock => Ok(self.lock(self.deadline).await?),
            Register::LookFirst | Register::LookAgain(_) => Ok(self.look()),
            Register::Put(half) => self.put(half).await,
            Register::Undo => Ok(self.undo().await),
            Register::TakeBack(step) => {
                let outcome = self.take_back(step).await;
                if let TakeBack::End(Rest::TokenUnknown | Rest::Something) = step.next(outcome) {
                    for (id, error) in self.left() {
                        tracing::warn!(service = id, "cannot be deregistered: {error}");
                    }
                }
                Ok(outcome)
            }
            Register::End(_) => Ok(Outcome::Done),
        }
    }

    /// Performs a step of a deregistration.
    pub async fn act_back(&mut self, step: Step) -> Outcome {
        match step {
            Step::Bury => {
                self.no_tombstone = self.handoff.bury().err();
                if self.no_tombstone.is_none() { Outcome::Done } else { Outcome::Failed }
            }
            Step::Lock => {
                // Waits for a registration in flight, but leaves time for the rest.
                let half = Deadline::after(self.deadline.left() / 2);
                self.lock(half).await.unwrap_or_else(|error| {
                    self.no_lock = Some(error);
                    Outcome::Failed
                })
            }
            Step::LogIn => self.log_in().await,
            Step::Pause => self.pause().await,
            Step::TakeBack(step) => self.take_back(step).await,
            Step::End { .. } => Outcome::Done,
        }
    }

    /// The result of a deregistration. `rest` is what the agent may still have.
    pub fn taken_back(mut self, rest: Rest) -> Result<Unused, Leftovers> {
        let services = self.left();
        let Self { no_tombstone: tombstone, no_lock: lock, no_login: login, .. } = self;
        match rest.unused() {
            Some(unused) if rest == Rest::Nothing && tombstone.is_none() && lock.is_none() => {
                Ok(unused)
            }
            unused => Err(Leftovers { services, tombstone, lock, login, unused }),
        }
    }

    async fn deregister(mut self, mut machine: Deregister) -> Result<Unused, Leftovers> {
        loop {
            if let Step::End { rest, .. } = machine.step() {
                return self.taken_back(rest);
            }
            machine = machine.next(self.act_back(machine.step()).await);
        }
    }

    async fn lock(&mut self, deadline: Deadline) -> Result<Outcome, LockError> {
        self.lock = Some(self.handoff.lock(deadline).await?);
        Ok(Outcome::Done)
    }

    fn look(&self) -> Outcome {
        if self.handoff.is_buried() { Outcome::Buried } else { Outcome::Done }
    }

    /// Logs in again, unless the servers know the token.
    async fn log_in(&mut self) -> Outcome {
        let Some(session) = self.session else { return Outcome::Refused };
        self.no_login = None;
        let left = self.deadline.left();
        match session.look_first(left).await {
            Ok(true) => return Outcome::Done,
            Ok(false) => {}
            // While the servers don't answer, the agent may still deregister.
            Err(error) if error.is_unanswered() && !left.is_zero() => return Outcome::Failed,
            Err(error) => {
                self.no_login = Some(Box::new(error));
                return Outcome::Refused;
            }
        }
        // It looks again: a login that nobody waited for may have replaced the token meanwhile.
        // It leaves time for the deregistration.
        match session.reopen(Deadline::after(self.deadline.left() / 2)).await {
            Ok(is_another) => {
                if is_another {
                    tracing::info!("logged in again: the ACL token no longer existed");
                }
                Outcome::Done
            }
            Err(error) => {
                self.no_login = Some(Box::new(error));
                Outcome::Refused
            }
        }
    }

    async fn put(&self, half: Half) -> Result<Outcome, RegisterError> {
        // Keeps checks of others, such as an operator's maintenance check.
        let done = self.agent.register_keeping_checks(half.of(&self.pair)).await;
        done.map(|()| Outcome::Done).map_err(match half {
            Half::Service => RegisterError::Agent,
            Half::Proxy => RegisterError::Proxy,
        })
    }

    async fn undo(&self) -> Outcome {
        let id = self.pair.service.id();
        match self.agent.deregister(id).await {
            Ok(_) => {
                tracing::info!(service = id, "deregistered, because its proxy was refused");
                Outcome::Done
            }
            Err(error) => {
                tracing::warn!(service = id, "cannot be deregistered: {error}");
                Outcome::failed(error.is_transient())
            }
        }
    }

    async fn take_back(&mut self, step: TakeBack) -> Outcome {
        let (half, done) = match step {
            TakeBack::Look(half, left) => {
                self.removal.share =
                    Deadline::after(self.deadline.left() / left.to_be_tried_from(half));
                (half, self.in_time(self.is_ours(half)).await)
            }
            TakeBack::RegisterAgain(half, _) => {
                (half, self.in_time(self.register_again(half)).await)
            }
            TakeBack::Delete(half, _) => (half, self.in_time(self.delete(half)).await),
            TakeBack::Confirm(half, _) => (half, self.in_time(self.is_gone(half)).await),
            TakeBack::Pause(_) => return self.pause().await,
            TakeBack::End(_) => return Outcome::Done,
        };
        self.removal.note(half, done)
    }

    async fn in_time(
        &self,
        act: impl Future<Output = Result<Outcome, Stays>>,
    ) -> Result<Outcome, Stays> {
        let share = self.removal.share.left();
        tokio::time::timeout(share, act).await.unwrap_or(Err(Stays::Unanswered))
    }

    async fn register_again(&self, half: Half) -> Result<Outcome, Stays> {
        self.agent.register_keeping_checks(half.of(&self.pair)).await?;
        Ok(Outcome::Done)
    }

    async fn delete(&self, half: Half) -> Result<Outcome, Stays> {
        self.agent.deregister(half.of(&self.pair).id()).await?;
        Ok(Outcome::Done)
    }

    /// What is left on the agent, and why; refused entries come first.
    fn left(&mut self) -> Vec<(String, Stays)> {
        let mut stays = std::mem::take(&mut self.removal.stays);
        stays.sort_by_key(|(_, stays)| stays.is_transient());
        let id = |half: Half| half.of(&self.pair).id().to_owned();
        stays.into_iter().map(|(half, stays)| (id(half), stays)).collect()
    }

    async fn is_ours(&self, half: Half) -> Result<Outcome, Stays> {
        let sent = half.of(&self.pair);
        let there = match self.agent.service(sent.id(), None).await {
            // Only a courtesy: an entry that can't be read is treated as ours.
            Err(Error { cause: Cause::Garbage(_), .. }) => return Ok(Outcome::Ours),
            there => there?,
        };
        Ok(match there {
            None => Outcome::Missing,
            Some(there) => match Entry::of(sent, &there) {
                Entry::Ours | Entry::Changed(_)
                    if self.session.is_some_and(Session::has_replaced) =>
                {
                    Outcome::Outdated
                }
                Entry::Ours | Entry::Changed(_) => Outcome::Ours,
                Entry::Foreign(whose) => {
                    tracing::warn!(service = sent.id(), "left alone: it is {whose} by now");
                    Outcome::Foreign
                }
            },
        })
    }

    async fn is_gone(&self, half: Half) -> Result<Outcome, Stays> {
        let sent = half.of(&self.pair);
        match self.agent.service(sent.id(), None).await? {
            None => {
                tracing::info!(service = sent.id(), "deregistered");
                Ok(Outcome::Missing)
            }
            Some(there) if matches!(Entry::of(sent, &there), Entry::Foreign(_)) => {
                Ok(Outcome::Foreign)
            }
            Some(_) => Err(Stays::StillThere),
        }
    }

    async fn pause(&mut self) -> Outcome {
        let pause = self.removal.pauses.next().unwrap_or(retry::NODE_AGENT.longest);
        tokio::select! {
            biased;
            () = self.deadline.passed() => Outcome::Failed,
            () = tokio::time::sleep(pause) => Outcome::Done,
        }
    }
}

// === impl Removal ===

impl Removal {
    /// Records why an entry is still registered, or that it is gone.
    fn note(&mut self, half: Half, done: Result<Outcome, Stays>) -> Outcome {
        let before = self.stays.iter().position(|(stays, _)| *stays == half);
        let before = before.map(|place| self.stays.remove(place).1);
        let (went, stays) = match done {
            Ok(gone @ (Outcome::Missing | Outcome::Foreign)) => return gone,
            Ok(went) => (went, before),
            // An interrupted try says less than the one before it.
            Err(Stays::Unanswered) => (Outcome::Failed, before.or(Some(Stays::Unanswered))),
            Err(stays) => (stays.outcome(), Some(stays)),
        };
        self.stays.extend(stays.map(|stays| (half, stays)));
        went
    }
}
