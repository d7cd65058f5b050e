//! Metrics for Consul's telemetry collector, sent through the mesh: Envoy writes them
//! to a socket in `envoy_telemetry_collector_bind_socket_dir`, on which it listens by
//! xDS.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use crate::Proxy;
use crate::document::cluster;

const LOOPBACK: &str = "consul_telemetry_collector_loopback";

/// Path of the proxy's socket in the directory `dir`.
///
/// The agent computes the same path. The name must be unique for each proxy, and short,
/// since a socket's path is limited to about 100 bytes.
pub(crate) fn socket(dir: &str, proxy: &Proxy) -> String {
    let id = format!("{}_{}", proxy.namespace(), proxy.id);
    let name = BASE64_URL_SAFE_NO_PAD.encode(Sha1::digest(id.as_bytes()));
    format!("{}/{name}.sock", dir.trim_end_matches('/'))
}

/// The socket's listener as a cluster.
pub(crate) fn cluster(socket: &str) -> Value {
    cluster::grpc_socket(LOOPBACK, socket)
}

/// Envoy's `config.metrics.v3.MetricsServiceConfig`.
pub(crate) fn sink() -> Value {
    json!({
        "name": "envoy.stat_sinks.metrics_service",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.config.metrics.v3.MetricsServiceConfig",
            "transport_api_version": "V3",
            "grpc_service": { "envoy_grpc": { "cluster_name": LOOPBACK } },
            "emit_tags_as_labels": true,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_named_after_namespace_and_proxy() {
        let mut proxy = Proxy { id: "web-sidecar-proxy".to_owned(), ..Proxy::default() };
        let default = socket("/run/telemetry", &proxy);
        assert_eq!(default, "/run/telemetry/gqmuzdHCUPAEY5mbF8vgkZCNI14.sock");
        assert_eq!(socket("/run/telemetry/", &proxy), default);
        proxy.namespace = Some("team".to_owned());
        assert_eq!(
            socket("/run/telemetry", &proxy),
            "/run/telemetry/5gScaOytlFGRcHoEGVSwNqrRKLA.sock"
        );
    }
}
