//! What is known of the cluster, kept by one background task: the version of the
//! API server, and how Consul's agents reach other datacenters.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use consul::Agent;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::kubernetes::Api;
use crate::policy::Cluster;
use crate::values::ca_certificates_in;

/// How long the first review may wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the API server is asked: a cluster changes its version while pods
/// run.
const AGAIN: Duration = Duration::from_secs(300);
/// How soon if it did not answer, at first.
const RETRY: Duration = Duration::from_secs(2);
/// How often the roots of Connect's CA are read. A new one signs certificates at once,
/// which pods that know the old one trust by its cross-signature.
const ROOTS: Duration = Duration::from_secs(60);
/// How long an agent holds a blocking query.
const WAIT: Duration = Duration::from_secs(300);

/// What is known of the cluster.
#[derive(Debug)]
pub(super) struct Knowledge {
    cluster: RwLock<Arc<Cluster>>,
    /// Whether the API server was asked once.
    complete: watch::Sender<bool>,
    /// Whether pods need the roots of Connect's CA.
    needs_roots: bool,
}

/// Who is asked.
pub(super) struct Sources {
    /// The API server, unless its version is told.
    pub(super) kubernetes: Option<Api>,
    pub(super) agent: Agent,
}

/// The config entry proxy-defaults, as far as it matters.
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
    /// `asks_version`: whether the API server is going to be asked. If not, nothing has
    /// to be waited for from the first moment on.
    pub(super) fn new(needs_roots: bool, asks_version: bool) -> Self {
        let (complete, _) = watch::channel(!asks_version);
        Self { cluster: RwLock::default(), complete, needs_roots }
    }

    /// What is known now.
    pub(super) fn cluster(&self) -> Arc<Cluster> {
        Arc::clone(&self.cluster.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Why pods should wait: those of one cluster are to be alike.
    pub(super) fn unready(&self) -> Option<String> {
        if !*self.complete.borrow() {
            return Some("the API server was not asked for its version yet".to_owned());
        }
        // With --enable-auto-encrypt, no pod could reach its agent.
        let waits = self.needs_roots && self.cluster().roots.is_none();
        waits.then(|| "the roots of Connect's CA are not known yet: see --http-addr".to_owned())
    }

    /// Keeps it up to date, for ever. What is known stays while there is no answer.
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
                        tracing::warn!("{problem}; what is known of its version stays");
                        reported = Some(problem);
                    }
                }
            }
            self.complete.send_replace(true);
            sleep(pause).await;
            pause = (pause * 2).min(AGAIN);
        }
    }

    /// The roots of Connect's CA, which sign the certificates of agents with
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
                tracing::warn!("{problem}; what is known of them stays");
            }
            reported = problem;
            sleep(pause).await;
        }
    }

    /// The agent's datacenter and proxy-defaults. Without them, a pod with an
    /// upstream in another datacenter gets a warning more.
    async fn keep_gateways(&self, agent: &Agent) {
        let mut pause = RETRY;
        let mut index = 0;
        let mut reported = false;
        loop {
            if self.cluster().datacenter.is_none()
                && let Ok(answer) = agent.agent_self().await
                && !answer.config.datacenter.is_empty()
            {
                tracing::debug!(datacenter = answer.config.datacenter, "learnt the datacenter");
                self.change(|cluster| cluster.datacenter = Some(answer.config.datacenter));
            }
            let asked = agent.config_entry_after("proxy-defaults", "global", index, WAIT).await;
            let used = match asked {
                Ok((defaults, known)) => {
                    // Without an index there is nothing to wait for.
                    pause = if known > 0 { RETRY } else { AGAIN };
                    (index, reported) = (known, false);
                    let Defaults { mesh_gateway } = defaults.unwrap_or_default();
                    matches!(mesh_gateway.mode.as_str(), "local" | "remote")
                }
                Err(error) => {
                    if !reported {
                        tracing::info!("cannot read proxy-defaults: {error}");
                        reported = true;
                    }
                    index = 0;
                    sleep(pause).await;
                    pause = (pause * 2).min(AGAIN);
                    continue;
                }
            };
            if self.cluster().mesh_gateways != used {
                tracing::info!(used, "learnt whether mesh gateways are used by proxy-defaults");
                self.change(|cluster| cluster.mesh_gateways = used);
            }
            // A change for each second of somebody's script is enough.
            let rest = if index > 0 { Duration::from_secs(1) } else { pause };
            sleep(rest).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The admin port answers on another thread than the one that asks.
    #[test]
    fn what_nobody_is_asked_for_is_not_waited_for() {
        assert_eq!(Knowledge::new(false, false).unready(), None);
        assert!(Knowledge::new(false, true).unready().is_some());
        assert!(Knowledge::new(true, false).unready().is_some());
    }
}
