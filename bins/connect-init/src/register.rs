//! Service and proxy registered, both or neither.

use std::cell::Cell;
use std::time::Duration;

use consul::Agent;
use flags::Report;
use handoff::Handoff;
use lifecycle::{RegisterError, Registered, Session, SessionError};
use registration::pod::Pair;
use runtime::retry::{self, NODE_AGENT};
use runtime::{Deadline, Exit, Failure};

use crate::taken::{self, Taken};

/// How long the logout of a token that another replaced may take.
const LOG_OUT: Duration = Duration::from_secs(2);

/// Why they are not registered.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Taken(#[from] Taken),
    #[error("{0}")]
    Login(SessionError),
    #[error("{0}")]
    Register(#[from] RegisterError),
}

/// Registers service and proxy, unless their ids are another pod's. An agent that
/// is not there yet is waited for, until the deadline; one that refuses is not
/// asked again. A token by login that the agent does not know is a matter of
/// time if servers know it, since it remembers for 30 s what it did not find;
/// else another is had.
///
/// `arrived` tells, however this ends or is cut short, whether the agent may
/// have something of it.
pub(crate) async fn register(
    handoff: &Handoff,
    agent: &Agent,
    pair: &Pair,
    session: Option<&Session>,
    deadline: Deadline,
    arrived: &Cell<bool>,
) -> Result<(), Failure> {
    let looked = Cell::new(false);
    let attempt = || async {
        if !looked.get() {
            looked.set(taken::look(agent, &pair.service).await?);
        }
        let before = arrived.replace(true);
        let result = lifecycle::register(handoff, agent, pair, deadline).await;
        if result.as_ref().is_err_and(|error| !error.may_have_arrived()) {
            arrived.set(before);
        }
        if let Some(session) = session
            && result.as_ref().is_err_and(RegisterError::is_unknown_token)
        {
            session.reopen(deadline).await.map_err(Error::Login)?;
        }
        Ok(result?)
    };
    let passes = |error: &Error| match error {
        Error::Taken(_) | Error::Login(_) => false,
        Error::Register(error) => {
            error.is_transient() || (session.is_some() && error.is_unknown_token())
        }
    };
    match retry::until(deadline, NODE_AGENT, passes, attempt).await {
        Ok(Registered::Done) => {
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
        Ok(Registered::Buried) => {
            Err(Failure::new(Exit::Failure, "the pod is ending: it is not registered any more"))
        }
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

impl Report for Error {
    fn failure(self) -> Failure {
        match self {
            Self::Taken(taken) => taken.into(),
            Self::Login(error) => error.failure(),
            Self::Register(error) => error.failure(),
        }
    }
}
