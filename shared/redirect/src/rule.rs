//! One rule: conditions and a verdict; as `nft` writes it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where in a packet's way a rule stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// The pod's own connections.
    Output,
    /// Connections to the pod.
    Prerouting,
}

/// What is done with a packet that meets all conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The chain it stands in.
    pub chain: Chain,
    /// All of them have to be met.
    pub conditions: Vec<Condition>,
    /// What happens then.
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Sent by that user.
    User(u32),
    Family(Family),
    NotTcp,
    /// Leaves by the loopback interface: the pod talks to itself.
    OutOfLoopback,
    /// To an address among these.
    To(Cidr),
    Port(Protocol, u16),
    /// The first packet of a TCP connection. Without this, connections that are
    /// open when the rules are loaded would be taken apart in the middle.
    FirstPacket,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is left alone.
    Return,
    /// It goes to that port of the pod: to the address that it came in by, or to
    /// loopback if the pod sent it.
    Redirect(u16),
    /// It goes there.
    Dnat(SocketAddr),
}

/// The family of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// What is carried over IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Protocol {
    /// TCP
    Tcp = 6,
    /// UDP
    Udp = 17,
}

/// Addresses that begin alike: `10.0.0.0/8`, or one of them: `10.0.0.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

/// Why a text is no [`Cidr`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an address or a CIDR, such as 10.0.0.1, 10.0.0.0/8 or fd00::/8")]
pub struct NoCidr;

// === impl Chain ===

impl Chain {
    /// Both, in the order in which they are loaded.
    pub const ALL: [Self; 2] = [Self::Output, Self::Prerouting];
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Output => "output",
            Self::Prerouting => "prerouting",
        })
    }
}

// === impl Family ===

impl From<SocketAddr> for Family {
    fn from(address: SocketAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

// === impl Cidr ===

impl Cidr {
    /// The addresses whose first `prefix` bits are those of `address`; `None` if
    /// it has fewer.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let network = match address {
            IpAddr::V4(address) => {
                let kept = 32u32.checked_sub(prefix.into())?;
                IpAddr::V4((address.to_bits() & u32::MAX.checked_shl(kept).unwrap_or(0)).into())
            }
            IpAddr::V6(address) => {
                let kept = 128u32.checked_sub(prefix.into())?;
                IpAddr::V6((address.to_bits() & u128::MAX.checked_shl(kept).unwrap_or(0)).into())
            }
        };
        Some(Self { network, prefix })
    }

    /// The first of them.
    pub fn network(self) -> IpAddr {
        self.network
    }

    /// How many bits they have in common.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether the address is among them.
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.network.is_ipv4()
            && Self::new(address, self.prefix).is_some_and(|same| same.network == self.network)
    }

    /// Whether it is a single address.
    pub fn is_one(self) -> bool {
        self.prefix == longest(self.network)
    }
}

/// How many bits an address has.
fn longest(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl From<IpAddr> for Cidr {
    fn from(address: IpAddr) -> Self {
        Self { network: address, prefix: longest(address) }
    }
}

impl FromStr for Cidr {
    type Err = NoCidr;

    fn from_str(text: &str) -> Result<Self, NoCidr> {
        let (address, prefix) = match text.split_once('/') {
            None => (text, None),
            Some((address, prefix)) => (address, Some(prefix)),
        };
        let address: IpAddr = address.parse().map_err(|_| NoCidr)?;
        match prefix {
            None => Ok(address.into()),
            // `parse` alone would take a plus sign.
            Some(prefix) if prefix.bytes().all(|b| b.is_ascii_digit()) => {
                prefix.parse().ok().and_then(|prefix| Self::new(address, prefix)).ok_or(NoCidr)
            }
            Some(_) => Err(NoCidr),
        }
    }
}

impl TryFrom<String> for Cidr {
    type Error = NoCidr;

    fn try_from(text: String) -> Result<Self, NoCidr> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { network, prefix } = self;
        if self.is_one() { write!(f, "{network}") } else { write!(f, "{network}/{prefix}") }
    }
}

// === impl Condition ===

impl Condition {
    /// What a packet has to carry before this can be looked for.
    pub(crate) fn protocol(self) -> Option<Protocol> {
        match self {
            Self::Port(protocol, _) => Some(protocol),
            Self::FirstPacket => Some(Protocol::Tcp),
            Self::User(_) | Self::Family(_) | Self::NotTcp | Self::OutOfLoopback | Self::To(_) => {
                None
            }
        }
    }
}

// === impl Rule ===

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.conditions {
            write!(f, "{condition} ")?;
        }
        write!(f, "{}", self.verdict)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => write!(f, "meta skuid {uid}"),
            Self::Family(Family::V4) => f.write_str("meta nfproto ipv4"),
            Self::Family(Family::V6) => f.write_str("meta nfproto ipv6"),
            Self::NotTcp => f.write_str("meta l4proto != tcp"),
            Self::OutOfLoopback => f.write_str("oif \"lo\""),
            Self::To(cidr) if cidr.network.is_ipv4() => write!(f, "ip daddr {cidr}"),
            Self::To(cidr) => write!(f, "ip6 daddr {cidr}"),
            Self::Port(Protocol::Tcp, port) => write!(f, "tcp dport {port}"),
            Self::Port(Protocol::Udp, port) => write!(f, "udp dport {port}"),
            Self::FirstPacket => f.write_str("tcp flags syn / fin,syn,rst,ack"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Return => f.write_str("return"),
            Self::Redirect(port) => write!(f, "redirect to :{port}"),
            Self::Dnat(to) if to.is_ipv4() => write!(f, "dnat ip to {to}"),
            Self::Dnat(to) => write!(f, "dnat ip6 to {to}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cidr_is_read_and_written() {
        for (text, written) in [
            ("10.77.0.1", "10.77.0.1"),
            ("10.77.0.1/32", "10.77.0.1"),
            ("10.77.3.1/22", "10.77.0.0/22"),
            ("10.77.3.1/0", "0.0.0.0/0"),
            ("::1", "::1"),
            ("fd12:3456::1/7", "fc00::/7"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), written, "{text}");
        }
        for text in ["", "10.0.0", "10.0.0.0/33", "::/129", "10.0.0.0/+8", "10.0.0.0/", "web/8"] {
            assert_eq!(text.parse::<Cidr>(), Err(NoCidr), "{text}");
        }
    }
}
