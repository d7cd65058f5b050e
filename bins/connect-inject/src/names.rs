//! Names of the objects that the injector adds to a pod. `connect-init` and
//! `connect-lifecycle` rely on them, and users' pods may not use them.

/// Volume that the injected containers share.
pub(crate) const VOLUME: &str = "consul-connect-inject-data";
/// Init container that registers the pod.
pub(crate) const INIT_CONTAINER: &str = "consul-connect-inject-init";
/// Init container that redirects the connections of a transparent pod to its sidecar.
pub(crate) const REDIRECT: &str = "consul-connect-inject-redirect";
/// Container that runs Envoy for the pod's first service.
pub(crate) const SIDECAR: &str = "envoy-sidecar";

/// Name of the container that runs Envoy for an additional service.
pub(crate) fn sidecar_of(service: &str) -> String {
    format!("{SIDECAR}-{service}")
}

/// Mount path of [`VOLUME`]. It is the default directory of `connect-init` and
/// `connect-lifecycle`.
pub(crate) const FOLDER: &str = "/consul/connect-inject";
/// Volume with a service account token, with which the pod logs in if ACLs are enabled.
pub(crate) const TOKEN_VOLUME: &str = "consul-connect-inject-service-account";
/// Mount path of [`TOKEN_VOLUME`].
pub(crate) const TOKEN_FOLDER: &str = "/consul/service-account";
pub(crate) const TOKEN_FILE: &str = "/consul/service-account/token";
/// Volume for Envoy's access logs, where the pod asks for one.
pub(crate) const LOG_VOLUME: &str = "consul-connect-inject-access-logs";
/// Path of `connect-lifecycle`, which `connect-init` copies into the volume.
pub(crate) const HELPER: &str = "/consul/connect-inject/connect-lifecycle";
/// Part of the names of upstream variables: `DB_CONNECT_SERVICE_HOST`.
pub(crate) const VARIABLE: &str = "_CONNECT_SERVICE_";
/// Loopback port on which the sidecar answers DNS queries for Consul's names, if enabled.
pub(crate) const DNS_PORT: u16 = 8653;
/// User and group of the injected containers, except [`REDIRECT`].
pub(crate) const USER: i64 = 5995;

/// Environment variables of the init container that identify the pod, each with the pod's
/// field that it is set from.
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

/// Environment variable that tells the init container whether the webhook injected this pod.
/// A copy made by `kubectl debug --copy-to` has no labels, so no Service selects it and it
/// must not be registered. An annotation can't tell, because the profile `legacy` of
/// `kubectl debug` copies annotations.
pub(crate) const STATUS_VARIABLE: (&str, &str) =
    ("CONNECT_INJECT_STATUS", "metadata.labels['consul.hashicorp.com/connect-inject-status']");
