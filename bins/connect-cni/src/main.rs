//! A chained CNI plugin that redirects the connections of transparent pods, so that their
//! containers need no capability.
//!
//! The plugin, which the container runtime runs for each pod:
//! - [`plugin`]: the commands of the CNI specification
//! - [`config`]: the configuration, and the pod's annotation in it
//! - [`failure`]: errors as the specification requires
//! - [`network`]: the pod's network namespace, and the redirect rules in it
//!
//! Its installer, which runs on each node:
//! - [`args`]: the command line
//! - [`install`]: keeps the plugin installed, and removes it at the end
//! - [`folders`]: the node's directories of plugins and configurations
//! - [`conflist`]: adds the plugin's entry to a configuration list, and removes it
//! - [`watch`]: waits until a directory changes

mod args;
mod config;
mod conflist;
mod failure;
mod folders;
mod install;
mod network;
mod plugin;
mod watch;

use std::process::ExitCode;

use args::{Args, Command};

/// File name of the plugin's binary, and `type` of its entry.
const PLUGIN: &str = "connect-cni";

/// The capability by which a container runtime passes the pod's annotations to plugins.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

fn main() -> ExitCode {
    if let Some(command) = std::env::var_os("CNI_COMMAND") {
        return plugin::main(&command);
    }
    let Args { log, command } = match runtime::parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    let log = match &command {
        Command::Install(_) | Command::Uninstall(_) => log,
        // Only the container's main process may write its termination message.
        Command::Ready(_) => log.of_a_probe(),
    };
    runtime::start(&log, async |signals| match command {
        Command::Install(args) => install::install(args.node(), signals).await,
        Command::Ready(args) => install::ready(&args.node()),
        Command::Uninstall(args) => install::uninstall(&args.folders()),
    })
}
