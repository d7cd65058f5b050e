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

use crate::probe::Relayed;

/// Run Envoy in a pod's sidecar container, maintain the pod's registration with the node's
/// Consul agent, and deregister when the pod ends
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
    /// Run Envoy, keep it registered, and shut it down gracefully: the sidecar's main
    /// process
    Run(Box<RunArgs>),
    /// Deregister: the sidecar's preStop hook
    Deregister(DeregisterArgs),
    /// Check Envoy's readiness; with --wait, block until it is ready
    Ready(ReadyArgs),
    /// Start a command when Envoy is ready; with --quit, stop the sidecar afterwards:
    /// for Jobs
    Wait(WaitArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct HandoffArgs {
    /// Directory with connect-init's files
    #[arg(long, env = "CONNECT_DIR", default_value = handoff::DEFAULT_DIR, value_name = "DIR")]
    pub(crate) dir: PathBuf,

    /// Service name, for a pod with several services [default: the pod's first]
    #[arg(long, value_name = "NAME", value_parser = parse_service)]
    pub(crate) service: Option<String>,
}

// === impl HandoffArgs ===

impl HandoffArgs {
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

    /// Maximum time to drain open connections, from the preStop hook or SIGTERM on; keep it
    /// 7 s below the pod's terminationGracePeriodSeconds
    #[arg(long, env = "CONNECT_DRAIN_TIMEOUT", default_value = "20s", value_parser = duration::parse_length, value_name = "DURATION")]
    pub(crate) drain_timeout: Duration,

    /// Maximum time to deregister, from the preStop hook or SIGTERM on [default: 3 s
    /// longer than --drain-timeout]
    #[arg(long, env = "CONNECT_DEREGISTER_TIMEOUT", value_parser = duration::parse_length, value_name = "DURATION")]
    pub(crate) deregister_timeout: Option<Duration>,

    /// How long the agent may refuse Envoy's xDS stream, while agent and servers answer other
    /// requests, before the pod becomes unready
    #[arg(long, env = "CONNECT_CUT_OFF_AFTER", default_value = "1m", value_parser = duration::parse_length, value_name = "DURATION")]
    pub(crate) cut_off_after: Duration,

    /// Application's readiness probe as JSON, as in a Pod but with a port number; decides
    /// whether Consul sends traffic. Without it, the application is ready while its port
    /// accepts connections
    #[arg(long, env = "CONNECT_READINESS_PROBE", value_name = "JSON")]
    pub(crate) readiness_probe: Option<Probe>,

    /// Loopback port on which to serve Envoy's and the application's metrics together;
    /// must equal connect-init's --prometheus-backend-port
    #[arg(
        long,
        env = "CONNECT_MERGED_METRICS_PORT",
        value_name = "PORT",
        requires = "service_metrics_port"
    )]
    pub(crate) merged_metrics_port: Option<NonZeroU16>,

    /// Loopback port of the application's metrics
    #[arg(long, env = "CONNECT_SERVICE_METRICS_PORT", value_name = "PORT")]
    pub(crate) service_metrics_port: Option<NonZeroU16>,

    /// Path of the application's metrics
    #[arg(
        long,
        env = "CONNECT_SERVICE_METRICS_PATH",
        default_value = "/metrics",
        value_name = "PATH"
    )]
    pub(crate) service_metrics_path: String,

    #[command(flatten)]
    pub(crate) relay: RelayArgs,

    #[command(flatten)]
    pub(crate) dns: DnsArgs,

    /// Envoy and its arguments
    #[arg(last = true, required = true, value_name = "ENVOY")]
    pub(crate) command: Vec<OsString>,
}

/// Kubelet probes that can't go through Envoy, for transparent proxy.
#[derive(Debug, clap::Args)]
pub(crate) struct RelayArgs {
    /// Port on which the kubelet requests the probes of --probe
    #[arg(long, env = "CONNECT_PROBE_PORT", value_name = "PORT", requires = "probe")]
    pub(crate) probe_port: Option<NonZeroU16>,

    /// Probe to run over loopback when the kubelet requests /PATH, as JSON, as in a Pod but
    /// with a port number. The response is 200 if it succeeds, else 503, and the log says
    /// why. May be repeated
    #[arg(long, value_name = "/PATH=JSON", requires = "probe_port")]
    pub(crate) probe: Vec<Relayed>,
}

/// The pod's DNS, for transparent proxy.
#[derive(Debug, clap::Args)]
pub(crate) struct DnsArgs {
    /// Loopback port (UDP and TCP) on which to answer the pod's DNS queries: names
    /// under --consul-domain by the agent, others by the pod's nameservers [default:
    /// DNS is not served]
    #[arg(long, env = "CONNECT_DNS_PORT", value_name = "PORT")]
    pub(crate) dns_port: Option<NonZeroU16>,

    /// Domain whose names the agent answers; must equal the agent's `domain`
    #[arg(
        long,
        env = "CONNECT_CONSUL_DOMAIN",
        default_value = "consul",
        value_name = "DOMAIN",
        requires = "dns_port"
    )]
    pub(crate) consul_domain: Domain,

    /// Address of the agent's DNS [default: port 8600 on the host of its HTTP address]
    #[arg(long, env = "CONNECT_CONSUL_DNS_ADDR", value_name = "IP:PORT", requires = "dns_port")]
    pub(crate) consul_dns_addr: Option<SocketAddr>,

    /// File with the pod's nameservers and search list; it is read again when it changes
    #[arg(
        long,
        env = "CONNECT_RESOLV_CONF",
        default_value = "/etc/resolv.conf",
        value_name = "FILE"
    )]
    pub(crate) resolv_conf: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DeregisterArgs {
    #[command(flatten)]
    pub(crate) handoff: HandoffArgs,

    /// Maximum time to deregister
    #[arg(long, env = "CONNECT_DEREGISTER_TIMEOUT", default_value = "5s", value_parser = duration::parse_length, value_name = "DURATION")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ReadyArgs {
    #[command(flatten)]
    pub(crate) handoff: HandoffArgs,

    /// Block until Envoy is ready, at most for this long; after that, exit 0 with a
    /// warning so that the postStart hook does not kill the container
    #[arg(long, env = "CONNECT_READY_WAIT", value_parser = duration::parse_length, value_name = "DURATION")]
    pub(crate) wait: Option<Duration>,

    /// Retry for this long before failing, for a readinessProbe with a long period;
    /// keep it 3 s below the probe's timeoutSeconds [default: check once]
    #[arg(long, value_parser = duration::parse_length, value_name = "DURATION", conflicts_with = "wait")]
    pub(crate) timeout: Option<Duration>,

    /// Also check whether Consul would send traffic, which depends on the application's
    /// checks: for a readinessProbe, not for a startup hook
    #[arg(long)]
    pub(crate) serving: bool,
}

/// The application's container may run as a user who can't read the hand-off files, or
/// may lack the directory: `wait` only needs Envoy's port on loopback.
#[derive(Debug, clap::Args)]
pub(crate) struct WaitArgs {
    /// Envoy's admin listener; must equal connect-init's --admin-bind. With several
    /// services, all of them, comma-separated
    #[arg(long, env = "CONNECT_ADMIN_BIND", default_values_t = [ADMIN], value_delimiter = ',', value_name = "IP:PORT")]
    pub(crate) admin_bind: Vec<SocketAddr>,

    /// Maximum wait for Envoy; after that, the command is not started
    #[arg(long, env = "CONNECT_WAIT_TIMEOUT", default_value = "2m", value_parser = duration::parse_length, value_name = "DURATION")]
    pub(crate) timeout: Duration,

    /// Start the command without a sidecar if nothing listens at --admin-bind for this
    /// long: for Jobs that run with and without one
    #[arg(long, value_parser = duration::parse_length, value_name = "DURATION")]
    pub(crate) go_on_without: Option<Duration>,

    /// Stop the sidecar after the command, even if the command failed
    #[arg(long)]
    pub(crate) quit: bool,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// Default of connect-init's --admin-bind.
const ADMIN: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), registration::pod::ADMIN_PORT);

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
