//! The command line.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use dns::Domain;
use handoff::Handoff;
use probe::Probe;
use runtime::LogArgs;

/// Keeps a pod's registration with the node's Consul agent true while the pod
/// lives, and takes it back when it ends
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
    /// Run Envoy, keep it registered, and end it well: the sidecar's main process
    Run(Box<RunArgs>),
    /// Take the registration back: the sidecar's preStop hook
    Deregister(DeregisterArgs),
    /// Tell whether Envoy is ready: a probe, and the hold on the application's start
    Ready(ReadyArgs),
    /// Start a command when Envoy is ready, and with --quit end the sidecar after
    /// it: for Jobs
    Wait(WaitArgs),
}

/// Which registration.
#[derive(Debug, clap::Args)]
pub(crate) struct HandoffArgs {
    /// The folder with the files that connect-init left
    #[arg(long, env = "CONNECT_DIR", default_value = handoff::DEFAULT_DIR, value_name = "FOLDER")]
    pub(crate) dir: PathBuf,

    /// Which of the pod's services, if it has several and this is not the first
    #[arg(long, value_name = "NAME", value_parser = parse_service)]
    pub(crate) service: Option<String>,
}

// === impl HandoffArgs ===

impl HandoffArgs {
    /// The files of that registration.
    pub(crate) fn handoff(self) -> Handoff {
        let Self { dir, service } = self;
        match service {
            None => Handoff::new(dir),
            Some(service) => Handoff::of_further(dir, &service),
        }
    }
}

fn parse_service(text: &str) -> Result<String, String> {
    registration::name::check(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) handoff: HandoffArgs,

    /// How long connections may take to end, from the preStop hook or SIGTERM on;
    /// keep it 7 s below the pod's terminationGracePeriodSeconds
    #[arg(long, env = "CONNECT_DRAIN_TIMEOUT", default_value = "20s", value_parser = duration::parse_length, value_name = "DURATION")]
    pub(crate) drain_timeout: Duration,

    /// How long deregistration is tried for, from the preStop hook or SIGTERM on; if
    /// absent, 3 s longer than --drain-timeout
    #[arg(long, env = "CONNECT_DEREGISTER_TIMEOUT", value_parser = duration::parse_length, value_name = "DURATION")]
    pub(crate) deregister_timeout: Option<Duration>,

    /// How long the agent may refuse Envoy's xDS stream, while agent and servers
    /// answer otherwise, until the pod is taken out of service
    #[arg(long, env = "CONNECT_CUT_OFF_AFTER", default_value = "1m", value_parser = duration::parse_length, value_name = "DURATION")]
    pub(crate) cut_off_after: Duration,

    /// The application's readiness probe as JSON, as a Pod has it, with the port as a
    /// number: it decides whether Consul sends traffic. It is asked over loopback; if
    /// absent, the application is ready while its service's port takes connections
    #[arg(long, env = "CONNECT_READINESS_PROBE", value_name = "JSON")]
    pub(crate) readiness_probe: Option<Probe>,

    /// Serve Envoy's and the application's metrics on one page, on this port of
    /// loopback: what connect-init was told by --prometheus-backend-port
    #[arg(
        long,
        env = "CONNECT_MERGED_METRICS_PORT",
        value_name = "PORT",
        requires = "service_metrics_port"
    )]
    pub(crate) merged_metrics_port: Option<NonZeroU16>,

    /// The application's port for its metrics, on loopback
    #[arg(long, env = "CONNECT_SERVICE_METRICS_PORT", value_name = "PORT")]
    pub(crate) service_metrics_port: Option<NonZeroU16>,

    /// The path of the application's metrics
    #[arg(
        long,
        env = "CONNECT_SERVICE_METRICS_PATH",
        default_value = "/metrics",
        value_name = "PATH"
    )]
    pub(crate) service_metrics_path: String,

    #[command(flatten)]
    pub(crate) dns: DnsArgs,

    /// Envoy and its arguments
    #[arg(last = true, required = true, value_name = "ENVOY")]
    pub(crate) command: Vec<OsString>,
}

/// The pod's DNS, with transparent proxy.
#[derive(Debug, clap::Args)]
pub(crate) struct DnsArgs {
    /// Port of loopback, UDP and TCP, on which to answer the pod's DNS queries: names
    /// under --consul-domain by the agent, others by the pod's own nameservers; if
    /// absent, DNS is not served
    #[arg(long, env = "CONNECT_DNS_PORT", value_name = "PORT")]
    pub(crate) dns_port: Option<NonZeroU16>,

    /// Domain whose names the agent answers: the agent's `domain`
    #[arg(
        long,
        env = "CONNECT_CONSUL_DOMAIN",
        default_value = "consul",
        value_name = "DOMAIN",
        requires = "dns_port"
    )]
    pub(crate) consul_domain: Domain,

    /// Address of the agent's DNS; if absent, port 8600 of the host of its HTTP address
    #[arg(long, env = "CONNECT_CONSUL_DNS_ADDR", value_name = "IP:PORT", requires = "dns_port")]
    pub(crate) consul_dns_addr: Option<SocketAddr>,

    /// File that names the pod's nameservers; it is read again when it changes
    #[arg(
        long,
        env = "CONNECT_RESOLV_CONF",
        default_value = "/etc/resolv.conf",
        value_name = "FILE",
        requires = "dns_port"
    )]
    pub(crate) resolv_conf: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DeregisterArgs {
    #[command(flatten)]
    pub(crate) handoff: HandoffArgs,

    /// How long it may take in all
    #[arg(long, env = "CONNECT_DEREGISTER_TIMEOUT", default_value = "5s", value_parser = duration::parse_length, value_name = "DURATION")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ReadyArgs {
    #[command(flatten)]
    pub(crate) handoff: HandoffArgs,

    /// Wait for Envoy for that long, and then let go: the exit code is 0 with a
    /// warning, because a postStart hook that fails would kill the container
    #[arg(long, env = "CONNECT_READY_WAIT", value_parser = duration::parse_length, value_name = "DURATION")]
    pub(crate) wait: Option<Duration>,

    /// Look again until then, before it fails: for a readinessProbe with a long period.
    /// Keep it 3 s below the probe's timeoutSeconds; if absent, it looks once
    #[arg(long, value_parser = duration::parse_length, value_name = "DURATION", conflicts_with = "wait")]
    pub(crate) timeout: Option<Duration>,

    /// Also ask whether Consul would send traffic, which the application's checks
    /// decide, too: for a readinessProbe, not for what holds the application's start
    #[arg(long)]
    pub(crate) serving: bool,
}

/// The application's container may run as a user who can't read the hand-off
/// files, or lack the folder: all that is needed is Envoy's port on loopback.
#[derive(Debug, clap::Args)]
pub(crate) struct WaitArgs {
    /// Envoy's admin listener, as connect-init was told; with several services,
    /// those of all, separated by commas
    #[arg(long, env = "CONNECT_ADMIN_BIND", default_values_t = [ADMIN], value_delimiter = ',', value_name = "IP:PORT")]
    pub(crate) admin_bind: Vec<SocketAddr>,

    /// How long Envoy may take to become ready; then the command is not started
    #[arg(long, env = "CONNECT_WAIT_TIMEOUT", default_value = "2m", value_parser = duration::parse_length, value_name = "DURATION")]
    pub(crate) timeout: Duration,

    /// Start the command without a sidecar if nothing listens at --admin-bind for
    /// that long: for Jobs that run with and without one
    #[arg(long, value_parser = duration::parse_length, value_name = "DURATION")]
    pub(crate) go_on_without: Option<Duration>,

    /// End the sidecar after the command, however that ended
    #[arg(long)]
    pub(crate) quit: bool,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// Envoy's admin listener, if connect-init was not told another.
const ADMIN: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), registration::pod::ADMIN_PORT);

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_agrees_with_its_pages() {
        testkit::agrees_with_its_pages(&Args::command(), include_str!("../README.md"));
    }
}
