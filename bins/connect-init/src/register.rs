//! Service and proxy registered, both or neither.

use std::cell::Cell;

use consul::Agent;
use handoff::Handoff;
use handoff::protocol::{RegisterError, Registered};
use registration::pod::Pair;
use runtime::retry::{self, NODE_AGENT};
use runtime::{Deadline, Exit, Failure};

/// Registers service and proxy. An agent that is not there yet is waited for,
/// until the deadline; one that refuses is not asked again.
///
/// `arrived` tells, however this ends or is cut short, whether the agent may
/// have something of it.
pub(crate) async fn register(
    handoff: &Handoff,
    agent: &Agent,
    pair: &Pair,
    deadline: Deadline,
    arrived: &Cell<bool>,
) -> Result<(), Failure> {
    let attempt = || async {
        let before = arrived.replace(true);
        let result = handoff.register(agent, pair, deadline).await;
        if result.as_ref().is_err_and(|error| !error.may_have_arrived()) {
            arrived.set(before);
        }
        result
    };
    match retry::until(deadline, NODE_AGENT, RegisterError::is_transient, attempt).await {
        Ok(Registered::Done) => {
            tracing::info!(
                service = pair.service.id(),
                proxy = pair.proxy.id(),
                agent = %agent.config().address,
                "registered"
            );
            Ok(())
        }
        Ok(Registered::Buried) => {
            Err(Failure::new(Exit::Failure, "the pod is ending: it is not registered any more"))
        }
        Err(stopped) => Err(stopped.failure(deadline).while_doing(not_registered(pair))),
    }
}

fn not_registered(pair: &Pair) -> String {
    format!("cannot register service `{}`", pair.service.id())
}
