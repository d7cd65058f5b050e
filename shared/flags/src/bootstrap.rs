//! The Envoy bootstrap of a proxy that the agent knows: its flags, and what is
//! asked of the agent for it. The document itself is made by the crate
//! `bootstrap`.
//!
//! Source: Consul's "consul connect envoy" command page.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use ::bootstrap::GrpcAddress;
use ::bootstrap::{
    AccessLogs, Admin, Input, Prometheus, PrometheusTls, Proxy, Token, Xds, XdsAddress,
};
use clap::Args;
use consul::answer::AgentService;
use consul::envoy_version::misfit;
use consul::grpc::{DEFAULT_GRPC, grpc_port};
use consul::{Agent, TlsFiles};
use registration::service::Kind;
use runtime::{Exit, Failure};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;

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
    /// unix:///path; if absent, the agent is asked
    #[arg(long, env = "CONSUL_GRPC_ADDR", value_name = "ADDRESS")]
    pub grpc_addr: Option<GrpcAddress>,

    /// A PEM file with the CA certificates for xDS; if absent, those of HTTP
    #[arg(long, env = "CONSUL_GRPC_CACERT", value_name = "FILE")]
    pub grpc_ca_file: Option<PathBuf>,

    /// A folder of PEM files with CA certificates for xDS
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

    /// A folder of PEM files with CA certificates for scraping over TLS
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
    grpc: GrpcAddress,
    access_logs: AccessLogs,
}

/// A document that was made without a registered proxy.
pub struct Rehearsal {
    /// The document.
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
    /// The entry is no proxy; a setting can't be honoured; a file can't be
    /// read; gRPC is off on the agent.
    pub async fn render(&self, agent: &Agent, proxy: &AgentService) -> Result<Value, Failure> {
        let grpc = self.grpc(agent).await?;
        let seen = Seen { grpc, access_logs: self.access_logs(agent).await? };
        self.document(agent, proxy, seen).await
    }

    /// Renders the document for a proxy that is not registered yet. What the
    /// agent does not tell is taken for granted; with `answers` off, it is not
    /// asked. `token` stands for the ACL token.
    ///
    /// # Errors
    /// A setting can't be honoured; a file can't be read.
    pub async fn rehearse(
        &self,
        agent: &Agent,
        answers: bool,
        proxy: &AgentService,
        token: Option<SecretString>,
    ) -> Result<Rehearsal, Failure> {
        let agent = agent.within(PATIENCE);
        let silent = || Failure::new(Exit::Unreachable, "the agent does not answer");
        let mut assumed = Vec::new();
        let grpc = match &self.grpc_addr {
            None if !answers => Err(silent()),
            _ => self.grpc(&agent).await,
        };
        let grpc = grpc.unwrap_or_else(|failure| {
            let (host, port) = DEFAULT_GRPC;
            assumed.push(format!("xDS is served at {host}:{port}: {failure}"));
            GrpcAddress::Tcp { tls: false, host: host.to_owned(), port }
        });
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
        let document = self.document(&holder, proxy, Seen { grpc, access_logs }).await?;
        Ok(Rehearsal { document, assumed })
    }

    /// Warns of an Envoy that the agent does not know; it may work all the same.
    pub async fn compare_envoy(&self, agent: &Agent) {
        let Some(envoy) = &self.envoy_version else { return };
        match agent.within(PATIENCE).agent_self().await {
            Ok(about) => {
                if let Some(words) = misfit(envoy, about.supported_envoys()) {
                    tracing::warn!("{words}");
                }
            }
            Err(error) => tracing::debug!("Envoy's release is not compared: {error}"),
        }
    }

    async fn document(
        &self,
        agent: &Agent,
        proxy: &AgentService,
        seen: Seen,
    ) -> Result<Value, Failure> {
        let Seen { grpc, access_logs } = seen;
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
            xds: self.xds(agent, grpc).await?,
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

    /// Where xDS is served, as a flag says it or else the agent.
    async fn grpc(&self, agent: &Agent) -> Result<GrpcAddress, Failure> {
        match &self.grpc_addr {
            Some(address) => Ok(address.clone()),
            None => discover(agent).await,
        }
    }

    async fn xds(&self, agent: &Agent, address: GrpcAddress) -> Result<Xds, Failure> {
        let own = TlsFiles {
            ca_file: self.grpc_ca_file.clone(),
            ca_path: self.grpc_ca_path.clone(),
            ..TlsFiles::default()
        };
        let has_own = own.ca_file.is_some() || own.ca_path.is_some();
        let (address, tls) = match address {
            GrpcAddress::Tcp { tls, host, port } => {
                (XdsAddress::Tcp(resolve_host("--grpc-addr", &host, port).await?), tls)
            }
            // On a socket, only a CA of its own says that TLS is spoken.
            GrpcAddress::Unix(path) => (XdsAddress::Unix(path), has_own),
        };
        let ca_pem = match (tls, has_own) {
            (false, _) => None,
            (true, true) => Some(own.ca_pem()?),
            (true, false) => Some(agent.config().tls.ca_pem()?),
        };
        if ca_pem.as_ref().is_some_and(String::is_empty) {
            return Err(Failure::usage(
                "xDS is served over TLS, but there is no CA certificate to check it against",
            )
            .hint("give --grpc-ca-file or --grpc-ca-path, or --ca-file or --ca-path"));
        }
        let token =
            agent.token().map(|token| Token::new(token.expose_secret())).unwrap_or_default();
        Ok(Xds { address, ca_pem, token })
    }

    /// The access logs of proxy-defaults. A token that may not read it is no
    /// reason to have no sidecar; an agent that can't at the moment is asked again.
    async fn access_logs(&self, agent: &Agent) -> Result<AccessLogs, Failure> {
        if self.no_central_config {
            return Ok(AccessLogs::default());
        }
        match agent.config_entry::<ProxyDefaults>("proxy-defaults", "global").await {
            Ok(entry) => Ok(entry.and_then(|entry| entry.access_logs).unwrap_or_default()),
            Err(error) if matches!(error.exit(), Exit::Unreachable | Exit::Deadline) => {
                Err(error.into())
            }
            Err(error) => {
                tracing::warn!("the access logs of proxy-defaults are left out: {error}");
                Ok(AccessLogs::default())
            }
        }
    }
}

/// Asks the agent where it serves xDS, as "consul connect envoy" does.
async fn discover(agent: &Agent) -> Result<GrpcAddress, Failure> {
    let (host, default_port) = DEFAULT_GRPC;
    let found = match agent.agent_self().await {
        Ok(answer) => grpc_port(&answer),
        Err(error) if error.exit() == Exit::Denied => {
            tracing::warn!(
                "the agent does not tell its gRPC port ({error}): {host}:{default_port} is taken"
            );
            None
        }
        Err(error) => return Err(error.into()),
    };
    let (tls, port) = match found {
        Some((_, port)) if port < 0 => {
            return Err(Failure::usage(
                "gRPC is off on the agent: Envoy has nowhere to get its configuration from",
            )
            .hint("set `ports { grpc = 8502 }` in the agent's configuration"));
        }
        Some((tls, port)) => (tls, u16::try_from(port).map_err(Failure::usage)?),
        None => {
            tracing::warn!("the agent does not tell its gRPC port: {host}:{default_port} is taken");
            (false, default_port)
        }
    };
    Ok(GrpcAddress::Tcp { tls, host: host.to_owned(), port })
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

async fn resolve_host(flag: &str, host: &str, port: u16) -> Result<SocketAddr, Failure> {
    let unresolved = |problem: &dyn std::fmt::Display| {
        Failure::usage(format_args!("{flag}: host `{host}` has no address: {problem}"))
            .hint("give an IP address")
    };
    // IPv4 first: an image from scratch has no /etc/hosts that says which of
    // the two `localhost` means, and Envoy's peers listen on IPv4 by default.
    if host == "localhost" {
        return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    let addresses = tokio::net::lookup_host((host, port)).await;
    let mut addresses = addresses.map_err(|error| unresolved(&error))?;
    addresses.next().ok_or_else(|| unresolved(&"the name is known, but without an address"))
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
