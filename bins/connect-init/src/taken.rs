//! Whether another pod has the id of a service: the two would overwrite each other.
//!
//! No two pods get the same id, but somebody may have registered one by hand.

use std::collections::BTreeMap;
use std::time::Duration;

use consul::Agent;
use registration::Service;
use registration::pod::lease_id;
use runtime::{Exit, Failure};

/// Another pod, which lives, has the id.
#[derive(Debug, thiserror::Error)]
#[error("service id `{id}` of pod `{own}` is also that of pod `{other}` at {address}, which lives")]
pub(crate) struct Taken {
    id: String,
    own: String,
    other: String,
    address: String,
}

/// Time limit of the check. If the agent is slower, the registration proceeds: this
/// check is a courtesy.
const PATIENCE: Duration = Duration::from_secs(2);

/// Checks whether another living pod has the id. A pod that restarts under its name
/// takes over its old registration, and so does a pod that finds that of a dead one: a
/// pod lives while its TTL check passes.
///
/// Returns whether the agent could answer.
///
/// # Errors
/// Another pod has it.
pub(crate) async fn look(agent: &Agent, service: &Service) -> Result<bool, Taken> {
    let agent = agent.within(PATIENCE);
    let there = match agent.service(service.id(), None).await {
        Ok(Some(there)) => there,
        Ok(None) => return Ok(true),
        Err(_) => return Ok(false),
    };
    let own = pod(&service.meta);
    let other = there.meta.as_ref().and_then(pod);
    let (Some(own), Some(other)) = (own, other) else { return Ok(true) };
    if own == other {
        return Ok(true);
    }
    let Ok(checks) = agent.checks().await else { return Ok(false) };
    match checks.get(&lease_id(service.id())) {
        Some(lease) if lease.status == "passing" => {
            Err(Taken { id: service.id().to_owned(), own, other, address: there.address })
        }
        _ => {
            tracing::info!(service = service.id(), "takes over what is left of pod `{other}`");
            Ok(true)
        }
    }
}

/// The pod of a registration by its metadata, if any.
fn pod(meta: &BTreeMap<String, String>) -> Option<String> {
    Some(format!("{}/{}", meta.get("k8s-namespace")?, meta.get("pod-name")?))
}

impl From<Taken> for Failure {
    fn from(taken: Taken) -> Self {
        Self::new(Exit::Refused, taken).hint(
            "rename one of the two pods, or keep them on different nodes: an id is <namespace>_<pod>_<service>",
        )
    }
}
