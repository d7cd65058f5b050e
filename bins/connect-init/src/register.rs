//! Registers service and proxy, both or neither.

use std::cell::Cell;
use std::time::Duration;

use consul::Agent;
use flags::Report;
use handoff::Handoff;
use lifecycle::start::Step;
use lifecycle::{Drive, Outcome, RegisterError, Session, SessionError, Start};
use registration::pod::Pair;
use runtime::retry::{self, NODE_AGENT, Stopped};
use runtime::{Deadline, Exit, Failure};

use crate::taken::{self, Taken};

/// Time limit of the logout of a token that was replaced.
const LOG_OUT: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Taken(#[from] Taken),
    #[error("{0}")]
    Login(SessionError),
    #[error("{0}")]
    Register(#[from] RegisterError),
    #[error("the pod is ending: it is not registered any more")]
    Buried,
}

/// Registers service and proxy, unless another pod has their ids. Waits until the
/// deadline for an agent that is not there yet; a rejection is final. If the agent does
/// not know the token of a login, retry if the servers know it, since the agent caches
/// "not found" for 30 s; otherwise log in again.
///
/// `start` tracks the progress, however this ends or is cut short.
pub(crate) async fn register(
    handoff: &Handoff,
    agent: &Agent,
    pair: &Pair,
    session: Option<&Session>,
    deadline: Deadline,
    start: &Cell<Start>,
) -> Result<(), Failure> {
    let looked = Cell::new(false);
    let attempt = || async {
        if !looked.get() {
            let free = taken::look(agent, &pair.service).await;
            looked.set(free.inspect_err(|_| start.set(start.get().next(Outcome::Refused)))?);
        }
        attempt(handoff, agent, pair, session, deadline, start).await
    };
    let passes = |_: &Error| start.get().step() == Step::Pause;
    match retry::until(deadline, NODE_AGENT, passes, attempt).await {
        Ok(()) => {
            tracing::info!(
                service = pair.service.id(),
                proxy = pair.proxy.id(),
                agent = %agent.config().address,
                "registered"
            );
            if let Some(session) = session {
                session.log_out_replaced(Deadline::after(LOG_OUT.min(deadline.left()))).await;
            }
            Ok(())
        }
        Err(Stopped::Final(Error::Buried)) => Err(Error::Buried.failure()),
        Err(stopped) => {
            let failure = stopped.failure();
            let failure = match session {
                Some(session) if failure.exit() == Exit::Denied => {
                    failure.hint(session.advice(&pair.service.name))
                }
                _ => failure,
            };
            let id = pair.service.id();
            Err(failure.while_doing(format_args!("cannot register service `{id}`")))
        }
    }
}

/// One try: the registration steps of the start, up to a pause or the next stage.
async fn attempt(
    handoff: &Handoff,
    agent: &Agent,
    pair: &Pair,
    session: Option<&Session>,
    deadline: Deadline,
    start: &Cell<Start>,
) -> Result<(), Error> {
    if start.get().step() == Step::Pause {
        start.set(start.get().next(Outcome::Done));
    }
    let mut drive = Drive::new(handoff, agent, pair.clone(), deadline);
    let mut failure = None;
    while let Step::Register(step) = start.get().step() {
        let now = start.get();
        start.set(match drive.act(step).await {
            Ok(outcome) => now.next(outcome),
            Err(error) => {
                let outcome = error.outcome();
                let arrived = error.may_have_arrived();
                failure = Some(error);
                if arrived { now.next(outcome) } else { now.next_unsent(outcome) }
            }
        });
    }
    // This also releases the lock.
    drop(drive);
    match (start.get().step(), session) {
        (Step::Provide, _) => return Ok(()),
        (Step::LogInAgain, Some(session)) => {
            let again = session.reopen(deadline).await;
            let outcome = if again.is_ok() { Outcome::Done } else { Outcome::Refused };
            start.set(start.get().next(outcome));
            again.map_err(Error::Login)?;
        }
        _ => {}
    }
    Err(failure.map_or(Error::Buried, Error::Register))
}

impl Report for Error {
    fn failure(self) -> Failure {
        match self {
            Self::Taken(taken) => taken.into(),
            Self::Login(error) => error.failure(),
            Self::Register(error) => error.failure(),
            Self::Buried => Failure::new(Exit::Failure, self),
        }
    }
}
