//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ::flags::AgentArgs;
use ::flags::bootstrap::GrpcAddress;
use clap::{Parser, Subcommand};
use registration::service::{Kind, TaggedAddress};
use runtime::command::Elsewhere;
use runtime::{LogArgs, exit};

use crate::flags;
use crate::output::{Output, Rows};

/// What Consul's `connect envoy` has and `bootstrap` has not, and what to write
/// instead.
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
        instead: "nothing: the document is printed, and Envoy is not started",
    },
    Elsewhere {
        subcommand: "bootstrap",
        flag: "envoy-binary",
        instead: "envoy --config-path FILE, with what this prints in FILE",
    },
    Elsewhere {
        subcommand: "bootstrap",
        flag: "ignore-envoy-compatibility",
        instead: "nothing: an Envoy that the agent does not support is warned of, and no more",
    },
    Elsewhere {
        subcommand: "bootstrap",
        flag: "enable-config-gen-logging",
        instead: "--log-level debug",
    },
];

const GATEWAY: &str = "connect-register register --name NAME --kind KIND-gateway --address ADDRESS --port PORT, before this";

/// Registers services with a Consul agent by hand, diagnoses it, and prints Envoy
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
    /// Register services, from definition files or from flags
    ///
    /// All files are read and checked before anything is sent. If a service is
    /// refused, those that this run has added are taken back. A service replaces
    /// the one that is registered under its id.
    #[command(
        after_help = exit::HELP,
        override_usage = "connect-register register [OPTIONS] <FILE>...\n       \
                          connect-register register [OPTIONS] --name <NAME>"
    )]
    Register(RegisterArgs),

    /// Register a service with its sidecar, for connect-lifecycle to keep
    ///
    /// For a machine without Kubernetes: registers one service of a definition
    /// file and its sidecar, each with a heartbeat, and writes what
    /// `connect-lifecycle run` starts from: Envoy's bootstrap, a record of the
    /// registration and the ACL token. If a step fails, what was registered is
    /// taken back.
    #[command(after_help = exit::HELP)]
    Sidecar(SidecarArgs),

    /// Deregister services, by definition files or by ids
    ///
    /// Each one is tried even if another failed. One that the agent does not
    /// have is no failure.
    #[command(
        after_help = exit::HELP,
        override_usage = "connect-register deregister [OPTIONS] <FILE>...\n       \
                          connect-register deregister [OPTIONS] --id <ID>..."
    )]
    Deregister(DeregisterArgs),

    /// Read and check definition files, and ask no agent
    #[command(after_help = exit::HELP)]
    Validate(ValidateArgs),

    /// Show what is registered with the agent, and diagnose agent and sidecars
    ///
    /// For each fault: what was seen, the likely cause and the next command. With
    /// ids, only those services; one that is not registered is a failure. Nothing
    /// is changed anywhere.
    #[command(after_help = exit::HELP)]
    Status(StatusArgs),

    /// Print the Envoy bootstrap document of a registered proxy, as JSON
    ///
    /// It holds the ACL token: keep it from others.
    #[command(after_help = exit::HELP)]
    Bootstrap(BootstrapCommand),

    /// Print completions for a shell
    Completions(CompletionsArgs),

    /// Print the manual page of the program or of a subcommand, in roff
    Man(ManArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct RegisterArgs {
    /// Definition files of Consul's, in HCL or JSON, or directories of them; `-` is
    /// standard input
    #[arg(value_name = "FILE", required_unless_present = "name", conflicts_with = "ServiceArgs")]
    pub(crate) files: Vec<PathBuf>,

    /// Remove checks that a service had before and its definition has not;
    /// otherwise they stay
    #[arg(long)]
    pub(crate) replace_checks: bool,

    /// Go on with the others if a service is refused, and take nothing back
    #[arg(long)]
    pub(crate) keep_going: bool,

    /// Wait until the servers' catalog shows the services
    #[arg(long)]
    pub(crate) wait: bool,

    /// Form of the output
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub(crate) output: Output,

    #[command(flatten)]
    pub(crate) service: ServiceArgs,

    #[command(flatten)]
    pub(crate) reach: ReachArgs,
}

/// A service given by flags instead of a file.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Service, instead of a file")]
pub(crate) struct ServiceArgs {
    /// Name of the service, by which others find it
    #[arg(long, value_name = "NAME", value_parser = flags::not_empty)]
    pub(crate) name: Option<String>,

    /// Id of the service, unique on the agent [default: its name]
    #[arg(long, value_name = "ID", requires = "name", value_parser = flags::not_empty)]
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
    #[arg(long, value_name = "KEY=VALUE", requires = "name", value_parser = flags::key_value)]
    pub(crate) meta: Vec<(String, String)>,

    /// Another address of the service under a name, such as
    /// wan=198.51.100.7:8443; may be repeated
    #[arg(long = "tagged-address", value_name = "NAME=ADDRESS:PORT", requires = "name", value_parser = flags::tagged_address)]
    pub(crate) tagged_addresses: Vec<(String, TaggedAddress)>,

    /// Unix socket of the service, instead of address and port
    #[arg(long, value_name = "PATH", requires = "name", conflicts_with_all = ["address", "port"])]
    pub(crate) socket: Option<String>,

    /// Kind of the service, if it is a gateway: mesh-gateway,
    /// terminating-gateway, ingress-gateway or api-gateway. A sidecar proxy
    /// requires a file
    #[arg(long, value_name = "KIND", requires = "name", value_parser = flags::kind)]
    pub(crate) kind: Option<Kind>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct SidecarArgs {
    /// Definition file of one service with a sidecar, in HCL or JSON; `-` is
    /// standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// Directory for the files that connect-lifecycle reads; one for each sidecar
    #[arg(long, env = "CONNECT_DIR", value_name = "FOLDER")]
    pub(crate) dir: PathBuf,

    #[command(flatten)]
    pub(crate) envoy: ::flags::BootstrapArgs,

    #[command(flatten)]
    pub(crate) reach: ReachArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DeregisterArgs {
    /// Definition files of the services, in HCL or JSON, or directories of them; `-` is
    /// standard input
    #[arg(value_name = "FILE", required_unless_present = "ids", conflicts_with = "ids")]
    pub(crate) files: Vec<PathBuf>,

    /// Id of a service; may be repeated
    #[arg(long = "id", value_name = "ID", value_parser = flags::not_empty)]
    pub(crate) ids: Vec<String>,

    /// Wait until the servers' catalog does not show the services any more;
    /// requires files
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
    /// Definition files, in HCL or JSON, or directories of them; `-` is standard input
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,

    /// Form of the output
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Ids of the services to show [default: all]
    #[arg(value_name = "ID", value_parser = flags::not_empty)]
    pub(crate) ids: Vec<String>,

    /// Form of the output
    #[arg(long, value_name = "FORM", default_value = "table")]
    pub(crate) output: Rows,

    /// Address of the agent's xDS (gRPC) as Envoy has it, which is tried; if
    /// absent, the port that the agent tells, on the host of --http-addr
    #[arg(long, env = "CONSUL_GRPC_ADDR", value_name = "ADDRESS")]
    pub(crate) grpc_addr: Option<GrpcAddress>,

    /// Admin listener of an Envoy on this machine, which is asked whether it is
    /// connected and has its certificate; may be repeated, or separated by commas
    #[arg(long, env = "CONNECT_ADMIN_BIND", value_delimiter = ',', value_name = "IP:PORT")]
    pub(crate) admin_bind: Vec<SocketAddr>,

    /// Version or image of the Envoy that runs, to be compared with those that
    /// the agent supports
    #[arg(long, env = "CONNECT_ENVOY_VERSION", value_name = "VERSION")]
    pub(crate) envoy_version: Option<String>,

    #[command(flatten)]
    pub(crate) agent: AgentArgs,

    /// How long the agent's services may take to be read. Nothing is asked twice
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "20s",
        value_parser = duration::parse_length,
        help_heading = "Consul agent"
    )]
    pub(crate) timeout: Duration,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsArgs {
    /// Shell to print completions for
    #[arg(value_name = "SHELL")]
    pub(crate) shell: pages::Shell,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// Subcommand to print the page of [default: the program]
    #[arg(value_name = "SUBCOMMAND")]
    pub(crate) subcommand: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct BootstrapCommand {
    #[command(flatten)]
    pub(crate) which: WhichProxy,

    #[command(flatten)]
    pub(crate) envoy: ::flags::BootstrapArgs,

    #[command(flatten)]
    pub(crate) reach: ReachArgs,
}

/// The proxy that the document is for.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub(crate) struct WhichProxy {
    /// Id of the sidecar proxy or gateway
    #[arg(long, env = "CONNECT_PROXY_ID", value_name = "ID", value_parser = flags::not_empty)]
    pub(crate) proxy_id: Option<String>,

    /// Id of the service whose only sidecar proxy is meant
    #[arg(
        long,
        env = "CONNECT_SIDECAR_FOR",
        value_name = "ID",
        value_parser = flags::not_empty,
        conflicts_with = "proxy_id"
    )]
    pub(crate) sidecar_for: Option<String>,

    /// Kind of the gateway: mesh, terminating, ingress or api. Without
    /// --proxy-id, the only one of this kind that is registered. An ingress
    /// gateway gets a ready listener [default: 127.0.0.1:8443]
    #[arg(
        long,
        value_name = "KIND",
        value_parser = flags::gateway,
        conflicts_with = "sidecar_for"
    )]
    pub(crate) gateway: Option<Kind>,
}

/// The agent, and the patience with it.
#[derive(Debug, clap::Args)]
pub(crate) struct ReachArgs {
    #[command(flatten)]
    pub(crate) agent: AgentArgs,

    /// How long the command may take: an agent that can't be reached, or can't
    /// serve at the moment, is asked again until then. An agent whose servers
    /// have no leader takes 7 seconds for one registration
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "20s",
        value_parser = duration::parse_length,
        help_heading = "Consul agent"
    )]
    pub(crate) timeout: Duration,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_agrees_with_its_pages() {
        testkit::agrees_with_its_pages(&Args::command(), include_str!("../README.md"));
    }
}
