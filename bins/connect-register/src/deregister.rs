//! `deregister`.

use consul::agent::Deregistered;
use consul::{Agent, Error};
use runtime::deadline::{Deadline, race};
use runtime::{Failure, Signals, retry};

use crate::agent::{cut_short, with_token};
use crate::args::DeregisterArgs;
use crate::{files, output};

/// Deregisters services, each one whatever becomes of the others.
pub(crate) async fn run(args: DeregisterArgs, mut signals: Signals) -> Result<(), Failure> {
    let DeregisterArgs { files, ids, reach } = args;
    let definitions = if ids.is_empty() { files::read(&files)? } else { Vec::new() };
    let agent = reach.agent.agent(None)?;
    let mut targets = Vec::new();
    for id in ids {
        targets.push(Target::new(agent.clone(), id));
    }
    for definition in definitions {
        let agent = with_token(&agent, definition.token.as_ref())?;
        targets.push(Target::new(agent, definition.service.id().to_owned()));
    }
    let deadline = Deadline::after(reach.timeout);
    let cut = race(deadline, &mut signals, deregister(&mut targets)).await.err();
    output::print(targets.iter().filter_map(report))?;

    let unfinished = |target: Target| {
        let Target { agent, id, outcome } = target;
        let failure = match (outcome, cut) {
            (Some(Ok(_)), _) => return None,
            (Some(Err(error)), _) => error.into(),
            (None, Some(cut)) => cut_short(cut, &agent, deadline),
            (None, None) => unreachable!("a target without an outcome is tried again"),
        };
        Some((failure.while_doing(format_args!("deregistering service `{id}`")), id))
    };
    let mut failures: Vec<_> = targets.into_iter().filter_map(unfinished).collect();
    if failures.len() < 2 {
        return failures.pop().map_or(Ok(()), |(failure, _)| Err(failure));
    }
    for (failure, _) in &failures {
        tracing::error!("{failure}");
    }
    let ids: Vec<_> = failures.iter().map(|(_, id)| format!("`{id}`")).collect();
    let message = format_args!("{} services are not deregistered: {}", ids.len(), ids.join(", "));
    Err(Failure::new(failures[0].0.exit(), message).hint("each one's cause is listed above"))
}

/// A service to be deregistered.
struct Target {
    agent: Agent,
    id: String,
    /// What came of the last try.
    outcome: Option<Result<Deregistered, Error>>,
}

/// Tries all of them in rounds, until there is none for which another try could
/// help. So one that hangs or fails does not keep the others.
async fn deregister(targets: &mut [Target]) {
    let mut pauses = retry::NODE_AGENT.pauses();
    loop {
        for target in targets.iter_mut().filter(|target| target.is_open()) {
            target.attempt().await;
        }
        if !targets.iter().any(Target::is_open) {
            return;
        }
        tokio::time::sleep(pauses.next().unwrap_or(retry::NODE_AGENT.longest)).await;
    }
}

// === impl Target ===

impl Target {
    fn new(agent: Agent, id: String) -> Self {
        Self { agent, id, outcome: None }
    }

    /// Whether a try, or another one, may help.
    fn is_open(&self) -> bool {
        match &self.outcome {
            None => true,
            Some(Ok(_)) => false,
            Some(Err(error)) => error.is_transient(),
        }
    }

    async fn attempt(&mut self) {
        // An agent without ACLs does not say whether it knew the id, so it is
        // asked before. What it says when asked to deregister counts.
        let unknown = matches!(self.agent.service(&self.id, None).await, Ok(None));
        let outcome = self.agent.deregister(&self.id).await;
        if let (None, Err(error)) = (&self.outcome, &outcome)
            && error.is_transient()
        {
            tracing::warn!("deregistering service `{}`: {error}; trying again", self.id);
        }
        self.outcome = Some(match outcome {
            Ok(_) if unknown => Ok(Deregistered::WasUnknown),
            outcome => outcome,
        });
    }
}

/// As Consul's CLI reports it. One that was not there is told to people only.
fn report(Target { agent, id, outcome }: &Target) -> Option<String> {
    match outcome {
        Some(Ok(Deregistered::Gone)) => Some(format!("Deregistered service: {id}")),
        Some(Ok(Deregistered::WasUnknown)) => {
            let address = &agent.config().address;
            tracing::warn!("service `{id}` is not registered with the agent at {address}");
            None
        }
        Some(Err(_)) | None => None,
    }
}
