//! The input of a bootstrap.
//!
//! - [`config`]: the keys of `Proxy.Config` that change the bootstrap
//! - [`access_log`]: access logs of the admin server
//! - [`grpc_address`]: the address of the agent's gRPC port in users' notation

pub(crate) mod access_log;
pub(crate) mod config;
pub(crate) mod grpc_address;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Map, Value};

use crate::{AccessLogs, Error};

/// Everything that changes the bootstrap. [`Input::new`] sets what has no default; the
/// other fields default to those of `consul connect envoy` without flags.
#[derive(Debug, Clone)]
pub struct Input {
    pub proxy: Proxy,
    pub xds: Xds,
    pub admin: Admin,
    pub prometheus: Prometheus,
    /// Address for `/ready`, for probes from outside the pod. `consul connect envoy
    /// -envoy-ready-bind-address` and `-envoy-ready-bind-port`.
    pub ready_bind: Option<SocketAddr>,
    /// Leaves out `consul.service` and related metric tags, which Consul 1.9 replaced
    /// by `consul.destination.service`. `consul connect envoy -omit-deprecated-tags`.
    pub omit_deprecated_tags: bool,
}

/// The part of the proxy's registration that the bootstrap needs.
#[derive(Debug, Clone, Default)]
pub struct Proxy {
    /// Id of the proxy's registration; becomes Envoy's `node.id`, by which the agent
    /// knows whose configuration to send.
    pub id: String,
    /// Name of the destination service (`Proxy.DestinationServiceName`); becomes
    /// Envoy's `node.cluster` and the metric tag `local_cluster`.
    pub cluster: String,
    /// Metric tag `consul.source.service`, if any.
    pub source_service: Option<String>,
    /// Consul Enterprise namespace. `None` and an empty text mean `default`.
    pub namespace: Option<String>,
    /// Consul Enterprise admin partition. `None` and an empty text mean `default`.
    pub partition: Option<String>,
    /// Metric tag `consul.source.datacenter`, if any.
    pub datacenter: Option<String>,
    /// The proxy's Consul node, for proxies that are registered in the catalog only.
    /// `consul connect envoy -node-name`.
    pub node_name: Option<String>,
    /// `Proxy.Config` with the central configuration merged in. Decoded as loosely as
    /// Consul does: keys in any case, numbers and booleans for texts, unknown keys
    /// ignored.
    pub config: Map<String, Value>,
}

/// How Envoy reaches the agent's xDS server.
#[derive(Debug, Clone)]
pub struct Xds {
    pub address: XdsAddress,
    /// CA certificates as PEM that verify the server. `Some` means TLS, `None` plain
    /// text.
    pub ca_pem: Option<String>,
    /// Client certificate for a server with `tls.grpc.verify_incoming`. `consul connect
    /// envoy` has none.
    pub client_certificate: Option<ClientCertificate>,
    /// ACL token, sent with every stream as `x-consul-token`.
    pub token: Token,
}

/// Client certificate by the paths that Envoy sees. The key stays out of the bootstrap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Certificate chain, in PEM.
    pub cert_file: String,
    /// Private key, in PEM.
    pub key_file: String,
}

/// Resolved address of an xDS server: Envoy's static clusters accept no host names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum XdsAddress {
    /// IP address and port.
    Tcp(SocketAddr),
    /// Path of a Unix domain socket.
    Unix(String),
}

/// An ACL token; empty means none. `Debug` does not show it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Token(String);

#[derive(Debug, Clone)]
pub struct Admin {
    /// 127.0.0.1:19000 by default. It has no authentication: anybody who reaches it can
    /// stop Envoy. `consul connect envoy -admin-bind`.
    pub bind: SocketAddr,
    /// `/dev/null` by default. `consul connect envoy -admin-access-log-path`.
    pub access_log_path: String,
    /// Access logs by `proxy-defaults`; when enabled, they replace `access_log_path`.
    pub access_logs: AccessLogs,
}

/// The endpoint that Prometheus scrapes. It exists only if `Proxy.Config` has
/// `envoy_prometheus_bind_addr`.
#[derive(Debug, Clone)]
pub struct Prometheus {
    /// `/metrics` by default. `consul connect envoy -prometheus-scrape-path`.
    pub scrape_path: String,
    /// Port, on the admin server's address, of a server that merges Envoy's metrics
    /// with the application's; without it, Envoy's own are served. `consul connect
    /// envoy -prometheus-backend-port`.
    pub backend_port: Option<u16>,
    pub tls: Option<PrometheusTls>,
}

/// Files for serving metrics over TLS, by the paths that Envoy sees.
///
/// As in Consul's own bootstrap, a client certificate is verified if one is presented,
/// and none is required.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrometheusTls {
    /// CA certificates that verify clients.
    pub ca: PrometheusCa,
    /// Certificate chain, in PEM. `consul connect envoy -prometheus-cert-file`.
    pub cert_file: String,
    /// Private key, in PEM. `consul connect envoy -prometheus-key-file`.
    pub key_file: String,
}

/// CA certificates that verify Prometheus' client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrometheusCa {
    /// One PEM file. `consul connect envoy -prometheus-ca-file`.
    File(String),
    /// A directory, which Envoy watches without reading certificates from it, so that
    /// it verifies no client. Prefer a file. `consul connect envoy
    /// -prometheus-ca-path`.
    Path(String),
}

// === impl Input ===

impl Input {
    /// The input for a proxy with xDS in plain text, without a token, and with every
    /// other setting at its default. `cluster` is also its source service, as for a
    /// sidecar.
    pub fn new(
        proxy_id: impl Into<String>,
        cluster: impl Into<String>,
        xds_address: XdsAddress,
    ) -> Self {
        let cluster = cluster.into();
        Self {
            proxy: Proxy {
                id: proxy_id.into(),
                source_service: Some(cluster.clone()),
                cluster,
                ..Proxy::default()
            },
            xds: Xds {
                address: xds_address,
                ca_pem: None,
                client_certificate: None,
                token: Token::default(),
            },
            admin: Admin::default(),
            prometheus: Prometheus::default(),
            ready_bind: None,
            omit_deprecated_tags: false,
        }
    }
}

impl Proxy {
    /// Never empty.
    pub(crate) fn namespace(&self) -> &str {
        or_default(self.namespace.as_deref())
    }

    /// The partition that the proxy is in, never empty.
    pub(crate) fn partition(&self) -> &str {
        or_default(self.partition.as_deref())
    }
}

fn or_default(name: Option<&str>) -> &str {
    name.filter(|name| !name.is_empty()).unwrap_or("default")
}

// === impl Token ===

impl Token {
    pub fn new(token: impl Into<String>) -> Self {
        Self(token.into())
    }

    /// The token itself: the document needs it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "Token(none)" } else { "Token(hidden)" })
    }
}

// === impl Admin, Prometheus ===

impl Default for Admin {
    fn default() -> Self {
        Self {
            bind: (Ipv4Addr::LOCALHOST, 19000).into(),
            access_log_path: "/dev/null".to_owned(),
            access_logs: AccessLogs::default(),
        }
    }
}

impl Default for Prometheus {
    fn default() -> Self {
        Self { scrape_path: "/metrics".to_owned(), backend_port: None, tls: None }
    }
}

impl PrometheusTls {
    /// The four flags `-prometheus-ca-file`, `-prometheus-ca-path`,
    /// `-prometheus-cert-file` and `-prometheus-key-file` of `consul connect envoy`:
    /// none of them is no TLS, and with any of them a certificate, a key and one of the
    /// two CAs are needed (the directory wins). Otherwise the result is
    /// [`Error::PrometheusTls`].
    pub fn from_flags(
        ca_file: Option<&str>,
        ca_path: Option<&str>,
        cert_file: Option<&str>,
        key_file: Option<&str>,
    ) -> Result<Option<Self>, Error> {
        let given = |flag: Option<&str>| flag.filter(|v| !v.is_empty()).map(str::to_owned);
        let ca = given(ca_path).map(PrometheusCa::Path).or(given(ca_file).map(PrometheusCa::File));
        match (ca, given(cert_file), given(key_file)) {
            (None, None, None) => Ok(None),
            (Some(ca), Some(cert_file), Some(key_file)) => {
                Ok(Some(Self { ca, cert_file, key_file }))
            }
            (ca, cert_file, key_file) => {
                let missing = [
                    (ca.is_none(), "a CA (-prometheus-ca-file or -prometheus-ca-path)"),
                    (cert_file.is_none(), "-prometheus-cert-file"),
                    (key_file.is_none(), "-prometheus-key-file"),
                ];
                let missing: Vec<_> = missing
                    .iter()
                    .filter_map(|(is_missing, flag)| is_missing.then_some(*flag))
                    .collect();
                Err(Error::PrometheusTls { missing: missing.join(" and ") })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_the_token() {
        let mut input = Input::new("web-proxy", "web", XdsAddress::Unix("/s".to_owned()));
        input.xds.token = Token::new("s3cret");
        let shown = format!("{input:?}");
        assert!(shown.contains("Token(hidden)"), "{shown}");
        assert!(!shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn prometheus_tls_is_all_or_nothing() {
        let tls = PrometheusTls::from_flags;
        assert_eq!(tls(None, Some(""), None, None).unwrap(), None);
        let both = tls(Some("ca.pem"), Some("/cas"), Some("c"), Some("k")).unwrap();
        assert_eq!(both.unwrap().ca, PrometheusCa::Path("/cas".to_owned()));
        let one = tls(Some("ca.pem"), None, Some("c"), Some("k")).unwrap();
        assert_eq!(one.unwrap().ca, PrometheusCa::File("ca.pem".to_owned()));
        assert_eq!(
            tls(None, None, Some("c"), None).unwrap_err().to_string(),
            "TLS for Prometheus is missing a CA (-prometheus-ca-file or -prometheus-ca-path) \
             and -prometheus-key-file; hint: give a CA, a certificate and a key, or none of them"
        );
    }
}
