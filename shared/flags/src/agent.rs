//! Flags that name an agent. Names and environment variables are those of Consul's CLI
//! ("Consul Commands (CLI)", "Environment variables").

use std::path::PathBuf;

use clap::{ArgAction, Args};
use consul::token::read as read_token;
use consul::{Address, Agent, Config, TlsFiles};
use runtime::Failure;
use secrecy::{ExposeSecret, SecretString};

use crate::Report;

/// Which agent, and how to connect to it.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Consul agent")]
pub struct AgentArgs {
    /// Agent's HTTP address: host:port, http://host:port, https://host:port or
    /// unix:///path
    #[arg(
        long,
        env = "CONSUL_HTTP_ADDR",
        default_value = "127.0.0.1:8500",
        value_name = "ADDRESS"
    )]
    pub http_addr: Address,

    /// ACL token; prefer --token-file, which other processes can't see
    #[arg(long, env = "CONSUL_HTTP_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<SecretString>,

    /// File with the ACL token. Takes precedence over --token, unless the file is empty
    #[arg(long, env = "CONSUL_HTTP_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// User and password for HTTP basic authentication, as `user:password`
    #[arg(long, env = "CONSUL_HTTP_AUTH", hide_env_values = true, value_name = "USER:PASSWORD")]
    pub http_auth: Option<SecretString>,

    /// PEM file with the CA certificates that verify the agent's
    #[arg(long, env = "CONSUL_CACERT", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// Directory of PEM files with CA certificates that verify the agent's
    #[arg(long, env = "CONSUL_CAPATH", value_name = "DIR")]
    pub ca_path: Option<PathBuf>,

    /// CA certificates that verify the agent's, as PEM text, in addition to those of
    /// --ca-file and --ca-path; usually set through the environment
    #[arg(long, env = "CONSUL_CACERT_PEM", hide_env_values = true, value_name = "PEM")]
    pub ca_pem: Option<String>,

    /// PEM file with the client certificate presented to the agent
    #[arg(long, env = "CONSUL_CLIENT_CERT", value_name = "FILE", requires = "client_key")]
    pub client_cert: Option<PathBuf>,

    /// PEM file with the private key of --client-cert
    #[arg(long, env = "CONSUL_CLIENT_KEY", value_name = "FILE", requires = "client_cert")]
    pub client_key: Option<PathBuf>,

    /// Use HTTPS even if the address says http
    #[arg(long, env = "CONSUL_HTTP_SSL")]
    pub http_ssl: bool,

    /// Verify the agent's certificate. With `false`, anybody on the network path can
    /// read the ACL token
    #[arg(
        long,
        env = "CONSUL_HTTP_SSL_VERIFY",
        default_value = "true",
        value_parser = runtime::command::boolean,
        action = ArgAction::Set,
        value_name = "BOOLEAN"
    )]
    pub http_ssl_verify: bool,

    /// Name that the agent's certificate must have [default: the host of its address]
    #[arg(long, env = "CONSUL_TLS_SERVER_NAME", value_name = "NAME")]
    pub tls_server_name: Option<String>,

    /// Consul namespace (Consul Enterprise)
    #[arg(long, env = "CONSUL_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,

    /// Consul admin partition (Consul Enterprise)
    #[arg(long, env = "CONSUL_PARTITION", value_name = "NAME")]
    pub partition: Option<String>,
}

// === impl AgentArgs ===

impl AgentArgs {
    /// Makes a client of that agent. Errors name `node`, if it is known.
    ///
    /// # Errors
    /// A file can't be read, or has the wrong contents.
    pub fn agent(self, node: Option<String>) -> Result<Agent, Failure> {
        Agent::new(self.config(node)?).map_err(Report::failure)
    }

    /// The same as a configuration, with the token read from its file.
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
            // connect-lifecycle may read it from another working directory.
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
