//! The addresses of a cluster: all of one family.

use harness::Result;
use harness::process::run;

/// Which family the addresses of a cluster are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Family {
    /// As most clusters.
    #[default]
    Ipv4,
    /// Neither node nor pods have an IPv4 address but loopback.
    Ipv6,
}

/// A cluster's network.
#[derive(Debug)]
pub(super) struct Network {
    /// The node's address, which is its pods' host's.
    pub(super) node: &'static str,
    /// Where the Consul server is, on the same node.
    pub(super) server: &'static str,
    /// The address under which pods know the API server.
    pub(super) api: &'static str,
    /// The addresses of pods.
    pub(super) pods: &'static str,
    /// The addresses of Services.
    pub(super) services: &'static str,
    /// All addresses: what a server binds to.
    pub(super) any: &'static str,
    /// All networks: where a route leads to.
    pub(super) everywhere: &'static str,
    /// What `ip` is told behind an address: it is a single one. Of IPv6, nobody is
    /// asked whether it is theirs, which would take a second.
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

    /// A host's address in a URL, or in front of a port.
    pub(super) fn in_url(self, address: &str) -> String {
        match self {
            Self::Ipv4 => address.to_owned(),
            Self::Ipv6 => format!("[{address}]"),
        }
    }
}

// === impl Network ===

impl Network {
    /// Makes it in this network namespace.
    pub(super) fn make(&self) -> Result<()> {
        let Self { node, server, api, everywhere, alone, .. } = self;
        let mut commands = vec![
            "link set lo up".to_owned(),
            // An empty bridge: it stands for the node's way out, of which there is none.
            "link add out type bridge".to_owned(),
        ];
        // The last one instead of a proxy that would lead to the API server's only
        // address.
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
