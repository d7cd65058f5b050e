//! Listeners that each expose one endpoint of Envoy's admin server, which itself must
//! not be reachable from outside: Envoy `config.listener.v3.Listener`.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::document::cluster;
use crate::{Prometheus, PrometheusCa, PrometheusTls};

const CERTIFICATE: &str = "prometheus_cert";
const VALIDATION: &str = "prometheus_validation_context";

/// Metrics in Prometheus' format, for `envoy_prometheus_bind_addr`.
pub(crate) fn prometheus(bind: SocketAddr, prometheus: &Prometheus, cluster: &str) -> Value {
    let page = json!({ "path": prometheus.scrape_path });
    let mut listener =
        page_listener("envoy_prometheus_metrics", bind, &page, cluster, "/stats/prometheus");
    if prometheus.tls.is_some() {
        listener["filter_chains"][0]["transport_socket"] = json!({
            "name": "tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "tls_certificate_sds_secret_configs": [{ "name": CERTIFICATE }],
                    "validation_context_sds_secret_config": { "name": VALIDATION },
                },
                // Envoy's default today, which it announces to change: verify a client
                // certificate if one is presented, require none.
                "require_client_certificate": false,
            },
        });
    }
    listener
}

/// Metrics in Envoy's own formats, for `envoy_stats_bind_addr`.
pub(crate) fn stats(bind: SocketAddr, cluster: &str) -> Value {
    let pages = json!({ "prefix": "/stats" });
    page_listener("envoy_metrics", bind, &pages, cluster, "/stats")
}

/// Whether Envoy is ready, for probes.
pub(crate) fn ready(bind: SocketAddr, cluster: &str) -> Value {
    let page = json!({ "path": "/ready" });
    page_listener("envoy_ready", bind, &page, cluster, "/ready")
}

/// Secrets of a Prometheus listener with TLS: Envoy reads the files itself.
pub(crate) fn secrets(tls: &PrometheusTls) -> [Value; 2] {
    let validation = match &tls.ca {
        PrometheusCa::File(file) => json!({ "trusted_ca": { "filename": file } }),
        PrometheusCa::Path(path) => json!({ "watched_directory": { "path": path } }),
    };
    [
        json!({
            "name": CERTIFICATE,
            "tls_certificate": {
                "certificate_chain": { "filename": tls.cert_file },
                "private_key": { "filename": tls.key_file },
            },
        }),
        json!({ "name": VALIDATION, "validation_context": validation }),
    ]
}

/// A listener that forwards requests matching `page` (an Envoy
/// `config.route.v3.RouteMatch`) to the path `target` of `cluster`, and answers 404 to
/// all others.
fn page_listener(name: &str, bind: SocketAddr, page: &Value, cluster: &str, target: &str) -> Value {
    let routes = json!([
        { "match": page, "route": { "cluster": cluster, "prefix_rewrite": target } },
        { "match": { "prefix": "/" }, "direct_response": { "status": 404 } },
    ]);
    json!({
        "name": format!("{name}_listener"),
        "address": cluster::address(bind),
        "filter_chains": [{
            "filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": name,
                    "codec_type": "HTTP1",
                    "route_config": {
                        "name": "self_admin_route",
                        "virtual_hosts": [{
                            "name": "self_admin",
                            "domains": ["*"],
                            "routes": routes,
                        }],
                    },
                    "http_filters": [{
                        "name": "envoy.filters.http.router",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                        },
                    }],
                },
            }],
        }],
    })
}
