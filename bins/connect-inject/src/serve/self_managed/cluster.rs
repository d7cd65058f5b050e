//! The two Kubernetes objects behind a self-managed certificate: the Secret that the
//! replicas share, and the webhook configuration that must trust it.

use std::fmt;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;
use tracing::instrument::WithSubscriber as _;
use tracing::subscriber::NoSubscriber;

use super::material::Material;
use crate::kubernetes::{Api, Problem};

/// Timeout of a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Type of a Secret with a certificate and its key.
///
/// Source: "Secrets" of the Kubernetes documentation.
const SECRET_TYPE: &str = "kubernetes.io/tls";

#[derive(Clone)]
pub(super) struct Cluster {
    api: Api,
    secrets: kube::Api<Secret>,
    webhooks: kube::Api<MutatingWebhookConfiguration>,
    webhooks_name: String,
    secret_name: String,
}

/// The Secret, as it was read.
pub(super) struct Read {
    secret: Option<Secret>,
    pub(super) material: Material,
}

// === impl Cluster ===

impl Cluster {
    /// The objects for this webhook configuration; the Secret's name is derived from it.
    pub(super) fn new(api: Api, namespace: &str, webhooks_name: String) -> Self {
        Self {
            secrets: kube::Api::namespaced(api.client.clone(), namespace),
            webhooks: kube::Api::all(api.client.clone()),
            secret_name: super::secret_name(&webhooks_name),
            webhooks_name,
            api,
        }
    }

    pub(super) async fn read(&self) -> Result<Read, Problem> {
        let what = format!("read Secret {}", self.secret_name);
        let secret =
            self.api.within(PATIENCE, &what, self.secrets.get_opt(&self.secret_name)).await?;
        let data = secret.as_ref().and_then(|secret| secret.data.as_ref());
        let material = data.map(Material::read).unwrap_or_default();
        Ok(Read { secret, material })
    }

    /// Writes the Secret; fails with [`Problem::Overtaken`] if it has changed since `read`.
    pub(super) async fn write(&self, read: Read, material: &Material) -> Result<(), Problem> {
        let name = &self.secret_name;
        let what = format!("write Secret {name}");
        let parameters = PostParams::default();
        if let Some(mut secret) = read.secret {
            // Keeps the resourceVersion, and keys that others have added.
            secret.data.get_or_insert_default().extend(material.data());
            self.api
                .within(PATIENCE, &what, self.secrets.replace(name, &parameters, &secret))
                .await?;
        } else {
            let secret = Secret {
                metadata: kube::api::ObjectMeta {
                    name: Some(name.clone()),
                    labels: Some(
                        [("app.kubernetes.io/managed-by".to_owned(), "connect-inject".to_owned())]
                            .into(),
                    ),
                    ..kube::api::ObjectMeta::default()
                },
                type_: Some(SECRET_TYPE.to_owned()),
                data: Some(material.data()),
                ..Secret::default()
            };
            self.api.within(PATIENCE, &what, self.secrets.create(&parameters, &secret)).await?;
        }
        Ok(())
    }

    pub(super) async fn webhooks(&self) -> Result<MutatingWebhookConfiguration, Problem> {
        let name = &self.webhooks_name;
        let what = format!("read MutatingWebhookConfiguration {name}");
        self.api.within(PATIENCE, &what, self.webhooks.get_opt(name)).await?.ok_or_else(|| {
            Problem::Failed(format!("there is no MutatingWebhookConfiguration {name}"))
        })
    }

    /// Sets the caBundle of every webhook that has another one. Fails with
    /// [`Problem::Overtaken`] if the configuration has changed since it was read. Returns
    /// the names of the changed webhooks, and the configuration's resourceVersion.
    pub(super) async fn heal(
        &self,
        webhooks: &MutatingWebhookConfiguration,
        bundle: &str,
    ) -> Result<(Vec<String>, String), Problem> {
        let bundle = ByteString(bundle.as_bytes().to_vec());
        let version = webhooks.metadata.resource_version.clone().unwrap_or_default();
        let stale: Vec<String> = webhooks
            .webhooks
            .iter()
            .flatten()
            .filter(|webhook| webhook.client_config.ca_bundle.as_ref() != Some(&bundle))
            .map(|webhook| webhook.name.clone())
            .collect();
        if stale.is_empty() {
            return Ok((stale, version));
        }
        // Merged by name, so other fields stay; the resourceVersion detects concurrent
        // changes.
        let entries: Vec<_> = stale
            .iter()
            .map(|name| json!({"name": name, "clientConfig": {"caBundle": bundle}}))
            .collect();
        let patch = json!({"metadata": {"resourceVersion": version}, "webhooks": entries});
        let what = format!("set caBundle in MutatingWebhookConfiguration {}", self.webhooks_name);
        let (parameters, patch) = (PatchParams::default(), Patch::Strategic(patch));
        let patching = self.webhooks.patch(&self.webhooks_name, &parameters, &patch);
        let healed = self.api.within(PATIENCE, &what, patching).await?;
        Ok((stale, healed.metadata.resource_version.unwrap_or_default()))
    }

    /// Waits until the webhook configuration has changed, at most for `longest`.
    pub(super) async fn changed(&self, version: &str, longest: Duration) {
        let seconds = u32::try_from(longest.as_secs()).unwrap_or(u32::MAX);
        let only = WatchParams::default()
            .fields(&format!("metadata.name={}", self.webhooks_name))
            .timeout(seconds);
        let watching = async {
            let watch = self.webhooks.watch(&only, version);
            let events = match watch.with_subscriber(NoSubscriber::default()).await {
                Ok(events) => events,
                Err(error) => {
                    tracing::debug!(%error, "cannot watch the webhook configuration");
                    return std::future::pending().await;
                }
            };
            let mut events = pin!(events);
            // A bookmark is not a change.
            while let Some(Ok(WatchEvent::Bookmark(_))) = events.next().await {}
        };
        // The caller reads the configuration again in any case.
        let _ = tokio::time::timeout(longest, watching).await;
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("webhooks", &self.webhooks_name).finish_non_exhaustive()
    }
}
