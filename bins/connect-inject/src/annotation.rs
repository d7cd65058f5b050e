//! The annotations that the injector reads and writes.

use serde_json::{Map, Value};

/// Prefix of all annotations of Consul's injectors.
pub(crate) const PREFIX: &str = "consul.hashicorp.com/";

/// Defines the constants and [`KNOWN`] in one table, so that they can't differ.
macro_rules! annotations {
    ($($(#[doc = $doc:literal])* $name:ident = $key:literal,)+) => {
        $($(#[doc = $doc])* pub(crate) const $name: &str = concat!("consul.hashicorp.com/", $key);)+

        /// All annotations that have an effect, except those of [`META`].
        pub(crate) const KNOWN: &[&str] = &[$($name),+];
    };
}

annotations! {
    /// Whether to inject the pod.
    INJECT = "connect-inject",
    /// Written by the injector, as annotation and as label, to mark an injected pod.
    STATUS = "connect-inject-status",
    /// Written by `connect-inject inject`: the steps that `uninject` reverses.
    UNDO = "connect-inject-undo",
    /// Names of the services that the pod registers.
    SERVICE = "connect-service",
    /// Port of each service, as a number or a name.
    SERVICE_PORT = "connect-service-port",
    UPSTREAMS = "connect-service-upstreams",
    TAGS = "service-tags",
    /// Old name of [`TAGS`].
    CONNECT_TAGS = "connect-service-tags",
    /// Opaque configuration of the proxy, as a JSON object.
    PROXY_CONFIG = "proxy-config-map",
    ENVOY_ARGS = "envoy-extra-args",
    /// Number of Envoy's worker threads.
    CONCURRENCY = "consul-envoy-proxy-concurrency",
    CPU_REQUEST = "sidecar-proxy-cpu-request",
    CPU_LIMIT = "sidecar-proxy-cpu-limit",
    MEMORY_REQUEST = "sidecar-proxy-memory-request",
    MEMORY_LIMIT = "sidecar-proxy-memory-limit",
    STORAGE_REQUEST = "sidecar-proxy-ephemeral-storage-request",
    STORAGE_LIMIT = "sidecar-proxy-ephemeral-storage-limit",
    /// Directory in the sidecar into which Envoy may write access logs.
    ACCESS_LOGS = "access-log-folder",
    /// Volumes to add to the pod, as a JSON array.
    USER_VOLUMES = "consul-sidecar-user-volume",
    /// Volume mounts to add to the sidecar, as a JSON array.
    USER_MOUNTS = "consul-sidecar-user-volume-mount",
    /// Names of the user's containers in which the injector's volume is mounted.
    MOUNT_VOLUME = "connect-inject-mount-volume",
    /// Whether the sidecar has a readiness probe.
    PROXY_HEALTH = "use-proxy-health-check",
    /// Seconds after which an Envoy that does not become ready is restarted; 0 for never.
    STARTUP_FAILURE = "sidecar-proxy-startup-failure-seconds",
    /// Seconds after which an Envoy that is no longer ready is restarted; 0 for never.
    LIVENESS_FAILURE = "sidecar-proxy-liveness-failure-seconds",
    /// Whether Envoy's metrics are exposed to Prometheus.
    METRICS = "enable-metrics",
    /// Port on which Prometheus scrapes Envoy's metrics.
    METRICS_PORT = "prometheus-scrape-port",
    /// Path at which Prometheus scrapes Envoy's metrics.
    METRICS_PATH = "prometheus-scrape-path",
    /// Whether the application's metrics are merged with Envoy's.
    METRICS_MERGING = "enable-metrics-merging",
    /// Loopback port on which `connect-lifecycle` serves the merged metrics.
    MERGED_METRICS_PORT = "merged-metrics-port",
    /// Port on which the application serves its own metrics.
    SERVICE_METRICS_PORT = "service-metrics-port",
    /// Path at which the application serves its own metrics.
    SERVICE_METRICS_PATH = "service-metrics-path",
    /// File of CA certificates for TLS of Envoy's metrics.
    METRICS_CA_FILE = "prometheus-ca-file",
    /// Directory of CA certificates for TLS of Envoy's metrics.
    METRICS_CA_PATH = "prometheus-ca-path",
    /// Certificate file for TLS of Envoy's metrics.
    METRICS_CERT = "prometheus-cert-file",
    /// Private key file for TLS of Envoy's metrics.
    METRICS_KEY = "prometheus-key-file",
    /// Maximum seconds that the sidecar drains.
    SHUTDOWN_GRACE = "sidecar-proxy-lifecycle-shutdown-grace-period-seconds",
    /// Maximum seconds that the application waits for Envoy to become ready.
    STARTUP_GRACE = "sidecar-proxy-lifecycle-startup-grace-period-seconds",
    /// Seconds of the preStop sleep of the application's containers.
    SLEEP = "application-sleep-seconds",
    /// Whether the sidecar is native or an ordinary container.
    SIDECAR_MODE = "sidecar-mode",
    /// Whether a native sidecar precedes or follows the user's init containers.
    POSITION = "sidecar-position",
    /// Whether the pod's connections are redirected to its sidecar.
    TRANSPARENT_PROXY = "transparent-proxy",
    /// What loads the redirect rules: an init container or `connect-cni`.
    TRANSPARENT_PROXY_BY = "transparent-proxy-by",
    /// The redirect rules as JSON, which the injector writes and `connect-cni` reads.
    REDIRECT = "transparent-proxy-redirect",
    /// Ports of the pod that clients reach directly.
    EXCLUDE_INBOUND_PORTS = "transparent-proxy-exclude-inbound-ports",
    /// Destination ports that the pod reaches directly.
    EXCLUDE_OUTBOUND_PORTS = "transparent-proxy-exclude-outbound-ports",
    /// Destination addresses that the pod reaches directly.
    EXCLUDE_OUTBOUND_CIDRS = "transparent-proxy-exclude-outbound-cidrs",
    /// User IDs whose connections are not redirected.
    EXCLUDE_UIDS = "transparent-proxy-exclude-uids",
    /// Whether probes are rewritten, so that they reach the application.
    OVERWRITE_PROBES = "transparent-proxy-overwrite-probes",
    /// Additional address at which transparent clients reach the service.
    VIRTUAL_ADDRESS = "transparent-proxy-virtual-address",
    /// Whether the sidecar of a transparent pod answers DNS queries for Consul's names.
    CONSUL_DNS = "consul-dns",
    /// Old name of [`SIDECAR_MODE`], with a boolean value: whether the sidecar is native.
    AS_SIDECAR = "enable-consul-dataplane-as-sidecar",
}

/// Prefix of the annotations with service meta; the rest of the name is the key.
pub(crate) const META: &str = "consul.hashicorp.com/service-meta-";

/// Value of [`STATUS`].
pub(crate) const INJECTED: &str = "injected";

/// Annotation with the container that `kubectl logs` and `kubectl exec` use by default.
///
/// Source: "Well-Known Labels, Annotations and Taints" of the Kubernetes
/// documentation.
pub(crate) const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Whether an annotation has an effect.
pub(crate) fn is_known(key: &str) -> bool {
    KNOWN.contains(&key) || key.strip_prefix(META).is_some_and(|key| !key.is_empty())
}

/// Those keys of an object's annotations or labels that are annotations with an effect.
pub(crate) fn ours(annotations: &Map<String, Value>) -> impl Iterator<Item = &str> {
    annotations.keys().map(String::as_str).filter(|key| is_known(key))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Annotation names in the first column of a README section's table.
    fn listed(heading: &str) -> BTreeSet<&'static str> {
        include_str!("../README.md")
            .lines()
            .skip_while(|line| *line != heading)
            .skip(1)
            .take_while(|line| !line.starts_with('#'))
            .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0))
            .collect()
    }

    #[test]
    fn the_readme_lists_every_annotation() {
        let known: BTreeSet<&str> =
            KNOWN.iter().chain([&META]).map(|key| &key[PREFIX.len()..]).collect();
        let documented: BTreeSet<&str> =
            listed("## Annotations").iter().map(|name| name.trim_end_matches("KEY")).collect();
        assert_eq!(documented, known);
    }
}
