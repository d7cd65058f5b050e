//! The annotations of other injectors that have no effect here, with what to do
//! instead: users who come from there have them in their manifests.

/// Names and advice, in the order of the README.
#[rustfmt::skip]
const TABLE: &[(&str, &str)] = &[
    ("connect-service-protocol", "write a service-defaults config entry with `protocol` for the service"),
    ("connect-service-default-port", "a service has one port here: name it in `connect-service-port`"),
    ("kubernetes-service", "Kubernetes Services are not looked at: the pod registers itself"),
    ("service-ignore", "set `connect-inject` to \"false\" on the pod"),
    ("connect-sync-period", "nothing polls: the sidecar waits on the agent and registers again at once"),
    ("consul-sidecar-cpu-limit", "there is no consul-sidecar: `sidecar-proxy-cpu-limit` is that of the only sidecar"),
    ("consul-sidecar-cpu-request", "there is no consul-sidecar: `sidecar-proxy-cpu-request` is that of the only sidecar"),
    ("consul-sidecar-memory-limit", "there is no consul-sidecar: `sidecar-proxy-memory-limit` is that of the only sidecar"),
    ("consul-sidecar-memory-request", "there is no consul-sidecar: `sidecar-proxy-memory-request` is that of the only sidecar"),
    ("consul-sidecar-access-log-enabled", "write `access_logs` into the proxy-defaults config entry"),
    ("consul-sidecar-access-log-path", "write `access_logs` into the proxy-defaults config entry, with a path in the folder of `access-log-folder`"),
    ("enable-sidecar-proxy-lifecycle-shutdown-drain-listeners", "listeners are always drained: `sidecar-proxy-lifecycle-shutdown-grace-period-seconds` says for how long"),
    ("enable-sidecar-proxy-lifecycle", "the sidecar's start and end are always in order: the application is held until the proxy is ready, and the proxy drains"),
    ("sidecar-proxy-lifecycle-graceful-port", "there is nothing to call: the sidecar ends by itself when the pod does, and `connect-inject-mount-volume` gives a container `connect-lifecycle`"),
    ("sidecar-proxy-lifecycle-graceful-shutdown-path", "there is nothing to call: the sidecar ends by itself when the pod does"),
    ("sidecar-proxy-lifecycle-graceful-startup-path", "there is nothing to call: `sidecar-proxy-lifecycle-startup-grace-period-seconds` says how long the application is held"),
    ("sidecar-initial-probe-check-delay-seconds", "the sidecar's startup probe waits by itself: see `sidecar-proxy-lifecycle-startup-grace-period-seconds`"),
    ("sidecar-probe-period-seconds", "the sidecar's startup probe waits by itself: see `sidecar-proxy-lifecycle-startup-grace-period-seconds`"),
    ("sidecar-probe-failure-threshold", "the sidecar's startup probe waits by itself: see `sidecar-proxy-startup-failure-seconds`"),
    ("sidecar-probe-check-timeout-seconds", "the sidecar's startup probe waits by itself: see `sidecar-proxy-lifecycle-startup-grace-period-seconds`"),
    ("transparent-proxy-status", "another injector wrote it"),
    ("redirect-traffic-config", "another injector wrote it: `connect-redirect` has its rules as flags"),
    ("dual-stack", "addresses are those of the pod: an upstream's listener moves with `?local_bind_address=::1`"),
    ("consul-namespace", "namespaces of Consul Enterprise are not set by annotation"),
    ("original-pod", "another injector wrote it: `connect-inject-undo` is what `uninject` reads here"),
    ("connect-k8s-version", "another injector wrote it"),
    ("consul-k8s-version", "another injector wrote it"),
    ("telemetry-collector", "name the collector in the proxy-defaults config entry, `envoy_telemetry_collector_bind_socket_dir`"),
    ("peering-version", "peerings are Consul's own: an upstream names one with `name.svc.PEER.peer:port`"),
    ("mesh-inject", "use `connect-inject`"),
    ("mesh-inject-status", "another injector wrote it"),
    ("mesh-inject-mount-volume", "use `connect-inject-mount-volume`"),
    ("mesh-service-destinations", "use `connect-service-upstreams`"),
    ("gateway-kind", "gateways are not injected: run one with `connect-register` and Envoy"),
    ("gateway-consul-service-name", "gateways are not injected: run one with `connect-register` and Envoy"),
    ("gateway-namespace", "gateways are not injected: run one with `connect-register` and Envoy"),
    ("gateway-wan-address-source", "gateways are not injected: run one with `connect-register` and Envoy"),
    ("gateway-wan-address-static", "gateways are not injected: run one with `connect-register` and Envoy"),
    ("gateway-wan-port", "gateways are not injected: run one with `connect-register` and Envoy"),
    ("mesh-gateway-container-port", "gateways are not injected: run one with `connect-register` and Envoy"),
];

/// What to do instead of setting the annotation of that name, which has no
/// prefix here; none if nobody knows it.
pub(crate) fn instead(name: &str) -> Option<&'static str> {
    TABLE.iter().find(|(known, _)| *known == name).map(|(_, instead)| *instead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_of_them_does_something() {
        let all = TABLE
            .iter()
            .map(|(name, _)| (format!("{}{name}", crate::annotation::PREFIX), "x".into()));
        let all = all.collect();
        assert_eq!(crate::annotation::ours(&all).collect::<Vec<_>>(), Vec::<&str>::new());
        assert_eq!(all.len(), TABLE.len(), "a name is there twice");
    }

    #[test]
    fn the_readme_has_the_same_table() {
        let documented: Vec<&str> = include_str!("../../README.md")
            .lines()
            .skip_while(|line| *line != "### Without effect")
            .skip(1)
            .take_while(|line| !line.starts_with('#'))
            .filter(|line| line.starts_with("| `"))
            .collect();
        let coded: Vec<String> =
            TABLE.iter().map(|(name, instead)| format!("| `{name}` | {instead} |")).collect();
        assert_eq!(documented, coded);
    }
}
