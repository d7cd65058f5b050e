//! The nameservers of a `resolv.conf`, and its search list.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::domain::Domain;

/// Nameservers and search list of a `resolv.conf`.
///
/// Source: resolv.conf(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvConf {
    /// At most three, as in the C library; the local machine's if there is none.
    pub nameservers: Vec<SocketAddr>,
    /// Values of `nameserver` lines that can't be parsed.
    pub unknown: Vec<String>,
    /// Domains, in the order in which they are tried. What is no domain is left out.
    pub search: Vec<Domain>,
}

const PORT: u16 = 53;

/// Maximum number of nameservers that a C library asks.
const MOST: usize = 3;

/// How many domains Kubernetes allows in a pod's search list.
///
/// Source: "DNS for Services and Pods" of the Kubernetes documentation.
const MOST_SEARCHED: usize = 32;

// === impl ResolvConf ===

impl ResolvConf {
    pub fn read(text: &str) -> Self {
        let mut nameservers = Vec::new();
        let mut unknown = Vec::new();
        let mut search = Vec::new();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let value = words.next().unwrap_or_default();
                    match address(value) {
                        Some(address) => nameservers.push(address),
                        None => unknown.push(value.to_owned()),
                    }
                }
                // The last one counts.
                Some("search") => search = words.filter_map(|word| word.parse().ok()).collect(),
                _ => {}
            }
        }
        if nameservers.is_empty() && unknown.is_empty() {
            nameservers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT));
        }
        nameservers.truncate(MOST);
        search.truncate(MOST_SEARCHED);
        Self { nameservers, unknown, search }
    }
}

/// Parses an IP address, or `[address]:port` as in OpenBSD's resolv.conf(5).
fn address(value: &str) -> Option<SocketAddr> {
    if let Some((ip, port)) = value.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
        return Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?));
    }
    value.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, PORT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<String>, Vec<String>) {
        let ResolvConf { nameservers, unknown, .. } = ResolvConf::read(text);
        (nameservers.iter().map(ToString::to_string).collect(), unknown)
    }

    #[test]
    fn nameservers_are_read_as_the_c_library_reads_them() {
        let text = "# a comment\n\
            search default.svc.cluster.local svc.cluster.local\n\
            nameserver 10.96.0.10\n\
            nameserver\tfd00::a\n\
            ; nameserver 10.0.0.1\n\
            nameserver [127.0.0.1]:5353 trailing\n\
            nameserver 10.0.0.4\n\
            options ndots:5\n";
        let (nameservers, unknown) = read(text);
        assert_eq!(nameservers, ["10.96.0.10:53", "[fd00::a]:53", "127.0.0.1:5353"]);
        assert!(unknown.is_empty());
    }

    #[test]
    fn the_last_search_list_counts() {
        let search = |text: &str| {
            let search = ResolvConf::read(text).search;
            search.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(search("nameserver 10.0.0.1\n"), [""; 0]);
        let text = "search a\nsearch shop.svc.cluster.local\tsvc.cluster.local. a..b .\n";
        assert_eq!(search(text), ["shop.svc.cluster.local", "svc.cluster.local"]);
        assert_eq!(search(&format!("search{}", " a".repeat(40))).len(), 32);
    }

    #[test]
    fn a_file_without_nameservers_means_this_machine() {
        assert_eq!(read("search x\n").0, ["127.0.0.1:53"]);
        assert_eq!(read("").0, ["127.0.0.1:53"]);
        let unknown = read("nameserver fe80::1%eth0\nnameserver\nnameserver [::1]:x\n");
        assert_eq!(unknown, (vec![], ["fe80::1%eth0", "", "[::1]:x"].map(String::from).to_vec()));
    }
}
