//! The subcommand `deregister`.

use consul::agent::Deregistered;
use consul::{Agent, Error};
use flags::Report;
use registration::Service;
use runtime::deadline::{Deadline, race};
use runtime::{Exit, Failure, Signals, retry};
use serde_json::json;

use crate::agent::{cut_short, with_token};
use crate::args::DeregisterArgs;
use crate::output::{self, Output};
use crate::{catalog, files};

/// Deregisters services independently of each other.
pub(crate) async fn run(args: DeregisterArgs, mut signals: Signals) -> Result<(), Failure> {
    let DeregisterArgs { files, ids, wait, output, reach } = args;
    let definitions =
        if ids.is_empty() { files::read(&files, output)?.definitions } else { Vec::new() };
    let agent = reach.agent.agent(None)?;
    let mut targets = Vec::new();
    for id in ids {
        targets.push(Target::new(agent.clone(), id, None));
    }
    for definition in definitions {
        let agent = with_token(&agent, definition.token.as_ref())?;
        let Service { name, .. } = &definition.service;
        let id = definition.service.id().to_owned();
        targets.push(Target::new(agent, id, Some(name.clone())));
    }
    let deadline = Deadline::after(reach.timeout);
    let cut = race(deadline, &mut signals, deregister(&mut targets)).await.err();
    print(&targets, output)?;
    if cut.is_none() {
        let work = async {
            for target in &mut targets {
                target.follow(wait, deadline).await;
            }
        };
        if let Err(cut) = race(deadline, &mut signals, work).await
            && wait
        {
            return Err(cut_short(cut, &agent, deadline));
        }
    }

    let unfinished = |target: Target| {
        let Target { agent, id, outcome, wait_failed, .. } = target;
        let failure = match (outcome, cut) {
            (Some(Ok(_)), _) => wait_failed?,
            (Some(Err(failure)), _) => failure,
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
    Err(Failure::new(failures[0].0.exit(), message).hint("the causes are listed above"))
}

struct Target {
    agent: Agent,
    id: String,
    /// `None` if only the id was given.
    name: Option<String>,
    /// Outcome of the last try.
    outcome: Option<Result<Deregistered, Failure>>,
    /// Whether another try may help.
    is_open: bool,
    wait_failed: Option<Failure>,
}

/// Tries all targets in rounds while a retry may help, so that one that hangs or fails
/// does not hold up the others.
async fn deregister(targets: &mut [Target]) {
    let mut pauses = retry::NODE_AGENT.pauses();
    loop {
        for target in targets.iter_mut().filter(|target| target.is_open) {
            target.attempt().await;
        }
        if !targets.iter().any(|target| target.is_open) {
            return;
        }
        tokio::time::sleep(pauses.next().unwrap_or(retry::NODE_AGENT.longest)).await;
    }
}

// === impl Target ===

impl Target {
    fn new(agent: Agent, id: String, name: Option<String>) -> Self {
        Self { agent, id, name, outcome: None, is_open: true, wait_failed: None }
    }

    async fn attempt(&mut self) {
        let Self { agent, id, .. } = self;
        // Without ACLs, the agent does not say whether it knew the id: look first. With
        // ACLs, the answer to the deregistration decides.
        let unknown = matches!(agent.service(id, None).await, Ok(None));
        let outcome = agent.deregister(id).await;
        self.is_open = outcome.as_ref().is_err_and(Error::is_transient);
        if let (None, true, Err(error)) = (&self.outcome, self.is_open, &outcome) {
            tracing::warn!("deregistering service `{id}`: {error}; trying again");
        }
        self.outcome = Some(match outcome {
            Ok(_) if unknown => Ok(Deregistered::WasUnknown),
            Ok(found) => match agent.service(id, None).await {
                Ok(Some(_)) => Err(came_back(id)),
                // Deregistered by somebody else, invisible to this token, or registered
                // with another agent.
                Ok(None) | Err(_) => Ok(found),
            },
            Err(error) => Err(error.failure()),
        });
    }

    /// Waits for the catalog, if that was asked for.
    async fn follow(&mut self, wait: bool, deadline: Deadline) {
        let Self { agent, id, name, .. } = self;
        match (&self.outcome, name) {
            (Some(Ok(Deregistered::WasUnknown)), name) => {
                catalog::say_where_else(agent, id, name.as_deref()).await;
            }
            (Some(Ok(Deregistered::Gone)), Some(name)) if wait => {
                let outcome = catalog::wait_for(agent, id, name, false, deadline).await;
                self.wait_failed = outcome.err();
            }
            _ => {}
        }
    }
}

fn came_back(id: &str) -> Failure {
    Failure::new(
        Exit::Failure,
        format_args!("service `{id}` was deregistered, and is registered again"),
    )
    .hint("something keeps it registered: connect-lifecycle in its pod, or another run of this")
}

fn print(targets: &[Target], output: Output) -> Result<(), Failure> {
    let of = |wanted: Deregistered| {
        let is_wanted = move |target: &&Target| matches!(&target.outcome, Some(Ok(outcome)) if *outcome == wanted);
        targets.iter().filter(is_wanted)
    };
    for Target { agent, id, .. } in of(Deregistered::WasUnknown) {
        let address = &agent.config().address;
        tracing::warn!("service `{id}` is not registered with the agent at {address}");
    }
    if output == Output::Text {
        // As Consul's CLI prints it. Only people are told of a service that was not
        // registered.
        let lines =
            of(Deregistered::Gone).map(|target| format!("Deregistered service: {}", target.id));
        return output::print(lines);
    }
    let ids = |wanted| of(wanted).map(|target| target.id.as_str()).collect::<Vec<_>>();
    output::print_json(&json!({
        "deregistered": ids(Deregistered::Gone),
        "unknown": ids(Deregistered::WasUnknown),
    }))
}
