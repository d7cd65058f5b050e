//! Flags of Envoy's bootstrap.
//!
//! Source: Consul's "consul connect envoy" command page.

use std::net::IpAddr;
use std::path::PathBuf;

pub use ::bootstrap::GrpcAddress;
use clap::Args;

/// Settings of Envoy, named as in `consul connect envoy`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Envoy bootstrap")]
pub struct BootstrapArgs {
    /// Address of Envoy's admin listener
    #[arg(
        long,
        env = "CONNECT_ADMIN_BIND",
        default_value = "127.0.0.1:19000",
        value_name = "HOST:PORT"
    )]
    pub admin_bind: String,

    /// File to which Envoy logs requests to its admin listener
    #[arg(
        long,
        env = "CONNECT_ADMIN_ACCESS_LOG_PATH",
        default_value = "/dev/null",
        value_name = "FILE"
    )]
    pub admin_access_log_path: String,

    /// Do not merge the proxy's central configuration and proxy-defaults into the
    /// bootstrap
    #[arg(long, env = "CONNECT_NO_CENTRAL_CONFIG")]
    pub no_central_config: bool,

    /// Agent's xDS (gRPC) address: host:port, http(s)://host:port or unix:///path.
    /// Default: the port that the agent reports, on the host of --http-addr, over TLS if a
    /// CA is given and the agent serves TLS
    #[arg(long, env = "CONSUL_GRPC_ADDR", value_name = "ADDRESS")]
    pub grpc_addr: Option<GrpcAddress>,

    /// PEM file with the CA certificates that verify xDS; default: those of HTTP
    #[arg(long, env = "CONSUL_GRPC_CACERT", value_name = "FILE")]
    pub grpc_ca_file: Option<PathBuf>,

    /// Directory of PEM files with CA certificates that verify xDS
    #[arg(long, env = "CONSUL_GRPC_CAPATH", value_name = "DIR")]
    pub grpc_ca_path: Option<PathBuf>,

    /// Version or image of Envoy, such as envoyproxy/envoy:v1.40.0. One that the agent
    /// does not support causes a warning
    #[arg(long, env = "CONNECT_ENVOY_VERSION", value_name = "VERSION")]
    pub envoy_version: Option<String>,

    /// Leave out the metric tags that Consul keeps for old dashboards
    #[arg(long, env = "CONNECT_OMIT_DEPRECATED_TAGS")]
    pub omit_deprecated_tags: bool,

    /// Local port proxied to Prometheus instead of Envoy's /stats
    #[arg(long, env = "CONNECT_PROMETHEUS_BACKEND_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub prometheus_backend_port: Option<u16>,

    /// Path that Prometheus scrapes
    #[arg(
        long,
        env = "CONNECT_PROMETHEUS_SCRAPE_PATH",
        default_value = "/metrics",
        value_name = "PATH"
    )]
    pub prometheus_scrape_path: String,

    /// PEM file with the CA certificates that verify Prometheus' client certificate
    #[arg(long, env = "CONNECT_PROMETHEUS_CA_FILE", value_name = "FILE")]
    pub prometheus_ca_file: Option<String>,

    /// Directory of PEM files with CA certificates that verify Prometheus' client certificate
    #[arg(long, env = "CONNECT_PROMETHEUS_CA_PATH", value_name = "DIR")]
    pub prometheus_ca_path: Option<String>,

    /// PEM file with the certificate of Envoy's metrics endpoint, which turns TLS on
    #[arg(long, env = "CONNECT_PROMETHEUS_CERT_FILE", value_name = "FILE")]
    pub prometheus_cert_file: Option<String>,

    /// PEM file with the private key of --prometheus-cert-file
    #[arg(long, env = "CONNECT_PROMETHEUS_KEY_FILE", value_name = "FILE")]
    pub prometheus_key_file: Option<String>,

    /// Address of Envoy's /ready listener; requires --envoy-ready-bind-port
    #[arg(
        long,
        env = "CONNECT_ENVOY_READY_BIND_ADDRESS",
        value_name = "IP",
        requires = "envoy_ready_bind_port"
    )]
    pub envoy_ready_bind_address: Option<IpAddr>,

    /// Port of Envoy's /ready listener
    #[arg(long, env = "CONNECT_ENVOY_READY_BIND_PORT", value_name = "PORT", requires = "envoy_ready_bind_address", value_parser = clap::value_parser!(u16).range(1..))]
    pub envoy_ready_bind_port: Option<u16>,
}
