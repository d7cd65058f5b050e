//! Whether the id of a service is another pod's, which would fight for it.
//!
//! No two pods have the same id, but somebody may have registered one by hand.

use std::collections::BTreeMap;
use std::time::Duration;

use consul::Agent;
use registration::Service;
use registration::pod::lease_id;
use runtime::{Exit, Failure};

/// The id is another pod's, and that pod lives.
#[derive(Debug, thiserror::Error)]
#[error("service id `{id}` of pod `{own}` is also that of pod `{other}` at {address}, which lives")]
pub(crate) struct Taken {
    id: String,
    own: String,
    other: String,
    address: String,
}

/// How long the agent may take to say it. One that is slower is asked to register
/// all the same: this is a courtesy.
const PATIENCE: Duration = Duration::from_secs(2);

/// Looks whether another pod has that id. A pod that comes back under its name
/// takes over what is left of it, and so does one that finds what is left of
/// another: a pod lives while its lease is good.
///
/// Returns whether the agent could tell.
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

/// Whose entry it is, by its meta; none if it is not said to be a pod's.
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
