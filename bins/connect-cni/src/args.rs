//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use runtime::LogArgs;

use crate::folders::Folders;
use crate::install::Node;

/// A chained CNI plugin that redirects the connections of transparent pods. Container
/// runtimes run it for each pod, with the variable CNI_COMMAND; the commands below install
/// it on a node
#[derive(Debug, Parser)]
#[command(version, after_help = runtime::exit::HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) log: LogArgs,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Install the plugin on this node, keep it installed, and uninstall it at SIGTERM
    /// unless another process keeps it installed
    Install(NodeArgs),
    /// Exit with 0 if the binary and its entry in the network configuration are installed
    Ready(NodeArgs),
    /// Remove the plugin's entry and binary from this node
    Uninstall(FolderArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct NodeArgs {
    #[command(flatten)]
    folders: FolderArgs,

    /// Address of this node's Consul agent, which transparent pods reach directly;
    /// separated by commas if there are several
    #[arg(
        long,
        env = "CONNECT_NODE_ADDRESSES",
        value_delimiter = ',',
        help_heading = "Agent",
        required = true,
        value_name = "IP"
    )]
    node_address: Vec<IpAddr>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Directories")]
pub(crate) struct FolderArgs {
    /// Directory of the node's CNI configurations, of which the container runtime uses the
    /// first
    #[arg(
        long,
        env = "CONNECT_CNI_NET_DIR",
        default_value = "/etc/cni/net.d",
        value_name = "PATH"
    )]
    cni_net_dir: PathBuf,

    /// Directory of the node's CNI plugins
    #[arg(long, env = "CONNECT_CNI_BIN_DIR", default_value = "/opt/cni/bin", value_name = "PATH")]
    cni_bin_dir: PathBuf,
}

// === impl NodeArgs ===

impl NodeArgs {
    pub(crate) fn node(self) -> Node {
        Node { folders: self.folders.folders(), addresses: self.node_address }
    }
}

// === impl FolderArgs ===

impl FolderArgs {
    pub(crate) fn folders(self) -> Folders {
        Folders { configurations: self.cni_net_dir, plugins: self.cni_bin_dir }
    }
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
