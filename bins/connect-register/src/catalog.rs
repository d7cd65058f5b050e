//! The servers' catalog, to which agents synchronize their registrations.

use std::time::Duration;

use consul::{Agent, Error};
use runtime::deadline::Deadline;
use runtime::retry::{self, Stopped};
use runtime::{Exit, Failure};

use crate::agent::why;

/// Pause between two polls.
const PAUSE: Duration = Duration::from_millis(100);

/// Waits until the catalog contains a service of this agent, or no longer does.
pub(crate) async fn wait_for(
    agent: &Agent,
    id: &str,
    name: &str,
    is_wanted: bool,
    deadline: Deadline,
) -> Result<(), Failure> {
    let node = node(agent).await;
    let mut was_answered = false;
    loop {
        let question = || agent.catalog_service(name);
        let answer = retry::until(deadline, retry::NODE_AGENT, Error::is_transient, question);
        let found = match answer.await {
            Ok(found) => found,
            // What the catalog showed last says more than that this poll was cut short.
            Err(Stopped::Deadline(_, None)) if was_answered => {
                return Err(not_shown(id, is_wanted, deadline));
            }
            Err(stopped) => return Err(why(stopped, agent, deadline)),
        };
        was_answered = true;
        let is_there = found.iter().any(|instance| {
            instance.service_id == id && node.as_ref().is_none_or(|node| instance.node == *node)
        });
        if is_there == is_wanted {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = deadline.passed() => return Err(not_shown(id, is_wanted, deadline)),
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

fn not_shown(id: &str, is_wanted: bool, deadline: Deadline) -> Failure {
    let message = if is_wanted {
        format!("service `{id}` is registered, but the catalog does not show it after {deadline}")
    } else {
        format!("service `{id}` is deregistered, but the catalog shows it after {deadline}")
    };
    Failure::new(Exit::Deadline, message)
        .hint("the agent synchronizes with its servers as soon as it can: check its log, or raise --timeout")
}

/// For a service that this agent lacks, logs the nodes where it is registered. If the catalog
/// can't be read, logs nothing.
pub(crate) async fn say_where_else(agent: &Agent, id: &str, name: Option<&str>) {
    let Some(here) = node(agent).await else { return };
    let instances = agent.catalog_service(name.unwrap_or(id)).await.unwrap_or_default();
    let of_this_id = instances.into_iter().filter(|instance| instance.service_id == id);
    let mut nodes: Vec<String> = of_this_id.map(|instance| instance.node).collect();
    if nodes.is_empty() && name.is_none() {
        nodes = agent.nodes_of(id).await.unwrap_or_default();
    }
    nodes.sort();
    nodes.dedup();
    if nodes.contains(&here) {
        tracing::warn!(
            "service `{id}` is still in the catalog for node {here}: the agent removes it within a minute"
        );
    } else if !nodes.is_empty() {
        tracing::warn!(
            "service `{id}` is registered on node {}, this agent is node {here}; hint: name that node's agent with --http-addr",
            nodes.join(", ")
        );
    }
}

/// The agent's node; `None` if the agent does not answer.
pub(crate) async fn node(agent: &Agent) -> Option<String> {
    let about = agent.agent_self().await;
    about.ok().map(|about| about.config.node_name).filter(|name| !name.is_empty())
}
