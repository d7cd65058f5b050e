//! What the injector learns about the cluster in the background: the version of the API
//! server, how Consul's agents reach other datacenters, and the roots of Connect's CA.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use consul::Agent;
use consul::blocking::Follow;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::kubernetes::Api;
use crate::policy::Cluster;
use crate::values::ca_certificates_in;

/// Timeout of a request. The first review may wait this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Interval between requests for the API server's version, which may change at any time.
const AGAIN: Duration = Duration::from_secs(300);
/// First pause after a failed request; it doubles.
const RETRY: Duration = Duration::from_secs(2);
/// Interval between reads of the roots of Connect's CA. A new root is used at once, but
/// pods that know the old one trust it through its cross-signature.
const ROOTS: Duration = Duration::from_secs(60);
/// Maximum duration of a blocking query.
const WAIT: Duration = Duration::from_secs(300);

/// What is known of the cluster.
#[derive(Debug)]
pub(super) struct Knowledge {
    cluster: RwLock<Arc<Cluster>>,
    /// Whether the API server has answered or failed to answer once.
    complete: watch::Sender<bool>,
    /// Whether pods need the roots of Connect's CA.
    needs_roots: bool,
}

/// Where the knowledge comes from.
pub(super) struct Sources {
    /// The API server, unless a flag gives its version.
    pub(super) kubernetes: Option<Api>,
    pub(super) agent: Agent,
}

/// The fields that matter of the config entry proxy-defaults.
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

// === impl Knowledge ===

impl Knowledge {
    /// `asks_version`: whether the API server will be asked for its version. If not,
    /// reviews need not wait for it.
    pub(super) fn new(needs_roots: bool, asks_version: bool) -> Self {
        let (complete, _) = watch::channel(!asks_version);
        Self { cluster: RwLock::default(), complete, needs_roots }
    }

    pub(super) fn cluster(&self) -> Arc<Cluster> {
        Arc::clone(&self.cluster.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Why reviews can't be answered yet: all pods of a cluster should be injected alike.
    pub(super) fn unready(&self) -> Option<String> {
        if !*self.complete.borrow() {
            return Some("the API server has not been asked for its version yet".to_owned());
        }
        // With --enable-auto-encrypt, pods without the roots could not reach their agent.
        let waits = self.needs_roots && self.cluster().roots.is_none();
        waits.then(|| "the roots of Connect's CA are not known yet: see --http-addr".to_owned())
    }

    /// Keeps everything up to date. Never returns. Without an answer, the last known value
    /// stays.
    pub(super) async fn keep(&self, sources: &Sources) {
        tokio::join!(
            self.keep_version(sources.kubernetes.as_ref()),
            self.keep_gateways(&sources.agent),
            self.keep_roots(&sources.agent)
        );
    }

    fn change(&self, change: impl FnOnce(&mut Cluster)) {
        let mut cluster = self.cluster.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut cluster));
    }

    async fn keep_version(&self, api: Option<&Api>) {
        let Some(api) = api else { return };
        let mut pause = RETRY;
        let mut reported = None;
        loop {
            match api.version(PATIENCE).await {
                Ok(version) => {
                    if self.cluster().version != Some(version) {
                        tracing::info!(%version, "learnt the version of the API server");
                        self.change(|cluster| cluster.version = Some(version));
                    }
                    (pause, reported) = (AGAIN, None);
                }
                Err(problem) => {
                    if reported.as_ref() != Some(&problem) {
                        tracing::warn!("{problem}; keeping the version known so far");
                        reported = Some(problem);
                    }
                }
            }
            self.complete.send_replace(true);
            sleep(pause).await;
            pause = (pause * 2).min(AGAIN);
        }
    }

    /// Follows the roots of Connect's CA, which signs the agents' certificates with
    /// auto_encrypt.
    async fn keep_roots(&self, agent: &Agent) {
        if !self.needs_roots {
            return;
        }
        let mut pause = RETRY;
        let mut reported = None;
        loop {
            let problem = match agent.connect_roots().await {
                Ok(roots) => {
                    let pems = roots.roots.iter().map(|root| root.root_cert.trim_end());
                    let pem = pems.collect::<Vec<_>>().join("\n");
                    match ca_certificates_in(&pem) {
                        Ok(()) => {
                            if self.cluster().roots.as_ref() != Some(&pem) {
                                let count = roots.roots.len();
                                tracing::info!(count, "learnt the roots of Connect's CA");
                                self.change(|cluster| cluster.roots = Some(pem));
                            }
                            None
                        }
                        Err(problem) => Some(format!("the roots of Connect's CA: {problem}")),
                    }
                }
                Err(error) => Some(format!("cannot read the roots of Connect's CA: {error}")),
            };
            pause = if problem.is_none() { ROOTS } else { (pause * 2).min(ROOTS) };
            if let Some(problem) = problem.as_ref().filter(|_| problem != reported) {
                tracing::warn!("{problem}; keeping the roots known so far");
            }
            reported = problem;
            sleep(pause).await;
        }
    }

    /// Follows the agent's datacenter and proxy-defaults. Without them, a pod with an
    /// upstream in another datacenter gets an additional warning.
    async fn keep_gateways(&self, agent: &Agent) {
        let mut follow = Follow::new(WAIT);
        let mut pause = RETRY;
        let mut reported = false;
        loop {
            if self.cluster().datacenter.is_none()
                && let Ok(answer) = agent.agent_self().await
                && !answer.config.datacenter.is_empty()
            {
                tracing::debug!(datacenter = answer.config.datacenter, "learnt the datacenter");
                self.change(|cluster| cluster.datacenter = Some(answer.config.datacenter));
            }
            match agent.next_config_entry("proxy-defaults", "global", &mut follow).await {
                Ok(defaults) => {
                    (pause, reported) = (RETRY, false);
                    let Defaults { mesh_gateway } = defaults.unwrap_or_default();
                    let used = matches!(mesh_gateway.mode.as_str(), "local" | "remote");
                    if self.cluster().mesh_gateways != used {
                        tracing::info!(
                            used,
                            "learnt whether mesh gateways are used by proxy-defaults"
                        );
                        self.change(|cluster| cluster.mesh_gateways = used);
                    }
                }
                Err(error) => {
                    if !reported {
                        tracing::info!("cannot read proxy-defaults: {error}");
                        reported = true;
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(AGAIN);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The admin port runs on another thread than the requests.
    #[test]
    fn a_version_that_is_not_asked_for_is_not_waited_for() {
        assert_eq!(Knowledge::new(false, false).unready(), None);
        assert!(Knowledge::new(false, true).unready().is_some());
        assert!(Knowledge::new(true, false).unready().is_some());
    }
}
