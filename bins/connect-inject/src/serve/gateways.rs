//! What Consul's central configuration says of mesh gateways.

use std::time::Duration;

use consul::{Agent, Error};
use serde::Deserialize;

use crate::policy::MeshGateways;

/// How long an agent may take: the pod waits for it.
const PATIENCE: Duration = Duration::from_secs(1);

/// The config entry, as far as it matters.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Defaults {
    mesh_gateway: Mode,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Mode {
    mode: String,
}

/// Asks the agent. None if it can't be asked: that is no reason to deny a pod.
pub(super) async fn ask(agent: &Agent) -> Option<MeshGateways> {
    match tokio::time::timeout(PATIENCE, answer(agent)).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) => {
            tracing::warn!("cannot ask for the proxy-defaults config entry: {error}");
            None
        }
        Err(_) => {
            tracing::warn!(after = ?PATIENCE, "no answer for the proxy-defaults config entry");
            None
        }
    }
}

async fn answer(agent: &Agent) -> Result<MeshGateways, Error> {
    let defaults: Option<Defaults> = agent.config_entry("proxy-defaults", "global").await?;
    let mode = defaults.unwrap_or_default().mesh_gateway.mode;
    Ok(match mode.as_str() {
        "local" | "remote" => MeshGateways::Used,
        _ => MeshGateways::Unused,
    })
}
