//! The pod's DNS: forwards queries for names under Consul's domain to the agent, and all
//! others to the pod's own nameservers. The redirect rules send the pod's DNS traffic
//! here, except that of Envoy's user, as which this process runs and forwards.
//!
//! If the agent is down, only names under Consul's domain fail: agent and nameservers
//! have separate limits. Every query gets an answer, or SERVFAIL.
//!
//! - [`udp`], [`tcp`]: receive and answer queries
//! - [`upstreams`]: which server to ask, and which next
//! - [`exchange`]: sends one query to one server
//! - [`lookup`]: resolves a name for our own use

mod exchange;
mod lookup;
mod tcp;
mod udp;
mod upstreams;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use consul::Address;
use dns::{Domain, Query, Rcode};
use runtime::{Exit, Failure};
use tokio::net::{TcpListener, UdpSocket};

use crate::args::DnsArgs;
use exchange::Protocol;
pub(crate) use lookup::Lookup;
use upstreams::{Source, Upstreams};

/// The agent's default port for DNS.
const AGENT_PORT: u16 = 8600;

/// Maximum length of a query in bytes. Today's clients send less than 1 KiB, EDNS options
/// and padding included.
const LONGEST_QUERY: usize = 4096;

/// A DNS server on loopback.
#[derive(Debug)]
pub(crate) struct Dns {
    udp: UdpSocket,
    tcp: TcpListener,
    resolver: Arc<Resolver>,
}

/// Picks the servers for a name.
#[derive(Debug)]
struct Resolver {
    domain: Domain,
    agent: Upstreams,
    nameservers: Upstreams,
}

// === impl Dns ===

impl Dns {
    /// Listens; `None` without `--dns-port`.
    pub(crate) async fn listen(args: DnsArgs, agent: &Address) -> Result<Option<Self>, Failure> {
        let DnsArgs { dns_port, consul_domain, consul_dns_addr, resolv_conf } = args;
        let Some(port) = dns_port else { return Ok(None) };
        let agent = consul_dns_addr.or_else(|| beside(agent)).ok_or_else(|| {
            Failure::new(
                Exit::Usage,
                format_args!("the address of the agent's DNS cannot be derived from `{agent}`"),
            )
            .hint("give --consul-dns-addr as IP:PORT")
        })?;
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port.get());
        let udp = UdpSocket::bind(address).await;
        let tcp = TcpListener::bind(address).await;
        let (udp, tcp) = udp.and_then(|udp| Ok((udp, tcp?))).map_err(|error| {
            Failure::new(Exit::Failure, format_args!("cannot serve DNS at {address}: {error}"))
                .hint("set --dns-port to a port that nothing in the pod uses")
        })?;
        let resolver = Resolver {
            domain: consul_domain,
            agent: Upstreams::new(
                "the agent's DNS",
                "its names get SERVFAIL; hint: check that the agent runs and serves DNS at that \
                 address (client_addr, ports.dns)",
                Source::Fixed(agent),
            ),
            nameservers: Upstreams::new(
                "the pod's nameserver",
                "its names get SERVFAIL; hint: check the nameservers of the pod's resolv.conf, and \
                 that Envoy's user reaches them",
                Source::File { path: resolv_conf, not: Some(address) },
            ),
        };
        tracing::info!(
            %address,
            domain = %resolver.domain,
            %agent,
            nameservers = ?resolver.nameservers.addresses(),
            "serving DNS"
        );
        Ok(Some(Self { udp, tcp, resolver: Arc::new(resolver) }))
    }

    /// Answers, for good.
    pub(crate) async fn serve(self) {
        let Self { udp, tcp, resolver } = self;
        tokio::join!(udp::serve(udp, Arc::clone(&resolver)), tcp::serve(tcp, resolver));
    }
}

/// The default address of the agent's DNS: the host of its HTTP address.
fn beside(agent: &Address) -> Option<SocketAddr> {
    let host: IpAddr = agent.host()?.parse().ok()?;
    Some(SocketAddr::new(host, AGENT_PORT))
}

// === impl Resolver ===

impl Resolver {
    fn is_of_agent(&self, query: Query<'_>) -> bool {
        query.is_under(&self.domain)
    }

    async fn answer(&self, query: Query<'_>, protocol: Protocol) -> Vec<u8> {
        let knows = if self.is_of_agent(query) { &self.agent } else { &self.nameservers };
        let answer = knows.ask(query, protocol).await;
        answer.unwrap_or_else(|| query.fail(Rcode::ServFail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_dns_is_on_the_host_of_its_http_address() {
        let beside = |text: &str| beside(&text.parse().unwrap()).map(|found| found.to_string());
        assert_eq!(beside("http://10.0.0.1:8500").unwrap(), "10.0.0.1:8600");
        assert_eq!(beside("https://[fd00::1]:8501/x").unwrap(), "[fd00::1]:8600");
        assert_eq!(beside("agent.example:8500"), None);
        assert_eq!(beside("unix:///run/consul.sock"), None);
    }
}
