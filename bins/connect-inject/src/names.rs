//! The names that an injected pod has of us: what `connect-init` and
//! `connect-lifecycle` find there, and what users may not name their own.

/// The volume that the injected containers share.
pub(crate) const VOLUME: &str = "consul-connect-inject-data";
/// The container that registers the pod before it starts.
pub(crate) const INIT_CONTAINER: &str = "consul-connect-inject-init";
/// The container that redirects the pod's connections to its sidecar.
pub(crate) const REDIRECT: &str = "consul-connect-inject-redirect";
/// The container with Envoy, of the pod's first service.
pub(crate) const SIDECAR: &str = "envoy-sidecar";

/// The container with Envoy of a further service.
pub(crate) fn sidecar_of(service: &str) -> String {
    format!("{SIDECAR}-{service}")
}

/// Where the volume is mounted: the folder that `connect-init` writes to and
/// `connect-lifecycle` reads from by default.
pub(crate) const FOLDER: &str = "/consul/connect-inject";
/// The volume with a token of the pod's service account, for ACLs.
pub(crate) const TOKEN_VOLUME: &str = "consul-connect-inject-service-account";
/// Where it is mounted.
pub(crate) const TOKEN_FOLDER: &str = "/consul/service-account";
pub(crate) const TOKEN_FILE: &str = "/consul/service-account/token";
/// The volume into which Envoy writes access logs, where it does.
pub(crate) const LOG_VOLUME: &str = "consul-connect-inject-access-logs";
/// The lifecycle helper, which `connect-init` puts there.
pub(crate) const HELPER: &str = "/consul/connect-inject/connect-lifecycle";
/// What the names of the upstreams' variables have in them, behind the upstream's.
pub(crate) const VARIABLE: &str = "_CONNECT_SERVICE_";
/// The port of loopback on which the sidecar answers queries for names, where it does.
pub(crate) const DNS_PORT: u16 = 8653;
/// The user and group of the injected containers, but for the one that redirects.
pub(crate) const USER: i64 = 5995;

/// The variables of the init container that say which pod it is, with the field
/// of the pod that each is taken from.
///
/// Source: "Downward API" of the Kubernetes documentation.
pub(crate) const DOWNWARD: [(&str, &str); 6] = [
    ("POD_NAME", "metadata.name"),
    ("POD_NAMESPACE", "metadata.namespace"),
    ("POD_UID", "metadata.uid"),
    ("POD_IP", "status.podIP"),
    ("HOST_IP", "status.hostIP"),
    ("NODE_NAME", "spec.nodeName"),
];

/// The variable by which the init container learns that the pod is the one that
/// was injected: a copy of it by `kubectl debug --copy-to` has no labels, so that
/// nothing routes to it, and must not be registered. Not by the annotation, which
/// the profile `legacy` of `kubectl debug` keeps.
pub(crate) const STATUS_VARIABLE: (&str, &str) =
    ("CONNECT_INJECT_STATUS", "metadata.labels['consul.hashicorp.com/connect-inject-status']");
