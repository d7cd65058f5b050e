//! Request body of a registration.
//!
//! Source: Consul's "Service - Agent HTTP API" page, "Register Service".

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Check, Proxy, Token, is_default};

/// A service as the agent registers it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Service {
    /// What it is, if not an ordinary service.
    #[serde(skip_serializing_if = "is_default")]
    pub kind: Kind,
    /// Unique on the agent; empty: the name.
    #[serde(rename = "ID", skip_serializing_if = "is_default")]
    pub id: String,
    pub name: String,
    /// Labels that queries can filter by.
    #[serde(skip_serializing_if = "is_default")]
    pub tags: Vec<String>,
    /// Empty: the agent's address.
    #[serde(skip_serializing_if = "is_default")]
    pub address: String,
    /// Other addresses by name, such as `lan`, `wan` or `lan_ipv6`.
    #[serde(skip_serializing_if = "is_default")]
    pub tagged_addresses: BTreeMap<String, TaggedAddress>,
    /// 0: it accepts no connections.
    #[serde(skip_serializing_if = "is_default")]
    pub port: u16,
    /// Named ports instead of `port` (Consul 1.22).
    #[serde(skip_serializing_if = "is_default")]
    pub ports: Vec<NamedPort>,
    /// Unix socket instead of address and port (Consul 1.10).
    #[serde(skip_serializing_if = "is_default")]
    pub socket_path: String,
    /// Free text by key.
    #[serde(skip_serializing_if = "is_default")]
    pub meta: BTreeMap<String, String>,
    /// Weights in DNS answers, by health.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
    /// Whether others may change its tags in the catalog.
    #[serde(skip_serializing_if = "is_default")]
    pub enable_tag_override: bool,
    /// Present for a proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
    /// How an ordinary service takes part in the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect: Option<Connect>,
    #[serde(skip_serializing_if = "is_default")]
    pub checks: Vec<Check>,
    /// Region and zone (Consul 1.16).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<Locality>,
    /// Consul Enterprise namespace.
    #[serde(skip_serializing_if = "is_default")]
    pub namespace: String,
    /// Consul Enterprise admin partition.
    #[serde(skip_serializing_if = "is_default")]
    pub partition: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An ordinary service.
    #[default]
    #[serde(rename = "")]
    Typical,
    /// A sidecar, or another proxy with a destination.
    ConnectProxy,
    /// A gateway between datacenters or partitions.
    MeshGateway,
    /// A gateway to services outside the mesh.
    TerminatingGateway,
    /// A gateway for traffic from outside the mesh.
    IngressGateway,
    /// A gateway configured as the Kubernetes Gateway API does (Consul 1.15).
    ApiGateway,
}

/// An additional address of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TaggedAddress {
    pub address: String,
    /// 0: the service's own.
    #[serde(skip_serializing_if = "is_default")]
    pub port: u16,
}

/// One of several ports of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NamedPort {
    /// Unique within the service.
    pub name: String,
    /// From 1 to 65535.
    pub port: u16,
    /// Whether clients that name no port get this one; exactly one must be the default.
    #[serde(skip_serializing_if = "is_default")]
    pub default: bool,
}

/// Weights in DNS SRV answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Weights {
    pub passing: u16,
    /// While one of its checks warns.
    pub warning: u16,
}

/// How a service takes part in the mesh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Connect {
    /// Whether it speaks mutual TLS itself and needs no proxy.
    #[serde(skip_serializing_if = "is_default")]
    pub native: bool,
    /// A sidecar that the agent registers with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sidecar_service: Option<Box<SidecarService>>,
}

/// A sidecar that the agent registers: a [`Service`] whose fields are all optional.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SidecarService {
    /// Unique on the agent; empty: the parent's with `-sidecar-proxy`.
    #[serde(rename = "ID", skip_serializing_if = "is_default")]
    pub id: String,
    /// Empty: the parent's with `-sidecar-proxy`.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// Empty: the parent's.
    #[serde(skip_serializing_if = "is_default")]
    pub tags: Vec<String>,
    /// Empty: the parent's.
    #[serde(skip_serializing_if = "is_default")]
    pub address: String,
    /// Other addresses by name.
    #[serde(skip_serializing_if = "is_default")]
    pub tagged_addresses: BTreeMap<String, TaggedAddress>,
    /// 0: the agent chooses a port.
    #[serde(skip_serializing_if = "is_default")]
    pub port: u16,
    /// Free text by key; empty: the parent's.
    #[serde(skip_serializing_if = "is_default")]
    pub meta: BTreeMap<String, String>,
    /// Weights in DNS answers, by health.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
    /// Whether others may change its tags in the catalog.
    #[serde(skip_serializing_if = "is_default")]
    pub enable_tag_override: bool,
    /// Proxy settings; the destination is the parent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
    /// ACL token with which the agent registers it; `None`: the parent's. Never read
    /// back.
    #[serde(skip_serializing_if = "Option::is_none", skip_deserializing)]
    pub token: Option<Token>,
    /// Empty: the agent's two default checks for sidecars.
    #[serde(skip_serializing_if = "is_default")]
    pub checks: Vec<Check>,
    /// Unix socket instead of address and port (Consul 1.10).
    #[serde(skip_serializing_if = "is_default")]
    pub socket_path: String,
    /// `None`: the parent's (Consul 1.16).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<Locality>,
    /// Must be the parent's (Consul Enterprise).
    #[serde(skip_serializing_if = "is_default")]
    pub namespace: String,
    /// Must be the parent's (Consul Enterprise).
    #[serde(skip_serializing_if = "is_default")]
    pub partition: String,
}

/// Region and zone of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Locality {
    /// Region of the cloud.
    #[serde(skip_serializing_if = "is_default")]
    pub region: String,
    /// The zone within the region.
    #[serde(skip_serializing_if = "is_default")]
    pub zone: String,
}

// === impl Service ===

impl Service {
    /// The id on the agent: its own, or else its name.
    pub fn id(&self) -> &str {
        if self.id.is_empty() { &self.name } else { &self.id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_fields_are_not_sent() {
        let service = Service { name: "web".to_owned(), ..Service::default() };
        assert_eq!(serde_json::to_string(&service).unwrap(), r#"{"Name":"web"}"#);
    }

    #[test]
    fn the_name_stands_for_a_missing_id() {
        let mut service = Service { name: "web".to_owned(), ..Service::default() };
        assert_eq!(service.id(), "web");
        service.id = "web-1".to_owned();
        assert_eq!(service.id(), "web-1");
    }

    #[test]
    fn kinds_are_written_as_consul_writes_them() {
        let kind = |kind| serde_json::to_value(kind).unwrap();
        assert_eq!(kind(Kind::ConnectProxy), "connect-proxy");
        assert_eq!(kind(Kind::TerminatingGateway), "terminating-gateway");
        assert_eq!(kind(Kind::Typical), "");
    }
}
