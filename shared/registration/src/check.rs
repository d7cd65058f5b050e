//! Health checks.
//!
//! Source: Consul's "Check - Agent HTTP API" page, "Register Check", and "Define health
//! checks".

use std::collections::BTreeMap;

use duration::GoDuration;
use serde::{Deserialize, Serialize};

use crate::is_default;

/// A health check. The field that is set decides on its kind: `ttl`, `tcp`, `http`,
/// `alias_service`, and so on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Check {
    /// Unique on the agent; empty: derived from the service's id.
    #[serde(rename = "CheckID", skip_serializing_if = "is_default")]
    pub check_id: String,
    /// Free text.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// Free text.
    #[serde(skip_serializing_if = "is_default")]
    pub notes: String,
    /// Initial status; `None`: critical.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// A TTL check becomes critical if it is not renewed for this long.
    #[serde(rename = "TTL", skip_serializing_if = "Option::is_none")]
    pub ttl: Option<GoDuration>,
    /// Interval between two runs by the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<GoDuration>,
    /// Time limit of a run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<GoDuration>,
    /// `host:port` that must accept a connection.
    #[serde(rename = "TCP", skip_serializing_if = "is_default")]
    pub tcp: String,
    /// Whether the TCP check speaks TLS (Consul 1.17).
    #[serde(rename = "TCPUseTLS", skip_serializing_if = "is_default")]
    pub tcp_use_tls: bool,
    /// `host:port` that must accept a datagram (Consul 1.13).
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
    /// Whether a redirect is an answer, not followed (Consul 1.10).
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
    /// Whether the HTTP/2 ping uses TLS; `None`: yes (Consul 1.11).
    #[serde(rename = "H2PingUseTLS", skip_serializing_if = "Option::is_none")]
    pub h2ping_use_tls: Option<bool>,
    /// Whether verification of the server's certificate is off.
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
    /// Id of a service whose status this check mirrors.
    #[serde(skip_serializing_if = "is_default")]
    pub alias_service: String,
    /// Node of that service.
    #[serde(skip_serializing_if = "is_default")]
    pub alias_node: String,
    /// Consecutive successes before it passes.
    #[serde(skip_serializing_if = "is_default")]
    pub success_before_passing: u32,
    /// Consecutive failures before it warns (Consul 1.11).
    #[serde(skip_serializing_if = "is_default")]
    pub failures_before_warning: u32,
    /// Consecutive failures before it is critical.
    #[serde(skip_serializing_if = "is_default")]
    pub failures_before_critical: u32,
    /// Maximum bytes of output to keep; 0: 4096.
    #[serde(skip_serializing_if = "is_default")]
    pub output_max_size: u32,
    /// The agent removes the service after this long in the critical state, but not
    /// before one minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deregister_critical_service_after: Option<GoDuration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The service gets traffic.
    Passing,
    /// The service still gets traffic.
    Warning,
    /// The service gets no traffic.
    Critical,
}
