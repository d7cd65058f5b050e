//! `--tls-auto`: a certificate that the replicas make, share in a Secret and
//! renew, and that the webhook configuration is kept to trust.

mod cluster;
mod issue;
mod material;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};

use super::clock::{LAST_MINUTE, now};
use super::tls::server_config;
use crate::kubernetes::{Api, Problem};
use cluster::Cluster;
use material::{Leaf, Material};

/// How long nothing is looked at if nothing is heard of a change.
const RELIST: Duration = Duration::from_secs(30);
/// How long it is at least from one look to the next.
const PAUSE: Duration = Duration::from_secs(1);
/// How long it is if the API server did not do as it was asked.
const RETRY: Duration = Duration::from_secs(5);

/// What is read and written once the flags are read.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// The MutatingWebhookConfiguration.
    pub(crate) webhooks: String,
    /// The namespace of the Secret.
    pub(crate) namespace: String,
    /// The hosts that API servers reach the webhook by.
    pub(crate) hosts: Vec<ServerName<'static>>,
}

/// A certificate that the replicas share.
#[derive(Debug)]
pub(crate) struct SelfManaged {
    cluster: Cluster,
    hosts: Vec<ServerName<'static>>,
    shown: Mutex<Shown>,
    /// What the Secret held last, in case somebody empties it.
    held: Mutex<Option<Material>>,
}

/// What is shown to clients now.
#[derive(Debug, Default)]
struct Shown {
    leaf: Option<(Leaf, Arc<ServerConfig>)>,
    /// Whether the webhook configuration has been seen to trust it.
    is_trusted: bool,
    /// What the API server did not do, the last time.
    problem: Option<String>,
}

/// The name of the Secret that belongs to a webhook configuration.
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

    /// The certificate to show; none: there is none yet.
    pub(super) fn current(&self) -> Option<Arc<ServerConfig>> {
        self.shown(|shown| shown.leaf.as_ref().map(|(_, config)| Arc::clone(config)))
    }

    /// When it ends, in seconds since 1970.
    pub(super) fn not_after(&self) -> Option<i64> {
        self.shown(|shown| shown.leaf.as_ref().map(|(leaf, _)| leaf.validity.not_after))
    }

    /// Why no review can be answered yet.
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

    /// Keeps certificate, Secret and webhook configuration true, for ever.
    pub(super) async fn keep(&self) {
        loop {
            match self.pass().await {
                Ok(version) => {
                    self.shown(|shown| shown.problem = None);
                    self.cluster.changed(&version, RELIST).await;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(Problem::Overtaken) => {
                    tracing::debug!("another was faster: reading again");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(Problem::Failed(problem)) => {
                    // Once, not each time.
                    let known = self.shown(|shown| shown.problem.replace(problem.clone()));
                    if known.as_ref() != Some(&problem) {
                        tracing::warn!("{problem}; what there is stays as it is");
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Looks once, and does what is due. Returns the version of the webhook
    /// configuration that is fine.
    async fn pass(&self) -> Result<String, Problem> {
        // First, so that what is written into it is never older than the Secret.
        let webhooks = self.cluster.webhooks().await;
        let material = self.shared().await?;
        if self.current().is_none() || self.not_after().is_some_and(|end| end < now() + LAST_MINUTE)
        {
            // There is nothing better to show.
            self.show(&material);
        }
        let (healed, version) = self.cluster.heal(&webhooks?, &material.bundle()).await?;
        if !healed.is_empty() {
            tracing::info!(webhooks = healed.join(", "), "the webhooks trust the certificate now");
        }
        self.show(&material);
        self.shown(|shown| shown.is_trusted = true);
        Ok(version)
    }

    /// What the replicas share, with all done that is due.
    async fn shared(&self) -> Result<Material, Problem> {
        let read = self.cluster.read().await?;
        let mut material = read.material.clone();
        if let Some(held) = self.held(|held| held.clone()).filter(|_| material.is_emptied()) {
            // A new CA would be trusted before the other replicas show a certificate
            // of it: `helm upgrade --force` and Argo CD's Replace do this.
            tracing::warn!("the Secret was emptied: putting back what it held");
            material = held;
        }
        // One thing after the other, and never for ever.
        for _ in 0..8 {
            let Some(due) = material.due(&self.hosts, now()) else { break };
            tracing::info!(?due, "renewing");
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
