//! What makes a service a Connect proxy.
//!
//! Source: Consul's "Service - Agent HTTP API" page and "Sidecar Service
//! Registration".

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::service::NamedPort;
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
    /// The ports there by name, for a service with several (Consul 2.0).
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub local_service_ports: Vec<NamedPort>,
    /// The unix socket of the instance (Consul 1.10).
    #[serde(skip_serializing_if = "is_default")]
    pub local_service_socket_path: String,
    /// `direct` or `transparent` (Consul 1.10); empty: the default.
    #[serde(skip_serializing_if = "is_default")]
    pub mode: String,
    /// Where `transparent` mode takes outbound traffic (Consul 1.10).
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub transparent_proxy: TransparentProxy,
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
    /// Extensions that patch Envoy's configuration (Consul 1.15).
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub envoy_extensions: Vec<EnvoyExtension>,
    /// Envoy's access logs (Consul 1.15).
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub access_logs: AccessLogs,
}

/// Where a proxy in `transparent` mode takes outbound traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TransparentProxy {
    /// The port to which outbound traffic is redirected; 0: 15001.
    #[serde(skip_serializing_if = "is_default")]
    pub outbound_listener_port: u16,
    /// Whether other transparent proxies may dial this instance by its own
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
    /// Whether the proxy gets no configuration if the extension fails.
    #[serde(skip_serializing_if = "is_default")]
    pub required: bool,
    /// The extension's own settings.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub arguments: Map<String, Value>,
    /// The Consul releases for which it is meant, such as `>= 1.15.0`.
    #[serde(skip_serializing_if = "is_default")]
    pub consul_version: String,
    /// The Envoy releases for which it is meant.
    #[serde(skip_serializing_if = "is_default")]
    pub envoy_version: String,
}

/// Envoy's access logs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AccessLogs {
    /// Whether Envoy writes any.
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
    /// A JSON object with Envoy's command operators, as text.
    #[serde(rename = "JSONFormat", skip_serializing_if = "is_default")]
    pub json_format: String,
    /// A line with Envoy's command operators.
    #[serde(skip_serializing_if = "is_default")]
    pub text_format: String,
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
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub paths: Vec<ExposePath>,
}

/// One path that is reachable without mutual TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExposePath {
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
