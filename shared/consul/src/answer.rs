//! What the agent answers.

use std::collections::BTreeMap;

use registration::Proxy;
use registration::service::Kind;
use serde::Deserialize;

/// A service as the agent has it.
///
/// Source: Consul's "Service - Agent HTTP API" page, "Get Service Configuration".
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AgentService {
    /// What it is.
    #[serde(deserialize_with = "kind_or_typical")]
    pub kind: Kind,
    /// Its id on the agent.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its name.
    pub service: String,
    /// Labels; null if there are none.
    pub tags: Option<Vec<String>>,
    /// Free text by key; null if there is none.
    pub meta: Option<BTreeMap<String, String>>,
    /// Where it is reached.
    pub address: String,
    /// The port there.
    pub port: u16,
    /// What makes it a proxy, with the central configuration merged in if the
    /// agent does that.
    pub proxy: Option<Proxy>,
    /// Its namespace (Consul Enterprise).
    pub namespace: Option<String>,
    /// Its admin partition (Consul Enterprise).
    pub partition: Option<String>,
    /// The agent's datacenter; releases before 1.10 do not say it.
    pub datacenter: Option<String>,
    /// Changes when the service does; only for a service that was asked for by id.
    pub content_hash: String,
}

/// A check as the agent has it, or as the catalog has it.
///
/// Source: Consul's "Check - Agent HTTP API" page, "List Checks".
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AgentCheck {
    /// Its node.
    pub node: String,
    /// Its id on the agent.
    #[serde(rename = "CheckID")]
    pub check_id: String,
    /// For people.
    pub name: String,
    /// `passing`, `warning`, `critical` or `maintenance`.
    pub status: String,
    /// The service that it is of; empty: the node.
    #[serde(rename = "ServiceID")]
    pub service_id: String,
    /// What was said when it was last looked at.
    pub output: String,
}

/// The roots of Connect's CA.
///
/// Source: Consul's "Connect - Agent HTTP API" page, "Certificate Authority
/// (CA) Roots".
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Roots {
    /// The root that certificates are signed with now; empty: there is none.
    #[serde(rename = "ActiveRootID")]
    pub active_root_id: String,
}

/// An instance of a service in the catalog.
///
/// Source: Consul's "Catalog HTTP API" page, "List Nodes for Service".
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CatalogService {
    /// Its node.
    pub node: String,
    /// The node's address.
    pub address: String,
    /// Its id on that node.
    #[serde(rename = "ServiceID")]
    pub service_id: String,
}

/// An instance that a proxy may be sent to.
///
/// Source: Consul's "Health HTTP API" page, "List Nodes for Connect-capable
/// Service".
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthyInstance {
    /// The proxy, or the service itself if it is Connect-native.
    pub service: AgentService,
}

/// A service's certificate, as far as it is not secret.
///
/// Source: Consul's "Connect - Agent HTTP API" page, "Service Leaf Certificate".
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Leaf {
    /// When it ends (RFC 3339).
    pub valid_before: String,
}

/// What the agent says of itself.
///
/// Source: Consul's "Agent HTTP API" page, "Read Configuration".
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AgentSelf {
    /// The public part of its configuration.
    #[serde(rename = "Config")]
    pub config: SelfConfig,
    /// The whole configuration, whose shape differs between releases.
    #[serde(rename = "DebugConfig")]
    pub debug: SelfDebug,
    /// How proxies are fed (Consul 1.11).
    #[serde(rename = "xDS")]
    pub xds: Option<SelfXds>,
}

/// The public part of an agent's configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SelfConfig {
    /// Its datacenter.
    pub datacenter: String,
    /// Its node's name.
    pub node_name: String,
    /// Its release.
    pub version: String,
}

/// What is read of an agent's whole configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SelfDebug {
    /// The gRPC port; -1: off.
    #[serde(rename = "GRPCPort")]
    pub grpc_port: Option<i64>,
}

/// How an agent feeds proxies.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SelfXds {
    /// The proxies' versions that the agent knows to work, by kind.
    pub supported_proxies: BTreeMap<String, Vec<String>>,
    /// The gRPC ports (Consul 1.14).
    pub ports: Option<SelfXdsPorts>,
}

/// An agent's gRPC ports; 0 or -1: off.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SelfXdsPorts {
    /// Without TLS.
    pub plaintext: i64,
    /// With TLS.
    #[serde(rename = "TLS")]
    pub tls: i64,
}

// === impl AgentSelf ===

impl AgentSelf {
    /// The releases of Envoy that the agent knows to work.
    pub fn supported_envoys(&self) -> &[String] {
        let kinds = self.xds.as_ref().map(|xds| &xds.supported_proxies);
        kinds.and_then(|kinds| kinds.get("envoy")).map(Vec::as_slice).unwrap_or_default()
    }
}

/// A kind that this program has never heard of is not ours to refuse.
fn kind_or_typical<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Kind, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(Kind::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(&text))
        .unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_an_ordinary_and_a_strange_service() {
        let service: AgentService = serde_json::from_str(
            r#"{"ID":"web-1","Service":"web","Tags":null,"Meta":null,"Port":80}"#,
        )
        .unwrap();
        assert_eq!((service.kind, service.id.as_str()), (Kind::Typical, "web-1"));
        let service: AgentService = serde_json::from_str(
            r#"{"Kind":"connect-proxy","ID":"p","Proxy":{"DestinationServiceName":"web"}}"#,
        )
        .unwrap();
        assert_eq!(service.kind, Kind::ConnectProxy);
        let service: AgentService =
            serde_json::from_str(r#"{"Kind":"quantum-gateway","ID":"q"}"#).unwrap();
        assert_eq!(service.kind, Kind::Typical);
    }

    #[test]
    fn reads_old_and_new_agents_ports() {
        let old: AgentSelf = serde_json::from_str(r#"{"Config":{"NodeName":"n1"},"DebugConfig":{"GRPCPort":-1},"xDS":{"SupportedProxies":{"envoy":["1.14.5"]}}}"#).unwrap();
        assert_eq!((old.config.node_name.as_str(), old.debug.grpc_port), ("n1", Some(-1)));
        let new: AgentSelf =
            serde_json::from_str(r#"{"xDS":{"Ports":{"Plaintext":8502,"TLS":8503}}}"#).unwrap();
        let ports = new.xds.unwrap().ports.unwrap();
        assert_eq!((ports.plaintext, ports.tls), (8502, 8503));
    }
}
