//! The proxy part of a service.
//!
//! Source: Consul's "Service - Agent HTTP API" page and "Sidecar Service Registration".

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::service::NamedPort;
use crate::{Upstream, is_default};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Proxy {
    /// Name of the destination service.
    #[serde(skip_serializing_if = "is_default")]
    pub destination_service_name: String,
    /// Id of the destination instance; empty for a gateway.
    #[serde(rename = "DestinationServiceID", skip_serializing_if = "is_default")]
    pub destination_service_id: String,
    /// Address by which the proxy reaches the destination.
    #[serde(skip_serializing_if = "is_default")]
    pub local_service_address: String,
    /// Port of the destination; 0: it accepts no connections.
    #[serde(skip_serializing_if = "is_default")]
    pub local_service_port: u16,
    /// Named ports of the destination, if it has several (Consul 2.0).
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub local_service_ports: Vec<NamedPort>,
    /// Unix socket of the destination (Consul 1.10).
    #[serde(skip_serializing_if = "is_default")]
    pub local_service_socket_path: String,
    /// `direct` or `transparent` (Consul 1.10); empty: the default.
    #[serde(skip_serializing_if = "is_default")]
    pub mode: String,
    /// Settings of `transparent` mode (Consul 1.10).
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub transparent_proxy: TransparentProxy,
    /// Proxy settings, such as `envoy_prometheus_bind_addr`.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub config: Map<String, Value>,
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub upstreams: Vec<Upstream>,
    /// Routing to other datacenters.
    #[serde(skip_serializing_if = "is_default")]
    pub mesh_gateway: MeshGateway,
    /// Paths that are reachable without mutual TLS, for probes.
    #[serde(skip_serializing_if = "is_default")]
    pub expose: Expose,
    /// Extensions that patch Envoy's configuration (Consul 1.15).
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub envoy_extensions: Vec<EnvoyExtension>,
    /// Envoy's access logs (Consul 1.15).
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub access_logs: AccessLogs,
}

/// Settings of a proxy in `transparent` mode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TransparentProxy {
    /// The port to which outbound traffic is redirected; 0: 15001.
    #[serde(skip_serializing_if = "is_default")]
    pub outbound_listener_port: u16,
    /// Whether other transparent proxies may connect to this instance by its own
    /// address.
    #[serde(skip_serializing_if = "is_default")]
    pub dialed_directly: bool,
}

/// An extension that patches Envoy's configuration.
///
/// Source: Consul's "Envoy extensions" pages, "EnvoyExtensions" of "Proxy
/// defaults configuration entry reference".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EnvoyExtension {
    /// Such as `builtin/lua`.
    pub name: String,
    /// Whether a failing extension keeps the proxy from getting any configuration.
    #[serde(skip_serializing_if = "is_default")]
    pub required: bool,
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub arguments: Map<String, Value>,
    /// Consul releases that it is meant for, such as `>= 1.15.0`.
    #[serde(skip_serializing_if = "is_default")]
    pub consul_version: String,
    /// Envoy releases that it is meant for.
    #[serde(skip_serializing_if = "is_default")]
    pub envoy_version: String,
}

/// Envoy's access logs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AccessLogs {
    #[serde(skip_serializing_if = "is_default")]
    pub enabled: bool,
    /// Leaves out connections that no filter chain matches.
    #[serde(skip_serializing_if = "is_default")]
    pub disable_listener_logs: bool,
    /// `stdout`, `stderr` or `file`; empty: `stdout`.
    #[serde(skip_serializing_if = "is_default")]
    pub r#type: String,
    /// The file, of type `file`.
    #[serde(skip_serializing_if = "is_default")]
    pub path: String,
    /// JSON object of Envoy's command operators, as text.
    #[serde(rename = "JSONFormat", skip_serializing_if = "is_default")]
    pub json_format: String,
    /// Line of Envoy's command operators.
    #[serde(skip_serializing_if = "is_default")]
    pub text_format: String,
}

/// Whether traffic to another datacenter goes through mesh gateways.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MeshGateway {
    /// `none`, `local` or `remote`; empty: by the central configuration.
    #[serde(skip_serializing_if = "is_default")]
    pub mode: String,
}

/// Paths that are reachable without mutual TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Expose {
    /// Whether to expose the HTTP and gRPC checks of the service.
    #[serde(skip_serializing_if = "is_default")]
    pub checks: bool,
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub paths: Vec<ExposePath>,
}

/// One path that is reachable without mutual TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExposePath {
    pub path: String,
    /// Port on which the proxy listens.
    pub listener_port: u16,
    /// Port on which the service listens.
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
        // For "nothing", the catalog returns more forms than the agent.
        let proxy: Proxy =
            serde_json::from_str(r#"{"Upstreams":[{"DestinationName":"db","Config":null}]}"#)
                .unwrap();
        assert!(proxy.upstreams[0].config.is_empty());
    }
}
