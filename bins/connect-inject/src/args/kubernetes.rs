//! Flags of the Kubernetes API.

use std::path::Path;

use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{ClientBuilder, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rustls::pki_types::ServerName;
use tower::retry::RetryLayer;
use tower::util::option_layer;
use tower::{BoxError, ServiceExt as _};

use crate::kubernetes::Api;

/// Access to the Kubernetes API. A pod needs none of these flags.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Kubernetes API")]
pub(super) struct KubernetesArgs {
    /// kubeconfig file [default: the pod's service account]
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<String>,
    /// Namespace of the Secret of --tls-auto [default: that of the service account]
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    pod_namespace: Option<String>,
}

/// Client of the Kubernetes API and the injector's namespace there.
#[derive(Clone)]
pub(super) struct Access {
    pub(super) api: Api,
    /// Namespace of the injector's own objects.
    pub(super) namespace: String,
}

// === impl KubernetesArgs ===

impl KubernetesArgs {
    /// Whether a kubeconfig file is given.
    pub(super) fn is_given(&self) -> bool {
        self.file().is_some()
    }

    /// The kubeconfig file; an empty name counts as absent.
    fn file(&self) -> Option<&Path> {
        self.kubeconfig.as_deref().filter(|file| !file.is_empty()).map(Path::new)
    }

    /// Connects as the flags say, or with the pod's service account.
    ///
    /// # Errors
    /// A sentence that says why the API can't be reached.
    pub(super) async fn access(&self) -> Result<Access, String> {
        let config = match self.file() {
            Some(file) => {
                let named = |error: &dyn std::fmt::Display| {
                    format!("--kubeconfig {}: {error}", file.display())
                };
                let kubeconfig = Kubeconfig::read_from(file).map_err(|error| named(&error))?;
                Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                    .await
                    .map_err(|error| named(&error))?
            }
            None => Config::incluster().map_err(|error| {
                format!("cannot reach the Kubernetes API: no --kubeconfig and not running in a pod: {error}")
            })?,
        };
        let namespace = super::given(self.pod_namespace.clone())
            .unwrap_or_else(|| config.default_namespace.clone());
        let server = config.cluster_url.to_string();
        let client = client(config)
            .map_err(|error| format!("cannot use the Kubernetes API {server}: {error}"))?;
        Ok(Access { api: Api { client, server }, namespace })
    }
}

/// Builds the library's default client, but with TCP_NODELAY. With Nagle's algorithm the
/// first request waits 40 ms until the server acknowledges the end of the TLS handshake.
fn client(config: Config) -> kube::Result<Client> {
    if config.proxy_url.is_some() {
        return Client::try_from(config); // it rejects proxies that it does not support
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(config.connect_timeout);
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let http = legacy::Client::builder(TokioExecutor::new()).build(connector);
    let http = http.map_err(BoxError::from);
    let builder = ClientBuilder::new(http, config.default_namespace.as_str())
        .with_layer(&config.extra_headers_layer()?)
        .with_layer(&option_layer(config.auth_layer()?))
        .with_layer(&RetryLayer::new(RetryPolicy::server_retry()))
        .with_layer(&config.base_uri_layer());
    Ok(builder.build())
}

/// Parses the host names and IP addresses of a certificate.
pub(super) fn hosts(names: Vec<String>) -> Result<Vec<ServerName<'static>>, String> {
    let hosts: Vec<_> = names
        .into_iter()
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .map(|name| {
            ServerName::try_from(name.clone()).map_err(|_| {
                format!("`{name}` is not a host: expected a DNS name or an IP address")
            })
        })
        .collect::<Result<_, _>>()?;
    if hosts.is_empty() {
        return Err("name at least one, such as `connect-inject.default.svc`".to_owned());
    }
    Ok(hosts)
}
