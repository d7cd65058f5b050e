//! The annotations that the injector reads and writes.

use serde_json::{Map, Value};

/// What all of ours begin with.
pub(crate) const PREFIX: &str = "consul.hashicorp.com/";

/// Makes the constants and the list of all from one table, so that they can't
/// differ.
macro_rules! annotations {
    ($($(#[doc = $doc:literal])+ $name:ident = $key:literal,)+) => {
        $($(#[doc = $doc])+ pub(crate) const $name: &str = concat!("consul.hashicorp.com/", $key);)+

        /// All that do something.
        pub(crate) const KNOWN: &[&str] = &[$($name),+];
    };
}

annotations! {
    /// Whether to inject.
    INJECT = "connect-inject",
    /// Written by the injector, as annotation and as label: the pod has its
    /// sidecar.
    STATUS = "connect-inject-status",
    /// Written by the injector: how `uninject` takes it all back.
    UNDO = "connect-inject-undo",
    /// The name of the service.
    SERVICE = "connect-service",
    /// The port of the service.
    SERVICE_PORT = "connect-service-port",
    /// What the pod reaches.
    UPSTREAMS = "connect-service-upstreams",
    /// Tags of the service.
    TAGS = "service-tags",
    /// The same by its old name.
    CONNECT_TAGS = "connect-service-tags",
    /// Settings of the proxy's own.
    PROXY_CONFIG = "proxy-config-map",
    /// Arguments for Envoy.
    ENVOY_ARGS = "envoy-extra-args",
    /// Envoy's worker threads.
    CONCURRENCY = "consul-envoy-proxy-concurrency",
    /// Resources of the sidecar.
    CPU_REQUEST = "sidecar-proxy-cpu-request",
    /// Resources of the sidecar.
    CPU_LIMIT = "sidecar-proxy-cpu-limit",
    /// Resources of the sidecar.
    MEMORY_REQUEST = "sidecar-proxy-memory-request",
    /// Resources of the sidecar.
    MEMORY_LIMIT = "sidecar-proxy-memory-limit",
    /// Resources of the sidecar.
    STORAGE_REQUEST = "sidecar-proxy-ephemeral-storage-request",
    /// Resources of the sidecar.
    STORAGE_LIMIT = "sidecar-proxy-ephemeral-storage-limit",
    /// The folder into which Envoy may write access logs.
    ACCESS_LOGS = "access-log-folder",
    /// Volumes for the pod.
    USER_VOLUMES = "consul-sidecar-user-volume",
    /// Where they are in the sidecar.
    USER_MOUNTS = "consul-sidecar-user-volume-mount",
    /// The containers that get our volume.
    MOUNT_VOLUME = "connect-inject-mount-volume",
    /// Whether the sidecar has a readiness probe.
    PROXY_HEALTH = "use-proxy-health-check",
    /// How long Envoy may take to become ready before it is started again.
    STARTUP_FAILURE = "sidecar-proxy-startup-failure-seconds",
    /// How long Envoy may be unready before it is started again.
    LIVENESS_FAILURE = "sidecar-proxy-liveness-failure-seconds",
    /// Whether Prometheus can read Envoy's metrics.
    METRICS = "enable-metrics",
    /// On which port.
    METRICS_PORT = "prometheus-scrape-port",
    /// Under which path.
    METRICS_PATH = "prometheus-scrape-path",
    /// Whether the application's own are on the same page.
    METRICS_MERGING = "enable-metrics-merging",
    /// The port of loopback at which they meet.
    MERGED_METRICS_PORT = "merged-metrics-port",
    /// The application's port for its own.
    SERVICE_METRICS_PORT = "service-metrics-port",
    /// Their path.
    SERVICE_METRICS_PATH = "service-metrics-path",
    /// CA certificates for that page.
    METRICS_CA_FILE = "prometheus-ca-file",
    /// CA certificates for that page.
    METRICS_CA_PATH = "prometheus-ca-path",
    /// The certificate of that page.
    METRICS_CERT = "prometheus-cert-file",
    /// Its key.
    METRICS_KEY = "prometheus-key-file",
    /// How long the sidecar drains.
    SHUTDOWN_GRACE = "sidecar-proxy-lifecycle-shutdown-grace-period-seconds",
    /// How long the application is held for the proxy.
    STARTUP_GRACE = "sidecar-proxy-lifecycle-startup-grace-period-seconds",
    /// How long the application goes on when the pod is to end.
    SLEEP = "application-sleep-seconds",
    /// How the sidecar is run.
    SIDECAR_MODE = "sidecar-mode",
    /// Whether a native sidecar stands before the user's init containers.
    POSITION = "sidecar-position",
    /// Whether the pod's connections are redirected to its sidecar.
    TRANSPARENT_PROXY = "transparent-proxy",
    /// Ports of the pod that are reached directly.
    EXCLUDE_INBOUND_PORTS = "transparent-proxy-exclude-inbound-ports",
    /// Ports that the pod reaches directly.
    EXCLUDE_OUTBOUND_PORTS = "transparent-proxy-exclude-outbound-ports",
    /// Addresses that the pod reaches directly.
    EXCLUDE_OUTBOUND_CIDRS = "transparent-proxy-exclude-outbound-cidrs",
    /// Users whose connections are not redirected.
    EXCLUDE_UIDS = "transparent-proxy-exclude-uids",
    /// Whether probes are rewritten, so that they reach the application.
    OVERWRITE_PROBES = "transparent-proxy-overwrite-probes",
    /// The address by which transparent clients know the service.
    VIRTUAL_ADDRESS = "transparent-proxy-virtual-address",
    /// Whether queries for names of Consul's are answered.
    CONSUL_DNS = "consul-dns",
    /// The same as the mode, by its old name.
    AS_SIDECAR = "enable-consul-dataplane-as-sidecar",
}

/// What the meta of the service begins with; its key is behind it.
pub(crate) const META: &str = "consul.hashicorp.com/service-meta-";

/// The value of [`STATUS`].
pub(crate) const INJECTED: &str = "injected";

/// The container that `kubectl logs` and `kubectl exec` take when none is named.
///
/// Source: "Well-Known Labels, Annotations and Taints" of the Kubernetes
/// documentation.
pub(crate) const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Whether an annotation does something.
pub(crate) fn is_known(key: &str) -> bool {
    KNOWN.contains(&key) || key.strip_prefix(META).is_some_and(|key| !key.is_empty())
}

/// The annotations of ours among those of an object that is not a pod.
pub(crate) fn ours(annotations: &Map<String, Value>) -> impl Iterator<Item = &str> {
    annotations.keys().map(String::as_str).filter(|key| is_known(key))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The names between the first column's backquotes, of a section.
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
