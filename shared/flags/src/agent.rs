//! The flags by which an agent is named. Names and environment variables are
//! those of Consul's CLI ("Consul Commands (CLI)", "Environment variables").

use std::path::PathBuf;

use clap::{ArgAction, Args};
use consul::token::read as read_token;
use consul::{Address, Agent, Config, TlsFiles};
use runtime::Failure;
use secrecy::{ExposeSecret, SecretString};

use crate::Report;

/// Which agent, and how it is spoken to.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Consul agent")]
pub struct AgentArgs {
    /// The agent's HTTP address: host:port, http://host:port,
    /// https://host:port or unix:///path
    #[arg(
        long,
        env = "CONSUL_HTTP_ADDR",
        default_value = "127.0.0.1:8500",
        value_name = "ADDRESS"
    )]
    pub http_addr: Address,

    /// The ACL token; prefer --token-file, which other processes can't see
    #[arg(long, env = "CONSUL_HTTP_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<SecretString>,

    /// A file with the ACL token; it wins over --token
    #[arg(long, env = "CONSUL_HTTP_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// User and password for HTTP basic authentication, as `user:password`
    #[arg(long, env = "CONSUL_HTTP_AUTH", hide_env_values = true, value_name = "USER:PASSWORD")]
    pub http_auth: Option<SecretString>,

    /// A PEM file with the CA certificates that the agent's is checked against
    #[arg(long, env = "CONSUL_CACERT", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// A directory of PEM files with CA certificates
    #[arg(long, env = "CONSUL_CAPATH", value_name = "FOLDER")]
    pub ca_path: Option<PathBuf>,

    /// CA certificates themselves, as PEM; for the environment rather than the
    /// command line
    #[arg(long, env = "CONSUL_CACERT_PEM", hide_env_values = true, value_name = "PEM")]
    pub ca_pem: Option<String>,

    /// A PEM file with the certificate shown to the agent
    #[arg(long, env = "CONSUL_CLIENT_CERT", value_name = "FILE", requires = "client_key")]
    pub client_cert: Option<PathBuf>,

    /// A PEM file with the key of --client-cert
    #[arg(long, env = "CONSUL_CLIENT_KEY", value_name = "FILE", requires = "client_cert")]
    pub client_key: Option<PathBuf>,

    /// Use HTTPS, whatever scheme the address has
    #[arg(long, env = "CONSUL_HTTP_SSL")]
    pub http_ssl: bool,

    /// Whether the agent's certificate is checked. With `false`, whoever is in
    /// between can read the ACL token
    #[arg(
        long,
        env = "CONSUL_HTTP_SSL_VERIFY",
        default_value = "true",
        value_parser = runtime::command::boolean,
        action = ArgAction::Set,
        value_name = "BOOLEAN"
    )]
    pub http_ssl_verify: bool,

    /// The name that the agent's certificate must have, if not the host of its address
    #[arg(long, env = "CONSUL_TLS_SERVER_NAME", value_name = "NAME")]
    pub tls_server_name: Option<String>,

    /// The namespace (Consul Enterprise)
    #[arg(long, env = "CONSUL_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,

    /// The admin partition (Consul Enterprise)
    #[arg(long, env = "CONSUL_PARTITION", value_name = "NAME")]
    pub partition: Option<String>,
}

// === impl AgentArgs ===

impl AgentArgs {
    /// Makes a client of that agent. `node` is the node's name, if it is known:
    /// errors say it.
    ///
    /// # Errors
    /// A file that can't be read or holds something else than it should.
    pub fn agent(self, node: Option<String>) -> Result<Agent, Failure> {
        Agent::new(self.config(node)?).map_err(Report::failure)
    }

    /// What these flags say, with the token read from its file.
    pub fn config(self, node: Option<String>) -> Result<Config, Failure> {
        let Self {
            http_addr,
            token,
            token_file,
            http_auth,
            ca_file,
            ca_path,
            ca_pem,
            client_cert,
            client_key,
            http_ssl,
            http_ssl_verify,
            tls_server_name,
            namespace,
            partition,
        } = self;
        if !http_ssl_verify {
            tracing::warn!("the agent's certificate is not checked (CONSUL_HTTP_SSL_VERIFY)");
        }
        // An empty file falls back to the flag, as in Consul's CLI.
        let from_file = token_file.as_deref().map(read_token).transpose();
        let from_file = from_file.map_err(Report::failure)?.flatten();
        let token_file = token_file.filter(|_| from_file.is_some());
        Ok(Config {
            address: if http_ssl { http_addr.over_tls() } else { http_addr },
            token: from_file.or(token.filter(|token| !token.expose_secret().is_empty())),
            // Others may read it from another directory.
            token_file: token_file.map(|file| std::path::absolute(&file).unwrap_or(file)),
            http_auth,
            tls: TlsFiles {
                ca_file,
                ca_path,
                inline_ca_pem: ca_pem.filter(|pem| !pem.trim().is_empty()),
                client_cert,
                client_key,
                server_name: tls_server_name,
                skip_verify: !http_ssl_verify,
            },
            namespace: namespace.filter(|name| !name.is_empty()),
            partition: partition.filter(|name| !name.is_empty()),
            node,
        })
    }
}
