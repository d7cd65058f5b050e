//! What is redirected and what is not; the rules in their order.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use serde::{Deserialize, Serialize};

use crate::TABLE;
use crate::rule::{Chain, Cidr, Condition, Protocol, Rule, Verdict};

/// Which of a pod's connections go through Envoy. Everything else is left alone.
///
/// As JSON, it is the value of an annotation that `connect-inject` writes and
/// `connect-cni` reads, perhaps of another release. A reader rejects unknown fields:
/// without them, the rules would differ from what the writer meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Plan {
    /// The port of Envoy's public listener: where connections to the pod go.
    pub inbound: u16,
    /// The port of Envoy's outbound listener, on loopback: where the pod's own
    /// connections go.
    pub outbound: u16,
    /// Users whose connections are left alone: Envoy's first.
    pub exclude_uids: Vec<u32>,
    /// Ports of the pod that are reached directly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_inbound_ports: Vec<u16>,
    /// Ports of others that the pod reaches directly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_outbound_ports: Vec<u16>,
    /// Addresses that the pod reaches directly: the node's agent first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_outbound_cidrs: Vec<Cidr>,
    /// Further services of the pod: the port of each, and that of its public
    /// listener.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<u16, u16>,
    /// Where the pod's queries for names go instead of to its nameserver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<SocketAddr>,
}

/// The longest list of a plan. The injector allows 256 elements.
const MOST: usize = 4096;

/// Why a plan would not do what it says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    #[error("inbound and outbound connections cannot both go to port {0}")]
    OnePort(u16),
    /// Two services have one listener, or one has the first service's.
    #[error("port {port} goes to {listener}, which is the listener of another service")]
    OneListener {
        /// The service's port.
        port: u16,
        /// Its listener's.
        listener: u16,
    },
    /// A service is to be reached through its sidecar and directly.
    #[error("port {0} is a service's and excluded, too")]
    ServiceExcluded(u16),
    /// Nobody is left alone: Envoy's own connections would come back to it.
    #[error("no user is excluded: Envoy's own connections would come back to it")]
    NobodyExcluded,
    /// No port is 0.
    #[error("port 0: expected 1 to 65535")]
    NoPort,
    /// Each element of a list becomes a rule.
    #[error("a list of {0} elements: at most {MOST}")]
    TooMany(usize),
}

// === impl Plan ===

impl Plan {
    /// Looks for what contradicts itself.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self) -> Result<(), Mistake> {
        if self.exclude_uids.is_empty() {
            return Err(Mistake::NobodyExcluded);
        }
        let lengths = [
            self.exclude_uids.len(),
            self.exclude_inbound_ports.len(),
            self.exclude_outbound_ports.len(),
            self.exclude_outbound_cidrs.len(),
            self.services.len(),
        ];
        if let Some(length) = lengths.into_iter().find(|length| *length > MOST) {
            return Err(Mistake::TooMany(length));
        }
        let mut ports = [self.inbound, self.outbound]
            .into_iter()
            .chain(self.services.iter().flat_map(|(port, listener)| [*port, *listener]))
            .chain(self.exclude_inbound_ports.iter().copied())
            .chain(self.exclude_outbound_ports.iter().copied())
            .chain(self.dns.map(|dns| dns.port()));
        if ports.any(|port| port == 0) {
            return Err(Mistake::NoPort);
        }
        if self.inbound == self.outbound {
            return Err(Mistake::OnePort(self.inbound));
        }
        let mut listeners = vec![self.inbound, self.outbound];
        for (&port, &listener) in &self.services {
            if self.exclude_inbound_ports.contains(&port) {
                return Err(Mistake::ServiceExcluded(port));
            }
            if listeners.contains(&listener) {
                return Err(Mistake::OneListener { port, listener });
            }
            listeners.push(listener);
        }
        Ok(())
    }

    /// Where a connection of that user's can be sent to see that it is redirected:
    /// an address that nobody has, because it is for documents
    /// ([RFC 5737](https://www.rfc-editor.org/rfc/rfc5737)). `None` if the plan
    /// leaves them all alone.
    pub fn witness(&self, uid: u32) -> Option<SocketAddrV4> {
        let is_plain = |address: &Ipv4Addr| {
            let address = IpAddr::V4(*address);
            self.exclude_outbound_cidrs.iter().any(|cidr| cidr.contains(address))
        };
        let addresses = [[192, 0, 2, 1], [198, 51, 100, 1], [203, 0, 113, 1]];
        let address = addresses.map(Ipv4Addr::from).into_iter().find(|address| !is_plain(address));
        // 9 is "discard"; 53 may be for names.
        let mut ports = (9..=u16::MAX).filter(|port| *port != 53);
        let port = ports.find(|port| !self.exclude_outbound_ports.contains(port));
        let is_asked = !self.exclude_uids.contains(&uid);
        Some(SocketAddrV4::new(address?, port?)).filter(|_| is_asked)
    }

    /// The rules, in the order in which the kernel asks them.
    pub fn rules(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        let mut output = |conditions, verdict| {
            rules.push(Rule { chain: Chain::Output, conditions, verdict });
        };
        for &uid in &self.exclude_uids {
            output(vec![Condition::User(uid)], Verdict::Return);
        }
        if let Some(to) = self.dns {
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                output(
                    vec![Condition::Family(to.into()), Condition::Port(protocol, 53)],
                    Verdict::Dnat(to),
                );
            }
        }
        output(vec![Condition::NotTcp], Verdict::Return);
        output(vec![Condition::OutOfLoopback], Verdict::Return);
        for &cidr in &self.exclude_outbound_cidrs {
            output(vec![Condition::To(cidr)], Verdict::Return);
        }
        for &port in &self.exclude_outbound_ports {
            output(vec![Condition::Port(Protocol::Tcp, port)], Verdict::Return);
        }
        output(vec![Condition::FirstPacket], Verdict::Redirect(self.outbound));

        let mut prerouting = |conditions, verdict| {
            rules.push(Rule { chain: Chain::Prerouting, conditions, verdict });
        };
        for &port in &self.exclude_inbound_ports {
            prerouting(vec![Condition::Port(Protocol::Tcp, port)], Verdict::Return);
        }
        // What others in the mesh dial. The last rule would take it to the first
        // service.
        for &listener in self.services.values() {
            prerouting(vec![Condition::Port(Protocol::Tcp, listener)], Verdict::Return);
        }
        for (&port, &listener) in &self.services {
            prerouting(
                vec![Condition::Port(Protocol::Tcp, port), Condition::FirstPacket],
                Verdict::Redirect(listener),
            );
        }
        prerouting(vec![Condition::FirstPacket], Verdict::Redirect(self.inbound));
        rules
    }
}

impl fmt::Display for Plan {
    /// The same transaction as `nft -f` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{")?;
        let rules = self.rules();
        for chain in Chain::ALL {
            writeln!(f, "  chain {chain} {{")?;
            writeln!(f, "    type nat hook {chain} priority -100; policy accept;")?;
            for rule in rules.iter().filter(|rule| rule.chain == chain) {
                writeln!(f, "    {rule}")?;
            }
            writeln!(f, "  }}")?;
        }
        f.write_str("}")?;
        f.write_char('\n')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            inbound: 20000,
            outbound: 15001,
            exclude_uids: vec![5995, 7],
            exclude_inbound_ports: vec![9100],
            exclude_outbound_ports: vec![7000],
            exclude_outbound_cidrs: vec!["10.77.0.1".parse().unwrap(), "fd00::/8".parse().unwrap()],
            services: [(9090, 20001)].into(),
            dns: Some("127.0.0.1:8653".parse().unwrap()),
        }
    }

    #[test]
    fn a_plan_reads_as_nft_writes_it() {
        let expected = "\
add table inet connect_redirect
delete table inet connect_redirect
table inet connect_redirect {
  chain output {
    type nat hook output priority -100; policy accept;
    meta skuid 5995 return
    meta skuid 7 return
    meta nfproto ipv4 udp dport 53 dnat ip to 127.0.0.1:8653
    meta nfproto ipv4 tcp dport 53 dnat ip to 127.0.0.1:8653
    meta l4proto != tcp return
    oif \"lo\" return
    ip daddr 10.77.0.1 return
    ip6 daddr fd00::/8 return
    tcp dport 7000 return
    tcp flags syn / fin,syn,rst,ack redirect to :15001
  }
  chain prerouting {
    type nat hook prerouting priority -100; policy accept;
    tcp dport 9100 return
    tcp dport 20001 return
    tcp dport 9090 tcp flags syn / fin,syn,rst,ack redirect to :20001
    tcp flags syn / fin,syn,rst,ack redirect to :20000
  }
}
";
        assert_eq!(plan().to_string(), expected);
    }

    #[test]
    fn a_witness_is_redirected() {
        let mut plan = plan();
        let seen = |plan: &Plan| plan.witness(0).map(|witness| witness.to_string());
        assert_eq!(seen(&plan).as_deref(), Some("192.0.2.1:9"));
        plan.exclude_outbound_ports.push(9);
        plan.exclude_outbound_cidrs.push("192.0.0.0/16".parse().unwrap());
        assert_eq!(seen(&plan).as_deref(), Some("198.51.100.1:10"));
        assert_eq!(plan.witness(7), None);
        plan.exclude_outbound_cidrs.push("128.0.0.0/1".parse().unwrap());
        assert_eq!(seen(&plan), None);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        assert_eq!(plan().check(), Ok(()));
        let mistake = |change: fn(&mut Plan)| {
            let mut plan = plan();
            change(&mut plan);
            plan.check().unwrap_err()
        };
        assert_eq!(mistake(|p| p.outbound = 20000), Mistake::OnePort(20000));
        assert_eq!(mistake(|p| p.exclude_uids.clear()), Mistake::NobodyExcluded);
        assert_eq!(mistake(|p| p.exclude_inbound_ports.push(9090)), Mistake::ServiceExcluded(9090));
        let again = Mistake::OneListener { port: 9091, listener: 20001 };
        assert_eq!(mistake(|p| p.services.extend([(9091, 20001)])), again);
        let first = Mistake::OneListener { port: 80, listener: 20000 };
        assert_eq!(mistake(|p| p.services.extend([(80, 20000)])), first);
        assert_eq!(mistake(|p| p.exclude_outbound_ports.push(0)), Mistake::NoPort);
        assert_eq!(mistake(|p| p.exclude_uids = vec![1; 4097]), Mistake::TooMany(4097));
    }

    #[test]
    fn a_plan_survives_json() {
        let text = serde_json::to_string(&plan()).unwrap();
        let expected = r#"{"inbound":20000,"outbound":15001,"excludeUids":[5995,7],"excludeInboundPorts":[9100],"excludeOutboundPorts":[7000],"excludeOutboundCidrs":["10.77.0.1","fd00::/8"],"services":{"9090":20001},"dns":"127.0.0.1:8653"}"#;
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan());
        let least = r#"{"inbound":20000,"outbound":15001,"excludeUids":[5995]}"#;
        let read: Plan = serde_json::from_str(least).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), least);
    }

    #[test]
    fn json_that_is_not_a_plan_is_rejected_by_field() {
        for (text, problem) in [
            (r#"{"inbound":20000,"outbound":15001}"#, "excludeUids"),
            (r#"{"inbound":20000,"outbound":15001,"excludeUids":[1],"later":1}"#, "later"),
            (r#"{"inbound":70000,"outbound":15001,"excludeUids":[1]}"#, "70000"),
            (
                r#"{"inbound":1,"outbound":2,"excludeUids":[1],"excludeOutboundCidrs":["a"]}"#,
                "CIDR",
            ),
        ] {
            let error = serde_json::from_str::<Plan>(text).unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }
}
