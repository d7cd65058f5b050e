//! The command line.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU16;

use clap::{Parser, Subcommand};
use redirect::{Cidr, Plan};
use runtime::{Failure, LogArgs};

/// Has the connections of a transparent pod go through its Envoy: loads redirect
/// rules into the kernel of the pod's network, and verifies them
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
    /// Load the rules in place of older ones, read them back, and try a connection;
    /// needs the capability NET_ADMIN
    Apply(PlanArgs),
    /// See that connections go through Envoy: to be run before Envoy, by a user who
    /// is not excluded; with NET_ADMIN the rules are read, too
    Verify(PlanArgs),
    /// Print the rules as `nft -f` takes them, and do nothing else
    Print(PlanArgs),
}

/// What is redirected. Flags that may be given several times take lists with
/// commas, too.
#[derive(Debug, clap::Args)]
pub(crate) struct PlanArgs {
    /// The port of Envoy's public listener: where connections to the pod go
    #[arg(long, env = "CONNECT_PROXY_INBOUND_PORT", default_value = "20000", value_name = "PORT")]
    proxy_inbound_port: NonZeroU16,

    /// The port of Envoy's outbound listener: where the pod's own connections go
    #[arg(long, env = "CONNECT_PROXY_OUTBOUND_PORT", default_value = "15001", value_name = "PORT")]
    proxy_outbound_port: NonZeroU16,

    /// The user that Envoy runs as: its own connections are left alone
    #[arg(long, env = "CONNECT_PROXY_UID", default_value = "5995", value_name = "UID")]
    proxy_uid: u32,

    /// A further user whose connections are left alone
    #[arg(long, env = "CONNECT_EXCLUDE_UIDS", value_delimiter = ',', value_name = "UID")]
    exclude_uid: Vec<u32>,

    /// A port of the pod that is reached directly, and not through Envoy: probes
    /// and metrics
    #[arg(long, env = "CONNECT_EXCLUDE_INBOUND_PORTS", value_delimiter = ',', value_name = "PORT")]
    exclude_inbound_port: Vec<NonZeroU16>,

    /// A port of others that the pod reaches directly
    #[arg(
        long,
        env = "CONNECT_EXCLUDE_OUTBOUND_PORTS",
        value_delimiter = ',',
        value_name = "PORT"
    )]
    exclude_outbound_port: Vec<NonZeroU16>,

    /// Addresses that the pod reaches directly: the node's Consul agent, at least
    #[arg(
        long,
        env = "CONNECT_EXCLUDE_OUTBOUND_CIDRS",
        value_delimiter = ',',
        value_name = "CIDR"
    )]
    exclude_outbound_cidr: Vec<Cidr>,

    /// A further service of the pod: its port, and that of its public listener
    #[arg(
        long,
        env = "CONNECT_FURTHER_SERVICES",
        value_delimiter = ',',
        value_parser = parse_service,
        value_name = "PORT=LISTENER"
    )]
    service: Vec<(NonZeroU16, NonZeroU16)>,

    /// Where queries for names go, whichever nameserver they are for
    #[arg(long, env = "CONNECT_CONSUL_DNS", value_name = "IP:PORT")]
    consul_dns: Option<SocketAddr>,
}

// === impl PlanArgs ===

impl PlanArgs {
    /// # Errors
    /// What was given contradicts itself.
    pub(crate) fn plan(self) -> Result<Plan, Failure> {
        let Self {
            proxy_inbound_port,
            proxy_outbound_port,
            proxy_uid,
            exclude_uid,
            exclude_inbound_port,
            exclude_outbound_port,
            exclude_outbound_cidr,
            service,
            consul_dns,
        } = self;
        let mut services = BTreeMap::new();
        for (port, listener) in service {
            if let Some(other) = services.insert(port.get(), listener.get())
                && other != listener.get()
            {
                return Err(Failure::usage(format_args!(
                    "--service sends port {port} to {other} and to {listener}"
                ))
                .hint("give each port of a service once"));
            }
        }
        let plan = Plan {
            inbound: proxy_inbound_port.get(),
            outbound: proxy_outbound_port.get(),
            exclude_uids: std::iter::once(proxy_uid).chain(exclude_uid).collect(),
            exclude_inbound_ports: numbers(exclude_inbound_port),
            exclude_outbound_ports: numbers(exclude_outbound_port),
            exclude_outbound_cidrs: exclude_outbound_cidr,
            services,
            dns: consul_dns,
        };
        plan.check().map_err(|mistake| Failure::usage(&mistake).hint(hint_for(&mistake)))?;
        Ok(plan)
    }
}

fn numbers(ports: Vec<NonZeroU16>) -> Vec<u16> {
    ports.into_iter().map(NonZeroU16::get).collect()
}

fn hint_for(mistake: &redirect::Mistake) -> &'static str {
    use redirect::Mistake;
    match mistake {
        Mistake::OnePort(_) => "--proxy-inbound-port and --proxy-outbound-port have to differ",
        Mistake::OneListener { .. } => "each --service has a listener of its own",
        Mistake::ServiceExcluded(_) => "it can stand in --service or --exclude-inbound-port",
        Mistake::NobodyExcluded => "--proxy-uid is the user that Envoy runs as",
    }
}

fn parse_service(text: &str) -> Result<(NonZeroU16, NonZeroU16), String> {
    text.split_once('=')
        .and_then(|(port, listener)| Some((port.parse().ok()?, listener.parse().ok()?)))
        .ok_or_else(|| "expected two ports, such as 9090=20001".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_agrees_with_readme() {
        testkit::agrees_with_readme(&Args::command(), include_str!("../README.md"));
    }

    #[test]
    fn lists_may_have_commas() {
        let line = "x print --exclude-inbound-port 80,81 --exclude-inbound-port 82 \
                    --exclude-outbound-cidr 10.0.0.1,fd00::/8 --service 9090=20001";
        let args = Args::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Print(args) = args.command else { panic!("it is `print`") };
        let plan = args.plan().unwrap();
        assert_eq!(plan.exclude_inbound_ports, [80, 81, 82]);
        assert_eq!(plan.exclude_outbound_cidrs.len(), 2);
        assert_eq!(plan.services, [(9090, 20001)].into());
        assert_eq!(plan.exclude_uids, [5995]);
    }
}
