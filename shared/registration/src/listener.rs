//! Collisions between listeners on one host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// All addresses, or an unknown one.
    Any,
    /// One address. `0.0.0.0` stands for all IPv4 addresses, `::` for all IPv6
    /// ones: Envoy does not listen for IPv4 there.
    ///
    /// Source: `ipv4_compat` of Envoy's `SocketAddress`.
    Ip(IpAddr),
}

/// Something that listens on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub bind: Bind,
    /// Not 0.
    pub port: u16,
    /// What listens, for errors.
    pub what: String,
    /// Whether it is the application rather than its proxy. One application may have
    /// several entries on a port; only the proxy's listeners collide.
    pub is_application: bool,
}

/// The colliding pairs, by index: each listener with the first earlier one that it
/// collides with.
pub fn collisions(listeners: &[Listener]) -> Vec<(usize, usize)> {
    let mut by_port: Vec<usize> = (0..listeners.len()).collect();
    by_port.sort_by_key(|index| (listeners[*index].port, *index));
    let mut found = Vec::new();
    for group in by_port.chunk_by(|a, b| listeners[*a].port == listeners[*b].port) {
        for (position, second) in group.iter().enumerate() {
            let first = group[..position].iter().find(|first| {
                let (first, second) = (&listeners[**first], &listeners[*second]);
                let is_own = first.is_application && second.is_application;
                !is_own && first.bind.meets(second.bind)
            });
            found.extend(first.map(|first| (*first, *second)));
        }
    }
    found.sort_by_key(|(_, second)| *second);
    found
}

// === impl Bind ===

impl Bind {
    /// Parses an address; `None` for a host name, whose address only that host knows.
    pub fn of(text: &str) -> Option<Self> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        match bare {
            "" => Some(Self::Any),
            "localhost" => Some(Self::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST))),
            ip => ip.parse().ok().map(Self::Ip),
        }
    }

    /// Whether a connection could reach either.
    pub fn meets(self, other: Self) -> bool {
        match (self, other) {
            (Self::Any, _) | (_, Self::Any) => true,
            (Self::Ip(a), Self::Ip(b)) => {
                let is_wildcard = |ip: IpAddr| {
                    ip == IpAddr::V4(Ipv4Addr::UNSPECIFIED)
                        || ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                };
                a == b || (a.is_ipv4() == b.is_ipv4() && (is_wildcard(a) || is_wildcard(b)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_meets_every_address_of_its_family() {
        let meets = |a: &str, b: &str| Bind::of(a).unwrap().meets(Bind::of(b).unwrap());
        for (a, b, expected) in [
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("127.0.0.1", "localhost", true),
            ("0.0.0.0", "127.0.0.1", true),
            ("::", "::1", true),
            ("[::1]", "::1", true),
            ("::", "127.0.0.1", false),
            ("::", "0.0.0.0", false),
            ("", "::1", true),
            ("", "10.0.0.1", true),
        ] {
            assert_eq!(meets(a, b), expected, "{a} {b}");
            assert_eq!(meets(b, a), expected, "{b} {a}");
        }
        assert_eq!(Bind::of("web.example"), None);
    }

    #[test]
    fn a_proxy_collides_and_an_application_does_not_with_itself() {
        let listener = |bind: &str, port, is_application| Listener {
            bind: Bind::of(bind).unwrap(),
            port,
            what: String::new(),
            is_application,
        };
        let listeners = [
            listener("10.0.0.1", 80, true),
            listener("127.0.0.1", 80, true),
            listener("", 20000, false),
            listener("127.0.0.1", 9000, false),
            listener("127.0.0.2", 9000, false),
            listener("0.0.0.0", 9000, false),
            listener("127.0.0.1", 80, false),
            listener("127.0.0.1", 20000, false),
        ];
        assert_eq!(collisions(&listeners), [(3, 5), (1, 6), (2, 7)]);
    }
}
