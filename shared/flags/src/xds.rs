//! Where Envoy gets its configuration from. It is chosen and checked before anything is
//! registered.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::bootstrap::{ClientCertificate, GrpcAddress, XdsAddress};
use consul::answer::AgentSelf;
use consul::envoy_version::{limits_of, misfit};
use consul::grpc::{Cas, Choice, Served, Source, choose};
use consul::{Agent, TlsFiles};
use runtime::retry::{self, NODE_AGENT};
use runtime::{Deadline, Exit, Failure};

use crate::envoy::BootstrapArgs;
use crate::report::{Report, exit};

/// The xDS server that Envoy will use.
#[derive(Clone, Debug)]
pub struct XdsServer {
    /// Resolved to an IP address.
    pub address: XdsAddress,
    /// CA certificates that verify it, as PEM; `None` without TLS.
    pub ca_pem: Option<String>,
    /// Client certificate presented to it.
    pub client_certificate: Option<ClientCertificate>,
}

/// Time limit of a request that a default can replace.
const PATIENCE: Duration = Duration::from_secs(3);

// === impl BootstrapArgs ===

impl BootstrapArgs {
    /// TLS files for gRPC: those of HTTP, with the CA replaced if gRPC has its own.
    pub fn grpc_tls(&self, http: &TlsFiles) -> TlsFiles {
        let cas = self.cas(http);
        let (ca_file, ca_path, inline_ca_pem) = if cas.grpc {
            (self.grpc_ca_file.clone(), self.grpc_ca_path.clone(), None)
        } else {
            (http.ca_file.clone(), http.ca_path.clone(), http.inline_ca_pem.clone())
        };
        TlsFiles {
            ca_file,
            ca_path,
            inline_ca_pem,
            client_cert: http.client_cert.clone(),
            client_key: http.client_key.clone(),
            // Envoy verifies against the CA, and does not compare names.
            server_name: None,
            skip_verify: false,
        }
    }

    /// Which CA certificates are given.
    pub fn cas(&self, http: &TlsFiles) -> Cas {
        Cas {
            grpc: self.grpc_ca_file.is_some() || self.grpc_ca_path.is_some(),
            http: http.has_ca(),
        }
    }

    /// Asks the agent for its ports and version, and chooses the xDS address. Waits for
    /// an agent that is not there yet and for a host name without an address. Logs what
    /// the user should know about this agent.
    ///
    /// `files` are the TLS files as Envoy sees them.
    ///
    /// # Errors
    /// The agent can't serve Envoy; a file can't be read; the deadline passed.
    pub async fn find_xds(
        &self,
        agent: &Agent,
        files: &TlsFiles,
        deadline: Deadline,
    ) -> Result<XdsServer, Failure> {
        let about = if self.needs_the_agent() { self.ask(agent, deadline).await? } else { None };
        let (choice, served) = self.choose_xds(agent, about.as_ref())?;
        if choice.source == Source::Assumed {
            tracing::warn!(address = %choice.address, "the agent does not report its gRPC port: assumed Consul's default");
        }
        if let Some(warning) = &choice.warning {
            tracing::warn!("{warning}");
        }
        if let (Source::Told, false, Served::On { tls: Some(port), .. }) =
            (choice.source, choice.tls, served)
        {
            tracing::info!(address = %choice.address, "chose xDS in plain text: its TLS port {port} needs --grpc-ca-file");
        }
        let attempt = || async { resolve(&choice.address).await };
        let resolved = retry::until(deadline, NODE_AGENT, |_| true, attempt).await;
        let address = resolved.map_err(Report::failure)?;
        self.server(agent, files, address, choice.tls)
    }

    /// Like [`BootstrapArgs::find_xds`], but waits for nothing; returns as text what it
    /// had to assume.
    pub(crate) async fn guess_xds(
        &self,
        agent: &Agent,
        files: &TlsFiles,
        answers: bool,
    ) -> Result<(XdsServer, Option<String>), Failure> {
        let about = if answers { agent.within(PATIENCE).agent_self().await.ok() } else { None };
        let (choice, doubt) = match self.choose_xds(agent, about.as_ref()) {
            Ok((choice, _)) if choice.source == Source::Assumed => {
                (choice, Some("the agent does not tell".to_owned()))
            }
            Ok((choice, _)) => (choice, None),
            Err(failure) => {
                let none = Cas { grpc: false, http: false };
                let http = &agent.config().address;
                let assumed = choose(None, http, Served::Unknown, none);
                (assumed.map_err(Report::failure)?, Some(failure.to_string()))
            }
        };
        let assumed = doubt.map(|doubt| format!("xDS is served at {}: {doubt}", choice.address));
        let address = resolve(&choice.address).await?;
        let server = self.server(agent, files, address, choice.tls)?;
        Ok((server, assumed))
    }

    fn choose_xds(
        &self,
        agent: &Agent,
        about: Option<&AgentSelf>,
    ) -> Result<(Choice, Served), Failure> {
        let http = &agent.config().address;
        let served = about.map_or(Served::Unknown, |about| Served::of(about, http));
        let cas = self.cas(&agent.config().tls);
        let choice = choose(self.grpc_addr.as_ref(), http, served, cas);
        Ok((choice.map_err(Report::failure)?, served))
    }

    /// Whether the flags leave something open that the agent has to answer.
    pub fn needs_the_agent(&self) -> bool {
        let is_settled = matches!(
            self.grpc_addr,
            Some(GrpcAddress::Unix(_) | GrpcAddress::Tcp { tls: Some(true), .. })
        );
        !is_settled || self.envoy_version.is_some()
    }

    /// The agent's description of itself; `None` if this token may not read it.
    async fn ask(&self, agent: &Agent, deadline: Deadline) -> Result<Option<AgentSelf>, Failure> {
        let attempt = || agent.agent_self();
        let asked = retry::until(deadline, NODE_AGENT, consul::Error::is_transient, attempt).await;
        let about = match asked {
            Ok(about) => about,
            Err(retry::Stopped::Final(error))
                if matches!(exit(&error), Exit::Denied | Exit::Failure | Exit::Refused) =>
            {
                if exit(&error) == Exit::Denied && !error.is_unknown_token() {
                    warn_without_token(agent);
                }
                tracing::debug!("the agent does not describe itself: {error}");
                return Ok(None);
            }
            Err(stopped) => return Err(stopped.failure()),
        };
        if let Some(limits) = limits_of(&about.config.version) {
            tracing::warn!(
                "Consul {} {}; hint: {}",
                about.config.version,
                limits.words(),
                limits.hint()
            );
        }
        let envoy = self.envoy_version.as_deref();
        if let Some(words) = envoy.and_then(|envoy| misfit(envoy, about.supported_envoys())) {
            tracing::warn!("{words}");
        }
        if about.debug.acls_enabled == Some(true) {
            warn_without_token(agent);
        }
        Ok(Some(about))
    }

    fn server(
        &self,
        agent: &Agent,
        files: &TlsFiles,
        address: XdsAddress,
        tls: bool,
    ) -> Result<XdsServer, Failure> {
        if !tls {
            return Ok(XdsServer { address, ca_pem: None, client_certificate: None });
        }
        let ca_pem = self.grpc_tls(&agent.config().tls).ca_pem();
        let ca_pem = Some(ca_pem.map_err(Report::failure)?);
        let client_certificate = match (&files.client_cert, &files.client_key) {
            (Some(cert), Some(key)) => {
                Some(ClientCertificate { cert_file: absolute(cert)?, key_file: absolute(key)? })
            }
            _ => None,
        };
        Ok(XdsServer { address, ca_pem, client_certificate })
    }
}

fn warn_without_token(agent: &Agent) {
    if agent.token().is_none() {
        tracing::warn!(
            "ACLs are on and no ACL token is given: Envoy asks with the anonymous token; hint: give --token-file (CONSUL_HTTP_TOKEN_FILE) or --acl-auth-method"
        );
    }
}

/// Envoy runs in another directory.
fn absolute(file: &Path) -> Result<String, Failure> {
    let path: PathBuf = std::path::absolute(file)
        .map_err(|error| Failure::usage(format_args!("cannot find {}: {error}", file.display())))?;
    path.into_os_string()
        .into_string()
        .map_err(|path| Failure::usage(format_args!("{} is not UTF-8", path.display())))
}

async fn resolve(address: &GrpcAddress) -> Result<XdsAddress, Failure> {
    match address {
        GrpcAddress::Unix(path) => Ok(XdsAddress::Unix(path.clone())),
        GrpcAddress::Tcp { host, port, .. } => {
            resolve_host("--grpc-addr", host, *port).await.map(XdsAddress::Tcp)
        }
    }
}

/// Resolves a host; Envoy's bootstrap accepts IP addresses only.
pub(crate) async fn resolve_host(flag: &str, host: &str, port: u16) -> Result<SocketAddr, Failure> {
    let unresolved = |problem: &dyn std::fmt::Display| {
        Failure::new(
            Exit::Unreachable,
            format_args!("{flag}: host `{host}` has no address: {problem}"),
        )
        .hint("check the name, or give an IP address")
    };
    // IPv4 first: an image from scratch has no /etc/hosts to say which address
    // `localhost` is, and Envoy's peers listen on IPv4 by default.
    if host == "localhost" {
        return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    let addresses = tokio::net::lookup_host((host, port)).await;
    let mut addresses = addresses.map_err(|error| unresolved(&error))?;
    addresses.next().ok_or_else(|| unresolved(&"the name is known, but without an address"))
}
