//! The Envoy bootstrap of a proxy that the agent knows: its flags, and what is
//! asked of the agent for it. The document itself is made by the crate
//! `bootstrap`.
//!
//! Source: Consul's "consul connect envoy" command page.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use ::bootstrap::GrpcAddress;
use ::bootstrap::{AccessLogs, Admin, Input, Prometheus, PrometheusTls, Proxy, Token, Xds};
use clap::Args;
use consul::answer::AgentService;
use consul::{Agent, TlsFiles};
use registration::service::Kind;
use runtime::{Exit, Failure};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;

use crate::report::{Report, exit};
use crate::xds::{XdsServer, resolve_host};

/// How Envoy is to be set up, as `consul connect envoy` has it.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Envoy bootstrap")]
pub struct BootstrapArgs {
    /// Where Envoy's admin interface listens
    #[arg(
        long,
        env = "CONNECT_ADMIN_BIND",
        default_value = "127.0.0.1:19000",
        value_name = "HOST:PORT"
    )]
    pub admin_bind: String,

    /// Where Envoy logs requests to its admin interface
    #[arg(
        long,
        env = "CONNECT_ADMIN_ACCESS_LOG_PATH",
        default_value = "/dev/null",
        value_name = "FILE"
    )]
    pub admin_access_log_path: String,

    /// Do not merge the proxy's configuration and proxy-defaults into the document
    #[arg(long, env = "CONNECT_NO_CENTRAL_CONFIG")]
    pub no_central_config: bool,

    /// Where the agent serves xDS: host:port, http(s)://host:port or
    /// unix:///path. If absent: on the host of --http-addr, over TLS if a CA is
    /// given and the agent serves TLS, else in plain text
    #[arg(long, env = "CONSUL_GRPC_ADDR", value_name = "ADDRESS")]
    pub grpc_addr: Option<GrpcAddress>,

    /// A PEM file with the CA certificates for xDS; if absent, those of HTTP
    #[arg(long, env = "CONSUL_GRPC_CACERT", value_name = "FILE")]
    pub grpc_ca_file: Option<PathBuf>,

    /// A directory of PEM files with CA certificates for xDS
    #[arg(long, env = "CONSUL_GRPC_CAPATH", value_name = "FOLDER")]
    pub grpc_ca_path: Option<PathBuf>,

    /// The Envoy that is going to run, as a version or an image, such as
    /// envoyproxy/envoy:v1.40.0: one that the agent does not support is warned of
    #[arg(long, env = "CONNECT_ENVOY_VERSION", value_name = "VERSION")]
    pub envoy_version: Option<String>,

    /// Leave out the tags of metrics that Consul keeps for old dashboards
    #[arg(long, env = "CONNECT_OMIT_DEPRECATED_TAGS")]
    pub omit_deprecated_tags: bool,

    /// The local port whose metrics Prometheus gets instead of Envoy's own
    #[arg(long, env = "CONNECT_PROMETHEUS_BACKEND_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub prometheus_backend_port: Option<u16>,

    /// The path that Prometheus scrapes
    #[arg(
        long,
        env = "CONNECT_PROMETHEUS_SCRAPE_PATH",
        default_value = "/metrics",
        value_name = "PATH"
    )]
    pub prometheus_scrape_path: String,

    /// A PEM file with the CA certificates for scraping over TLS
    #[arg(long, env = "CONNECT_PROMETHEUS_CA_FILE", value_name = "FILE")]
    pub prometheus_ca_file: Option<String>,

    /// A directory of PEM files with CA certificates for scraping over TLS
    #[arg(long, env = "CONNECT_PROMETHEUS_CA_PATH", value_name = "FOLDER")]
    pub prometheus_ca_path: Option<String>,

    /// A PEM file with the certificate for scraping over TLS
    #[arg(long, env = "CONNECT_PROMETHEUS_CERT_FILE", value_name = "FILE")]
    pub prometheus_cert_file: Option<String>,

    /// A PEM file with its key
    #[arg(long, env = "CONNECT_PROMETHEUS_KEY_FILE", value_name = "FILE")]
    pub prometheus_key_file: Option<String>,

    /// Where Envoy tells others that it is ready; with --envoy-ready-bind-port
    #[arg(
        long,
        env = "CONNECT_ENVOY_READY_BIND_ADDRESS",
        value_name = "IP",
        requires = "envoy_ready_bind_port"
    )]
    pub envoy_ready_bind_address: Option<IpAddr>,

    /// The port there
    #[arg(long, env = "CONNECT_ENVOY_READY_BIND_PORT", value_name = "PORT", requires = "envoy_ready_bind_address", value_parser = clap::value_parser!(u16).range(1..))]
    pub envoy_ready_bind_port: Option<u16>,
}

/// What is asked of the agent for a document.
struct Seen {
    xds: XdsServer,
    access_logs: AccessLogs,
}

/// A document that was made without a registered proxy.
pub struct Rehearsal {
    pub document: Value,
    /// What was taken for granted, because the agent did not tell.
    pub assumed: Vec<String>,
}

/// How long an agent is waited for, for what can be done without.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is read of the entry `proxy-defaults/global`.
#[derive(Deserialize)]
struct ProxyDefaults {
    #[serde(rename = "AccessLogs", default)]
    access_logs: Option<AccessLogs>,
}

// === impl BootstrapArgs ===

impl BootstrapArgs {
    /// Envoy's admin listener, with its host resolved.
    pub async fn admin(&self) -> Result<SocketAddr, Failure> {
        resolve("--admin-bind", &self.admin_bind).await
    }

    /// Renders the document for a proxy, as the agent has it registered.
    ///
    /// # Errors
    /// The entry is no proxy; a setting can't be honoured.
    pub async fn render(
        &self,
        agent: &Agent,
        proxy: &AgentService,
        xds: XdsServer,
    ) -> Result<Value, Failure> {
        let seen = Seen { xds, access_logs: self.access_logs(agent).await? };
        self.document(agent, proxy, seen).await
    }

    /// Renders the document for a proxy that is not registered yet. What the
    /// agent does not tell is taken for granted; with `answers` off, it is not
    /// asked. `token` stands for the ACL token, and `files` are as Envoy sees them.
    ///
    /// # Errors
    /// A setting can't be honoured; a file can't be read.
    pub async fn rehearse(
        &self,
        agent: &Agent,
        files: &TlsFiles,
        answers: bool,
        proxy: &AgentService,
        token: Option<SecretString>,
    ) -> Result<Rehearsal, Failure> {
        let agent = agent.within(PATIENCE);
        let silent = || Failure::new(Exit::Unreachable, "the agent does not answer");
        let mut assumed = Vec::new();
        let (xds, guessed) = self.guess_xds(&agent, files, answers).await?;
        assumed.extend(guessed);
        let access_logs = if answers || self.no_central_config {
            self.access_logs(&agent).await
        } else {
            Err(silent())
        };
        let access_logs = access_logs.unwrap_or_else(|failure| {
            assumed.push(format!("proxy-defaults asks for no access logs: {failure}"));
            AccessLogs::default()
        });
        let holder = agent.apart();
        holder.set_token(token);
        let document = self.document(&holder, proxy, Seen { xds, access_logs }).await?;
        Ok(Rehearsal { document, assumed })
    }

    async fn document(
        &self,
        agent: &Agent,
        proxy: &AgentService,
        seen: Seen,
    ) -> Result<Value, Failure> {
        let Seen { xds: XdsServer { address, ca_pem, client_certificate }, access_logs } = seen;
        let id = &proxy.id;
        let registered = match (&proxy.kind, &proxy.proxy) {
            (Kind::Typical, _) | (_, None) => {
                return Err(Failure::usage(format_args!("service `{id}` is not a Connect proxy"))
                    .hint(
                        "name the id of its sidecar proxy; `<service id>-sidecar-proxy` is usual",
                    ));
            }
            (_, Some(registered)) => registered,
        };
        // A gateway stands for no service but itself.
        let (cluster, source_service) = match registered.destination_service_name.as_str() {
            "" => (id, &proxy.service),
            _ => (&registered.destination_service_name, &registered.destination_service_name),
        };
        let config = agent.config();
        let token =
            agent.token().map(|token| Token::new(token.expose_secret())).unwrap_or_default();
        let prometheus_tls = PrometheusTls::from_flags(
            self.prometheus_ca_file.as_deref(),
            self.prometheus_ca_path.as_deref(),
            self.prometheus_cert_file.as_deref(),
            self.prometheus_key_file.as_deref(),
        );
        let input = Input {
            proxy: Proxy {
                id: id.clone(),
                cluster: cluster.clone(),
                source_service: Some(source_service.clone()),
                namespace: proxy.namespace.clone().or_else(|| config.namespace.clone()),
                partition: proxy.partition.clone().or_else(|| config.partition.clone()),
                datacenter: proxy.datacenter.clone(),
                node_name: None,
                config: if self.no_central_config {
                    serde_json::Map::new()
                } else {
                    registered.config.clone()
                },
            },
            xds: Xds { address, ca_pem, client_certificate, token },
            admin: Admin {
                bind: self.admin().await?,
                access_log_path: self.admin_access_log_path.clone(),
                access_logs,
            },
            prometheus: Prometheus {
                scrape_path: self.prometheus_scrape_path.clone(),
                backend_port: self.prometheus_backend_port,
                tls: prometheus_tls.map_err(Failure::usage)?,
            },
            ready_bind: self
                .envoy_ready_bind_address
                .zip(self.envoy_ready_bind_port)
                .map(SocketAddr::from),
            omit_deprecated_tags: self.omit_deprecated_tags,
        };
        // Statsd addresses may name a variable, which is not known beforehand.
        let env = |name: &str| std::env::var_os(name).and_then(|value| value.into_string().ok());
        ::bootstrap::render(&input, &env).map_err(|error| {
            Failure::usage(error).while_doing(format_args!("the bootstrap of `{id}`"))
        })
    }

    /// The access logs of proxy-defaults. A token that may not read it is no
    /// reason to have no sidecar; an agent that can't at the moment is asked again.
    async fn access_logs(&self, agent: &Agent) -> Result<AccessLogs, Failure> {
        if self.no_central_config {
            return Ok(AccessLogs::default());
        }
        match agent.config_entry::<ProxyDefaults>("proxy-defaults", "global").await {
            Ok(entry) => Ok(entry.and_then(|entry| entry.access_logs).unwrap_or_default()),
            Err(error) if matches!(exit(&error), Exit::Unreachable | Exit::Deadline) => {
                Err(error.failure())
            }
            Err(error) => {
                tracing::warn!("the access logs of proxy-defaults are left out: {error}");
                Ok(AccessLogs::default())
            }
        }
    }
}

/// Resolves `host:port` to an address; Envoy's bootstrap takes IP addresses only.
async fn resolve(flag: &str, text: &str) -> Result<SocketAddr, Failure> {
    let form = || {
        Failure::usage(format_args!("{flag} `{text}`: expected host:port, such as 127.0.0.1:19000"))
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(form)?;
    let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(form)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() {
        return Err(form());
    }
    resolve_host(flag, host, port).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bind_address_may_name_its_host() {
        for (text, address) in
            [("localhost:19000", "127.0.0.1:19000"), ("[::1]:19000", "[::1]:19000")]
        {
            assert_eq!(resolve("--admin-bind", text).await.unwrap().to_string(), address);
        }
        for text in ["19000", ":19000", "localhost:", "localhost:0", "localhost:99999"] {
            let error = resolve("--admin-bind", text).await.unwrap_err().to_string();
            assert!(
                error.contains("--admin-bind") && error.contains("expected host:port"),
                "{error}"
            );
        }
    }
}
