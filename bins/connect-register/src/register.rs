//! `register`.

use consul::Agent;
use definition::Definition;
use runtime::deadline::{Deadline, race};
use runtime::{Exit, Failure, Signals};

use crate::agent::{ask, cut_short, with_token};
use crate::args::RegisterArgs;
use crate::{files, flags, output};

/// Registers what the files or the flags define: all of it or, as far as it is
/// in our hands, nothing.
pub(crate) async fn run(args: RegisterArgs, mut signals: Signals) -> Result<(), Failure> {
    let RegisterArgs { files, service, reach } = args;
    let definitions = match flags::definition(service) {
        Some(definition) => vec![definition],
        None => files::read(&files)?,
    };
    for Definition { service, .. } in &definitions {
        if let Err(error) = registration::name::check(&service.name) {
            tracing::warn!("{error}; it is registered all the same, but DNS can't serve it");
        }
    }
    let agent = reach.agent.agent(None)?;
    let deadline = Deadline::after(reach.timeout);
    let mut sent = Vec::new();
    let outcome =
        race(deadline, &mut signals, register(&agent, &definitions, deadline, &mut sent)).await;
    let failure = match outcome {
        Ok(Ok(())) => return output::print(definitions.iter().map(report)),
        Ok(Err(failure)) => failure,
        Err(cut) => cut_short(cut, &agent, deadline),
    };
    // Its own time, or there would be none left. A second signal ends it.
    let deadline = Deadline::after(reach.timeout);
    if let Err(cut) = race(deadline, &mut signals, take_back(&sent, deadline)).await {
        tracing::error!("not all was taken back: {}", cut_short(cut, &agent, deadline));
    }
    Err(failure)
}

/// A service that the agent has, or may have, from us.
struct Sent<'a> {
    agent: Agent,
    id: &'a str,
    /// Whether the agent had none of this id before.
    is_new: bool,
}

/// Registers them one after the other. `sent` has the one under way, too.
async fn register<'a>(
    agent: &Agent,
    definitions: &'a [Definition],
    deadline: Deadline,
    sent: &mut Vec<Sent<'a>>,
) -> Result<(), Failure> {
    for Definition { service, token } in definitions {
        let id = service.id();
        let doing =
            |failure: Failure| failure.while_doing(format_args!("registering service `{id}`"));
        let agent = with_token(agent, token.as_ref())?;
        let before = ask(&agent, deadline, || agent.service(id, None)).await.map_err(doing)?;
        sent.push(Sent { agent: agent.clone(), id, is_new: before.is_none() });
        if let Err(failure) = ask(&agent, deadline, || agent.register(service)).await {
            if matches!(failure.exit(), Exit::Refused | Exit::Denied) {
                sent.pop();
            }
            return Err(doing(failure));
        }
        tracing::debug!(id, "registered");
    }
    Ok(())
}

/// Deregisters what this run has added, the last one first.
async fn take_back(sent: &[Sent<'_>], deadline: Deadline) {
    for Sent { agent, id, is_new } in sent.iter().rev() {
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

/// As Consul's CLI reports it.
fn report(Definition { service, .. }: &Definition) -> String {
    format!("Registered service: {}", service.name)
}
