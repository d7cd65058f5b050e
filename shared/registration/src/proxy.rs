//! What makes a service a Connect proxy.
//!
//! Source: Consul's "Service - Agent HTTP API" page and "Sidecar Service
//! Registration".

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Upstream, is_default};

/// A Connect proxy: what it stands for and what it reaches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Proxy {
    /// The service that it stands for, by name.
    #[serde(skip_serializing_if = "is_default")]
    pub destination_service_name: String,
    /// The instance that it stands for; empty for a gateway.
    #[serde(rename = "DestinationServiceID", skip_serializing_if = "is_default")]
    pub destination_service_id: String,
    /// Where the proxy reaches that instance.
    #[serde(skip_serializing_if = "is_default")]
    pub local_service_address: String,
    /// The port there; 0: the instance takes no connections.
    #[serde(skip_serializing_if = "is_default")]
    pub local_service_port: u16,
    /// The unix socket of the instance (Consul 1.10).
    #[serde(skip_serializing_if = "is_default")]
    pub local_service_socket_path: String,
    /// `direct` or `transparent` (Consul 1.10); empty: the default.
    #[serde(skip_serializing_if = "is_default")]
    pub mode: String,
    /// Settings of the proxy's own, such as `envoy_prometheus_bind_addr`.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub config: Map<String, Value>,
    /// What it opens a local port for.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub upstreams: Vec<Upstream>,
    /// How traffic to other datacenters goes.
    #[serde(skip_serializing_if = "is_default")]
    pub mesh_gateway: MeshGateway,
    /// Paths that are reachable without mutual TLS, for probes.
    #[serde(skip_serializing_if = "is_default")]
    pub expose: Expose,
}

/// Whether traffic to another datacenter goes through mesh gateways.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MeshGateway {
    /// `none`, `local` or `remote`; empty: as the central configuration says.
    #[serde(skip_serializing_if = "is_default")]
    pub mode: String,
}

/// Paths that are reachable without mutual TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Expose {
    /// Whether the HTTP and gRPC checks of the service are exposed.
    #[serde(skip_serializing_if = "is_default")]
    pub checks: bool,
    /// The paths.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub paths: Vec<ExposePath>,
}

/// One path that is reachable without mutual TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExposePath {
    /// The path, from `/` on.
    pub path: String,
    /// Where the proxy listens for it.
    pub listener_port: u16,
    /// Where the service serves it.
    pub local_path_port: u16,
    /// `http` or `http2`; empty: `http`.
    #[serde(skip_serializing_if = "is_default")]
    pub protocol: String,
}

/// The agent answers `null` where a list or map is empty.
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_an_agents_answer() {
        let proxy: Proxy = serde_json::from_str(
            r#"{"DestinationServiceName":"web","Config":null,"Upstreams":null,
                "MeshGateway":{},"Expose":{},"SomethingNewer":1}"#,
        )
        .unwrap();
        assert_eq!(proxy.destination_service_name, "web");
        assert!(proxy.upstreams.is_empty());
        // The catalog says more of nothing than the agent does.
        let proxy: Proxy =
            serde_json::from_str(r#"{"Upstreams":[{"DestinationName":"db","Config":null}]}"#)
                .unwrap();
        assert!(proxy.upstreams[0].config.is_empty());
    }
}
