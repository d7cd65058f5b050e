//! The agent's answers.

use std::collections::BTreeMap;

use registration::Proxy;
use registration::service::{Kind, TaggedAddress};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// A service as the agent reports it.
///
/// Source: Consul's "Service - Agent HTTP API" page, "Get Service Configuration".
///
/// It is parsed leniently, because an agent accepts nearly anything: a field that can't
/// be read gets its default and is named in `unreadable`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentService {
    /// `Typical` if this program does not know the kind.
    pub kind: Kind,
    pub id: String,
    pub service: String,
    /// Labels; null if there are none.
    pub tags: Option<Vec<String>>,
    /// Free text by key; null if there is none.
    pub meta: Option<BTreeMap<String, String>>,
    pub address: String,
    pub port: u16,
    /// Other addresses by name; agent and servers add some.
    pub tagged_addresses: BTreeMap<String, TaggedAddress>,
    /// Proxy settings, including the central configuration if the agent merges it.
    pub proxy: Option<Proxy>,
    /// Consul Enterprise namespace.
    pub namespace: Option<String>,
    /// Consul Enterprise admin partition.
    pub partition: Option<String>,
    /// The agent's datacenter; not reported before Consul 1.10.
    pub datacenter: Option<String>,
    /// Changes when the service does; only present if the service was requested by id.
    pub content_hash: String,
    /// Fields that could not be read, with the reason.
    pub unreadable: Vec<String>,
}

/// A check in the answer of an agent or of the catalog.
///
/// Source: Consul's "Check - Agent HTTP API" page, "List Checks".
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AgentCheck {
    pub node: String,
    #[serde(rename = "CheckID")]
    pub check_id: String,
    /// Free text.
    pub name: String,
    /// `passing`, `warning`, `critical` or `maintenance`.
    pub status: String,
    /// The service's id; empty for a check of the node.
    #[serde(rename = "ServiceID")]
    pub service_id: String,
    /// Message of the last run.
    pub output: String,
    /// `tcp`, `http`, `ttl`, `alias` and so on.
    #[serde(rename = "Type")]
    pub kind: String,
}

/// State of a cluster peering.
///
/// Source: Consul's "Cluster Peering - HTTP API" page, "Read a Peering".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PeerState {
    /// A peering token was generated and not used yet.
    Pending,
    /// The peering token is being used.
    Establishing,
    /// Both sides are connected.
    Active,
    /// Both sides were connected, and are not.
    Failing,
    /// This side is deleting it.
    Deleting,
    /// The other side has deleted it.
    Terminated,
    /// A state that this program does not know.
    #[default]
    #[serde(other)]
    Other,
}

/// The roots of Connect's CA.
///
/// Source: Consul's "Connect - Agent HTTP API" page, "Certificate Authority
/// (CA) Roots".
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Roots {
    /// Id of the root that signs new certificates; empty if there is none.
    #[serde(rename = "ActiveRootID")]
    pub active_root_id: String,
    /// All trusted roots, including those before a rotation.
    pub roots: Vec<Root>,
}

/// A root of Connect's CA.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Root {
    /// In PEM.
    pub root_cert: String,
}

/// An instance of a service in the catalog.
///
/// Source: Consul's "Catalog HTTP API" page, "List Nodes for Service".
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CatalogService {
    pub node: String,
    /// The node's address.
    pub address: String,
    /// The service's id on that node.
    #[serde(rename = "ServiceID")]
    pub service_id: String,
}

/// An instance of a service with its checks.
///
/// Source: Consul's "Health HTTP API" page, "List Service Instances for Service" and
/// "List Service Instances for Mesh-enabled Service".
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthyInstance {
    /// The service, or its proxy if proxies are listed.
    pub service: AgentService,
    /// Checks of the service and of its node.
    pub checks: Vec<AgentCheck>,
}

/// The agent's answer about itself.
///
/// Source: Consul's "Agent HTTP API" page, "Read Configuration".
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AgentSelf {
    /// The public part of its configuration.
    #[serde(rename = "Config")]
    pub config: SelfConfig,
    /// The full configuration; its shape differs between releases.
    #[serde(rename = "DebugConfig")]
    pub debug: SelfDebug,
    /// xDS of the agent (Consul 1.11).
    #[serde(rename = "xDS")]
    pub xds: Option<SelfXds>,
}

/// The public part of an agent's configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SelfConfig {
    pub datacenter: String,
    pub node_name: String,
    /// The Consul release, such as `1.14.11`.
    pub version: String,
}

/// The fields of an agent's full configuration that this project reads.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SelfDebug {
    /// -1: off.
    #[serde(rename = "GRPCPort", deserialize_with = "lenient")]
    pub grpc_port: Option<i64>,
    /// -1: off. Before 1.14, an agent with an HTTPS port serves gRPC over TLS.
    #[serde(rename = "HTTPSPort", deserialize_with = "lenient")]
    pub https_port: Option<i64>,
    /// Whether ACLs are enabled.
    #[serde(rename = "ACLsEnabled", deserialize_with = "lenient")]
    pub acls_enabled: Option<bool>,
}

/// How an agent feeds proxies.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SelfXds {
    /// Versions of proxies that the agent supports, by kind of proxy.
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
    #[serde(rename = "TLS")]
    pub tls: i64,
}

// === impl AgentSelf ===

impl AgentSelf {
    /// The Envoy releases that the agent supports.
    pub fn supported_envoys(&self) -> &[String] {
        let kinds = self.xds.as_ref().map(|xds| &xds.supported_proxies);
        kinds.and_then(|kinds| kinds.get("envoy")).map(Vec::as_slice).unwrap_or_default()
    }
}

/// `None` for a value of another shape: the configuration differs between releases.
fn lenient<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned + Default,
{
    Ok(serde_json::from_value(Value::deserialize(deserializer)?).unwrap_or_default())
}

// === impl AgentService ===

impl<'de> Deserialize<'de> for AgentService {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = Map::deserialize(deserializer)?;
        let mut entry = Entry { fields, unreadable: Vec::new() };
        let kind: String = entry.take("Kind");
        Ok(Self {
            // An unknown kind belongs to a newer release.
            kind: serde_json::from_value(Value::String(kind)).unwrap_or_default(),
            id: entry.take("ID"),
            service: entry.take("Service"),
            tags: entry.take("Tags"),
            meta: entry.take("Meta"),
            address: entry.take("Address"),
            port: entry.take("Port"),
            tagged_addresses: entry.take("TaggedAddresses"),
            proxy: entry.take("Proxy"),
            namespace: entry.take("Namespace"),
            partition: entry.take("Partition"),
            datacenter: entry.take("Datacenter"),
            content_hash: entry.take("ContentHash"),
            unreadable: entry.unreadable,
        })
    }
}

/// The fields of an entry, parsed one by one.
struct Entry {
    fields: Map<String, Value>,
    unreadable: Vec<String>,
}

// === impl Entry ===

impl Entry {
    fn take<T: DeserializeOwned + Default>(&mut self, field: &str) -> T {
        match self.fields.remove(field) {
            None | Some(Value::Null) => T::default(),
            Some(value) => serde_json::from_value(value).unwrap_or_else(|error| {
                self.unreadable.push(format!("{field}: {error}"));
                T::default()
            }),
        }
    }
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

    /// An agent accepts port 70000 and -1
    /// (<https://github.com/spring-cloud/spring-cloud-consul/issues/773>).
    #[test]
    fn what_is_unreadable_concerns_that_entry_only() {
        let services: BTreeMap<String, AgentService> = serde_json::from_str(
            r#"{"web": {"ID": "web", "Service": "web", "Port": 80},
                "far": {"ID": "far", "Service": "far", "Port": 70000, "Meta": {"a": 1}},
                "odd": {"ID": "odd", "Service": "odd", "Port": -1, "Address": "10.0.0.1",
                        "Proxy": {"Upstreams": [{"LocalBindPort": 70000}]}}}"#,
        )
        .unwrap();
        assert_eq!((services["web"].port, services["web"].unreadable.len()), (80, 0));
        let AgentService { id, port, unreadable, .. } = &services["far"];
        assert_eq!((id.as_str(), *port), ("far", 0));
        assert!(unreadable[0].starts_with("Meta: ") && unreadable[1].starts_with("Port: "));
        assert_eq!(services["odd"].address, "10.0.0.1");
        assert_eq!((&services["odd"].proxy, services["odd"].unreadable.len()), (&None, 2));
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
