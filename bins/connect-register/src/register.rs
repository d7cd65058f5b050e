//! The subcommand `register`.

use consul::Agent;
use definition::{Definition, Newer};
use runtime::deadline::{Deadline, race};
use runtime::{Exit, Failure, Signals};
use serde_json::{Value, json};

use crate::agent::{ask, cut_short, with_token};
use crate::args::RegisterArgs;
use crate::output::{self, Output};
use crate::{catalog, files, flags};

/// Registers what the files or the flags define. If one service fails, deregisters what
/// this run added.
pub(crate) async fn run(args: RegisterArgs, mut signals: Signals) -> Result<(), Failure> {
    let RegisterArgs { files, service, replace_checks, keep_going, wait, output, reach } = args;
    let definitions = match flags::definition(service) {
        Some(definition) => {
            flags::check(&definition)?;
            if let Err(error) = registration::name::check(&definition.service.name) {
                tracing::warn!("{error}; it is registered all the same, but DNS cannot serve it");
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
        // Rolling back has a time limit of its own, since the command's has run out. A
        // second signal interrupts it.
        let deadline = Deadline::after(reach.timeout);
        if let Err(cut) = race(deadline, &mut signals, roll_back(&sent, deadline)).await {
            tracing::error!(
                "not everything was deregistered: {}",
                cut_short(cut, &agent, deadline)
            );
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
            Err(Failure::new(failed[0].exit(), message).hint("the causes are listed above"))
        }
    }
}

struct Run<'a> {
    agent: &'a Agent,
    deadline: Deadline,
    replace_checks: bool,
    keep_going: bool,
    /// Includes the registration in flight.
    sent: Vec<Sent<'a>>,
    failed: Vec<Failure>,
}

/// A service that this run has registered, or may have.
struct Sent<'a> {
    agent: Agent,
    definition: &'a Definition,
    before: Before,
    /// Whether the agent has confirmed it.
    is_done: bool,
}

/// What was registered under an id before this run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    AService,
    /// The agent did not answer.
    Unknown,
}

// === impl Run ===

impl<'a> Run<'a> {
    /// Registers the services in order.
    async fn register(&mut self, definitions: &'a [Definition]) -> Result<(), Failure> {
        require_newest(self.agent, self.deadline, definitions).await?;
        for definition in definitions {
            if let Err(failure) = self.register_one(definition).await {
                let id = definition.service.id();
                let failure = failure.while_doing(format_args!("registering service `{id}`"));
                // Without an agent, the others would fail, too.
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
        let before = before(&agent, id, self.deadline).await?;
        self.sent.push(Sent { agent: agent.clone(), definition, before, is_done: false });
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

/// Rejects keys that are newer than the agent, before anything is sent. If the agent
/// does not report its version, it decides itself.
pub(crate) async fn require_newest(
    agent: &Agent,
    deadline: Deadline,
    definitions: &[Definition],
) -> Result<(), Failure> {
    if definitions.iter().all(|definition| definition.newer.is_empty()) {
        return Ok(());
    }
    let about = match ask(agent, deadline, || agent.agent_self()).await {
        Ok(about) => about,
        Err(failure) if !matches!(failure.exit(), Exit::Refused | Exit::Denied) => {
            return Err(failure);
        }
        Err(failure) => {
            tracing::debug!("the agent does not report its version: {failure}");
            return Ok(());
        }
    };
    let version = about.config.version;
    let newer = definitions.iter().flat_map(|definition| &definition.newer);
    let unknown: Vec<&Newer> = newer.filter(|newer| !newer.since.is_known_to(&version)).collect();
    for Newer { place, .. } in &unknown {
        tracing::error!("{place}");
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let count = unknown.len();
    let plural = if count == 1 { "key" } else { "keys" };
    let address = &agent.config().address;
    let message = format_args!(
        "the agent at {address} is Consul {version}, which cannot take {count} {plural} of the \
         definition files: nothing was sent"
    );
    Err(Failure::new(Exit::Refused, message)
        .hint("remove what is listed above, or upgrade the agent"))
}

/// Whether the agent has a service of this id. The answer only decides what is reported
/// and rolled back, so a failure is ignored: for an id that looks like a URL the agent
/// redirects this request, and it may refuse it for lack of `service:read`.
async fn before(agent: &Agent, id: &str, deadline: Deadline) -> Result<Before, Failure> {
    let outcome = ask(agent, deadline, || agent.service(id, None)).await;
    match outcome {
        Ok(None) => Ok(Before::Nothing),
        Ok(Some(_)) => Ok(Before::AService),
        Err(failure) if !matches!(failure.exit(), Exit::Refused | Exit::Denied) => Err(failure),
        Err(failure) => {
            tracing::debug!("the agent does not say whether it has service `{id}`: {failure}");
            Ok(Before::Unknown)
        }
    }
}

/// Waits until the catalog contains them.
async fn wait_for(sent: &[Sent<'_>], deadline: Deadline) -> Result<(), Failure> {
    for Sent { agent, definition, .. } in sent {
        let Definition { service, .. } = definition;
        catalog::wait_for(agent, service.id(), &service.name, true, deadline).await?;
    }
    Ok(())
}

/// Deregisters what this run added, in reverse order.
async fn roll_back(sent: &[Sent<'_>], deadline: Deadline) {
    for Sent { agent, definition, before, .. } in sent.iter().rev() {
        let id = definition.service.id();
        match before {
            Before::Nothing => {}
            Before::AService => {
                tracing::warn!("service `{id}` existed before: it stays, with its new definition");
                continue;
            }
            Before::Unknown => {
                tracing::warn!(
                    "service `{id}` stays: the agent did not say whether it existed before; \
                     hint: to remove it, run connect-register deregister --id {id}"
                );
                continue;
            }
        }
        match ask(agent, deadline, || agent.deregister(id)).await {
            Ok(_) => tracing::warn!("service `{id}` was deregistered"),
            Err(failure) => tracing::error!(
                "service `{id}` could not be deregistered: {failure}; then run connect-register deregister --id {id}"
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
        .map(|Sent { definition, before, .. }| {
            let mut named = named(definition);
            named["replaced"] = match before {
                Before::Nothing => Value::Bool(false),
                Before::AService => Value::Bool(true),
                Before::Unknown => Value::Null,
            };
            named
        })
        .collect();
    output::print_json(&json!({"registered": services}))
}

/// The line that Consul's CLI prints.
fn report(Definition { service, .. }: &Definition) -> String {
    format!("Registered service: {}", service.name)
}

pub(crate) fn named(Definition { service, .. }: &Definition) -> Value {
    json!({"id": service.id(), "name": service.name})
}
