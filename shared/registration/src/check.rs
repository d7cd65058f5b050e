//! How the agent learns of a service's health.
//!
//! Source: Consul's "Check - Agent HTTP API" page, "Register Check", and
//! "Define health checks".

use std::collections::BTreeMap;

use duration::GoDuration;
use serde::{Deserialize, Serialize};

use crate::is_default;

/// A health check. Which kind it is follows from the field that is set: `ttl`,
/// `tcp`, `http`, `alias_service`, and so on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Check {
    /// Unique on the agent; empty: made from the service's id.
    #[serde(rename = "CheckID", skip_serializing_if = "is_default")]
    pub check_id: String,
    /// For people.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// For people.
    #[serde(skip_serializing_if = "is_default")]
    pub notes: String,
    /// What it starts as; none: critical.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// How long a report of the service's own stays good.
    #[serde(rename = "TTL", skip_serializing_if = "Option::is_none")]
    pub ttl: Option<GoDuration>,
    /// How often the agent looks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<GoDuration>,
    /// How long a look may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<GoDuration>,
    /// `host:port` that must take a connection.
    #[serde(rename = "TCP", skip_serializing_if = "is_default")]
    pub tcp: String,
    /// Whether the TCP check speaks TLS (Consul 1.17).
    #[serde(rename = "TCPUseTLS", skip_serializing_if = "is_default")]
    pub tcp_use_tls: bool,
    /// `host:port` that must take a datagram (Consul 1.13).
    #[serde(rename = "UDP", skip_serializing_if = "is_default")]
    pub udp: String,
    /// A URL that must answer with 2xx.
    #[serde(rename = "HTTP", skip_serializing_if = "is_default")]
    pub http: String,
    /// The HTTP method; empty: GET.
    #[serde(skip_serializing_if = "is_default")]
    pub method: String,
    /// HTTP headers.
    #[serde(skip_serializing_if = "is_default")]
    pub header: BTreeMap<String, Vec<String>>,
    /// The HTTP request's body.
    #[serde(skip_serializing_if = "is_default")]
    pub body: String,
    /// Whether redirects are left alone (Consul 1.10).
    #[serde(skip_serializing_if = "is_default")]
    pub disable_redirects: bool,
    /// `host:port` or `host:port/service` of gRPC's health service.
    #[serde(rename = "GRPC", skip_serializing_if = "is_default")]
    pub grpc: String,
    /// Whether the gRPC check speaks TLS.
    #[serde(rename = "GRPCUseTLS", skip_serializing_if = "is_default")]
    pub grpc_use_tls: bool,
    /// `host:port` that must answer an HTTP/2 ping (Consul 1.10).
    #[serde(rename = "H2PING", skip_serializing_if = "is_default")]
    pub h2ping: String,
    /// Whether the HTTP/2 ping speaks TLS; none: it does
    /// (Consul 1.11).
    #[serde(rename = "H2PingUseTLS", skip_serializing_if = "Option::is_none")]
    pub h2ping_use_tls: Option<bool>,
    /// Whether the server's certificate is left unchecked.
    #[serde(rename = "TLSSkipVerify", skip_serializing_if = "is_default")]
    pub tls_skip_verify: bool,
    /// The name that the server's certificate must have.
    #[serde(rename = "TLSServerName", skip_serializing_if = "is_default")]
    pub tls_server_name: String,
    /// A command that the agent runs.
    #[serde(rename = "Args", skip_serializing_if = "is_default")]
    pub args: Vec<String>,
    /// The container in which the command runs.
    #[serde(rename = "DockerContainerID", skip_serializing_if = "is_default")]
    pub docker_container_id: String,
    /// The shell for the command in the container.
    #[serde(skip_serializing_if = "is_default")]
    pub shell: String,
    /// The name of a service of the operating system (Consul 1.14).
    #[serde(rename = "OSService", skip_serializing_if = "is_default")]
    pub os_service: String,
    /// The id of a service whose health this one follows.
    #[serde(skip_serializing_if = "is_default")]
    pub alias_service: String,
    /// The node of that service.
    #[serde(skip_serializing_if = "is_default")]
    pub alias_node: String,
    /// Looks in a row that must succeed before it passes.
    #[serde(skip_serializing_if = "is_default")]
    pub success_before_passing: u32,
    /// Looks in a row that must fail before it warns (Consul 1.11).
    #[serde(skip_serializing_if = "is_default")]
    pub failures_before_warning: u32,
    /// Looks in a row that must fail before it is critical.
    #[serde(skip_serializing_if = "is_default")]
    pub failures_before_critical: u32,
    /// Bytes of output that are kept; 0: 4096.
    #[serde(skip_serializing_if = "is_default")]
    pub output_max_size: u32,
    /// How long it may be critical before its service is removed; the agent
    /// takes at least a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deregister_critical_service_after: Option<GoDuration>,
}

/// What a check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Healthy: gets traffic.
    Passing,
    /// Doubtful: still gets traffic.
    Warning,
    /// Not healthy: gets none.
    Critical,
}
