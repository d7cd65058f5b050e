//! Annotations of other injectors, above all consul-k8s, that have no effect here, and
//! what to do instead. Manifests of users who migrate still have them.

/// Names without the prefix, and advice; in the order of the README.
#[rustfmt::skip]
const TABLE: &[(&str, &str)] = &[
    ("connect-service-protocol", "write a service-defaults config entry with `protocol` for the service"),
    ("connect-service-default-port", "name the service's only port in `connect-service-port`"),
    ("kubernetes-service", "the pod registers itself, and Kubernetes Services are ignored"),
    ("service-ignore", "set `connect-inject` to \"false\" on the pod"),
    ("connect-sync-period", "nothing is polled: the sidecar watches its registration with a blocking query and restores it at once"),
    ("consul-sidecar-cpu-limit", "set `sidecar-proxy-cpu-limit`: there is no consul-sidecar container"),
    ("consul-sidecar-cpu-request", "set `sidecar-proxy-cpu-request`: there is no consul-sidecar container"),
    ("consul-sidecar-memory-limit", "set `sidecar-proxy-memory-limit`: there is no consul-sidecar container"),
    ("consul-sidecar-memory-request", "set `sidecar-proxy-memory-request`: there is no consul-sidecar container"),
    ("consul-sidecar-access-log-enabled", "set `access_logs` in the proxy-defaults config entry"),
    ("consul-sidecar-access-log-path", "set `access_logs` in the proxy-defaults config entry, with a path in the directory of `access-log-folder`"),
    ("enable-sidecar-proxy-lifecycle-shutdown-drain-listeners", "listeners are always drained, for at most `sidecar-proxy-lifecycle-shutdown-grace-period-seconds`"),
    ("enable-sidecar-proxy-lifecycle", "the lifecycle is always managed: the application waits for the proxy, and the proxy drains when the pod ends"),
    ("sidecar-proxy-lifecycle-graceful-port", "there is no endpoint to call: the sidecar ends by itself when the pod does; `connect-inject-mount-volume` mounts `connect-lifecycle` into a container"),
    ("sidecar-proxy-lifecycle-graceful-shutdown-path", "there is no endpoint to call: the sidecar ends by itself when the pod does"),
    ("sidecar-proxy-lifecycle-graceful-startup-path", "there is no endpoint to call: `sidecar-proxy-lifecycle-startup-grace-period-seconds` limits how long the application waits"),
    ("sidecar-initial-probe-check-delay-seconds", "set `sidecar-proxy-lifecycle-startup-grace-period-seconds`: a postStart hook waits for the proxy"),
    ("sidecar-probe-period-seconds", "set `sidecar-proxy-lifecycle-startup-grace-period-seconds`: a postStart hook waits for the proxy"),
    ("sidecar-probe-failure-threshold", "set `sidecar-proxy-startup-failure-seconds`: a postStart hook waits for the proxy"),
    ("sidecar-probe-check-timeout-seconds", "set `sidecar-proxy-lifecycle-startup-grace-period-seconds`: a postStart hook waits for the proxy"),
    ("transparent-proxy-status", "left by another injector"),
    ("redirect-traffic-config", "left by another injector: connect-cni reads `transparent-proxy-redirect`"),
    ("dual-stack", "nothing to set: the sidecar uses the pod's addresses, and `?local_bind_address=::1` moves an upstream's listener"),
    ("consul-namespace", "namespaces of Consul Enterprise cannot be set by annotation"),
    ("original-pod", "left by another injector: `uninject` reads `connect-inject-undo`"),
    ("connect-k8s-version", "left by another injector"),
    ("consul-k8s-version", "left by another injector"),
    ("telemetry-collector", "set `envoy_telemetry_collector_bind_socket_dir` in the proxy-defaults config entry"),
    ("peering-version", "nothing to set: Consul manages peerings, and an upstream names a peer with `name.svc.PEER.peer:port`"),
    ("mesh-inject", "use `connect-inject`"),
    ("mesh-inject-status", "left by another injector"),
    ("mesh-inject-mount-volume", "use `connect-inject-mount-volume`"),
    ("mesh-service-destinations", "use `connect-service-upstreams`"),
    ("gateway-kind", "gateways are not injected: run the gateway with `connect-register` and Envoy"),
    ("gateway-consul-service-name", "gateways are not injected: run the gateway with `connect-register` and Envoy"),
    ("gateway-namespace", "gateways are not injected: run the gateway with `connect-register` and Envoy"),
    ("gateway-wan-address-source", "gateways are not injected: run the gateway with `connect-register` and Envoy"),
    ("gateway-wan-address-static", "gateways are not injected: run the gateway with `connect-register` and Envoy"),
    ("gateway-wan-port", "gateways are not injected: run the gateway with `connect-register` and Envoy"),
    ("mesh-gateway-container-port", "gateways are not injected: run the gateway with `connect-register` and Envoy"),
];

/// What to do instead of setting the annotation `name`, given without its prefix. `None` if
/// no injector is known to read it.
pub(crate) fn instead(name: &str) -> Option<&'static str> {
    TABLE.iter().find(|(known, _)| *known == name).map(|(_, instead)| *instead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_listed_annotation_has_an_effect() {
        let all = TABLE
            .iter()
            .map(|(name, _)| (format!("{}{name}", crate::annotation::PREFIX), "x".into()));
        let all = all.collect();
        assert_eq!(crate::annotation::ours(&all).collect::<Vec<_>>(), Vec::<&str>::new());
        assert_eq!(all.len(), TABLE.len(), "a name is listed twice");
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
