//! The Envoy bootstrap of a registered proxy, and the requests to the agent that it needs.
//! The crate `bootstrap` renders it.
//!
//! Source: Consul's "consul connect envoy" command page.

use std::net::SocketAddr;
use std::time::Duration;

use ::bootstrap::{AccessLogs, Admin, Input, Prometheus, PrometheusTls, Proxy, Token, Xds};
use consul::answer::AgentService;
use consul::{Agent, TlsFiles};
use registration::service::Kind;
use runtime::{Exit, Failure};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;

use crate::envoy::BootstrapArgs;
use crate::report::{Report, exit};
use crate::xds::{XdsServer, resolve_host};

/// The agent's answers that a bootstrap is made from.
struct Seen {
    xds: XdsServer,
    access_logs: AccessLogs,
}

/// A bootstrap of a proxy that is not registered.
pub struct Rehearsal {
    pub document: Value,
    /// Assumptions, where the agent did not answer.
    pub assumed: Vec<String>,
}

/// Time limit of a request that a default can replace.
const PATIENCE: Duration = Duration::from_secs(3);

/// The part of the config entry `proxy-defaults/global` that is used.
#[derive(Deserialize)]
struct ProxyDefaults {
    #[serde(rename = "AccessLogs", default)]
    access_logs: Option<AccessLogs>,
}

// === impl BootstrapArgs ===

impl BootstrapArgs {
    /// Envoy's admin listener, with its host name resolved.
    pub async fn admin(&self) -> Result<SocketAddr, Failure> {
        resolve("--admin-bind", &self.admin_bind).await
    }

    /// Renders the bootstrap of a registered proxy.
    ///
    /// # Errors
    /// The entry is not a proxy; a setting can't be honoured.
    pub async fn render(
        &self,
        agent: &Agent,
        proxy: &AgentService,
        xds: XdsServer,
    ) -> Result<Value, Failure> {
        let seen = Seen { xds, access_logs: self.access_logs(agent).await? };
        self.document(agent, proxy, seen).await
    }

    /// Renders the bootstrap of a proxy that is not registered yet. What the agent does
    /// not report is assumed; with `answers` off, the agent is not asked. `token` is a
    /// placeholder for the ACL token; `files` are paths as Envoy sees them.
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
        let token =
            agent.token().map(|token| Token::new(token.expose_secret())).unwrap_or_default();
        let input = Input {
            proxy: self.proxy(agent, proxy)?,
            xds: Xds { address, ca_pem, client_certificate, token },
            admin: Admin {
                bind: self.admin().await?,
                access_log_path: self.admin_access_log_path.clone(),
                access_logs,
            },
            prometheus: self.prometheus()?,
            ready_bind: self
                .envoy_ready_bind_address
                .zip(self.envoy_ready_bind_port)
                .map(SocketAddr::from),
            omit_deprecated_tags: self.omit_deprecated_tags,
        };
        // Statsd addresses may contain an environment variable, which is not known yet.
        let env = |name: &str| std::env::var_os(name).and_then(|value| value.into_string().ok());
        ::bootstrap::render(&input, &env).map_err(|error| {
            Failure::usage(error).while_doing(format_args!("the bootstrap of `{}`", proxy.id))
        })
    }

    /// Which proxy Envoy is, and its settings.
    ///
    /// # Errors
    /// The entry is not a proxy.
    fn proxy(&self, agent: &Agent, proxy: &AgentService) -> Result<Proxy, Failure> {
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
        // A gateway has no destination service: its own name is used.
        let (cluster, source_service) = match registered.destination_service_name.as_str() {
            "" => (id, &proxy.service),
            _ => (&registered.destination_service_name, &registered.destination_service_name),
        };
        let config = agent.config();
        Ok(Proxy {
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
        })
    }

    fn prometheus(&self) -> Result<Prometheus, Failure> {
        let tls = PrometheusTls::from_flags(
            self.prometheus_ca_file.as_deref(),
            self.prometheus_ca_path.as_deref(),
            self.prometheus_cert_file.as_deref(),
            self.prometheus_key_file.as_deref(),
        );
        Ok(Prometheus {
            scrape_path: self.prometheus_scrape_path.clone(),
            backend_port: self.prometheus_backend_port,
            tls: tls.map_err(Failure::usage)?,
        })
    }

    /// The access logs of proxy-defaults. If the token may not read them, the sidecar
    /// starts without; a transient failure is retried.
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
