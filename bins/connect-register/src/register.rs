//! `register`.

use consul::Agent;
use definition::Definition;
use runtime::deadline::{Deadline, race};
use runtime::{Exit, Failure, Signals};
use serde_json::{Value, json};

use crate::agent::{ask, cut_short, with_token};
use crate::args::RegisterArgs;
use crate::output::{self, Output};
use crate::{catalog, files, flags};

/// Registers what the files or the flags define: all of it or, as far as it is
/// in our hands, nothing.
pub(crate) async fn run(args: RegisterArgs, mut signals: Signals) -> Result<(), Failure> {
    let RegisterArgs { files, service, replace_checks, keep_going, wait, output, reach } = args;
    let definitions = match flags::definition(service) {
        Some(definition) => {
            flags::check(&definition)?;
            if let Err(error) = registration::name::check(&definition.service.name) {
                tracing::warn!("{error}; it is registered all the same, but DNS can't serve it");
            }
            vec![definition]
        }
        None => files::read(&files, output)?.definitions,
    };
    let agent = reach.agent.agent(None)?;
    let deadline = Deadline::after(reach.timeout);
    let mut run = Run {
        agent: &agent,
        deadline,
        replace_checks,
        keep_going,
        sent: Vec::new(),
        failed: Vec::new(),
    };
    let outcome = race(deadline, &mut signals, run.register(&definitions)).await;
    let Run { sent, mut failed, .. } = run;
    let failure = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(failure)) => Some(failure),
        Err(cut) => Some(cut_short(cut, &agent, deadline)),
    };
    if let (Some(failure), false) = (&failure, keep_going) {
        // Its own time, or there would be none left. A second signal ends it.
        let deadline = Deadline::after(reach.timeout);
        if let Err(cut) = race(deadline, &mut signals, take_back(&sent, deadline)).await {
            tracing::error!("not all was taken back: {}", cut_short(cut, &agent, deadline));
        }
        return Err(failure.clone());
    }
    failed.extend(failure);
    print(&sent, output)?;
    if wait && failed.is_empty() {
        match race(deadline, &mut signals, wait_for(&sent, deadline)).await {
            Ok(outcome) => failed.extend(outcome.err()),
            Err(cut) => failed.push(cut_short(cut, &agent, deadline)),
        }
    }
    match failed.len() {
        0 | 1 => failed.pop().map_or(Ok(()), Err),
        count => {
            let message = format_args!("{count} services are not registered");
            for failure in &failed {
                tracing::error!("{failure}");
            }
            Err(Failure::new(failed[0].exit(), message).hint("each one's cause is listed above"))
        }
    }
}

/// What is being done, and how far it is.
struct Run<'a> {
    agent: &'a Agent,
    deadline: Deadline,
    replace_checks: bool,
    keep_going: bool,
    /// With the one under way.
    sent: Vec<Sent<'a>>,
    failed: Vec<Failure>,
}

/// A service that the agent has, or may have, from us.
struct Sent<'a> {
    agent: Agent,
    definition: &'a Definition,
    /// Whether the agent had none of this id before.
    is_new: bool,
    /// Whether the agent has taken it.
    is_done: bool,
}

// === impl Run ===

impl<'a> Run<'a> {
    /// Registers them one after the other.
    async fn register(&mut self, definitions: &'a [Definition]) -> Result<(), Failure> {
        for definition in definitions {
            if let Err(failure) = self.register_one(definition).await {
                let id = definition.service.id();
                let failure = failure.while_doing(format_args!("registering service `{id}`"));
                // Without an agent, the others fare no better.
                if !self.keep_going || !matches!(failure.exit(), Exit::Refused | Exit::Denied) {
                    return Err(failure);
                }
                self.failed.push(failure);
            }
        }
        Ok(())
    }

    async fn register_one(&mut self, definition: &'a Definition) -> Result<(), Failure> {
        let Definition { service, token, .. } = definition;
        let id = service.id();
        let agent = with_token(self.agent, token.as_ref())?;
        let before = ask(&agent, self.deadline, || agent.service(id, None)).await?;
        let is_new = before.is_none();
        self.sent.push(Sent { agent: agent.clone(), definition, is_new, is_done: false });
        let outcome = if self.replace_checks {
            ask(&agent, self.deadline, || agent.register(service)).await
        } else {
            ask(&agent, self.deadline, || agent.register_keeping_checks(service)).await
        };
        match outcome {
            Ok(()) => {
                tracing::debug!(id, "registered");
                if let Some(sent) = self.sent.last_mut() {
                    sent.is_done = true;
                }
                Ok(())
            }
            Err(failure) => {
                if matches!(failure.exit(), Exit::Refused | Exit::Denied) {
                    self.sent.pop();
                }
                Err(failure)
            }
        }
    }
}

/// Waits until the catalog has them.
async fn wait_for(sent: &[Sent<'_>], deadline: Deadline) -> Result<(), Failure> {
    for Sent { agent, definition, .. } in sent {
        let Definition { service, .. } = definition;
        catalog::wait_for(agent, service.id(), &service.name, true, deadline).await?;
    }
    Ok(())
}

/// Deregisters what this run has added, the last one first.
async fn take_back(sent: &[Sent<'_>], deadline: Deadline) {
    for Sent { agent, definition, is_new, .. } in sent.iter().rev() {
        let id = definition.service.id();
        if !is_new {
            tracing::warn!("service `{id}` was there before: it stays, as this run defines it");
            continue;
        }
        match ask(agent, deadline, || agent.deregister(id)).await {
            Ok(_) => tracing::warn!("service `{id}` is taken back"),
            Err(failure) => tracing::error!(
                "service `{id}` could not be taken back: {failure}; then run connect-register deregister --id {id}"
            ),
        }
    }
}

fn print(sent: &[Sent<'_>], output: Output) -> Result<(), Failure> {
    let done = sent.iter().filter(|sent| sent.is_done);
    if output == Output::Text {
        return output::print(done.map(|sent| report(sent.definition)));
    }
    let services: Vec<Value> = done
        .map(|Sent { definition, is_new, .. }| {
            let mut named = named(definition);
            named["replaced"] = Value::Bool(!is_new);
            named
        })
        .collect();
    output::print_json(&json!({"registered": services}))
}

/// As Consul's CLI reports it.
fn report(Definition { service, .. }: &Definition) -> String {
    format!("Registered service: {}", service.name)
}

/// A service by id and name.
pub(crate) fn named(Definition { service, .. }: &Definition) -> Value {
    json!({"id": service.id(), "name": service.name})
}
