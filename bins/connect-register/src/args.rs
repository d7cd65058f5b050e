//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ::flags::AgentArgs;
use ::flags::bootstrap::GrpcAddress;
use clap::{Parser, Subcommand};
use registration::service::Kind;
use runtime::{LogArgs, exit};

use crate::flags;
use crate::output::{Output, Rows};

/// Registers services with a Consul agent by hand
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
    /// refused, those that this run has added are taken back. What has the id
    /// of a registered service replaces it.
    #[command(
        after_help = exit::HELP,
        override_usage = "connect-register register [OPTIONS] <FILE>...\n       \
                          connect-register register [OPTIONS] --name <NAME>"
    )]
    Register(RegisterArgs),

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

    /// Show what is registered with the agent, and whether it can serve sidecars
    ///
    /// With ids, only those; one that is not registered is a failure. What is
    /// wrong with the agent is said with what to do about it.
    #[command(after_help = exit::HELP)]
    Status(StatusArgs),

    /// Print the Envoy bootstrap document of a registered proxy, as JSON
    ///
    /// It holds the ACL token: keep it from others.
    #[command(after_help = exit::HELP)]
    Bootstrap(BootstrapCommand),

    /// Print the completions of a shell
    Completions(CompletionsArgs),

    /// Print the manual page, or that of a subcommand
    Man(ManArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct RegisterArgs {
    /// Definition files of Consul's, in HCL or JSON, or folders of them; `-` is
    /// standard input
    #[arg(value_name = "FILE", required_unless_present = "name", conflicts_with = "ServiceArgs")]
    pub(crate) files: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) service: ServiceArgs,

    /// Remove checks that a service had and its definition has not; otherwise
    /// they stay
    #[arg(long)]
    pub(crate) replace_checks: bool,

    /// Go on with the others if a service is refused, and take nothing back
    #[arg(long)]
    pub(crate) keep_going: bool,

    /// Wait until the catalog shows them
    #[arg(long)]
    pub(crate) wait: bool,

    /// The form of what is printed
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub(crate) output: Output,

    #[command(flatten)]
    pub(crate) reach: ReachArgs,
}

/// A service given by flags instead of a file.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Service, instead of a file")]
pub(crate) struct ServiceArgs {
    /// Its name, by which others find it
    #[arg(long, value_name = "NAME", value_parser = flags::not_empty)]
    pub(crate) name: Option<String>,

    /// Its id, unique on the agent [default: the name]
    #[arg(long, value_name = "ID", requires = "name", value_parser = flags::not_empty)]
    pub(crate) id: Option<String>,

    /// Where it is reached [default: the agent's address]
    #[arg(long, value_name = "ADDRESS", requires = "name")]
    pub(crate) address: Option<String>,

    /// The port there, from 1 to 65535
    #[arg(long, value_name = "PORT", requires = "name", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,

    /// A tag; repeat it for more
    #[arg(long = "tag", value_name = "TAG", requires = "name")]
    pub(crate) tags: Vec<String>,

    /// Free text under a key; repeat it for more
    #[arg(long, value_name = "KEY=VALUE", requires = "name", value_parser = flags::key_value)]
    pub(crate) meta: Vec<(String, String)>,

    /// What it is, if not an ordinary service: mesh-gateway,
    /// terminating-gateway, ingress-gateway or api-gateway. A proxy takes a file
    #[arg(long, value_name = "KIND", requires = "name", value_parser = flags::kind)]
    pub(crate) kind: Option<Kind>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DeregisterArgs {
    /// Definition files of the services, in HCL or JSON, or folders of them; `-`
    /// is standard input
    #[arg(value_name = "FILE", required_unless_present = "ids", conflicts_with = "ids")]
    pub(crate) files: Vec<PathBuf>,

    /// The id of a service; repeat it for more
    #[arg(long = "id", value_name = "ID", value_parser = flags::not_empty)]
    pub(crate) ids: Vec<String>,

    /// Wait until the catalog shows them no more; for that, files are needed
    #[arg(long, conflicts_with = "ids")]
    pub(crate) wait: bool,

    /// The form of what is printed
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub(crate) output: Output,

    #[command(flatten)]
    pub(crate) reach: ReachArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ValidateArgs {
    /// Definition files, in HCL or JSON, or folders of them; `-` is standard input
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,

    /// The form of what is printed
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Ids of services
    #[arg(value_name = "ID", value_parser = flags::not_empty)]
    pub(crate) ids: Vec<String>,

    /// The form of what is printed
    #[arg(long, value_name = "FORM", default_value = "table")]
    pub(crate) output: Rows,

    /// Where Envoy is told to find xDS: whether gRPC is spoken there is tried; if
    /// absent, the port that the agent tells, on the host of --http-addr
    #[arg(long, env = "CONSUL_GRPC_ADDR", value_name = "ADDRESS")]
    pub(crate) grpc_addr: Option<GrpcAddress>,

    /// Admin listeners of the Envoys that run on this machine: each is asked
    /// whether it is connected, and has its certificate; repeat it, or separate
    /// them by commas
    #[arg(long, env = "CONNECT_ADMIN_BIND", value_delimiter = ',', value_name = "IP:PORT")]
    pub(crate) admin_bind: Vec<SocketAddr>,

    /// The Envoy that runs, as a version or an image: it is compared with those
    /// that the agent supports
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
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: pages::Shell,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// The subcommand; none: the program as a whole
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
    /// The id of the proxy, or of a gateway
    #[arg(long, env = "CONNECT_PROXY_ID", value_name = "ID", value_parser = flags::not_empty)]
    pub(crate) proxy_id: Option<String>,

    /// The id of the service whose only sidecar proxy is meant
    #[arg(
        long,
        env = "CONNECT_SIDECAR_FOR",
        value_name = "ID",
        value_parser = flags::not_empty,
        conflicts_with = "proxy_id"
    )]
    pub(crate) sidecar_for: Option<String>,

    /// The kind of the gateway: mesh, terminating, ingress or api. Without
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

    /// How long it all may take: an agent that can't be reached, or can't
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
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_readme_is_the_reference() {
        let differences =
            runtime::reference::differences(Args::command(), include_str!("../README.md"));
        assert_eq!(differences, Vec::<String>::new());
    }

    #[test]
    fn manual_and_completions_say_what_help_says() {
        assert_eq!(pages::lacking(Args::command()), Vec::<String>::new());
    }
}
