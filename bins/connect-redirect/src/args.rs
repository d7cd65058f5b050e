//! The command line.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU16;

use clap::{Parser, Subcommand};
use redirect::{Cidr, Plan};
use runtime::{Failure, LogArgs};

/// Redirect a pod's connections to its Envoy, for transparent proxy: load redirect rules
/// into the pod's network namespace, and verify them
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
    /// Replace the rules, read them back, and test a connection; requires NET_ADMIN
    Apply(PlanArgs),
    /// Check that connections are redirected: run it before Envoy, as a user who is not
    /// excluded; with NET_ADMIN, also compare the rules
    Verify(PlanArgs),
    /// Print the rules in the syntax of `nft -f`, without loading them
    Print(PlanArgs),
}

/// What to redirect.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Redirection")]
pub(crate) struct PlanArgs {
    /// Port of Envoy's public listener, to which connections to the pod are redirected
    #[arg(long, env = "CONNECT_PROXY_INBOUND_PORT", default_value = "20000", value_name = "PORT")]
    proxy_inbound_port: NonZeroU16,

    /// Port of Envoy's outbound listener, to which the pod's own connections are redirected
    #[arg(long, env = "CONNECT_PROXY_OUTBOUND_PORT", default_value = "15001", value_name = "PORT")]
    proxy_outbound_port: NonZeroU16,

    /// User id that Envoy runs as, whose connections are not redirected
    #[arg(long, env = "CONNECT_PROXY_UID", default_value = "5995", value_name = "UID")]
    proxy_uid: u32,

    /// Another user id whose connections are not redirected. May be repeated, or
    /// comma-separated
    #[arg(long, env = "CONNECT_EXCLUDE_UIDS", value_delimiter = ',', value_name = "UID")]
    exclude_uid: Vec<u32>,

    /// Port of the pod that clients reach directly, such as for probes and metrics. May be
    /// repeated, or comma-separated
    #[arg(long, env = "CONNECT_EXCLUDE_INBOUND_PORTS", value_delimiter = ',', value_name = "PORT")]
    exclude_inbound_port: Vec<NonZeroU16>,

    /// Destination port that the pod reaches directly. May be repeated, or comma-separated
    #[arg(
        long,
        env = "CONNECT_EXCLUDE_OUTBOUND_PORTS",
        value_delimiter = ',',
        value_name = "PORT"
    )]
    exclude_outbound_port: Vec<NonZeroU16>,

    /// Addresses that the pod reaches directly: at least the node's Consul agent. May be
    /// repeated, or comma-separated
    #[arg(
        long,
        env = "CONNECT_EXCLUDE_OUTBOUND_CIDRS",
        value_delimiter = ',',
        value_name = "CIDR"
    )]
    exclude_outbound_cidr: Vec<Cidr>,

    /// Another service of the pod: its port and that of its public listener, such as
    /// 9090=20001. May be repeated, or comma-separated
    #[arg(
        long,
        env = "CONNECT_FURTHER_SERVICES",
        value_delimiter = ',',
        value_parser = parse_service,
        value_name = "PORT=LISTENER"
    )]
    service: Vec<(NonZeroU16, NonZeroU16)>,

    /// Address to which DNS queries are redirected, whichever nameserver they are for
    /// [default: DNS is not redirected]
    #[arg(long, env = "CONNECT_CONSUL_DNS", value_name = "IP:PORT")]
    consul_dns: Option<SocketAddr>,
}

// === impl PlanArgs ===

impl PlanArgs {
    /// # Errors
    /// The flags contradict each other.
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
        Mistake::NoPort => "port numbers are 1 to 65535",
        Mistake::TooMany(_) => "exclude CIDRs in place of single addresses",
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
    fn the_command_line_agrees_with_its_pages() {
        testkit::agrees_with_its_pages(
            &Args::command(),
            concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"),
        );
    }

    #[test]
    fn lists_may_be_comma_separated() {
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
