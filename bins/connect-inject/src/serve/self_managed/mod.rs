//! `--tls-auto`: the replicas issue a certificate, share it in a Secret, renew it, and keep
//! the webhook configuration's caBundle up to date.

mod cluster;
mod issue;
mod material;
mod pki;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};

use super::clock::{LAST_MINUTE, now};
use super::tls::server_config;
use crate::kubernetes::{Api, Problem};
use cluster::Cluster;
use material::Material;
use pki::Leaf;

/// Longest time between two checks without a change.
const RELIST: Duration = Duration::from_secs(30);
/// Shortest time between two checks.
const PAUSE: Duration = Duration::from_secs(1);
/// Pause after a request that failed.
const RETRY: Duration = Duration::from_secs(5);

/// Names from the flags.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// Name of the MutatingWebhookConfiguration.
    pub(crate) webhooks: String,
    /// Namespace of the Secret.
    pub(crate) namespace: String,
    /// Hosts under which API servers reach the webhook.
    pub(crate) hosts: Vec<ServerName<'static>>,
}

/// A certificate that the replicas issue and share.
#[derive(Debug)]
pub(crate) struct SelfManaged {
    cluster: Cluster,
    hosts: Vec<ServerName<'static>>,
    shown: Mutex<Shown>,
    /// Contents of the Secret when it was last read, in case somebody empties it.
    held: Mutex<Option<Material>>,
}

/// The certificate that is served now.
#[derive(Debug, Default)]
struct Shown {
    leaf: Option<(Leaf, Arc<ServerConfig>)>,
    /// Whether the webhook configuration was seen to trust it.
    is_trusted: bool,
    /// The last failure, until a check succeeds.
    problem: Option<String>,
}

/// Name of the Secret of a webhook configuration.
pub(crate) fn secret_name(webhooks: &str) -> String {
    format!("{webhooks}-tls")
}

// === impl SelfManaged ===

impl SelfManaged {
    pub(crate) fn new(api: Api, names: Names) -> Self {
        let Names { webhooks, namespace, hosts } = names;
        let cluster = Cluster::new(api, &namespace, webhooks);
        Self { cluster, hosts, shown: Mutex::default(), held: Mutex::default() }
    }

    /// The certificate to serve; `None` until there is one.
    pub(super) fn current(&self) -> Option<Arc<ServerConfig>> {
        self.shown(|shown| shown.leaf.as_ref().map(|(_, config)| Arc::clone(config)))
    }

    /// When it expires, in seconds since 1970.
    pub(super) fn not_after(&self) -> Option<i64> {
        self.shown(|shown| shown.leaf.as_ref().map(|(leaf, _)| leaf.validity.not_after))
    }

    /// Why reviews can't be answered yet.
    pub(super) fn unready(&self) -> Option<String> {
        self.shown(|shown| {
            let missing = match (&shown.leaf, shown.is_trusted) {
                (Some(_), true) => return None,
                (Some(_), false) => "the webhook configuration does not trust the certificate yet",
                (None, _) => "there is no certificate yet",
            };
            let problem = shown.problem.as_ref().map(|problem| format!(": {problem}"));
            Some(format!("{missing}{}", problem.unwrap_or_default()))
        })
    }

    fn shown<T>(&self, look: impl FnOnce(&mut Shown) -> T) -> T {
        look(&mut self.shown.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn held<T>(&self, look: impl FnOnce(&mut Option<Material>) -> T) -> T {
        look(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps certificate, Secret and webhook configuration up to date. Never returns.
    pub(super) async fn keep(&self) {
        loop {
            match self.pass().await {
                Ok(version) => {
                    self.shown(|shown| shown.problem = None);
                    self.cluster.changed(&version, RELIST).await;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(Problem::Overtaken) => {
                    tracing::debug!("another replica was faster: reading again");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(Problem::Failed(problem)) => {
                    // Warn once per problem, not at each retry.
                    let known = self.shown(|shown| shown.problem.replace(problem.clone()));
                    if known.as_ref() != Some(&problem) {
                        tracing::warn!("{problem}; keeping the current certificate");
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Rotates or restores the certificate if due. Returns the resourceVersion of the webhook configuration that
    /// trusts the certificate.
    async fn pass(&self) -> Result<String, Problem> {
        // Read before the Secret, so that an older caBundle never overwrites a newer one.
        let webhooks = self.cluster.webhooks().await;
        let material = self.shared().await?;
        if self.current().is_none() || self.not_after().is_some_and(|end| end < now() + LAST_MINUTE)
        {
            // The API servers may not trust it yet, but the alternative is no valid
            // certificate.
            self.show(&material);
        }
        let (healed, version) = self.cluster.heal(&webhooks?, &material.bundle()).await?;
        if !healed.is_empty() {
            tracing::info!(webhooks = healed.join(", "), "updated caBundle");
        }
        self.show(&material);
        self.shown(|shown| shown.is_trusted = true);
        Ok(version)
    }

    /// Reads the Secret, performs the steps that are due, and writes it if it changed.
    async fn shared(&self) -> Result<Material, Problem> {
        let read = self.cluster.read().await?;
        let mut material = read.material.clone();
        if let Some(held) = self.held(|held| held.clone()).filter(|_| material.is_emptied()) {
            // `helm upgrade --force` and Argo CD's Replace empty it. With a new CA, the
            // certificates that the other replicas serve would not be trusted.
            tracing::warn!("the Secret was emptied: restoring its contents");
            material = held;
        }
        // Several steps may be due, but never this many.
        for _ in 0..8 {
            let Some(due) = material.due(&self.hosts, now()) else { break };
            tracing::info!(?due, "rotating");
            material = material.renewed(due, &self.hosts, now()).map_err(Problem::Failed)?;
        }
        if material != read.material {
            self.cluster.write(read, &material).await?;
        }
        self.held(|held| *held = Some(material.clone()));
        Ok(material)
    }

    fn show(&self, material: &Material) {
        let Some(leaf) = &material.leaf else { return };
        self.shown(|shown| {
            if shown.leaf.as_ref().is_some_and(|(known, _)| known == leaf) {
                return;
            }
            let Ok(key) = PrivateKeyDer::from_pem_slice(leaf.key.0.as_bytes()) else { return };
            let Ok(config) = server_config(vec![leaf.certificate.clone()], key) else { return };
            tracing::info!(not_after = leaf.validity.not_after, "new certificate");
            shown.leaf = Some((leaf.clone(), config));
        });
    }
}
