//! The command line.
//!
//! - [`values`]: parses the values of flags

mod values;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use flags::AgentArgs;
use flags::envoy::GrpcAddress;
use registration::service::{Kind, TaggedAddress};
use runtime::command::Elsewhere;
use runtime::{LogArgs, exit};

use crate::output::{Output, Rows};

/// Flags of Consul's `connect envoy` that `bootstrap` lacks, with their replacement.
///
/// Source: Consul's "consul connect envoy" page.
pub(crate) const ELSEWHERE: &[Elsewhere] = &[
    Elsewhere { subcommand: "bootstrap", flag: "register", instead: GATEWAY },
    Elsewhere {
        subcommand: "bootstrap",
        flag: "service",
        instead: "connect-register register --name NAME",
    },
    Elsewhere {
        subcommand: "bootstrap",
        flag: "address",
        instead: "connect-register register --address ADDRESS --port PORT --tagged-address lan=ADDRESS:PORT",
    },
    Elsewhere {
        subcommand: "bootstrap",
        flag: "wan-address",
        instead: "connect-register register --tagged-address wan=ADDRESS:PORT",
    },
    Elsewhere {
        subcommand: "bootstrap",
        flag: "bind-address",
        instead: "a definition file with proxy { config { envoy_gateway_no_default_bind = true  envoy_gateway_bind_addresses { NAME { address = ADDRESS  port = PORT } } } }",
    },
    Elsewhere {
        subcommand: "bootstrap",
        flag: "expose-servers",
        instead: "connect-register register --meta consul-wan-federation=1",
    },
    Elsewhere {
        subcommand: "bootstrap",
        flag: "deregister-after-critical",
        instead: "a definition file with check { tcp = \"ADDRESS:PORT\"  interval = \"10s\"  deregister_critical_service_after = \"6h\" }",
    },
    Elsewhere { subcommand: "bootstrap", flag: "mesh-gateway", instead: "--gateway mesh" },
    Elsewhere {
        subcommand: "bootstrap",
        flag: "node-name",
        instead: "--http-addr with the address of that node's agent: proxies are read from the agent, not from the catalog",
    },
    Elsewhere {
        subcommand: "bootstrap",
        flag: "bootstrap",
        instead: "nothing: the bootstrap is printed, and Envoy is not started",
    },
    Elsewhere {
        subcommand: "bootstrap",
        flag: "envoy-binary",
        instead: "envoy --config-path FILE, with what this prints in FILE",
    },
    Elsewhere {
        subcommand: "bootstrap",
        flag: "ignore-envoy-compatibility",
        instead: "nothing: an Envoy that the agent does not support only causes a warning",
    },
    Elsewhere {
        subcommand: "bootstrap",
        flag: "enable-config-gen-logging",
        instead: "--log-level debug",
    },
];

const GATEWAY: &str = "connect-register register --name NAME --kind KIND-gateway --address ADDRESS --port PORT, before this";

/// Register services with a Consul agent, diagnose the agent, and print Envoy
/// bootstraps
#[derive(Debug, Parser)]
#[command(name = "connect-register", version, after_help = exit::HELP)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,

    #[command(flatten)]
    pub(crate) log: LogArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Register services from definition files or flags
    ///
    /// Reads and checks all files before it sends anything. If the agent refuses a
    /// service, the services that this run added are deregistered. A service replaces
    /// the one that is registered under its id.
    #[command(
        after_help = exit::HELP,
        override_usage = "connect-register register [OPTIONS] <FILE>...\n       \
                          connect-register register [OPTIONS] --name <NAME>"
    )]
    Register(RegisterArgs),

    /// Register a service with its sidecar, for connect-lifecycle to maintain
    ///
    /// For a machine without Kubernetes. Registers one service of a definition file and
    /// its sidecar, each with a TTL check, and writes the files that `connect-lifecycle
    /// run` reads: the Envoy bootstrap, a record of the registration and the ACL token.
    /// If a step fails, both are deregistered.
    #[command(after_help = exit::HELP)]
    Sidecar(SidecarArgs),

    /// Deregister services by definition files or ids
    ///
    /// Tries each service even if another one failed. A service that the agent does not
    /// have is not a failure.
    #[command(
        after_help = exit::HELP,
        override_usage = "connect-register deregister [OPTIONS] <FILE>...\n       \
                          connect-register deregister [OPTIONS] --id <ID>..."
    )]
    Deregister(DeregisterArgs),

    /// Check definition files without contacting an agent
    #[command(after_help = exit::HELP)]
    Validate(ValidateArgs),

    /// Show what is registered with the agent, and diagnose agent and sidecars
    ///
    /// Prints for each fault what was seen, the likely cause and the next command. With
    /// ids, shows only those services; an id that is not registered is a failure.
    /// Changes nothing.
    #[command(after_help = exit::HELP)]
    Status(StatusArgs),

    /// Print the Envoy bootstrap of a registered proxy as JSON
    ///
    /// The output contains the ACL token; restrict its file permissions.
    #[command(after_help = exit::HELP)]
    Bootstrap(BootstrapCommand),

    /// Print completions for a shell
    Completions(CompletionsArgs),

    /// Print the manual page of the program or of a subcommand, in roff
    Man(ManArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct RegisterArgs {
    /// Consul service definition files in HCL or JSON, or directories of them; `-`
    /// reads standard input
    #[arg(value_name = "FILE", required_unless_present = "name", conflicts_with = "ServiceArgs")]
    pub(crate) files: Vec<PathBuf>,

    /// Remove checks that the registered service has and its definition lacks; by
    /// default they stay
    #[arg(long)]
    pub(crate) replace_checks: bool,

    /// Continue with the other services if one is refused, and deregister nothing
    #[arg(long)]
    pub(crate) keep_going: bool,

    /// Wait until the services appear in the catalog
    #[arg(long)]
    pub(crate) wait: bool,

    /// Form of the output
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub(crate) output: Output,

    #[command(flatten)]
    pub(crate) reach: ReachArgs,

    #[command(flatten)]
    pub(crate) service: ServiceArgs,
}

/// A service given by flags instead of a file.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Service, instead of a file")]
pub(crate) struct ServiceArgs {
    /// Name of the service
    #[arg(long, value_name = "NAME", value_parser = values::not_empty)]
    pub(crate) name: Option<String>,

    /// Id of the service, unique on the agent [default: its name]
    #[arg(long, value_name = "ID", requires = "name", value_parser = values::not_empty)]
    pub(crate) id: Option<String>,

    /// IP address or host name of the service [default: the agent's address]
    #[arg(long, value_name = "ADDRESS", requires = "name")]
    pub(crate) address: Option<String>,

    /// Port of the service, from 1 to 65535
    #[arg(long, value_name = "PORT", requires = "name", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,

    /// Tag of the service; may be repeated
    #[arg(long = "tag", value_name = "TAG", requires = "name")]
    pub(crate) tags: Vec<String>,

    /// Metadata of the service; may be repeated
    #[arg(long, value_name = "KEY=VALUE", requires = "name", value_parser = values::key_value)]
    pub(crate) meta: Vec<(String, String)>,

    /// Another address of the service under a name, such as
    /// wan=198.51.100.7:8443; may be repeated
    #[arg(long = "tagged-address", value_name = "NAME=ADDRESS:PORT", requires = "name", value_parser = values::tagged_address)]
    pub(crate) tagged_addresses: Vec<(String, TaggedAddress)>,

    /// Unix socket of the service, instead of address and port
    #[arg(long, value_name = "PATH", requires = "name", conflicts_with_all = ["address", "port"])]
    pub(crate) socket: Option<String>,

    /// Kind of the service, if it is a gateway: mesh-gateway, terminating-gateway,
    /// ingress-gateway or api-gateway. A sidecar proxy requires a file
    #[arg(long, value_name = "KIND", requires = "name", value_parser = values::kind)]
    pub(crate) kind: Option<Kind>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct SidecarArgs {
    /// Definition file of one service with a sidecar, in HCL or JSON; `-` is
    /// standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// Directory for the files that connect-lifecycle reads; each sidecar requires its
    /// own
    #[arg(long, env = "CONNECT_DIR", value_name = "DIR")]
    pub(crate) dir: PathBuf,

    /// Connect's CA signs the agent's certificate (auto_encrypt), and --ca-file has the
    /// current roots of that CA: connect-lifecycle follows them, and trusts the agent after
    /// each rotation
    #[arg(
        long,
        env = "CONNECT_AUTO_ENCRYPT",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        action = clap::ArgAction::Set,
        default_missing_value = "true",
        default_value_t = false
    )]
    pub(crate) auto_encrypt: bool,

    #[command(flatten)]
    pub(crate) reach: ReachArgs,

    #[command(flatten)]
    pub(crate) envoy: flags::BootstrapArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DeregisterArgs {
    /// Consul service definition files in HCL or JSON, or directories of them; `-`
    /// reads standard input
    #[arg(value_name = "FILE", required_unless_present = "ids", conflicts_with = "ids")]
    pub(crate) files: Vec<PathBuf>,

    /// Id of a service; may be repeated
    #[arg(long = "id", value_name = "ID", value_parser = values::not_empty)]
    pub(crate) ids: Vec<String>,

    /// Wait until the services have disappeared from the catalog; requires files
    #[arg(long, conflicts_with = "ids")]
    pub(crate) wait: bool,

    /// Form of the output
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub(crate) output: Output,

    #[command(flatten)]
    pub(crate) reach: ReachArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ValidateArgs {
    /// Definition files in HCL or JSON, or directories of them; `-` reads standard
    /// input
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,

    /// Form of the output
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Ids of the services to show [default: all]
    #[arg(value_name = "ID", value_parser = values::not_empty)]
    pub(crate) ids: Vec<String>,

    /// Form of the output
    #[arg(long, value_name = "FORM", default_value = "table")]
    pub(crate) output: Rows,

    /// Agent's xDS (gRPC) address to check: host:port, http(s)://host:port or
    /// unix:///path. Default: the port that the agent reports, on the host of --http-addr
    #[arg(long, env = "CONSUL_GRPC_ADDR", value_name = "ADDRESS")]
    pub(crate) grpc_addr: Option<GrpcAddress>,

    /// Address of an Envoy's admin listener, to check whether that Envoy is connected to
    /// the agent and has its certificate; may be repeated or comma-separated
    #[arg(long, env = "CONNECT_ADMIN_BIND", value_delimiter = ',', value_name = "IP:PORT")]
    pub(crate) admin_bind: Vec<SocketAddr>,

    /// Version or image of Envoy, such as envoyproxy/envoy:v1.40.0, to check whether the
    /// agent supports it
    #[arg(long, env = "CONNECT_ENVOY_VERSION", value_name = "VERSION")]
    pub(crate) envoy_version: Option<String>,

    /// Maximum time to read the agent's services. No request is retried
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "20s",
        value_parser = duration::parse_length
    )]
    pub(crate) timeout: Duration,

    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsArgs {
    /// Shell to print completions for
    #[arg(value_name = "SHELL")]
    pub(crate) shell: pages::Shell,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// Subcommand whose page to print [default: the program]
    #[arg(value_name = "SUBCOMMAND")]
    pub(crate) subcommand: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct BootstrapCommand {
    #[command(flatten)]
    pub(crate) which: WhichProxy,

    #[command(flatten)]
    pub(crate) reach: ReachArgs,

    #[command(flatten)]
    pub(crate) envoy: flags::BootstrapArgs,
}

/// Which proxy to print the bootstrap of.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub(crate) struct WhichProxy {
    /// Id of the sidecar proxy or gateway
    #[arg(long, env = "CONNECT_PROXY_ID", value_name = "ID", value_parser = values::not_empty)]
    pub(crate) proxy_id: Option<String>,

    /// Service ID; it must have exactly one sidecar
    #[arg(
        long,
        env = "CONNECT_SIDECAR_FOR",
        value_name = "ID",
        value_parser = values::not_empty,
        conflicts_with = "proxy_id"
    )]
    pub(crate) sidecar_for: Option<String>,

    /// Kind of the gateway: mesh, terminating, ingress or api. Without --proxy-id,
    /// exactly one of this kind must be registered. An ingress gateway gets a ready
    /// listener [default: 127.0.0.1:8443]
    #[arg(
        long,
        value_name = "KIND",
        value_parser = values::gateway,
        conflicts_with = "sidecar_for"
    )]
    pub(crate) gateway: Option<Kind>,
}

/// The agent, and the time limit.
#[derive(Debug, clap::Args)]
pub(crate) struct ReachArgs {
    /// Maximum time for the command: transient failures of the agent are retried until
    /// then. An agent whose servers have no leader takes 7 seconds for one registration
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "20s",
        value_parser = duration::parse_length
    )]
    pub(crate) timeout: Duration,

    #[command(flatten)]
    pub(crate) agent: AgentArgs,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_agrees_with_its_pages() {
        testkit::agrees_with_its_pages(
            &Args::command(),
            concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"),
        );
    }
}
