//! The cluster's version, as the API server says it.

use std::time::Duration;

use kube::Client;

use super::State;
use crate::policy::{Policy, Version};

/// How long an API server may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is asked: a cluster changes its version while pods run.
const AGAIN: Duration = Duration::from_secs(300);
/// How soon if it did not answer, at first.
const RETRY: Duration = Duration::from_secs(2);

/// Asks, and lets the reviews know. Whether there was an answer.
pub(super) async fn learn(client: &Client, state: &State) -> bool {
    match ask(client).await {
        Ok(version) => {
            let policy = state.policy();
            if policy.kubernetes != Some(version) {
                tracing::info!(%version, "the version of the cluster");
                state.decide(Policy { kubernetes: Some(version), ..Policy::clone(&policy) });
            }
            true
        }
        Err(problem) => {
            tracing::warn!("cannot ask for the cluster's version: {problem}");
            false
        }
    }
}

/// Asks again and again. What is known stays while there is no answer.
pub(super) async fn keep(client: &Client, state: &State) {
    let mut pause = if state.policy().kubernetes.is_some() { AGAIN } else { RETRY };
    loop {
        tokio::time::sleep(pause).await;
        pause = if learn(client, state).await { AGAIN } else { (pause * 2).min(AGAIN) };
    }
}

async fn ask(client: &Client) -> Result<Version, String> {
    let info = tokio::time::timeout(PATIENCE, client.apiserver_version())
        .await
        .map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?
        .map_err(|error| error.to_string())?;
    format!("{}.{}", info.major, info.minor).parse()
}
