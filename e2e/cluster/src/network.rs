//! The addresses of a cluster, all of one family.

use harness::Result;
use harness::process::run;

/// Address family of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Family {
    /// Like most clusters.
    #[default]
    Ipv4,
    /// Node and pods have no IPv4 address except loopback.
    Ipv6,
}

/// A cluster's network.
#[derive(Debug)]
pub(super) struct Network {
    /// The node's address, which is the pods' `status.hostIP`.
    pub(super) node: &'static str,
    /// The Consul server's address, on the same node.
    pub(super) server: &'static str,
    /// The API server's address for pods.
    pub(super) api: &'static str,
    /// CIDR of pods.
    pub(super) pods: &'static str,
    /// CIDR of Services.
    pub(super) services: &'static str,
    /// The unspecified address, to bind a server to all addresses.
    pub(super) any: &'static str,
    /// CIDR of a default route.
    pub(super) everywhere: &'static str,
    /// Suffix of an address for `ip`: a single address. For IPv6, without duplicate address
    /// detection, which takes a second.
    alone: &'static str,
}

const IPV4: Network = Network {
    node: "10.200.0.1",
    server: "10.200.0.2",
    api: "10.96.0.1",
    pods: "10.200.1.0/24",
    services: "10.96.0.0/16",
    any: "0.0.0.0",
    everywhere: "0.0.0.0/0",
    alone: "/32 dev out",
};

const IPV6: Network = Network {
    node: "fd00:200::1",
    server: "fd00:200::2",
    api: "fd00:96::1",
    pods: "fd00:201::/64",
    services: "fd00:96::/112",
    any: "::",
    everywhere: "::/0",
    alone: "/128 dev out nodad",
};

// === impl Family ===

impl Family {
    pub(super) fn network(self) -> &'static Network {
        match self {
            Self::Ipv4 => &IPV4,
            Self::Ipv6 => &IPV6,
        }
    }

    /// A host's address for a URL, or for HOST:PORT.
    pub(super) fn in_url(self, address: &str) -> String {
        match self {
            Self::Ipv4 => address.to_owned(),
            Self::Ipv6 => format!("[{address}]"),
        }
    }
}

// === impl Network ===

impl Network {
    /// Creates it in this network namespace.
    pub(super) fn make(&self) -> Result<()> {
        let Self { node, server, api, everywhere, alone, .. } = self;
        let mut commands = vec![
            "link set lo up".to_owned(),
            // An empty bridge in place of the node's uplink, which does not exist.
            "link add out type bridge".to_owned(),
        ];
        // The last address makes the API server's Service reachable without kube-proxy.
        for address in [node, server, api] {
            commands.push(format!("addr add {address}{alone}"));
        }
        commands.push("link set out up".to_owned());
        commands.push(format!("route add {everywhere} dev out"));
        for command in commands {
            run("ip", &command.split(' ').collect::<Vec<_>>())?;
        }
        Ok(())
    }
}
