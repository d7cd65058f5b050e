//! Envoy's static clusters: Envoy `config.cluster.v3.Cluster`.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::{Admin, ClientCertificate, Xds, XdsAddress};

/// Name of the cluster of the agent's xDS server.
pub(crate) const LOCAL_AGENT: &str = "local_agent";

/// The agent's xDS server.
pub(crate) fn local_agent(xds: &Xds) -> Value {
    let endpoint = match &xds.address {
        XdsAddress::Tcp(tcp) => address(*tcp),
        XdsAddress::Unix(path) => pipe(path),
    };
    let mut cluster = fixed(LOCAL_AGENT, "1s", Protocol::Http2, &endpoint);
    if let Some(pem) = &xds.ca_pem {
        let mut context = json!({
            "validation_context": { "trusted_ca": { "inline_string": pem } },
        });
        if let Some(ClientCertificate { cert_file, key_file }) = &xds.client_certificate {
            context["tls_certificates"] = json!([{
                "certificate_chain": { "filename": cert_file },
                "private_key": { "filename": key_file },
            }]);
        }
        cluster["transport_socket"] = json!({
            "name": "tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": context,
            },
        });
    }
    cluster
}

/// Envoy's own admin server, parts of which listeners expose.
pub(crate) fn self_admin(admin: &Admin) -> Value {
    http("self_admin", admin.bind)
}

/// An HTTP/1.1 server.
pub(crate) fn http(name: &str, server: SocketAddr) -> Value {
    fixed(name, "5s", Protocol::Http1, &address(server))
}

/// A gRPC server on a Unix domain socket.
pub(crate) fn grpc_socket(name: &str, path: &str) -> Value {
    fixed(name, "5s", Protocol::Http2, &pipe(path))
}

/// Envoy's `config.core.v3.Address` of an IP address and a port.
pub(crate) fn address(address: SocketAddr) -> Value {
    json!({
        "socket_address": {
            "address": address.ip().to_string(),
            "port_value": address.port(),
        },
    })
}

/// Envoy's `config.core.v3.Address` of a Unix domain socket.
pub(crate) fn pipe(path: &str) -> Value {
    json!({ "pipe": { "path": path } })
}

#[derive(Clone, Copy)]
enum Protocol {
    Http1,
    Http2,
}

/// A cluster of one endpoint whose address is known.
fn fixed(name: &str, connect_timeout: &str, protocol: Protocol, endpoint: &Value) -> Value {
    let protocol = match protocol {
        Protocol::Http1 => json!({ "http_protocol_options": {} }),
        Protocol::Http2 => json!({ "http2_protocol_options": {} }),
    };
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": connect_timeout,
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": protocol,
            },
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": endpoint } }] }],
        },
    })
}
