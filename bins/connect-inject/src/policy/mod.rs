//! The operator's policy: which pods are injected, and how. These are the flags that `serve`,
//! `inject` and the other commands share.

use std::collections::BTreeSet;
use std::str::FromStr;

use crate::values::quantity::{Bounds, Quantity, Resources};
use crate::values::{
    Optional, Version, ca_certificates, envoy_arguments, image, one_of, optional, path, port,
    quantity, seconds, switch, template, threads, word,
};

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Policy")]
pub(crate) struct Policy {
    /// Inject pods without a connect-inject annotation
    #[arg(long, env = "CONNECT_INJECT_DEFAULT_INJECT", value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_parser = switch)]
    pub(crate) default_inject: bool,
    /// Namespace whose pods may be injected, or * for any; comma-separated or repeated.
    /// An empty list in --config allows none
    #[arg(
        long = "allow-k8s-namespace",
        env = "CONNECT_INJECT_ALLOW_K8S_NAMESPACE",
        value_name = "NAMESPACE",
        value_delimiter = ',',
        default_value = "*"
    )]
    pub(crate) allow_namespaces: Vec<String>,
    /// Namespace whose pods are not injected, even if it is allowed; comma-separated or
    /// repeated
    #[arg(
        long = "deny-k8s-namespace",
        env = "CONNECT_INJECT_DENY_K8S_NAMESPACE",
        value_name = "NAMESPACE",
        value_delimiter = ','
    )]
    pub(crate) deny_namespaces: Vec<String>,
    /// Image with connect-init and connect-lifecycle; required
    #[arg(long, env = "CONNECT_INJECT_INIT_IMAGE", value_name = "IMAGE", value_parser = image)]
    pub(crate) init_image: String,
    /// Image with Envoy; required
    #[arg(long, env = "CONNECT_INJECT_ENVOY_IMAGE", value_name = "IMAGE", value_parser = image)]
    pub(crate) envoy_image: String,
    /// imagePullPolicy of injected containers: Always, IfNotPresent or Never; empty for
    /// Kubernetes' default
    #[arg(long = "global-image-pull-policy", env = "CONNECT_INJECT_GLOBAL_IMAGE_PULL_POLICY", value_name = "POLICY", default_value = "", hide_default_value = true, value_parser = optional(one_of(&["Always", "IfNotPresent", "Never"])))]
    pub(crate) image_pull: Optional<String>,
    /// Secret for pulling injected images; must exist in the pod's namespace;
    /// repeatable
    #[arg(
        long = "image-pull-secret",
        env = "CONNECT_INJECT_IMAGE_PULL_SECRET",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub(crate) pull_secrets: Vec<String>,
    /// Additional arguments of Envoy, split as a shell would
    #[arg(long, env = "CONNECT_INJECT_ENVOY_EXTRA_ARGS", value_name = "ARGS", hide_default_value = true, allow_hyphen_values = true, default_value = "", value_parser = Words::from_str)]
    pub(crate) envoy_extra_args: Words,
    /// Envoy's worker threads; Envoy treats 0 as 1
    #[arg(
        long = "default-envoy-proxy-concurrency",
        env = "CONNECT_INJECT_DEFAULT_ENVOY_PROXY_CONCURRENCY",
        value_name = "NUMBER",
        default_value = "2",
        value_parser = threads
    )]
    pub(crate) concurrency: u32,
    /// The sidecar's CPU request; empty for none
    #[arg(long = "default-sidecar-proxy-cpu-request", env = "CONNECT_INJECT_DEFAULT_SIDECAR_PROXY_CPU_REQUEST", value_name = "QUANTITY", default_value = "20m", value_parser = optional(quantity))]
    pub(crate) sidecar_cpu_request: Optional<Quantity>,
    /// The sidecar's CPU limit; empty for none
    #[arg(long = "default-sidecar-proxy-cpu-limit", env = "CONNECT_INJECT_DEFAULT_SIDECAR_PROXY_CPU_LIMIT", value_name = "QUANTITY", default_value = "", hide_default_value = true, value_parser = optional(quantity))]
    pub(crate) sidecar_cpu_limit: Optional<Quantity>,
    /// The sidecar's memory request; empty for none
    #[arg(long = "default-sidecar-proxy-memory-request", env = "CONNECT_INJECT_DEFAULT_SIDECAR_PROXY_MEMORY_REQUEST", value_name = "QUANTITY", default_value = "64Mi", value_parser = optional(quantity))]
    pub(crate) sidecar_memory_request: Optional<Quantity>,
    /// The sidecar's memory limit; empty for none
    #[arg(long = "default-sidecar-proxy-memory-limit", env = "CONNECT_INJECT_DEFAULT_SIDECAR_PROXY_MEMORY_LIMIT", value_name = "QUANTITY", default_value = "", hide_default_value = true, value_parser = optional(quantity))]
    pub(crate) sidecar_memory_limit: Optional<Quantity>,
    /// The sidecar's ephemeral storage request; empty for none
    #[arg(long = "default-sidecar-proxy-ephemeral-storage-request", env = "CONNECT_INJECT_DEFAULT_SIDECAR_PROXY_EPHEMERAL_STORAGE_REQUEST", value_name = "QUANTITY", default_value = "", hide_default_value = true, value_parser = optional(quantity))]
    pub(crate) sidecar_ephemeral_storage_request: Optional<Quantity>,
    /// The sidecar's ephemeral storage limit; empty for none
    #[arg(long = "default-sidecar-proxy-ephemeral-storage-limit", env = "CONNECT_INJECT_DEFAULT_SIDECAR_PROXY_EPHEMERAL_STORAGE_LIMIT", value_name = "QUANTITY", default_value = "", hide_default_value = true, value_parser = optional(quantity))]
    pub(crate) sidecar_ephemeral_storage_limit: Optional<Quantity>,
    /// The init container's CPU request; empty for none
    #[arg(long, env = "CONNECT_INJECT_INIT_CONTAINER_CPU_REQUEST", value_name = "QUANTITY", default_value = "50m", value_parser = optional(quantity))]
    pub(crate) init_container_cpu_request: Optional<Quantity>,
    /// The init container's CPU limit; a small one delays the pod's start [default: the request
    /// if the pod is of QoS class Guaranteed otherwise, else none]
    #[arg(long, env = "CONNECT_INJECT_INIT_CONTAINER_CPU_LIMIT", value_name = "QUANTITY", default_value = "", hide_default_value = true, value_parser = optional(quantity))]
    pub(crate) init_container_cpu_limit: Optional<Quantity>,
    /// The init container's memory request; empty for none
    #[arg(long, env = "CONNECT_INJECT_INIT_CONTAINER_MEMORY_REQUEST", value_name = "QUANTITY", default_value = "25Mi", value_parser = optional(quantity))]
    pub(crate) init_container_memory_request: Optional<Quantity>,
    /// The init container's memory limit; empty for none
    #[arg(long, env = "CONNECT_INJECT_INIT_CONTAINER_MEMORY_LIMIT", value_name = "QUANTITY", default_value = "25Mi", value_parser = optional(quantity))]
    pub(crate) init_container_memory_limit: Optional<Quantity>,
    /// The init container's ephemeral storage request; empty for none
    #[arg(long, env = "CONNECT_INJECT_INIT_CONTAINER_EPHEMERAL_STORAGE_REQUEST", value_name = "QUANTITY", default_value = "", hide_default_value = true, value_parser = optional(quantity))]
    pub(crate) init_container_ephemeral_storage_request: Optional<Quantity>,
    /// The init container's ephemeral storage limit; empty for none
    #[arg(long, env = "CONNECT_INJECT_INIT_CONTAINER_EPHEMERAL_STORAGE_LIMIT", value_name = "QUANTITY", default_value = "", hide_default_value = true, value_parser = optional(quantity))]
    pub(crate) init_container_ephemeral_storage_limit: Optional<Quantity>,
    /// Let the cluster choose the user of injected containers, as OpenShift does
    #[arg(long = "enable-openshift", env = "CONNECT_INJECT_ENABLE_OPENSHIFT", value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_parser = switch)]
    pub(crate) openshift: bool,
    /// Expose Envoy's metrics to Prometheus in pods without the annotation
    #[arg(long = "default-enable-metrics", env = "CONNECT_INJECT_DEFAULT_ENABLE_METRICS", value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_parser = switch)]
    pub(crate) metrics: bool,
    /// Port on which Prometheus scrapes Envoy's metrics
    #[arg(
        long = "default-prometheus-scrape-port",
        env = "CONNECT_INJECT_DEFAULT_PROMETHEUS_SCRAPE_PORT",
        value_name = "PORT",
        default_value = "20200",
        value_parser = port
    )]
    pub(crate) metrics_port: u16,
    /// Path on which Prometheus scrapes Envoy's metrics
    #[arg(
        long = "default-prometheus-scrape-path",
        env = "CONNECT_INJECT_DEFAULT_PROMETHEUS_SCRAPE_PATH",
        value_name = "PATH",
        default_value = "/metrics",
        value_parser = path
    )]
    pub(crate) metrics_path: String,
    /// Merge the application's metrics with Envoy's in pods without the annotation, if
    /// the pod has a port for them
    #[arg(long = "default-enable-metrics-merging", env = "CONNECT_INJECT_DEFAULT_ENABLE_METRICS_MERGING", value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_parser = switch)]
    pub(crate) metrics_merging: bool,
    /// Loopback port on which merged metrics are collected
    #[arg(
        long = "default-merged-metrics-port",
        env = "CONNECT_INJECT_DEFAULT_MERGED_METRICS_PORT",
        value_name = "PORT",
        default_value = "20100",
        value_parser = port
    )]
    pub(crate) merged_metrics_port: u16,
    /// Seconds that a sidecar may take to become ready before it is restarted; 0: no
    /// limit
    #[arg(
        long = "default-sidecar-proxy-startup-failure-seconds",
        env = "CONNECT_INJECT_DEFAULT_SIDECAR_PROXY_STARTUP_FAILURE_SECONDS",
        value_name = "SECONDS",
        default_value = "0",
        value_parser = seconds
    )]
    pub(crate) startup_failure: u32,
    /// Seconds that a sidecar may be unready before it is restarted; 0: no limit
    #[arg(
        long = "default-sidecar-proxy-liveness-failure-seconds",
        env = "CONNECT_INJECT_DEFAULT_SIDECAR_PROXY_LIVENESS_FAILURE_SECONDS",
        value_name = "SECONDS",
        default_value = "0",
        value_parser = seconds
    )]
    pub(crate) liveness_failure: u32,
    /// Maximum wait for Envoy, in seconds, before the application starts; 0: no wait
    #[arg(
        long = "default-sidecar-proxy-lifecycle-startup-grace-period-seconds",
        env = "CONNECT_INJECT_DEFAULT_SIDECAR_PROXY_LIFECYCLE_STARTUP_GRACE_PERIOD_SECONDS",
        value_name = "SECONDS",
        default_value = "30",
        value_parser = seconds
    )]
    pub(crate) startup_grace: u32,
    /// Maximum drain time of the sidecar in seconds; empty for connect-lifecycle's
    /// default
    #[arg(long = "default-sidecar-proxy-lifecycle-shutdown-grace-period-seconds", env = "CONNECT_INJECT_DEFAULT_SIDECAR_PROXY_LIFECYCLE_SHUTDOWN_GRACE_PERIOD_SECONDS", value_name = "SECONDS", default_value = "", hide_default_value = true, value_parser = optional(seconds))]
    pub(crate) shutdown_grace: Optional<u32>,
    /// preStop sleep in seconds that is added to application containers without a
    /// preStop hook, where all kubelets are 1.30 or newer; 0: none
    #[arg(
        long = "default-application-sleep-seconds",
        env = "CONNECT_INJECT_DEFAULT_APPLICATION_SLEEP_SECONDS",
        value_name = "SECONDS",
        default_value = "5",
        value_parser = seconds
    )]
    pub(crate) application_sleep: u32,
    /// Give the sidecar a readiness probe in pods without the annotation: such a pod is
    /// ready when Consul would send it traffic
    #[arg(long = "default-use-proxy-health-check", env = "CONNECT_INJECT_DEFAULT_USE_PROXY_HEALTH_CHECK", value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", value_parser = switch)]
    pub(crate) proxy_health: bool,
    /// Mode of the sidecar: native, container, or auto, which is native where all
    /// kubelets are known to be 1.29 or newer
    #[arg(long, env = "CONNECT_INJECT_SIDECAR_MODE", value_name = "MODE", default_value = "auto", value_parser = SidecarMode::from_str)]
    pub(crate) sidecar_mode: SidecarMode,
    /// Version of the API server, such as 1.31 [default: read from the API server, if it is
    /// reachable]
    #[arg(long, env = "CONNECT_INJECT_KUBERNETES_VERSION", value_name = "VERSION", default_value = "", hide_default_value = true, value_parser = optional(Version::from_str))]
    pub(crate) kubernetes_version: Optional<Version>,
    /// Version of the oldest kubelet, such as 1.31 [default: three minor versions below
    /// the API server, which Kubernetes allows]
    #[arg(long, env = "CONNECT_INJECT_OLDEST_KUBELET_VERSION", value_name = "VERSION", default_value = "", hide_default_value = true, value_parser = optional(Version::from_str))]
    pub(crate) oldest_kubelet_version: Optional<Version>,
    /// Log level of connect-init and connect-lifecycle (not Envoy): trace, debug, info,
    /// warn, error or off
    #[arg(long, env = "CONNECT_INJECT_POD_LOG_LEVEL", value_name = "LEVEL", default_value = "", hide_default_value = true, value_parser = optional(one_of(&["trace", "debug", "info", "warn", "error", "off"])))]
    pub(crate) pod_log_level: Optional<String>,
    /// Log format of connect-init and connect-lifecycle: plain or json
    #[arg(long, env = "CONNECT_INJECT_POD_LOG_FORMAT", value_name = "FORMAT", default_value = "", hide_default_value = true, value_parser = optional(one_of(&["plain", "json"])))]
    pub(crate) pod_log_format: Optional<String>,
    /// HTTP address of a pod's agent; $(HOST_IP), $(NODE_NAME), $(POD_IP),
    /// $(POD_NAME), $(POD_NAMESPACE) and $(POD_UID) are replaced by the pod's values. By
    /// default http://$(HOST_IP):8500, or https://$(HOST_IP):8501 with
    /// --consul-ca-cert or --enable-auto-encrypt
    #[arg(long = "consul-http-addr-template", env = "CONNECT_INJECT_CONSUL_HTTP_ADDR_TEMPLATE", value_name = "TEMPLATE", default_value = "", hide_default_value = true, value_parser = optional(template))]
    pub(crate) http_addr_template: Optional<String>,
    /// gRPC address of a pod's agent, with the same variables. By default
    /// $(HOST_IP):8502, or https://$(HOST_IP):8502 with --consul-ca-cert or
    /// --enable-auto-encrypt
    #[arg(long = "consul-grpc-addr-template", env = "CONNECT_INJECT_CONSUL_GRPC_ADDR_TEMPLATE", value_name = "TEMPLATE", default_value = "", hide_default_value = true, value_parser = optional(template))]
    pub(crate) grpc_addr_template: Optional<String>,
    /// PEM file with the CA certificates of the pods' agents, at most 127 KiB; enables
    /// TLS to these agents. Its text is copied into the pods
    #[arg(long, env = "CONNECT_INJECT_CONSUL_CA_CERT", value_name = "FILE", default_value = "", hide_default_value = true, value_parser = optional(ca_certificates))]
    pub(crate) consul_ca_cert: Optional<String>,
    /// The agents' certificates are signed by Connect's CA (auto_encrypt): pods trust
    /// its roots, too, which `serve` reads from --http-addr
    #[arg(long = "enable-auto-encrypt", env = "CONNECT_INJECT_ENABLE_AUTO_ENCRYPT", value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_parser = switch)]
    pub(crate) auto_encrypt: bool,
    /// Name that the certificates of the pods' agents must have, with the same
    /// variables [default: the host of their address]
    #[arg(long, env = "CONNECT_INJECT_CONSUL_TLS_SERVER_NAME", value_name = "TEMPLATE", default_value = "", hide_default_value = true, value_parser = optional(template))]
    pub(crate) consul_tls_server_name: Optional<String>,
    /// Make pods without the annotation transparent: redirect their connections to the
    /// sidecar
    #[arg(long = "default-transparent-proxy", env = "CONNECT_INJECT_DEFAULT_TRANSPARENT_PROXY", value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_parser = switch)]
    pub(crate) transparent_proxy: bool,
    /// What redirects the connections of transparent pods without the annotation:
    /// init-container, a container with the capability NET_ADMIN, or cni, the CNI plugin
    /// connect-cni, which is then required on every node
    #[arg(long, env = "CONNECT_INJECT_TRANSPARENT_PROXY_BY", value_name = "PART", default_value = "init-container", value_parser = RedirectBy::from_str)]
    pub(crate) transparent_proxy_by: RedirectBy,
    /// Rewrite the probes of transparent pods without the annotation, so that they
    /// bypass Envoy's public listener
    #[arg(long = "default-transparent-proxy-overwrite-probes", env = "CONNECT_INJECT_DEFAULT_TRANSPARENT_PROXY_OVERWRITE_PROBES", value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", value_parser = switch)]
    pub(crate) overwrite_probes: bool,
    /// Let the sidecars of transparent pods without the annotation answer queries for
    /// Consul's names
    #[arg(long = "default-consul-dns", env = "CONNECT_INJECT_DEFAULT_CONSUL_DNS", value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_parser = switch)]
    pub(crate) consul_dns: bool,
    /// Kubernetes auth method that pods log in with; set when ACLs are enabled
    #[arg(long, env = "CONNECT_INJECT_ACL_AUTH_METHOD", value_name = "NAME", default_value = "", hide_default_value = true, value_parser = optional(word))]
    pub(crate) acl_auth_method: Optional<String>,
}

/// Envoy's additional arguments, split as a shell would.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Words(pub(crate) Vec<String>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SidecarMode {
    /// `Native` if all kubelets are known to support native sidecars, else `Container`.
    Auto,
    /// An init container with `restartPolicy: Always`.
    Native,
    /// A regular container of the pod.
    Container,
}

/// What loads the redirect rules of a transparent pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum RedirectBy {
    /// An init container with the capability NET_ADMIN.
    #[default]
    InitContainer,
    /// The CNI plugin `connect-cni`.
    Cni,
}

/// What the injector knows about the cluster. Unlike the policy, it changes while the
/// injector runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cluster {
    /// The API server's version; `None` if unknown.
    pub(crate) version: Option<Version>,
    /// The datacenter of the Consul agents; `None` if unknown.
    pub(crate) datacenter: Option<String>,
    /// Whether `MeshGateway.Mode` in proxy-defaults makes other datacenters reachable.
    pub(crate) mesh_gateways: bool,
    /// The root certificates of Connect's CA in PEM; `None` if unknown.
    pub(crate) roots: Option<String>,
}

// === impl Policy ===

impl Policy {
    /// Flags that contradict each other, one sentence for each problem.
    pub(crate) fn contradictions(&self) -> Vec<String> {
        let family = |name: &str, resources: Resources| {
            resources.check().err().map(|problem| format!("{name}: {problem}"))
        };
        let mode = self.is_native(self.sidecar_mode, &Cluster::default());
        [
            family("--default-sidecar-proxy", self.sidecar_resources()),
            family("--init-container", self.init_resources()),
            mode.err().map(|problem| format!("--sidecar-mode: {problem}")),
            (self.openshift && self.transparent_proxy).then(|| {
                "--default-transparent-proxy: no pod can be transparent with --enable-openshift"
                    .to_owned()
            }),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The policy for a namespace whose label decides whether its pods are transparent.
    pub(crate) fn of_transparency(&self, transparent_proxy: bool) -> Self {
        Self { transparent_proxy, ..self.clone() }
    }

    pub(crate) fn allows(&self, namespace: &str) -> bool {
        self.allow_namespaces.iter().any(|allowed| allowed == "*" || allowed == namespace)
    }

    pub(crate) fn denies(&self, namespace: &str) -> bool {
        self.deny_namespaces.iter().any(|denied| denied == namespace)
    }

    /// Whether a sidecar of this mode is a native one.
    ///
    /// # Errors
    /// The API server is known to be too old for native sidecars.
    pub(crate) fn is_native(&self, mode: SidecarMode, cluster: &Cluster) -> Result<bool, String> {
        match mode {
            SidecarMode::Container => Ok(false),
            SidecarMode::Auto => Ok(self.kubelets_have(Version::NATIVE_SIDECAR, cluster)),
            SidecarMode::Native => match self.api_server(cluster) {
                Some(version) if version < Version::NATIVE_SIDECAR => Err(format!(
                    "Kubernetes {version} has no native sidecars: they require {}",
                    Version::NATIVE_SIDECAR
                )),
                _ => Ok(true),
            },
        }
    }

    /// Whether all kubelets of the cluster are known to have at least this version. An older
    /// kubelet would reject a pod with a newer field again and again.
    pub(crate) fn kubelets_have(&self, version: Version, cluster: &Cluster) -> bool {
        let oldest = self
            .oldest_kubelet_version
            .or_else(|| self.api_server(cluster).map(Version::oldest_kubelet));
        oldest.is_some_and(|oldest| oldest >= version)
    }

    fn api_server(&self, cluster: &Cluster) -> Option<Version> {
        self.kubernetes_version.or(cluster.version)
    }

    pub(crate) fn sidecar_resources(&self) -> Resources {
        Resources {
            cpu: bounds(&self.sidecar_cpu_request, &self.sidecar_cpu_limit),
            memory: bounds(&self.sidecar_memory_request, &self.sidecar_memory_limit),
            ephemeral_storage: bounds(
                &self.sidecar_ephemeral_storage_request,
                &self.sidecar_ephemeral_storage_limit,
            ),
        }
    }

    pub(crate) fn init_resources(&self) -> Resources {
        Resources {
            cpu: bounds(&self.init_container_cpu_request, &self.init_container_cpu_limit),
            memory: bounds(&self.init_container_memory_request, &self.init_container_memory_limit),
            ephemeral_storage: bounds(
                &self.init_container_ephemeral_storage_request,
                &self.init_container_ephemeral_storage_limit,
            ),
        }
    }

    /// Whether pods connect to the agents over TLS.
    fn has_tls(&self) -> bool {
        self.consul_ca_cert.is_some() || self.auto_encrypt
    }

    /// The CA certificates, in PEM, with which pods verify their agents: those of the flag,
    /// and with auto_encrypt also Connect's roots.
    pub(crate) fn agents_ca(&self, cluster: &Cluster) -> Option<String> {
        let roots = cluster.roots.as_ref().filter(|_| self.auto_encrypt);
        let both: Vec<&str> =
            self.consul_ca_cert.iter().chain(roots).map(|pem| pem.trim_end()).collect();
        (!both.is_empty()).then(|| format!("{}\n", both.join("\n")))
    }

    /// The agent's HTTP address; contains `$(VARIABLE)`s of the init container.
    pub(crate) fn http_addr(&self) -> &str {
        let default =
            if self.has_tls() { "https://$(HOST_IP):8501" } else { "http://$(HOST_IP):8500" };
        self.http_addr_template.as_deref().unwrap_or(default)
    }

    /// The agent's gRPC address; contains `$(VARIABLE)`s of the init container.
    pub(crate) fn grpc_addr(&self) -> &str {
        let default = if self.has_tls() { "https://$(HOST_IP):8502" } else { "$(HOST_IP):8502" };
        self.grpc_addr_template.as_deref().unwrap_or(default)
    }

    /// The configured image pull secrets that a pod does not have yet.
    pub(crate) fn lacking_pull_secrets<'p>(
        &'p self,
        present: &BTreeSet<&str>,
    ) -> impl Iterator<Item = &'p str> {
        self.pull_secrets.iter().map(String::as_str).filter(|name| !present.contains(name))
    }
}

fn bounds(request: &Optional<Quantity>, limit: &Optional<Quantity>) -> Bounds {
    Bounds { request: request.0.clone(), limit: limit.0.clone() }
}

// === impl Words ===

impl FromStr for Words {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        envoy_arguments(text).map(Self)
    }
}

// === impl SidecarMode ===

impl FromStr for SidecarMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "native" => Ok(Self::Native),
            "container" => Ok(Self::Container),
            _ => Err("expected `auto`, `native` or `container`".to_owned()),
        }
    }
}

// === impl RedirectBy ===

impl FromStr for RedirectBy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "init-container" => Ok(Self::InitContainer),
            "cni" => Ok(Self::Cni),
            _ => Err("expected `init-container` or `cni`".to_owned()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::LazyLock;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        policy: Policy,
    }

    /// The policy of these flags and the two required images.
    pub(crate) fn policy_of(flags: &[&str]) -> Policy {
        let images = ["x", "--init-image=connect-init:1", "--envoy-image=envoy:1"];
        Flags::parse_from(images.iter().chain(flags)).policy
    }

    /// The default policy, but without resource requests and limits.
    pub(crate) fn policy() -> Policy {
        // Parsed once, because property tests call this in every case.
        static POLICY: LazyLock<Policy> = LazyLock::new(|| {
            policy_of(&[
                "--default-sidecar-proxy-cpu-request=",
                "--default-sidecar-proxy-memory-request=",
                "--init-container-cpu-request=",
                "--init-container-cpu-limit=",
                "--init-container-memory-request=",
                "--init-container-memory-limit=",
            ])
        });
        POLICY.clone()
    }

    /// A cluster whose API server has this version.
    pub(crate) fn cluster(version: &str) -> Cluster {
        Cluster { version: version.parse().ok(), ..Cluster::default() }
    }

    /// With auto_encrypt, Connect's CA signs the agents' certificates.
    #[test]
    fn pods_trust_the_roots_of_connects_ca_with_auto_encrypt() {
        let known = Cluster { roots: Some("ROOT".to_owned()), ..Cluster::default() };
        let plain = policy();
        assert_eq!(plain.agents_ca(&known), None);
        assert_eq!(plain.http_addr(), "http://$(HOST_IP):8500");
        let auto = policy_of(&["--enable-auto-encrypt"]);
        assert_eq!(auto.agents_ca(&known).as_deref(), Some("ROOT\n"));
        assert_eq!(auto.http_addr(), "https://$(HOST_IP):8501");
        assert_eq!(auto.grpc_addr(), "https://$(HOST_IP):8502");
        let both = Policy { consul_ca_cert: Optional(Some("CA\n".to_owned())), ..auto };
        assert_eq!(both.agents_ca(&known).as_deref(), Some("CA\nROOT\n"));
    }

    /// Kubelets may be three minor versions older than the API server, and reject pods with
    /// fields that they don't know.
    #[test]
    fn a_feature_of_the_kubelet_is_used_only_if_the_oldest_kubelet_has_it() {
        let auto = |policy: &Policy, version: &str| {
            policy.is_native(SidecarMode::Auto, &cluster(version)).unwrap()
        };
        assert!(!auto(&policy(), "1.29") && !auto(&policy(), "1.31") && !auto(&policy(), ""));
        assert!(auto(&policy(), "1.32"));
        let sleep = |version| policy().kubelets_have(Version::SLEEP, &cluster(version));
        assert!(!sleep("1.32") && sleep("1.33"));

        let known = policy_of(&["--oldest-kubelet-version=1.29"]);
        assert!(auto(&known, "1.29") && auto(&known, ""));
        let old = policy_of(&["--oldest-kubelet-version=1.28"]);
        assert!(!auto(&old, "1.34"));
        let told = policy_of(&["--kubernetes-version=1.31"]);
        assert!(!auto(&told, "1.34"), "the flag wins");
    }

    #[test]
    fn small_resource_requests_are_the_default() {
        let policy = policy_of(&[]);
        assert!(policy.init_resources().memory.request.is_some());
        assert!(policy.sidecar_resources().cpu.request.is_some());
        assert_eq!(policy.contradictions(), Vec::<String>::new());
    }
}
